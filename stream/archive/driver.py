"""Who does what next: the driver of an archive, which gives tasks to workers and notes what comes of them.

Where recordings are left, each worker goes through one from its beginning; where none are, it takes a part from the
middle of what is left of another's, whose first pictures it has then to see twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from polypstream.archive.inputs import Item
from polypstream.archive.join import fits
from polypstream.archive.ledger import Ledger, Row, State
from polypstream.archive.parts import BOUNDARY_FILES, Plan
from polypstream.archive.storage import LAST_FILE, Store
from polypstream.archive.worker import Engine, Outcome, Task, part_name, parts_name
from polypstream.errors import DataError

# A recording whose worker died so often is given up: it may be what kills them.
MAX_DEATHS = 3
POLL_S = 1.0


class Workers(Protocol):
    """What the driver needs of a pool of workers; `polypstream.archive.cluster.Pool` is one."""

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


class Driver:
    """The recordings that are to be processed, and how far they are.

    Args:
        store: of the results.
        ledger: of all recordings.
        todo: those to process now.
        workers: that do it.
        tell: is given each row of the ledger that is finished.
        on_progress: told the bytes of recordings done and all bytes, now and then.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        todo: Sequence[Item],
        workers: Workers,
        tell: Callable[[Row], None],
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._store, self._ledger, self._workers, self._tell, self._on_progress = (
            store,
            ledger,
            workers,
            tell,
            on_progress,
        )
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
            self._on_progress(round(self._bytes_done), self._bytes)

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
        if self._deaths[this] >= MAX_DEATHS:
            self._finish(item, State.FAILED, Outcome(problem=f"its worker died {MAX_DEATHS} times"))
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
        with looking(before, BOUNDARY_FILES) as ours, looking(part, BOUNDARY_FILES) as theirs:
            try:
                return fits(ours, theirs)
            except DataError:  # a boundary that cannot be read is made again
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
