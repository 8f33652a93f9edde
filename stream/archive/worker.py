"""What one worker of an archive does: a task in, its outcome out; it keeps its model between tasks."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from polypstream.archive.inputs import Item
from polypstream.archive.join import join_parts
from polypstream.archive.parts import BOUNDARY_FILES, CannotJoin, Plan, plan_parts, process_part
from polypstream.archive.storage import HIDDEN, PARTS, Store, fetched, open_store
from polypstream.core.config import Settings
from polypstream.core.watchdog import Watchdog
from polypstream.errors import DataError, PolypstreamError, SourceError
from polypstream.inference.model_card import SHIPPED, WEIGHTS
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.process import OnActivity, ProcessResult, process
from polypstream.jobs.setup import make_segmenter
from polypstream.sources.open import open_source
from polypstream.sources.recording import results_stem

Kind = Literal["begin", "whole", "part", "join"]


@dataclass(frozen=True, slots=True)
class Order:
    """What the results of an archive are made with.

    Attributes:
        output: path or address of the results' folder.
        settings: of the runs.
        masks: write masks.mkv too.
        part_seconds: a recording is cut into parts of about so many seconds; 0: it never is.
        version: of polypstream.
    """

    output: str
    settings: Settings
    masks: bool
    part_seconds: float
    version: str = field(default_factory=lambda: version("polypstream"))

    def facts(self) -> dict[str, Any]:
        """What results are made with, apart from the machine: only results of the same may lie together."""
        settings = self.settings.model_dump(mode="json")
        model = settings.pop("inference")["model"]
        digest = None if model in (SHIPPED, *WEIGHTS) or not Path(model).is_file() else digest_of(Path(model))
        return {"settings": settings, "masks": self.masks, "version": self.version, "model": [model, digest]}


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is to do with a recording.

    Attributes:
        kind: "begin" processes a short recording and makes a plan for a long one, "whole" processes it however long it
            is, "part" one part of the plan, "join" puts them together.
        item: the recording.
        plan: for "part" and "join".
        part: number of the part.
        goes_on: the results of the part before are there and are gone on from.
    """

    kind: Kind
    item: Item
    plan: Plan | None = None
    part: int = 0
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        run: if there are results: where they are, and what is to be known of them.
        plan: of a recording that is to be processed in parts.
        problem: why there is nothing, or not all.
        broken: it is the recording's fault, so that another try is of no use.
        as_a_whole: it is to be tried as a whole.
        seconds: that the worker spent.
    """

    run: ProcessResult | None = None
    plan: Plan | None = None
    problem: str = ""
    broken: bool = False
    as_a_whole: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Engine:
    """What decides a result to the last grey level.

    Attributes:
        provider: that the model runs on.
        model: digest of its file.
    """

    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class About:
    """What a worker says of itself.

    Attributes:
        node: name of its machine.
        version: of polypstream.
        engine: what it works with.
        problem: why it cannot work.
    """

    node: str
    version: str
    engine: Engine | None = None
    problem: str = ""


class Worker:
    """Does tasks one after another.

    Args:
        order: what for.
        threads: CPU threads for the model, unless the settings say how many; 0: as many as the provider takes.
    """

    _segmenter: Segmenter
    _store: Store

    def __init__(self, order: Order, threads: int) -> None:
        self._order, self._threads = order, threads

    def begin(self) -> About:
        """Load the model, and say how that went; before any task."""
        here = About(platform.node(), version("polypstream"))
        try:
            self._store = open_store(self._order.output)
            self._segmenter = make_segmenter(self._sharing())
        except PolypstreamError as error:
            return replace(here, problem=str(error))
        return replace(here, engine=Engine(self._segmenter.provider, digest_of(self._segmenter.model)))

    def _sharing(self) -> Settings:
        """The settings as this worker's share of its machine allows; results say those that were asked for."""
        settings = self._order.settings
        threads = settings.inference.threads or self._threads
        return settings.model_copy(update={"inference": settings.inference.model_copy(update={"threads": threads})})

    def work(self, task: Task) -> Outcome:
        """Do a task; what goes wrong is told, not raised."""
        started, in_parts = time.monotonic(), task.kind in ("part", "join")
        try:
            outcome = self._do(task)
        except (CannotJoin, DataError) as error:  # the results of its parts are of no use
            outcome = Outcome(problem=str(error), as_a_whole=in_parts)
        except SourceError as error:
            # A part's damage is told as that of the recording: as a whole, once.
            outcome = Outcome(problem=str(error), broken=True, as_a_whole=in_parts)
        except Exception as error:
            said = str(error) if isinstance(error, PolypstreamError) else f"{type(error).__name__}: {error}"
            outcome = Outcome(problem=said)
        return replace(outcome, seconds=time.monotonic() - started)

    def _do(self, task: Task) -> Outcome:
        item, plan = task.item, task.plan
        with fetched(item.address) as path, self._store.working() as working, _called(item.address, path):
            if task.kind == "begin":
                plan = self._plan(path)
                if plan is not None:
                    return Outcome(plan=plan)
            if task.kind == "part" and plan is not None:
                return self._part(task, plan, path, working)
            with Watchdog() as watchdog:
                if plan is None:
                    run = process(str(path), working, *self._how, title=item.address, on_activity=watchdog.note)
                else:
                    run = self._join(item, plan, path, working, watchdog.note)
            self._store.publish(run.folder, item.name)
            problem = run.problem.replace(str(run.folder), f"{self._store.root}/{item.name}")
            return Outcome(run, problem=problem, broken=bool(problem))

    def _plan(self, path: Path) -> Plan | None:
        source = open_source(str(path))
        try:
            return plan_parts(source, self._order.settings, self._order.part_seconds)
        finally:
            source.close()

    def _part(self, task: Task, plan: Plan, path: Path, working: Path) -> Outcome:
        item, part = task.item, plan.parts[task.part]
        folder = working / "part"
        folder.mkdir()
        with self._before(task, plan) as before, Watchdog() as watchdog:
            run = process_part(path, item.address, plan, part, folder, before, *self._how, watchdog.note)
        if run.damage:
            raise SourceError("; ".join(run.damage))
        self._store.publish(folder, part_name(item, plan, task.part))
        return Outcome(run)

    def _before(self, task: Task, plan: Plan) -> AbstractContextManager[Path | None]:
        if not task.goes_on:
            return nullcontext()
        return self._store.looking(part_name(task.item, plan, task.part - 1), BOUNDARY_FILES)

    def _join(self, item: Item, plan: Plan, path: Path, working: Path, on_activity: OnActivity) -> ProcessResult:
        folder = working / results_stem(path)
        folder.mkdir()
        with self._store.looking(parts_name(item, plan)) as parts:
            names = [parts / str(part.number) for part in plan.parts]
            return join_parts(path, plan, names, folder, self._order.settings, self._order.masks, on_activity)

    @property
    def _how(self) -> tuple[Segmenter, Settings, bool]:
        return self._segmenter, self._order.settings, self._order.masks


def digest_of(file: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def parts_name(item: Item, plan: Plan) -> str:
    """Where the parts of a recording wait to be joined."""
    told = f"{item.address}\n{item.version}\n{plan}".encode("utf-8", "surrogateescape")
    return f"{HIDDEN}/{PARTS}/{hashlib.sha256(told).hexdigest()[:16]}"


def part_name(item: Item, plan: Plan, number: int) -> str:
    """Where one part waits."""
    return f"{parts_name(item, plan)}/{number}"


@contextmanager
def _called(address: str, path: Path) -> Iterator[None]:
    """Errors call a recording by its address, not by that of its copy here."""
    try:
        yield
    except PolypstreamError as error:
        raise type(error)(str(error).replace(str(path), address)) from error
