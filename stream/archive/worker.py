"""A worker of an archive run. It processes one task after another and keeps its model loaded."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from polypstream.archive.inputs import Item
from polypstream.archive.join import join_parts
from polypstream.archive.parts import BOUNDARY_FILES, CannotJoin, Plan, plan_parts, process_part
from polypstream.archive.storage import HIDDEN, PARTS, Store, fetched, open_store
from polypstream.core.config import Settings
from polypstream.core.time_range import TimeRange
from polypstream.core.watchdog import Watchdog
from polypstream.errors import DataError, PolypstreamError, SourceError
from polypstream.inference.model_card import SHIPPED, WEIGHTS, digest_of
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.process import Job, OnActivity, ProcessResult, process
from polypstream.jobs.setup import make_segmenter, with_inference
from polypstream.sinks.findings import read_findings
from polypstream.sources.open import open_source
from polypstream.sources.recording import results_stem

Kind = Literal["begin", "whole", "part", "join"]


@dataclass(frozen=True, slots=True)
class ArchiveJob:
    """What an archive run writes, and with which settings.

    Attributes:
        output: path or address of the results' folder.
        settings: settings of the runs.
        masks: write masks.mkv too.
        part_seconds: approximate length of the parts into which a recording is cut, in seconds; 0: never cut.
        version: version of polypstream.
    """

    output: str
    settings: Settings
    masks: bool
    part_seconds: float
    version: str = field(default_factory=lambda: version("polypstream"))

    def facts(self) -> dict[str, Any]:
        """Everything that affects the results, except the machine. All results in a folder have the same values."""
        settings = self.settings.model_dump(mode="json")
        model = settings.pop("inference")["model"]
        digest = None if model in (SHIPPED, *WEIGHTS) or not Path(model).is_file() else digest_of(Path(model))
        return {"settings": settings, "masks": self.masks, "version": self.version, "model": [model, digest]}


@dataclass(frozen=True, slots=True)
class Task:
    """A task for a worker.

    Attributes:
        kind: "begin" processes a short recording, or makes a plan for a long one. "whole" processes a recording of any
            length. "part" processes one part of the plan. "join" joins the parts.
        item: the recording.
        plan: plan for "part" and "join".
        part: number of the part.
        continues: the results of the part before exist, and the stages continue from their state.
    """

    kind: Kind
    item: Item
    plan: Plan | None = None
    part: int = 0
    continues: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a task.

    Attributes:
        run: the results; None: there are none.
        tracks: number of tracks in the results of a whole recording.
        plan: plan of a recording that is to be processed in parts.
        problem: why there are no results, or not all; empty if there is no problem.
        broken: the recording is the cause, so another attempt would fail too.
        retry_whole: process the recording again as a whole.
        seconds: time that the worker spent.
    """

    run: ProcessResult | None = None
    tracks: int = 0
    plan: Plan | None = None
    problem: str = ""
    broken: bool = False
    retry_whole: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Engine:
    """What determines a result to the last grey level.

    Attributes:
        provider: execution provider of the model.
        model: digest of the model file.
    """

    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Description of a worker that has started.

    Attributes:
        node: name of its machine.
        version: version of polypstream.
        engine: its engine; None: it could not start.
        problem: why it cannot work; empty if it can.
    """

    node: str
    version: str
    engine: Engine | None = None
    problem: str = ""


class Worker:
    """Processes tasks one after another.

    Args:
        job: what to process and how.
        threads: number of CPU threads for the model, if the settings do not give one; 0: the provider's default.
        provider: execution provider of the other workers, so that the results are alike; None: as in the settings.
    """

    _segmenter: Segmenter
    _store: Store

    def __init__(self, job: ArchiveJob, threads: int, provider: str | None = None) -> None:
        self._job, self._threads, self._provider = job, threads, provider

    def start(self) -> WorkerInfo:
        """Load the model. Must be called before any task.

        Returns:
            Description of the worker. It contains the error if loading failed.
        """
        info = WorkerInfo(platform.node(), version("polypstream"))
        try:
            self._store = open_store(self._job.output)
            self._segmenter = make_segmenter(self._own_settings())
        except PolypstreamError as error:
            return replace(info, problem=str(error))
        return replace(info, engine=Engine(self._segmenter.provider, digest_of(self._segmenter.model)))

    def _own_settings(self) -> Settings:
        """Settings with the threads and the provider of this worker. The results state the settings without them."""
        settings = self._job.settings
        threads = settings.inference.threads or self._threads
        return with_inference(settings, threads=threads, provider=self._provider)

    def work(self, task: Task) -> Outcome:
        """Process a task. Errors are returned in the outcome, not raised.

        Args:
            task: the task.
        """
        started, in_parts = time.monotonic(), task.kind in ("part", "join")
        try:
            outcome = self._do(task)
        except (CannotJoin, DataError) as error:  # the results of its parts cannot be used
            outcome = Outcome(problem=str(error), retry_whole=in_parts)
        except SourceError as error:
            # Damage of a part is reported once, for the whole recording.
            outcome = Outcome(problem=str(error), broken=True, retry_whole=in_parts)
        except Exception as error:
            message = str(error) if isinstance(error, PolypstreamError) else f"{type(error).__name__}: {error}"
            outcome = Outcome(problem=message)
        return replace(_without_names(outcome, task.item), seconds=time.monotonic() - started)

    def _do(self, task: Task) -> Outcome:
        item, plan = task.item, task.plan
        with (
            fetched(item.location) as path,
            self._store.working_folder() as working_folder,
            _label_in_errors(item, path),
        ):
            if task.kind == "begin":
                plan = self._plan(path, item.times)
                if plan is not None:
                    return Outcome(plan=plan)
            if task.kind == "part" and plan is not None:
                return self._part(task, plan, path, working_folder)
            with Watchdog() as watchdog:
                if plan is None:
                    run = process(
                        self._job_of(item, path, working_folder),
                        self._segmenter,
                        self._job.settings,
                        on_activity=watchdog.note,
                    )
                else:
                    run = self._join(item, plan, path, working_folder, watchdog.note)
            tracks = len(read_findings(run.folder)["tracks"])
            self._store.publish(run.folder, item.name)
            problem = run.problem.replace(str(run.folder), f"{self._store.root}/{item.name}")
            return Outcome(run, tracks, problem=problem, broken=bool(problem))

    def _job_of(self, item: Item, path: Path, folder: Path) -> Job:
        name = item.name if item.is_hashed else None
        title = item.label if item.is_hashed else item.location
        return Job(str(path), folder, self._job.masks, name=name, title=title, times=item.times)

    def _plan(self, path: Path, times: TimeRange | None) -> Plan | None:
        source = open_source(str(path))
        try:
            # A range is most often short. It is processed as a whole.
            return plan_parts(source, self._job.settings, 0 if times else self._job.part_seconds)
        finally:
            source.close()

    def _part(self, task: Task, plan: Plan, path: Path, working_folder: Path) -> Outcome:
        item, part = task.item, plan.parts[task.part]
        folder = working_folder / "part"
        folder.mkdir()
        job = self._job_of(item, path, folder)
        with self._previous_results(task, plan) as before, Watchdog() as watchdog:
            run = process_part(job, plan, part, before, self._segmenter, self._job.settings, watchdog.note)
        if run.damage:
            raise SourceError("; ".join(run.damage))
        self._store.publish(folder, part_name(item, plan, task.part))
        return Outcome(run)

    def _previous_results(self, task: Task, plan: Plan) -> AbstractContextManager[Path | None]:
        if not task.continues:
            return nullcontext()
        return self._store.local_folder(part_name(task.item, plan, task.part - 1), BOUNDARY_FILES)

    def _join(self, item: Item, plan: Plan, path: Path, working_folder: Path, on_activity: OnActivity) -> ProcessResult:
        folder = working_folder / (item.name if item.is_hashed else results_stem(path))
        folder.mkdir()
        with self._store.local_folder(parts_name(item, plan)) as parts:
            names = [parts / str(part.number) for part in plan.parts]
            return join_parts(path, plan, names, folder, self._job.settings, self._job.masks, on_activity)


def parts_name(item: Item, plan: Plan) -> str:
    """Name in the storage of the folder where the parts of a recording are kept until they are joined.

    Args:
        item: the recording.
        plan: its plan.
    """
    key = f"{item.address}\n{item.version}\n{plan}".encode("utf-8", "surrogateescape")
    return f"{HIDDEN}/{PARTS}/{hashlib.sha256(key).hexdigest()[:16]}"


def part_name(item: Item, plan: Plan, number: int) -> str:
    """Name in the storage of one part.

    Args:
        item: the recording.
        plan: its plan.
        number: number of the part.
    """
    return f"{parts_name(item, plan)}/{number}"


@contextmanager
def _label_in_errors(item: Item, path: Path) -> Iterator[None]:
    """Replace the path of a local copy in error messages with what the recording is called."""
    try:
        yield
    except PolypstreamError as error:
        raise type(error)(str(error).replace(str(path), item.label)) from error


def _without_names(outcome: Outcome, item: Item) -> Outcome:
    """The outcome for the ledger: if names are hashed, no text in it holds the address or the name of the recording."""
    if not item.is_hashed:
        return outcome

    def hashed(text: str) -> str:
        # An object store says its addresses without the scheme.
        for secret in (item.location, item.location.rpartition("://")[2], PurePosixPath(item.location).name):
            text = text.replace(secret, item.name)
        return text

    run = outcome.run and replace(outcome.run, notes=[hashed(note) for note in outcome.run.notes])
    return replace(outcome, run=run, problem=hashed(outcome.problem))
