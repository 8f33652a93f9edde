"""Workers in Ray actors, on this machine or on a cluster; one that dies gives its task back and is replaced.

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
from typing import Any, NamedTuple

from polypstream.archive.worker import About, Engine, Order, Outcome, Task, Worker
from polypstream.core.extras import extra
from polypstream.errors import PolypstreamError, SettingsError

log = logging.getLogger(__name__)
# CPUs of one worker, where there is no GPU: decoder, network and encoder keep so many busy.
CPU_SHARE = 4
GPU_PROVIDERS = ("cuda", "tensorrt", "auto")
# Nothing big goes through Ray's object store: results go by the storage.
OBJECT_STORE_BYTES = 100_000_000
# So many workers in a row may die before they were ready, with longer and longer waits between them, in which a cluster
# finds out that a node is gone; then what kills them is not chance.
MAX_START_FAILURES = 6
# A worker that cannot be had is mentioned after so long, and again.
PATIENCE_S = 30.0
REACHABLE_S = 10.0


class Share(NamedTuple):
    """How many workers there are, and what each has.

    Attributes:
        workers: how many.
        cpus: of each; may be a fraction.
        gpus: of each; likewise, and 0 where there are none.
    """

    workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """For the model of each."""
        return max(1, int(self.cpus))


def share_out(nodes: list[dict[str, float]], wanted: int | None, provider: str) -> Share:
    """One worker for each GPU, or else for each CPU_SHARE of CPUs.

    Args:
        nodes: resources of each, as Ray names them: CPU and GPU.
        wanted: so many workers instead.
        provider: the execution provider that the settings ask for.
    """
    cpus = [node.get("CPU", 0.0) for node in nodes]
    gpus = int(sum(node.get("GPU", 0.0) for node in nodes)) if provider in GPU_PROVIDERS else 0
    workers = wanted or gpus or sum(max(1, int(count // CPU_SHARE)) for count in cpus if count)
    on_a_gpu = math.ceil(workers / gpus) if gpus else 1
    return Share(workers, _fair_share(cpus, workers), _part_of(1, on_a_gpu) if gpus else 0.0)


def _fair_share(cpus: list[float], workers: int) -> float:
    """The most CPUs that so many workers can each have, each on one node."""
    for share in range(int(sum(cpus)) // max(workers, 1), 0, -1):
        if sum(int(count // share) for count in cpus) >= workers:
            return share
    return _part_of(sum(cpus), workers)


def _part_of(whole: float, workers: int) -> float:
    """What each of some workers has at most of a thing, 1 or less, rounded down to what Ray counts in."""
    return min(1.0, math.floor(whole / max(workers, 1) * 100) / 100)


@dataclass(slots=True)
class _WorkerSlot:
    """A worker on the way, idle, or at a task."""

    actor: Any
    ref: Any = None
    task: Task | None = None
    node: str = ""


def _check_reachable(address: str) -> None:
    """See that somebody listens at HOST:PORT: Ray ends the whole process if nobody does.

    Raises:
        OSError, ValueError: nobody does, or it is no address.
    """
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE_S).close()


class Pool:
    """The workers of an archive.

    Args:
        order: what they are for.
        address: of a Ray cluster ("auto", "ray://host:10001", "host:6379"); None: Ray is started on this machine.
        workers: how many; None: as `share_out` says.
        engine: what the workers must work with; None: as the first of them does.

    Attributes:
        engine: what they work with, once it is known.

    Raises:
        MissingExtra: Ray is not installed.
        SettingsError: there is no such cluster, or no CPU in it.
    """

    def __init__(
        self,
        order: Order,
        address: str | None,
        workers: int | None,
        engine: Engine | None = None,
    ) -> None:
        with extra("cluster"):
            # Set before the import: what a hospital's machine does is nobody else's business.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
        self._ray, self._order = ray, order
        self._connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.share = share_out(nodes, workers, order.settings.inference.provider)
        if not self.share.cpus:
            raise SettingsError("--address: the cluster has no CPUs")
        self._hands: list[_WorkerSlot] = []
        self.engine = engine
        self._stillborn = 0
        # When workers are asked for in the place of dead ones.
        self._vacant: list[float] = []
        self._mentioned = time.monotonic()
        for _ in range(self.share.workers):
            self._make_workers()

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
                with warnings.catch_warnings(action="ignore"):  # what is wrong is said below
                    try:
                        self._ray.init(address=address, **quiet)
                    except ConnectionError:  # a busy head may need longer for one more client than Ray waits
                        self._ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            where = "on this machine" if address is None else f"at {address}"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if address is not None and address.startswith("ray://"):
                reason += "; where a cluster asks for a token, set RAY_AUTH_MODE=token, and see docs/scaling.md"
            raise SettingsError(f"--address: no Ray cluster can be had {where} ({reason})") from error

    def _make_workers(self) -> None:
        """Ask Ray for one more worker; it comes when there is stage for it."""
        share = self.share
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": "SPREAD", "max_restarts": 0}
        actor = self._ray.remote(**options)(Worker).remote(self._order, share.threads)
        self._hands.append(_WorkerSlot(actor, actor.begin.remote()))

    @property
    def idle(self) -> int:
        """How many workers wait for a task."""
        return sum(hand.ref is None for hand in self._hands)

    @property
    def busy(self) -> int:
        """How many are at one."""
        return sum(hand.task is not None for hand in self._hands)

    def give(self, task: Task) -> None:
        """Give a task to an idle worker."""
        hand = next(hand for hand in self._hands if hand.ref is None)
        hand.task, hand.ref = task, hand.actor.work.remote(task)

    def wait(self, seconds: float) -> Iterator[tuple[Task, Outcome | None]]:
        """What was done in the meantime; None: the worker died.

        Raises:
            PolypstreamError: no worker can work.
        """
        for hand in self._speaking(seconds):
            task, hand.task = hand.task, None
            said = self._hear(hand)
            if task is not None:
                yield task, said
        for due in [due for due in self._vacant if due <= time.monotonic()]:
            self._vacant.remove(due)
            self._make_workers()
        self._mention_missing()

    def _speaking(self, seconds: float) -> list[_WorkerSlot]:
        """Those that have something to say, waited for so long at most."""
        refs = [hand.ref for hand in self._hands if hand.ref is not None]
        if not refs:
            time.sleep(seconds)
            return []
        try:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
            ready = ready or self._ray.wait(refs, timeout=seconds)[0]
        except ConnectionError as error:
            raise PolypstreamError(f"the Ray cluster was lost ({error}); the same command goes on") from error
        return [hand for hand in self._hands if hand.ref in ready]

    def _hear(self, hand: _WorkerSlot) -> Outcome | None:
        """What a worker says; one that died is replaced."""
        try:
            said = self._ray.get(hand.ref)
        except self._ray.exceptions.RayError as error:
            self._replace(hand, str(error).strip().splitlines()[-1])
            return None
        hand.ref = None
        if isinstance(said, About):
            self._admit(hand, said)
            return None
        outcome: Outcome = said
        return outcome

    def _replace(self, hand: _WorkerSlot, reason: str) -> None:
        self._hands.remove(hand)
        self._ray.kill(hand.actor)
        if hand.node:
            log.warning(f"a worker on {hand.node} died; its work is done by another ({reason})")
        else:
            self._stillborn += 1
        if hand.node or self._stillborn <= MAX_START_FAILURES:
            self._vacant.append(time.monotonic() + (0 if hand.node else self._stillborn))
        elif not self._hands and not self._vacant:
            raise PolypstreamError(f"no worker could be started ({reason})")

    def _admit(self, hand: _WorkerSlot, about: About) -> None:
        """See that a worker's results will be like the others'."""
        hand.node, self._stillborn = about.node, 0
        wanted, problem = self.engine or about.engine, about.problem
        if about.version != self._order.version:
            problem = f"it has polypstream {about.version}, this is {self._order.version}"
        elif wanted and about.engine and about.engine != wanted:
            what = f"runs on {about.engine.provider} instead of {wanted.provider}"
            if about.engine.provider == wanted.provider:
                what = "has another model file"
            problem = f"it {what}, and its results would differ from those of the others"
        if not problem:
            self.engine = wanted
            return
        self._hands.remove(hand)
        self._ray.kill(hand.actor)
        if not self._hands:
            raise PolypstreamError(f"a worker on {about.node}: {problem}")
        log.warning(f"a worker on {about.node} is not used: {problem}")

    def _mention_missing(self) -> None:
        missing = sum(not hand.node for hand in self._hands) + len(self._vacant)
        if missing and time.monotonic() - self._mentioned > PATIENCE_S:
            self._mentioned = time.monotonic()
            log.warning(
                f"{missing} of {self.share.workers} workers are not ready yet: they load their model, or wait for "
                f"{self.share.cpus:g} CPUs" + (" and a GPU" if self.share.gpus else "") + " that are free"
            )

    def close(self) -> None:
        """Let all workers go, and Ray too, if it was started for this."""
        for hand in self._hands:
            self._ray.kill(hand.actor)
        self._ray.shutdown()
