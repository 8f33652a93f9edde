"""`polypstream archive`: many recordings, by many workers, on one machine or a cluster of them.

The driver, which this is, only decides who does what next and keeps the ledger. Where recordings are left, each worker
goes through one from its beginning; where none are, it takes a part from the middle of what is left of another's, whose
first pictures it has then to see twice.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from stream.archive_worker import Engine, Order, Outcome, Task, part_name, parts_name
from stream.errors import DataError, OutputError
from stream.join import fits
from stream.ledger import LEDGER, Ledger, Row, State
from stream.parts import JOINT_FILES, Plan
from stream.sinks.files import writing
from stream.storage import (
    AT_WORK,
    HIDDEN,
    LAST_FILE,
    PARTS,
    Item,
    Store,
    find_recordings,
    is_address,
    open_store,
)

# A recording whose worker died so often is given up: it may be what kills them.
MOST_DEATHS = 3
POLL_S = 1.0
# The ledger of an object store is kept here, and copied there so often.
COPY_S = 5.0
FINISHED = (State.DONE, State.BROKEN)
LOCK = "lock.sqlite"


class Workers(Protocol):
    """What the driver needs of a pool of workers; `stream.cluster.Pool` is one."""

    engine: Engine | None

    @property
    def idle(self) -> int: ...

    @property
    def busy(self) -> int: ...

    def give(self, task: Task) -> None: ...

    def wait(self, seconds: float) -> Iterator[tuple[Task, Outcome | None]]: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class InParts:
    """A recording on its way through the workers in parts.

    Attributes:
        plan: where it is cut.
        waiting: numbers of the parts that nobody has.
        done: of those whose results are there.
        true: the parts before this one are as those of the whole recording.
        joining: the parts are being joined.
    """

    plan: Plan
    waiting: set[int]
    done: set[int] = field(default_factory=set)
    true: int = 0
    joining: bool = False

    def next(self, may_guess: bool) -> int | None:
        """A part that goes on from one that is done or begins the recording; else, if it may, one from the middle."""
        ready = [number for number in self.waiting if number == 0 or number - 1 in self.done]
        if ready:
            return min(ready)
        if not may_guess or not self.waiting:
            return None
        return _middle_of_longest_run(sorted(self.waiting))


def _middle_of_longest_run(numbers: Sequence[int]) -> int:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    longest = max(runs, key=len)
    return longest[len(longest) // 2]


class Archive:
    """The recordings that are to be processed, and how far they are.

    Args:
        store: of the results.
        ledger: of all recordings.
        todo: those to process now.
        workers: that do it.
        tell: is given each row of the ledger that is finished.
        poll: told the bytes of recordings done and all bytes, now and then.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        todo: Sequence[Item],
        workers: Workers,
        tell: Callable[[Row], None],
        poll: Callable[[int, int], None],
    ) -> None:
        self._store, self._ledger, self._workers, self._tell, self._poll = store, ledger, workers, tell, poll
        self._new = deque(todo)
        self._as_a_whole: deque[Item] = deque()
        self._in_parts: dict[Item, InParts] = {}
        self._rows = {item: Row(item) for item in todo}
        self._deaths = Counter[tuple[Item, str, int]]()
        self._bytes, self._bytes_done = sum(item.size for item in todo), 0.0

    def run(self) -> None:
        """To the end of all recordings.

        Raises:
            PolypstreamError: there are no workers, or the ledger cannot be written.
        """
        while self._new or self._as_a_whole or self._in_parts or self._workers.busy:
            for _ in range(self._workers.idle):
                task = self._next_task()
                if task is None:
                    break
                self._workers.give(task)
            for task, outcome in self._workers.wait(POLL_S):
                self._note(task, outcome)
            self._poll(round(self._bytes_done), self._bytes)

    def _next_task(self) -> Task | None:
        for item, parts in self._in_parts.items():
            if len(parts.done) == parts.true == len(parts.plan.parts) and not parts.joining:
                parts.joining = True
                return Task("join", item, parts.plan)
        if task := self._next_part(may_guess=False):
            return task
        if self._as_a_whole:
            return Task("whole", self._as_a_whole.popleft())
        if self._new:
            item = self._new.popleft()
            self._write(item, state=State.BEGUN)
            return Task("begin", item)
        return self._next_part(may_guess=True)

    def _next_part(self, may_guess: bool) -> Task | None:
        for item, parts in sorted(self._in_parts.items(), key=lambda pair: -len(pair[1].waiting)):
            number = parts.next(may_guess)
            if number is not None:
                parts.waiting.remove(number)
                return Task("part", item, parts.plan, number, number - 1 in parts.done)
        return None

    def _note(self, task: Task, outcome: Outcome | None) -> None:
        item = task.item
        if outcome is None:
            self._note_death(task)
            return
        self._write(item, worker_seconds=self._rows[item].worker_seconds + outcome.seconds)
        if task.kind == "part" and item not in self._in_parts:
            return  # another part of it failed meanwhile, and it goes as a whole
        if outcome.as_a_whole:
            self._forget_parts(item)
            self._as_a_whole.append(item)
        elif outcome.plan is not None:
            self._begin_parts(item, outcome.plan)
        elif outcome.problem and not outcome.run:
            self._finish(item, State.BROKEN if outcome.broken else State.FAILED, outcome)
        elif task.kind == "part":
            self._note_part(item, task.part)
        else:
            self._finish(item, State.BROKEN if outcome.broken else State.DONE, outcome)

    def _note_death(self, task: Task) -> None:
        item, parts = task.item, self._in_parts.get(task.item)
        if task.kind in ("part", "join") and parts is None:
            return  # it goes as a whole meanwhile
        this = (item, task.kind, task.part)
        self._deaths[this] += 1
        if self._deaths[this] >= MOST_DEATHS:
            self._finish(item, State.FAILED, Outcome(problem=f"its worker died {MOST_DEATHS} times"))
        elif task.kind == "part" and parts:
            parts.waiting.add(task.part)
        elif task.kind == "join" and parts:
            parts.joining = False
        elif task.kind == "begin":
            self._new.appendleft(item)
        else:
            self._as_a_whole.appendleft(item)

    def _begin_parts(self, item: Item, plan: Plan) -> None:
        """Start a recording in parts, with those that an interrupted run has left."""
        parts = self._in_parts[item] = InParts(plan, set())
        for part in plan.parts:
            if self._store.has(f"{part_name(item, plan, part.number)}/{LAST_FILE}"):
                self._note_part(item, part.number)
            else:
                parts.waiting.add(part.number)

    def _note_part(self, item: Item, number: int) -> None:
        """A part is there: see how far the parts are true, from the first on; one that is not is done again."""
        parts = self._in_parts[item]
        share = item.size / len(parts.plan.parts)
        parts.done.add(number)
        self._bytes_done += share
        while parts.true in parts.done:
            # Those that went on from the part before are looked at too: it may have been done again meanwhile.
            if parts.true and not self._fits(item, parts.true):
                parts.done.remove(parts.true)
                parts.waiting.add(parts.true)
                self._bytes_done -= share
                return
            parts.true += 1

    def _fits(self, item: Item, number: int) -> bool:
        plan, looking = self._in_parts[item].plan, self._store.looking
        before, part = part_name(item, plan, number - 1), part_name(item, plan, number)
        with looking(before, JOINT_FILES) as ours, looking(part, JOINT_FILES) as theirs:
            try:
                return fits(ours, theirs)
            except DataError:  # a joint that cannot be read is made again
                return False

    def _forget_parts(self, item: Item, keep: bool = False) -> None:
        parts = self._in_parts.pop(item, None)
        if parts:
            self._bytes_done -= item.size * len(parts.done) / len(parts.plan.parts)
            if not keep:
                self._store.remove(parts_name(item, parts.plan))

    def _finish(self, item: Item, state: State, outcome: Outcome) -> None:
        parts = self._in_parts.get(item)
        count = len(parts.plan.parts) if parts else 1
        self._forget_parts(item, keep=state is State.FAILED)
        self._bytes_done += item.size
        run = outcome.run
        reason = outcome.problem or "; ".join(run.notes if run else [])
        self._write(item, state=state, reason=reason, frames=run.frames if run else 0, parts=count if run else 0)
        self._tell(self._rows[item])

    def _write(self, item: Item, **changes: Any) -> None:
        self._rows[item] = replace(self._rows[item], **changes)
        self._ledger.write([self._rows[item]])


def archive(
    inputs: Sequence[str],
    order: Order,
    hire: Callable[[Engine | None], Workers],
    overwrite: bool,
    tell: Callable[[Row], None],
    note: Callable[[str], None],
    poll: Callable[[int, int], None] = lambda *_: None,
) -> list[Row]:
    """Process what is missing or failed of an archive.

    Args:
        inputs: as for `find_recordings`.
        order: what the results are made with.
        hire: makes the workers, if there is anything to do, such that work with the same as those before.
        overwrite: replace results that exist, and begin anew what was made with other settings.
        tell: is given each row of the ledger that is finished.
        note: is given one line for people now and then.
        poll: told the bytes of recordings done and all bytes.

    Returns:
        The rows of all recordings that the inputs mean.

    Raises:
        PolypstreamError: it cannot be begun, or there are no workers.
    """
    items, others = find_recordings(inputs, order.output)
    if others:
        note(f"{others} files with other endings than those of recordings were left out")
    store = open_store(order.output)
    with _alone(order.output, store), _open_ledger(store, order.output) as (ledger, keep):
        facts = _begin_ledger(ledger, store, order, overwrite)
        known = ledger.rows()
        items = settle_names(items, {address: row.item.name for address, row in known.items()})
        todo = list(_missing(items, known, store, ledger, overwrite, tell))
        keep(0.0)
        if todo:
            note(f"{len(todo)} of {len(items)} recordings to process")
            with closing(hire(Engine(**facts["engine"]) if facts["engine"] else None)) as workers:

                def look_up(done: int, of: int) -> None:
                    if workers.engine and not facts["engine"]:
                        facts["engine"] = asdict(workers.engine)
                        ledger.note_made_with(facts)
                    keep(COPY_S)
                    poll(done, of)

                Archive(store, ledger, todo, workers, tell, look_up).run()
        rows = ledger.rows()
        if all(row.state in FINISHED for row in rows.values()):
            store.remove(f"{HIDDEN}/{PARTS}")
        return [rows[item.address] for item in items]


def _begin_ledger(ledger: Ledger, store: Store, order: Order, overwrite: bool) -> dict[str, Any]:
    """See that all results are made with the same.

    Returns:
        What that is; its `engine` is None until a worker has told.
    """
    wanted = order.facts()
    found = ledger.made_with()
    changed = [key for key in wanted if found is not None and found.get(key) != wanted[key]]
    if changed and not overwrite:
        raise OutputError(
            f"{order.output}: its results were made with another {changed[0]}; give another --output, "
            "or --overwrite to make them all anew"
        )
    if found is None or changed:
        store.remove(f"{HIDDEN}/{PARTS}")
        if store.has(f"{HIDDEN}/{PARTS}"):
            raise OutputError(f"{order.output}/{HIDDEN}/{PARTS}: cannot be removed; remove it by hand")
        ledger.forget()
        found = {**wanted, "engine": None}
        ledger.note_made_with(found)
    return found


def _missing(
    items: Sequence[Item],
    known: dict[str, Row],
    store: Store,
    ledger: Ledger,
    overwrite: bool,
    tell: Callable[[Row], None],
) -> Iterator[Item]:
    """The recordings that are to be processed now; all are in the ledger afterwards."""
    rows = []
    for item in items:
        row = known.get(item.address)
        if row and row.item == item and row.state in FINISHED:
            # A broken one may have left nothing; results that somebody took away are made again.
            if row.state is State.BROKEN or store.has(f"{item.name}/{LAST_FILE}"):
                continue
        elif (row is None or row.state is State.BLOCKED) and not overwrite and store.has(item.name):
            reason = f"{store.root}/{item.name}: is there already; give --overwrite to replace results of another run"
            rows.append(Row(item, State.BLOCKED, reason))
            tell(rows[-1])
            continue
        if row is None or row.state is State.BLOCKED:
            rows.append(Row(item))
        yield item
    ledger.write(rows)


def settle_names(items: Sequence[Item], known: dict[str, str]) -> list[Item]:
    """The recordings with names such that no results lie in, or over, those of another.

    Args:
        items: the recordings, with the names that they would like.
        known: names that recordings have already, by address; they keep them.
    """
    folders = {folder for name in (*(item.name for item in items), *known.values()) for folder in _folders_of(name)}
    taken = {name.casefold() for name in known.values()}
    settled = []
    for item in items:
        name = known.get(item.address) or _free_name(item, taken, folders)
        taken.add(name.casefold())
        folders.update(_folders_of(name))
        settled.append(replace(item, name=name))
    return settled


def _free_name(item: Item, taken: Collection[str], folders: Collection[str]) -> str:
    path = PurePosixPath(item.name)
    while any(folder in taken for folder in _folders_of(str(path))):
        path = PurePosixPath(*(f"{part}_" for part in path.parts[:-1]), path.name)
    # The ending tells two recordings apart that have the rest in common; otherwise a number does.
    whole = str(path.parent / PurePosixPath(item.address).name.strip("."))
    candidates = chain([str(path), whole], (f"{whole}-{number}" for number in count(2)))
    return next(name for name in candidates if name.casefold() not in taken and name.casefold() not in folders)


def _folders_of(name: str) -> Iterator[str]:
    """The folders that a name lies in, without case: some file systems do not tell A from a."""
    for folder in PurePosixPath(name.casefold()).parents:
        if folder.parts:
            yield str(folder)


def read_ledger(output: str) -> list[Row]:
    """Every recording of an archive and what became of it, also while it is being processed.

    Raises:
        OutputError: there is no archive.
    """
    store = open_store(output)
    if not store.has(LEDGER):
        raise OutputError(f"{output}: holds no archive (no {LEDGER})")
    with store.looking("", [LEDGER]) as folder, closing(Ledger(folder / LEDGER)) as ledger:
        return list(ledger.rows().values())


@contextmanager
def _alone(output: str, store: Store) -> Iterator[None]:
    """See that no other driver works on the same results, and clean up after one that was killed.

    Raises:
        OutputError: another one does.
    """
    if is_address(output):
        yield  # an object store has no locks
        return
    hidden = Path(output, HIDDEN)
    with writing(hidden):
        hidden.mkdir(parents=True, exist_ok=True)
    lock = sqlite3.connect(hidden / LOCK, timeout=0.5, isolation_level=None)
    with closing(lock):
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise OutputError(f"{output}: another `polypstream archive` is at work on it ({error})") from error
        store.remove(f"{HIDDEN}/{AT_WORK}")
        yield


@contextmanager
def _open_ledger(store: Store, output: str) -> Iterator[tuple[Ledger, Callable[[float], None]]]:
    """The ledger, and what lets the store have it if it last had it so many seconds ago."""
    if not is_address(output):
        with closing(Ledger(Path(output, LEDGER))) as ledger:
            yield ledger, lambda _: None
        return
    with store.looking("", [LEDGER]) as folder, closing(Ledger(folder / LEDGER)) as ledger:
        copied = time.monotonic()

        def keep(after: float) -> None:
            nonlocal copied
            if time.monotonic() - copied >= after:
                store.keep_file(folder / LEDGER, LEDGER)
                copied = time.monotonic()

        try:
            yield ledger, keep
        finally:
            keep(0.0)
