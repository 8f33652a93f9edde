"""The driver of an archive run: it assigns tasks to workers and records the outcomes.

While there are recordings that nobody has started, each worker processes one from its beginning. Otherwise it takes a
part from the middle of what remains of another recording. The frames just before that part are then processed twice.
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

# A recording is given up after this many deaths of its worker: it may be their cause.
MAX_DEATHS = 3
POLL_S = 1.0


class Workers(Protocol):
    """The interface of a pool of workers; `polypstream.archive.cluster.Pool` implements it.

    Attributes:
        engine: engine of the workers; None: not known yet.
    """

    engine: Engine | None

    @property
    def idle(self) -> int:
        """Number of workers that wait for a task."""

    @property
    def busy(self) -> int:
        """Number of workers that process a task."""

    def submit(self, task: Task) -> None:
        """Submit a task to an idle worker. There must be one."""

    def wait(self, seconds: float) -> Iterator[tuple[Task, Outcome | None]]:
        """Wait at most this many seconds; yield each task that ended and its outcome. None: the worker died."""

    def close(self) -> None:
        """End all workers."""


@dataclass(slots=True)
class PartProgress:
    """Progress of a recording that is processed in parts.

    Attributes:
        plan: where the recording is cut.
        waiting: numbers of the parts that no worker has.
        done: numbers of the parts whose results exist.
        verified: number of parts, from the first on, whose results are known to equal those of the whole recording.
        joining: a worker joins the parts.
    """

    plan: Plan
    waiting: set[int]
    done: set[int] = field(default_factory=set)
    verified: int = 0
    joining: bool = False

    def next_part(self, allow_independent: bool) -> int | None:
        """Choose the next part to process.

        A part whose previous part is done, or the first part, comes first.

        Args:
            allow_independent: otherwise choose a part from the middle, whose stages see only the overlap before it.

        Returns:
            Number of the part, or None.
        """
        ready = [number for number in self.waiting if number == 0 or number - 1 in self.done]
        if ready:
            return min(ready)
        if not allow_independent or not self.waiting:
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
    """Assigns the recordings to workers.

    Args:
        store: storage of the results.
        ledger: ledger of all recordings.
        todo: recordings to process now.
        workers: the workers.
        on_finished: called with the ledger row of each finished recording.
        on_progress: called as on_progress(done, total) with bytes of recordings, after each poll of the workers.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        todo: Sequence[Item],
        workers: Workers,
        on_finished: Callable[[Row], None],
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._store, self._ledger, self._workers = store, ledger, workers
        self._on_finished, self._on_progress = on_finished, on_progress
        self._unstarted = deque(todo)
        self._whole: deque[Item] = deque()
        self._in_parts: dict[Item, PartProgress] = {}
        self._rows = {item: Row(item) for item in todo}
        self._death_counts = Counter[tuple[Item, str, int]]()
        self._bytes, self._bytes_done = sum(item.size for item in todo), 0.0

    def run(self) -> None:
        """Process all recordings.

        Raises:
            PolypstreamError: there are no workers, or the ledger cannot be written.
        """
        while self._unstarted or self._whole or self._in_parts or self._workers.busy:
            for _ in range(self._workers.idle):
                task = self._next_task()
                if task is None:
                    break
                self._workers.submit(task)
            for task, outcome in self._workers.wait(POLL_S):
                self._handle_outcome(task, outcome)
            self._on_progress(round(self._bytes_done), self._bytes)

    def _next_task(self) -> Task | None:
        for item, parts in self._in_parts.items():
            if len(parts.done) == parts.verified == len(parts.plan.parts) and not parts.joining:
                parts.joining = True
                return Task("join", item, parts.plan)
        if task := self._next_part(allow_independent=False):
            return task
        if self._whole:
            return Task("whole", self._whole.popleft())
        if self._unstarted:
            item = self._unstarted.popleft()
            self._update(item, state=State.BEGUN)
            return Task("begin", item)
        return self._next_part(allow_independent=True)

    def _next_part(self, allow_independent: bool) -> Task | None:
        for item, parts in sorted(self._in_parts.items(), key=lambda pair: -len(pair[1].waiting)):
            number = parts.next_part(allow_independent)
            if number is not None:
                parts.waiting.remove(number)
                return Task("part", item, parts.plan, number, number - 1 in parts.done)
        return None

    def _handle_outcome(self, task: Task, outcome: Outcome | None) -> None:
        item = task.item
        if outcome is None:
            self._handle_death(task)
            return
        self._update(item, worker_seconds=self._rows[item].worker_seconds + outcome.seconds)
        if task.kind == "part" and item not in self._in_parts:
            return  # another part failed meanwhile, so the recording is processed as a whole
        if outcome.retry_whole:
            self._drop_parts(item)
            self._whole.append(item)
        elif outcome.plan is not None:
            self._begin_parts(item, outcome.plan)
        elif outcome.problem and not outcome.run:
            self._finish(item, State.BROKEN if outcome.broken else State.FAILED, outcome)
        elif task.kind == "part":
            self._handle_part(item, task.part)
        else:
            self._finish(item, State.BROKEN if outcome.broken else State.DONE, outcome)

    def _handle_death(self, task: Task) -> None:
        item, parts = task.item, self._in_parts.get(task.item)
        if task.kind in ("part", "join") and parts is None:
            return  # the recording is processed as a whole meanwhile
        key = (item, task.kind, task.part)
        self._death_counts[key] += 1
        if self._death_counts[key] >= MAX_DEATHS:
            self._finish(item, State.FAILED, Outcome(problem=f"its worker died {MAX_DEATHS} times"))
        elif task.kind == "part" and parts:
            parts.waiting.add(task.part)
        elif task.kind == "join" and parts:
            parts.joining = False
        elif task.kind == "begin":
            self._unstarted.appendleft(item)
        else:
            self._whole.appendleft(item)

    def _begin_parts(self, item: Item, plan: Plan) -> None:
        """Start a recording in parts. Parts that an interrupted run has finished are kept."""
        parts = self._in_parts[item] = PartProgress(plan, set())
        for part in plan.parts:
            if self._store.has(f"{part_name(item, plan, part.number)}/{LAST_FILE}"):
                self._handle_part(item, part.number)
            else:
                parts.waiting.add(part.number)

    def _handle_part(self, item: Item, number: int) -> None:
        """Record a finished part, and verify the parts in order. A part that does not fit is processed again."""
        parts = self._in_parts[item]
        share = item.size / len(parts.plan.parts)
        parts.done.add(number)
        self._bytes_done += share
        while parts.verified in parts.done:
            # Parts that continued from the part before are checked too: it may have been processed again meanwhile.
            if parts.verified and not self._fits(item, parts.verified):
                parts.done.remove(parts.verified)
                parts.waiting.add(parts.verified)
                self._bytes_done -= share
                return
            parts.verified += 1

    def _fits(self, item: Item, number: int) -> bool:
        plan, local_folder = self._in_parts[item].plan, self._store.local_folder
        before, part = part_name(item, plan, number - 1), part_name(item, plan, number)
        with local_folder(before, BOUNDARY_FILES) as ours, local_folder(part, BOUNDARY_FILES) as theirs:
            try:
                return fits(ours, theirs)
            except DataError:  # the part with the unreadable boundary is processed again
                return False

    def _drop_parts(self, item: Item, keep: bool = False) -> None:
        parts = self._in_parts.pop(item, None)
        if parts:
            self._bytes_done -= item.size * len(parts.done) / len(parts.plan.parts)
            if not keep:
                self._store.remove(parts_name(item, parts.plan))

    def _finish(self, item: Item, state: State, outcome: Outcome) -> None:
        parts = self._in_parts.get(item)
        count = len(parts.plan.parts) if parts else 1
        self._drop_parts(item, keep=state is State.FAILED)
        self._bytes_done += item.size
        run = outcome.run
        reason = outcome.problem or "; ".join(run.notes if run else [])
        self._update(
            item,
            state=state,
            reason=reason,
            frames=run.frames if run else 0,
            parts=count if run else 0,
            tracks=outcome.tracks if run else None,
        )
        self._on_finished(self._rows[item])

    def _update(self, item: Item, **changes: Any) -> None:
        self._rows[item] = replace(self._rows[item], **changes)
        self._ledger.write([self._rows[item]])
