"""Threads and bounded queues between sources, their stages and its sinks. Knows nothing of video or polyps.

The only module that starts a thread. Each stage works in a thread of its own, takes what is waiting (up to its batch),
and hands it on in the same order; a full queue makes the one before it wait. Sinks each have a queue of their own.
PyAV, OpenCV, ONNX Runtime and NumPy release the GIL in their heavy calls, so threads are enough.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Generic, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
QUEUE = 4
POLL_S = 0.1


class Stage(Protocol[T]):
    """Does its one thing to items and hands them on in the same order."""

    def __call__(self, items: list[T], /) -> list[T]: ...


class Sink(Protocol[T_contra]):
    """Takes items one by one. `close` finishes what was written so far, also after an error."""

    def write(self, item: T_contra, /) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class BufferedSink(Sink[T_contra], Protocol[T_contra]):
    """A sink that chooses the size of the queue before it; other sinks have the pipeline's.

    Attributes:
        queue_size: the most items that wait.
    """

    queue_size: int


class Closed(Exception):
    """The other end of a channel is gone."""


class Channel(Generic[T]):
    """A bounded queue with an end: `take` waits while it is empty, and `put` while it is full.

    Args:
        size: the most items that wait.
        drop_oldest_by: the key of an item, such as its source. `size` items of each key may wait. When there are more,
            `put` drops the oldest of that key instead of waiting; the new item takes its place in the line. So all
            keys are served in turn, however fast each is. None: nothing is dropped.
        producers: how many must say `end`.
    """

    def __init__(self, size: int, drop_oldest_by: Callable[[T], Hashable] | None = None, producers: int = 1) -> None:
        self._items: deque[T] = deque()
        self._size, self._drop_oldest_by, self._producers = size, drop_oldest_by, producers
        self._dropped: Counter[Hashable] = Counter()
        self._changed = threading.Condition()
        self._abandoned = False

    def put(self, item: T) -> None:
        """Append an item, once there is space or made to be.

        Raises:
            Closed: nobody will take it any more.
        """
        with self._changed:
            if self._drop_oldest_by is None:
                self._changed.wait_for(lambda: len(self._items) < self._size or self._abandoned)
            if self._abandoned:
                raise Closed
            if self._drop_oldest_by is None or not self._replaces(item, self._drop_oldest_by):
                self._items.append(item)
            self._changed.notify_all()

    def _replaces(self, item: T, kind_of: Callable[[T], Hashable]) -> bool:
        """Put an item in the line in place of the oldest of its kind, if there are enough of those; whether so."""
        kind = kind_of(item)
        places = [place for place, each in enumerate(self._items) if kind_of(each) == kind]
        if len(places) < self._size:
            return False
        for place, following in pairwise(places):
            self._items[place] = self._items[following]
        self._items[places[-1]] = item
        self._dropped[kind] += 1
        return True

    @property
    def dropped(self) -> Counter[Hashable]:
        """Items dropped so far, by kind."""
        with self._changed:
            return self._dropped.copy()

    def take(self, most: int) -> list[T]:
        """What is waiting, at least one and at most so many; an empty list once the end is reached."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or not self._producers)
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._changed.notify_all()
            return taken

    def __iter__(self) -> Iterator[T]:
        """What comes, one by one, to the end."""
        while items := self.take(1):
            yield items[0]

    def end(self) -> None:
        """Say, as one of the producers, that no more will be put."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def abandon(self) -> None:
        """Say that no more will be taken."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()


@dataclass(slots=True)
class Work:
    """What one thread has done.

    Attributes:
        items: how many passed through.
        seconds: spent working, waiting excluded.
        cpu_seconds: of its own thread alone; what libraries do in threads of theirs is not in it.
    """

    items: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Add the time that a block takes."""
        started, cpu_started = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.cpu_seconds += time.thread_time() - cpu_started


class Pipeline(Generic[T]):
    """One or more sources, stages in a row, then every sink.

    After an error in one place the sources stop, what already went past that place still reaches every sink, every
    sink is closed, and the first error is raised.

    Args:
        sources: name and source, which yields items.
        stages: name, stage, and the most items that it takes at once.
        sinks: name and sink.
        queue: the most items that wait before each stage (a batch of its own if that is more) and each sink that is
            no BufferedSink.
        drop_oldest_by: the key of an item, as for Channel. `queue` items of each key wait, whatever the batch size.
            Full queues drop the oldest item of a key instead of blocking the sources. None: nothing is dropped.
        close: lets sources end that wait for something; called at the first error, from any thread.

    Attributes:
        work: what each thread has done, by name.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Iterator[T]]],
        stages: Sequence[tuple[str, Stage[T], int]],
        sinks: Sequence[tuple[str, Sink[T]]],
        queue: int = QUEUE,
        drop_oldest_by: Callable[[T], Hashable] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._close = close
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._error_lock = threading.Lock()
        sizes = [max(queue, stage[2]) if drop_oldest_by is None else queue for stage in stages]
        sizes += [sink.queue_size if isinstance(sink, BufferedSink) else queue for _, sink in sinks]
        producers = [len(sources) if index == 0 else 1 for index in range(len(sizes))]
        self.channels = [Channel[T](size, drop_oldest_by, count) for size, count in zip(sizes, producers, strict=True)]
        self._between, before_sinks = self.channels[: len(stages)], self.channels[len(stages) :]
        self._before_sinks = dict(zip((name for name, _ in sinks), before_sinks, strict=True))
        outlets = [*([channel] for channel in self._between), before_sinks]
        self.work: dict[str, Work] = {}
        self._threads = []
        for name, source in sources:
            self.work[name] = Work()
            self._threads.append(self._thread(name, partial(self._pump, name, source, outlets[0]), None, outlets[0]))
        for (name, stage, most), inlet, outlet in zip(stages, self._between, outlets[1:], strict=True):
            self.work[name] = Work()
            job = partial(self._run_stage, name, stage, most, inlet, outlet)
            self._threads.append(self._thread(name, job, inlet, outlet))
        for (name, sink), inlet in zip(sinks, before_sinks, strict=True):
            self.work[name] = Work()
            self._threads.append(self._thread(name, partial(self._drain, name, sink, inlet), inlet, []))

    def run(self, poll: Callable[[], None] = lambda: None, every: float = POLL_S) -> None:
        """Start every thread and wait for the last one.

        Args:
            poll: called from the calling thread.
            every: about so many seconds between two calls.

        Raises:
            BaseException: the first error of any thread, or of `poll`. KeyboardInterrupt too stops the source, lets
                what is on its way reach the sinks, and is raised then.
        """
        for thread in self._threads:
            thread.start()
        try:
            while alive := [thread for thread in self._threads if thread.is_alive()]:
                alive[0].join(every)
                poll()
        except BaseException as error:
            self._fail(error)
            for thread in self._threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _pump(self, name: str, source: Iterator[T], outlets: list[Channel[T]]) -> None:
        work = self.work[name]
        while not self._stopping.is_set():
            with work.counted():
                items = list(islice(source, 1))
            if not items:
                return
            work.items += 1
            for outlet in outlets:
                outlet.put(items[0])

    def _run_stage(self, name: str, stage: Stage[T], most: int, inlet: Channel[T], outlets: list[Channel[T]]) -> None:
        work = self.work[name]
        while items := inlet.take(most):
            with work.counted():
                items = stage(items)
            work.items += len(items)
            for item in items:
                for outlet in outlets:
                    outlet.put(item)

    def _drain(self, name: str, sink: Sink[T], inlet: Channel[T]) -> None:
        work = self.work[name]
        try:
            while items := inlet.take(1):
                with work.counted():
                    sink.write(items[0])
                work.items += 1
        except BaseException as error:
            self._fail(error)
            inlet.abandon()
        finally:
            with work.counted():
                sink.close()

    @property
    def dropped(self) -> Counter[Hashable]:
        """Items dropped before they reached the sinks, by kind."""
        return sum((channel.dropped for channel in self._between), Counter[Hashable]())

    @property
    def dropped_by_sinks(self) -> dict[str, Counter[Hashable]]:
        """Items that a sink was too slow for, by sink and kind; the other sinks had them."""
        return {name: channel.dropped for name, channel in self._before_sinks.items()}

    def _thread(
        self, name: str, job: Callable[[], None], inlet: Channel[T] | None, outlets: list[Channel[T]]
    ) -> threading.Thread:
        """A thread that, however its job ends, lets go of its inlet and ends its outlets."""

        def guarded() -> None:
            try:
                job()
            except Closed:
                pass  # somebody after us failed and has said so
            except BaseException as error:
                self._fail(error)
            finally:
                if inlet is not None:
                    inlet.abandon()
                for outlet in outlets:
                    outlet.end()

        return threading.Thread(target=guarded, name=f"polypstream-{name}", daemon=True)

    def _fail(self, error: BaseException) -> None:
        """Keep the first error and stop the source."""
        with self._error_lock:
            self._error = self._error or error
        self._stopping.set()
        self._close()


@contextmanager
def in_background(name: str, job: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Run a job in a thread of its own beside a block, after which it is told to stop and waited for.

    Raises:
        BaseException: what the job raised, if the block itself raises nothing.
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
