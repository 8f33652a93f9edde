"""Threads and bounded queues between sources, stages and sinks. This module does not depend on video or polyps.

Each stage runs in its own thread. It takes the waiting items, up to its batch size, and passes them on in the same
order. A full queue blocks the stage before it. Each sink has its own queue. PyAV, OpenCV, ONNX Runtime and NumPy
release the GIL in their heavy calls, so threads are sufficient. A stage that is too slow for many sources at once works
in several threads (ByKey).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Generic, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
QUEUE = 4
POLL_S = 0.1
# Longest time for which changes wait for the start of a pipeline.
START_S = 10.0


class Stage(Protocol[T]):
    """One processing step, which returns its items in the same order."""

    def __call__(self, items: list[T], /) -> list[T]:
        """Process a batch.

        Args:
            items: the items; at least one.

        Returns:
            The items to pass on.
        """
        ...


class ByKey(Generic[T]):
    """A stage that processes the items of different keys, such as sources, at the same time.

    Args:
        stage: the stage. It returns the items that it is given, and may be called by several threads at once.
        key_of: function that returns the key of an item. The items of one key are processed in order.
        workers: runs the stage.
    """

    def __init__(self, stage: Stage[T], key_of: Callable[[T], Hashable], workers: Executor) -> None:
        self._stage, self._key_of, self._workers = stage, key_of, workers

    def __call__(self, items: list[T]) -> list[T]:
        """Process a batch.

        Args:
            items: the items; at least one.

        Returns:
            The same items, in the same order.
        """
        groups: dict[Hashable, list[T]] = {}
        for item in items:
            groups.setdefault(self._key_of(item), []).append(item)
        first, *others = groups.values()
        waiting = [self._workers.submit(self._stage, group) for group in others]
        self._stage(first)
        for each in waiting:
            each.result()
        return items


class Sink(Protocol[T_contra]):
    """A consumer at the end of a pipeline, such as a file."""

    def write(self, item: T_contra, /) -> None:
        """Consume one item.

        Args:
            item: the item.
        """
        ...

    def close(self) -> None:
        """Finish what was written so far; also called after an error."""
        ...


@runtime_checkable
class BufferedSink(Sink[T_contra], Protocol[T_contra]):
    """A sink that chooses the size of its queue. Other sinks get the pipeline's default size.

    Attributes:
        queue_size: the largest number of items that wait.
    """

    queue_size: int


@runtime_checkable
class GroupSink(Sink[T_contra], Protocol[T_contra]):
    """A sink that consumes items that wait together, such as one of each source. `write` is not called.

    Attributes:
        most: the largest number of items that it takes at once.
    """

    most: int

    def write_group(self, items: Sequence[T_contra], /) -> None:
        """Consume some items.

        Args:
            items: the items; at least one.
        """
        ...


class Closed(Exception):
    """Raised by `put` when the consumer of a channel has stopped."""


class Channel(Generic[T]):
    """A bounded queue with an end. `take` waits while it is empty, and `put` waits while it is full.

    Args:
        size: the largest number of items that wait.
        drop_oldest_by: function that returns the key of an item, such as its source. `size` items of each key may wait.
            If there are more, `put` does not wait. It drops the oldest item of that key and queues the new one in its
            position. Therefore all keys are served in turn, whatever their rates are. None: nothing is dropped.
        producers: number of producers that must call `end`.
        counts: whether an item counts if it is dropped.
    """

    def __init__(
        self,
        size: int,
        drop_oldest_by: Callable[[T], Hashable] | None = None,
        producers: int = 1,
        counts: Callable[[T], bool] = lambda _: True,
    ) -> None:
        self._items: deque[T] = deque()
        self._size, self._drop_oldest_by, self._producers, self._counts = size, drop_oldest_by, producers, counts
        self._dropped: Counter[Hashable] = Counter()
        self._changed = threading.Condition()
        self._abandoned = False
        # Number of items for which the consumer waits.
        self._wanted = 1

    def put(self, *items: T) -> None:
        """Append items, and wait until there is space for each.

        Args:
            items: the items.

        Raises:
            Closed: the consumer has called `abandon`.
        """
        with self._changed:
            for item in items:
                if self._drop_oldest_by is None and len(self._items) >= self._size:
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._items) < self._size or self._abandoned)
                if self._abandoned:
                    raise Closed
                if self._drop_oldest_by is None or not self._replaces(item, self._drop_oldest_by):
                    self._items.append(item)
            if len(self._items) >= self._wanted:  # to wake the consumer for less would only take time
                self._changed.notify_all()

    def _replaces(self, item: T, key_of: Callable[[T], Hashable]) -> bool:
        """Replace the oldest item of the same key, if the limit for the key is reached. Return whether it was."""
        key = key_of(item)
        places = [place for place, each in enumerate(self._items) if key_of(each) == key]
        if len(places) < self._size:
            return False
        self._dropped[key] += self._counts(self._items[places[0]])
        for place, following in pairwise(places):
            self._items[place] = self._items[following]
        self._items[places[-1]] = item
        return True

    @property
    def dropped(self) -> Counter[Hashable]:
        """Number of items dropped so far that count, by key."""
        with self._changed:
            return self._dropped.copy()

    def take(self, most: int, least: int = 1) -> list[T]:
        """Take the waiting items, and wait until there are enough.

        Args:
            most: the largest number of items to take.
            least: the smallest number, except at the end; at most the size of the channel.

        Returns:
            The items; an empty list once the channel has ended.
        """
        with self._changed:
            self._wanted = least
            self._changed.wait_for(lambda: len(self._items) >= least or not self._producers)
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._changed.notify_all()
            return taken

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items one by one until the channel has ended."""
        while items := self.take(1):
            yield items[0]

    def begin(self) -> None:
        """Declare that there is one more producer.

        Raises:
            Closed: the channel has ended, or the consumer has called `abandon`.
        """
        with self._changed:
            if self._abandoned or not self._producers:
                raise Closed
            self._producers += 1

    def end(self) -> None:
        """Declare, as one of the producers, that no more items will be put."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def abandon(self) -> None:
        """Declare, as the consumer, that no more items will be taken."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()


@dataclass(slots=True)
class Work:
    """The work done by one thread. A `with` block adds the time that it takes.

    Attributes:
        items: number of items processed.
        seconds: time spent working, without waiting.
        cpu_seconds: CPU time of this thread alone. It does not contain the threads that libraries start.
    """

    items: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    _started: tuple[float, float] = (0.0, 0.0)

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        started, cpu_started = self._started
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.thread_time() - cpu_started


class Pipeline(Generic[T]):
    """One or more sources, then stages in sequence, then all sinks in parallel.

    While it runs, sources can be added to it, and sinks can be added and ended.

    After an error in one thread the sources stop. Items that have already passed that point still reach every sink.
    Then every sink is closed, and the first error is raised.

    Args:
        sources: name and source; a source is an iterator of items.
        stages: name, stage, and the largest batch that it takes.
        sinks: name and sink.
        queue: the largest number of items that wait before each stage and before each sink but a BufferedSink. A stage
            with a larger batch has a queue of the size of its batch.
        drop_oldest_by: function that returns the key of an item, see Channel. `queue` items of each key may wait,
            whatever the batch size is. A full queue drops the oldest item of the key and does not block. None: nothing
            is dropped.
        close: ends sources that wait for something; called at the first error, from any thread.
        counts: whether an item counts if it is dropped.
        full_batches: a stage waits until it can take its largest batch, except at the end. Threads then wake each other
            less often.

    Attributes:
        channels: the queues, first those before the stages, then those before the sinks.
        work: the work of each thread, by name.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Iterator[T]]],
        stages: Sequence[tuple[str, Stage[T], int]],
        sinks: Sequence[tuple[str, Sink[T]]],
        queue: int = QUEUE,
        drop_oldest_by: Callable[[T], Hashable] | None = None,
        close: Callable[[], None] = lambda: None,
        counts: Callable[[T], bool] = lambda _: True,
        full_batches: bool = False,
    ) -> None:
        self._full_batches = full_batches
        self._close, self._queue, self._drop_oldest_by, self._counts = close, queue, drop_oldest_by, counts
        self._started, self._stopping = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._error_lock = threading.Lock()
        sizes = [max(queue, stage[2]) if drop_oldest_by is None else queue for stage in stages]
        sizes += [self._size_before(sink) for _, sink in sinks]
        producers = [len(sources) if index == 0 else 1 for index in range(len(sizes))]
        self.channels = [
            Channel[T](size, drop_oldest_by, count, counts) for size, count in zip(sizes, producers, strict=True)
        ]
        self._between, self._last = self.channels[: len(stages)], self.channels[len(stages) :]
        self._before_sinks = dict(zip((name for name, _ in sinks), self._last, strict=True))
        # Held while the last stage processes items and delivers them, and while the channels before the sinks change.
        self._delivering, self._delivered = threading.Lock(), False
        outputs = [*([channel] for channel in self._between), self._last]
        self._first = outputs[0]
        self.work: dict[str, Work] = {}
        self._threads: dict[str, threading.Thread] = {}
        for name, source in sources:
            self._make_source(name, source)
        for (name, stage, most), input_, output in zip(stages, self._between, outputs[1:], strict=True):
            self._make_thread(name, partial(self._run_stage, name, stage, most, input_, output), input_, output)
        for (name, sink), input_ in zip(sinks, self._last, strict=True):
            self._make_thread(name, partial(self._run_sink, name, sink, input_), input_, [])

    def _size_before(self, sink: Sink[T]) -> int:
        return sink.queue_size if isinstance(sink, BufferedSink) else self._queue

    def _make_source(self, name: str, source: Iterator[T]) -> threading.Thread:
        return self._make_thread(name, partial(self._run_source, name, source, self._first), None, self._first)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the pipeline running while the block runs, even if all sources end. It must have stages.

        Raises:
            Closed: it has ended, is about to, or does not start.
        """
        if not self._started.wait(START_S):
            raise Closed
        self._between[0].begin()
        try:
            yield
        finally:
            self._between[0].end()

    def add_source(self, name: str, source: Iterator[T]) -> None:
        """Add a source to the running pipeline, which is `held`.

        Args:
            name: name of its thread; no other one has it.
            source: the source.

        Raises:
            Closed: the pipeline has failed.
        """
        self._between[0].begin()
        self._make_source(name, source).start()

    def add_sink(self, name: str, sink: Sink[T]) -> None:
        """Add a sink to the running pipeline, which is `held`. It gets the items that are delivered from now on.

        Args:
            name: name of its thread; no other one has it.
            sink: the sink.
        """
        channel = Channel[T](self._size_before(sink), self._drop_oldest_by, 1, self._counts)
        thread = self._make_thread(name, partial(self._run_sink, name, sink, channel), channel, [])
        with self._delivering:
            self._before_sinks[name] = channel
            self._last.append(channel)
            if self._delivered:
                channel.end()
        thread.start()

    def end_sink(self, name: str) -> None:
        """End a sink after the items that the last stage has processed so far, and wait until it is closed.

        Args:
            name: its name.
        """
        with self._delivering:
            channel = self._before_sinks.pop(name)
            self._last.remove(channel)
            if not self._delivered:
                channel.end()
        self.join(name)

    def join(self, name: str) -> None:
        """Wait until a source or a sink has ended.

        Args:
            name: its name.
        """
        self._threads[name].join()

    @property
    def failed(self) -> bool:
        """Whether it is stopping after an error or an interruption."""
        return self._stopping.is_set()

    def run(self, poll: Callable[[], None] = lambda: None, every: float = POLL_S) -> None:
        """Start all threads and wait until they have ended.

        Args:
            poll: called regularly in the calling thread.
            every: seconds between two calls of `poll`, approximately.

        Raises:
            BaseException: the first error of any thread or of `poll`. KeyboardInterrupt also stops the sources; it is
                raised after the items in the queues have reached the sinks.
        """
        for thread in self._threads.values():
            thread.start()
        self._started.set()
        try:
            while alive := self._alive():
                alive[0].join(every)
                poll()
        except BaseException as error:
            self._fail(error)
            while alive := self._alive():
                alive[0].join()
        if self._error is not None:
            raise self._error

    def _alive(self) -> list[threading.Thread]:
        return [thread for thread in list(self._threads.values()) if thread.is_alive()]

    def _run_source(self, name: str, source: Iterator[T], outputs: list[Channel[T]]) -> None:
        work = self.work[name]
        while not self._stopping.is_set():
            with work:
                items = list(islice(source, 1))
            if not items:
                return
            work.items += 1
            for output in outputs:
                output.put(items[0])

    def _run_stage(self, name: str, stage: Stage[T], most: int, input_: Channel[T], outputs: list[Channel[T]]) -> None:
        work, least = self.work[name], most if self._full_batches else 1
        while items := input_.take(most, least):
            with self._delivery(outputs):
                with work:
                    items = stage(items)
                work.items += len(items)
                for output in outputs:
                    output.put(*items)

    def _delivery(self, outputs: list[Channel[T]]) -> AbstractContextManager[object]:
        """Hold the channels before the sinks as they are, if these are the outputs."""
        return self._delivering if outputs is self._last else nullcontext()

    def _run_sink(self, name: str, sink: Sink[T], input_: Channel[T]) -> None:
        work, group = self.work[name], sink if isinstance(sink, GroupSink) else None
        try:
            while items := input_.take(group.most if group else 1):
                with work:
                    if group:
                        group.write_group(items)
                    else:
                        sink.write(items[0])
                work.items += len(items)
        except BaseException as error:
            self._fail(error)
            input_.abandon()
        finally:
            with work:
                sink.close()

    @property
    def dropped(self) -> Counter[Hashable]:
        """Number of items dropped before they reached the sinks, by key."""
        return sum((channel.dropped for channel in self._between), Counter[Hashable]())

    @property
    def dropped_by_sinks(self) -> dict[str, Counter[Hashable]]:
        """Number of items that each sink was too slow for, by sink and key. The other sinks received them."""
        return {name: channel.dropped for name, channel in list(self._before_sinks.items())}

    def _make_thread(
        self, name: str, job: Callable[[], None], input_: Channel[T] | None, outputs: list[Channel[T]]
    ) -> threading.Thread:
        """Create a thread that abandons its input and ends its outputs, whether its job succeeds or fails."""
        before = self._threads.get(name)
        if before is not None and (before.ident is None or before.is_alive()):
            raise ValueError(f"{name}: two sources, stages or sinks have this name")
        self.work[name] = Work()

        def guarded() -> None:
            try:
                job()
            except Closed:
                pass  # the next thread has failed and has reported its error
            except BaseException as error:
                self._fail(error)
            finally:
                if input_ is not None:
                    input_.abandon()
                with self._delivery(outputs):
                    self._delivered = self._delivered or outputs is self._last
                    for output in outputs:
                        output.end()

        thread = threading.Thread(target=guarded, name=f"polypstream-{name}", daemon=True)
        self._threads[name] = thread
        return thread

    def _fail(self, error: BaseException) -> None:
        """Store the first error and stop the sources."""
        with self._error_lock:
            self._error = self._error or error
        self._stopping.set()
        self._close()


@contextmanager
def in_background(name: str, job: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Run a job in a thread of its own while the block runs. Then stop the job and wait for it.

    Args:
        name: name of the thread.
        job: runs in the thread.
        stop: tells the job to end; called when the block ends.

    Raises:
        BaseException: the error of the job, if the block itself raises none.
    """
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            job()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, name=f"polypstream-{name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()
    if raised:
        raise raised[0]
