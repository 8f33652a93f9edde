"""Workers as Ray actors, on this machine or on a cluster. A worker that dies is replaced, and its task is returned.

Source: Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

from polypstream.archive.worker import ArchiveJob, Engine, Outcome, Task, Worker, WorkerInfo
from polypstream.core.extras import extra
from polypstream.errors import PolypstreamError, SettingsError

log = logging.getLogger(__name__)
# CPUs of one worker if there is no GPU: decoder, model and encoder use this many.
CPUS_PER_WORKER = 4
GPU_PROVIDERS = ("cuda", "tensorrt", "auto")
# Ray's object store transfers no large objects: results are exchanged through the storage.
OBJECT_STORE_BYTES = 100_000_000
# This many workers in a row may die before they are ready. The waits between them increase, so that a cluster can
# detect that a node is gone. More deaths than this have a systematic cause.
MAX_START_FAILURES = 6
# Seconds after which the user is warned of missing workers, and between two such warnings.
WARNING_INTERVAL_S = 30.0
CONNECT_TIMEOUT_S = 10.0


def import_ray() -> Any:
    """Import Ray.

    Returns:
        The module.

    Raises:
        MissingExtra: Ray is not installed.
    """
    with extra("cluster"):
        # Set before the import: Ray must not send usage data of a hospital's machine to anyone.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    return ray


class Share(NamedTuple):
    """Number of workers, and the resources of each.

    Attributes:
        workers: number of workers.
        cpus: CPUs of each; may be a fraction.
        gpus: GPUs of each; may be a fraction, 0 if there are none.
    """

    workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Number of CPU threads for the model of each worker."""
        return max(1, int(self.cpus))


def share_out(nodes: list[dict[str, float]], wanted: int | None, provider: str) -> Share:
    """Divide the resources of a cluster: one worker for each GPU, or else for each CPUS_PER_WORKER CPUs.

    Args:
        nodes: resources of each node, by Ray's names CPU and GPU.
        wanted: number of workers instead; None: as above.
        provider: execution provider that the settings ask for.
    """
    cpus = [node.get("CPU", 0.0) for node in nodes]
    gpus = int(sum(node.get("GPU", 0.0) for node in nodes)) if provider in GPU_PROVIDERS else 0
    workers = wanted or gpus or sum(max(1, int(count // CPUS_PER_WORKER)) for count in cpus if count)
    on_a_gpu = math.ceil(workers / gpus) if gpus else 1
    return Share(workers, _fair_share(cpus, workers), _part_of(1, on_a_gpu) if gpus else 0.0)


def _fair_share(cpus: list[float], workers: int) -> float:
    """The most CPUs that each worker can have. All CPUs of a worker are on one node."""
    for share in range(int(sum(cpus)) // max(workers, 1), 0, -1):
        if sum(int(count // share) for count in cpus) >= workers:
            return share
    return _part_of(sum(cpus), workers)


def _part_of(whole: float, workers: int) -> float:
    """Equal share of a resource, at most 1, rounded down to hundredths, the unit that Ray counts in."""
    return min(1.0, math.floor(whole / max(workers, 1) * 100) / 100)


class _State(Enum):
    """State of a worker."""

    STARTING = auto()
    """Ray allocates its resources, or it loads the model."""
    IDLE = auto()
    """It waits for a task."""
    BUSY = auto()
    """It processes a task."""


@dataclass(slots=True)
class _WorkerSlot:
    """A worker.

    Attributes:
        actor: its Ray actor.
        result: Ray's reference to the result of its current call; None: it is idle.
        provider: the execution provider that it was told to use; None: it chooses the fastest one.
        state: its state.
        task: the task that it processes; None: it is not busy.
        node: name of its machine; empty while it starts.
    """

    actor: Any
    result: Any
    provider: str | None = None
    state: _State = _State.STARTING
    task: Task | None = None
    node: str = ""


def _check_reachable(address: str) -> None:
    """Check that HOST:PORT accepts connections. Otherwise Ray would end the whole process.

    Raises:
        OSError: it does not.
        ValueError: the address has another form.
    """
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


class Pool:
    """The workers of an archive run.

    Args:
        job: what the workers process and how.
        address: address of a Ray cluster ("auto", "ray://host:10001", "host:6379"); None: start Ray on this machine.
        workers: number of workers; None: as `share_out` computes it.
        engine: engine that all workers must have; None: the engine of the first worker that is ready.

    Attributes:
        engine: engine of the workers; None: not known yet.

    Raises:
        MissingExtra: Ray is not installed.
        SettingsError: there is no such cluster, or it has no CPU.
    """

    def __init__(
        self,
        job: ArchiveJob,
        address: str | None,
        workers: int | None,
        engine: Engine | None = None,
    ) -> None:
        self._ray, self._job = import_ray(), job
        self._connect(address)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self.share = share_out(nodes, workers, job.settings.inference.provider)
        if not self.share.cpus:
            raise SettingsError("--address: the cluster has no CPUs")
        self._slots: list[_WorkerSlot] = []
        self.engine = engine
        # Workers that died in a row while they started.
        self._start_failures = 0
        # Times at which replacements of dead workers are started.
        self._restart_times: list[float] = []
        self._last_warning = time.monotonic()
        for _ in range(self.share.workers):
            self._start_worker()

    def _connect(self, address: str | None) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address is None:
                self._ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
            else:
                _check_reachable(address)
                with warnings.catch_warnings(action="ignore"):  # problems are reported below
                    try:
                        self._ray.init(address=address, **quiet)
                    except ConnectionError:  # a busy head node may need longer for another client than Ray waits
                        self._ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if address is None:
                raise PolypstreamError(f"Ray cannot be started on this machine ({reason})") from error
            if address.startswith("ray://"):
                reason += "; if the cluster requires a token, set RAY_AUTH_MODE=token, see docs/scaling.md"
            raise SettingsError(f"--address: no running Ray cluster found at {address} ({reason})") from error

    def _start_worker(self) -> None:
        """Ask Ray for one more worker, with the provider of the others. It starts when enough resources are free."""
        share = self.share
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": "SPREAD", "max_restarts": 0}
        wanted = self._job.settings.inference.provider
        provider = wanted if wanted != "auto" else self.engine.provider if self.engine else None
        actor = self._ray.remote(**options)(Worker).remote(self._job, share.threads, provider)
        self._slots.append(_WorkerSlot(actor, actor.start.remote(), provider))

    @property
    def idle(self) -> int:
        """Number of workers that wait for a task."""
        return sum(slot.state is _State.IDLE for slot in self._slots)

    @property
    def busy(self) -> int:
        """Number of workers that process a task."""
        return sum(slot.state is _State.BUSY for slot in self._slots)

    def submit(self, task: Task) -> None:
        """Submit a task to an idle worker. There must be one.

        Args:
            task: the task.
        """
        slot = next(slot for slot in self._slots if slot.state is _State.IDLE)
        slot.state, slot.task, slot.result = _State.BUSY, task, slot.actor.work.remote(task)

    def wait(self, seconds: float) -> Iterator[tuple[Task, Outcome | None]]:
        """Wait until workers are done with tasks, and replace workers that died.

        Args:
            seconds: longest time to wait.

        Yields:
            Each task that ended, and its outcome; None: the worker died.

        Raises:
            PolypstreamError: no worker can work, or the cluster was lost.
        """
        for slot in self._ready_slots(seconds):
            task, outcome = slot.task, self._receive(slot)
            if task is not None:
                yield task, outcome
        for due in [due for due in self._restart_times if due <= time.monotonic()]:
            self._restart_times.remove(due)
            self._start_worker()
        self._warn_about_missing()

    def _ready_slots(self, seconds: float) -> list[_WorkerSlot]:
        """Workers whose current call has ended. Waits at most this long for the first one."""
        results = [slot.result for slot in self._slots if slot.result is not None]
        if not results:
            time.sleep(seconds)
            return []
        try:
            ready, _ = self._ray.wait(results, num_returns=len(results), timeout=0)
            ready = ready or self._ray.wait(results, timeout=seconds)[0]
        except ConnectionError as error:
            raise PolypstreamError(
                f"the connection to the Ray cluster was lost ({error}); run the same command again to continue"
            ) from error
        return [slot for slot in self._slots if slot.result in ready]

    def _receive(self, slot: _WorkerSlot) -> Outcome | None:
        """Get the result of a worker's call. A worker that died is replaced.

        Returns:
            Outcome of its task; None: it had none, or died.
        """
        try:
            result = self._ray.get(slot.result)
        except self._ray.exceptions.RayError as error:
            self._replace(slot, str(error).strip().splitlines()[-1])
            return None
        slot.state, slot.task, slot.result = _State.IDLE, None, None
        if isinstance(result, WorkerInfo):
            self._check_worker(slot, result)
            return None
        outcome: Outcome = result
        return outcome

    def _remove(self, slot: _WorkerSlot) -> None:
        self._slots.remove(slot)
        self._ray.kill(slot.actor)

    def _replace(self, slot: _WorkerSlot, reason: str) -> None:
        self._remove(slot)
        had_started = slot.state is not _State.STARTING
        if had_started:
            log.warning(f"a worker on {slot.node} died; another worker repeats its task ({reason})")
        else:
            self._start_failures += 1
        if had_started or self._start_failures <= MAX_START_FAILURES:
            self._restart_times.append(time.monotonic() + (0 if had_started else self._start_failures))
        elif not self._slots and not self._restart_times:
            raise PolypstreamError(f"no worker could be started ({reason})")

    def _check_worker(self, slot: _WorkerSlot, info: WorkerInfo) -> None:
        """Check that a new worker gives the same results as the others; if not, remove it."""
        slot.node, self._start_failures = info.node, 0
        wanted, problem = self.engine or info.engine, info.problem
        if info.version != self._job.version:
            problem = f"it has polypstream {info.version}, but this machine has {self._job.version}"
        elif wanted and info.engine and info.engine != wanted:
            if slot.provider is None and info.engine.provider != wanted.provider:
                self._remove(slot)
                self._start_worker()
                return
            what = f"runs on {info.engine.provider} instead of {wanted.provider}"
            if info.engine.provider == wanted.provider:
                what = "has another model file"
            problem = f"it {what}, and its results would differ from those of the others"
        if not problem:
            self.engine = wanted
            return
        self._remove(slot)
        if not self._slots:
            raise PolypstreamError(f"a worker on {info.node}: {problem}")
        log.warning(f"a worker on {info.node} is not used: {problem}")

    def _warn_about_missing(self) -> None:
        missing = sum(slot.state is _State.STARTING for slot in self._slots) + len(self._restart_times)
        if missing and time.monotonic() - self._last_warning > WARNING_INTERVAL_S:
            self._last_warning = time.monotonic()
            log.warning(
                f"{missing} of {self.share.workers} workers are not ready yet: they load the model, or wait for "
                f"{self.share.cpus:g} free CPUs" + (" and a free GPU" if self.share.gpus else "")
            )

    def close(self) -> None:
        """End all workers, and Ray too if this pool started it."""
        for slot in self._slots:
            self._ray.kill(slot.actor)
        self._ray.shutdown()
