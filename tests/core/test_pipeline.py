"""Order, bounds, errors and shutdown, with nothing but numbers passing through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from operator import itemgetter

import numpy as np
import pytest

from polypstream.core.pipeline import ByKey, Channel, Closed, Pipeline, in_background


class Keep:
    """A sink that keeps what it is given."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.items: list[int] = []
        self.closed = 0
        self.fail_at = fail_at

    def write(self, item: int) -> None:
        if item == self.fail_at:
            raise OSError("disk full")
        self.items.append(item)

    def close(self) -> None:
        self.closed += 1


def same(items: list[int]) -> list[int]:
    return items


def jitter(items: list[int]) -> list[int]:
    time.sleep((items[0] * 7 % 5) / 2000)
    return items


def test_every_item_reaches_every_sink_in_order() -> None:
    sinks = [Keep(), Keep()]
    stages = [("a", jitter, 1), ("b", jitter, 4), ("c", same, 2)]
    pipeline = Pipeline([("decode", iter(range(200)))], stages, [("x", sinks[0]), ("y", sinks[1])])
    pipeline.run()
    for sink in sinks:
        assert sink.items == list(range(200))
        assert sink.closed == 1
    assert {name: work.items for name, work in pipeline.work.items()} == dict.fromkeys("abcxy", 200) | {"decode": 200}


def test_a_slow_sink_holds_the_source_back() -> None:
    taken: list[int] = []
    behind = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    class Slow(Keep):
        def write(self, item: int) -> None:
            time.sleep(0.001)
            behind.append(len(taken) - 1 - item)
            super().write(item)

    Pipeline([("decode", source())], [("stage", same, 1)], [("slow", Slow())], queue=3).run()
    # Three wait before the stage and three before the sink; each of three threads has one in hand.
    assert max(behind) <= 3 + 3 + 3


def test_batches_form_from_what_is_waiting() -> None:
    sizes = []

    def slow(items: list[int]) -> list[int]:
        sizes.append(len(items))
        time.sleep(0.005)
        return items

    Pipeline([("decode", iter(range(60)))], [("slow", slow, 6)], [("sink", Keep())], queue=2).run()
    assert sum(sizes) == 60
    assert max(sizes) == 6  # a whole batch may wait, though the queue is shorter


def test_full_batches_are_waited_for_except_the_last_one() -> None:
    sizes: dict[str, list[int]] = {"a": [], "b": [], "c": []}

    def noting(name: str) -> Callable[[list[int]], list[int]]:
        return lambda items: sizes[name].append(len(items)) or items  # type: ignore[func-returns-value]

    def slow() -> Iterator[int]:
        for number in range(43):
            time.sleep(0.0005)
            yield number

    stages = [("a", noting("a"), 6), ("b", noting("b"), 1), ("c", noting("c"), 4)]
    sink = Keep()
    Pipeline([("decode", slow())], stages, [("sink", sink)], queue=2, full_batches=True).run()
    assert sink.items == list(range(43))
    assert sizes == {"a": [6] * 7 + [1], "b": [1] * 43, "c": [4] * 10 + [3]}


def failing_source() -> Iterator[int]:
    yield from range(20)
    raise ValueError("source")


def failing_stage(items: list[int]) -> list[int]:
    if 20 in items:
        raise ValueError("stage")
    return items


@pytest.mark.parametrize(("source", "stage"), [(failing_source(), same), (iter(range(1000)), failing_stage)])
def test_what_passed_before_an_error_reaches_the_sinks(source: Iterator[int], stage: object) -> None:
    sink = Keep()
    with pytest.raises(ValueError, match=r"^(source|stage)$"):
        Pipeline([("decode", source)], [("stage", stage, 1)], [("sink", sink)]).run()  # type: ignore[list-item]
    assert sink.items == list(range(20))
    assert sink.closed == 1


def test_a_failing_sink_stops_the_source_and_spares_the_other() -> None:
    source = iter(range(100_000))
    bad, good = Keep(fail_at=10), Keep()
    with pytest.raises(OSError, match="disk full"):
        Pipeline([("decode", source)], [("stage", same, 1)], [("bad", bad), ("good", good)]).run()
    assert bad.items == list(range(10))
    assert bad.closed == good.closed == 1
    assert good.items == list(range(len(good.items)))
    assert len(good.items) >= 10
    assert next(source) < 1000


def test_a_stage_that_fails_before_a_full_queue_ends_the_run() -> None:
    taken: list[int] = []
    errors: list[BaseException] = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def fails_late(items: list[int]) -> list[int]:
        while len(taken) < 4:  # one here, two in the queue, one that the source waits to put there
            time.sleep(0.001)
        time.sleep(0.05)
        raise ValueError("stage")

    def run() -> None:
        try:
            Pipeline([("decode", source())], [("stage", fails_late, 1)], [("sink", Keep())], queue=2).run()
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert [str(error) for error in errors] == ["stage"]
    assert taken == [0, 1, 2, 3]


def test_an_error_lets_a_source_end_that_waits() -> None:
    closed, ended = threading.Event(), []

    def source() -> Iterator[int]:
        yield 0
        ended.append(closed.wait(10))

    with pytest.raises(OSError, match="disk full"):
        Pipeline([("decode", source())], [("stage", same, 1)], [("sink", Keep(fail_at=0))], close=closed.set).run()
    assert ended == [True]


def test_the_first_error_is_the_one_that_is_raised() -> None:
    class Broken(Keep):
        def close(self) -> None:
            raise RuntimeError("secondary")

    with pytest.raises(OSError, match="disk full"):
        Pipeline([("decode", iter(range(50)))], [("stage", same, 1)], [("sink", Broken(fail_at=3))]).run()


def test_an_interrupt_lets_what_is_on_its_way_finish() -> None:
    sink = Keep()

    def source() -> Iterator[int]:
        number = 0
        while True:
            time.sleep(0.001)
            yield number
            number += 1

    def poll() -> None:
        if len(sink.items) > 20:
            raise KeyboardInterrupt

    pipeline = Pipeline([("decode", source())], [("stage", same, 1)], [("sink", sink)])
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(poll)
    assert sink.closed == 1
    assert sink.items == list(range(pipeline.work["decode"].items))


def test_no_thread_outlives_a_run() -> None:
    before = threading.active_count()
    Pipeline([("decode", iter(range(10)))], [("stage", same, 1)], [("sink", Keep())]).run()
    assert threading.active_count() == before


def lost(pipeline: Pipeline[int], kind: Hashable) -> int:
    """Items of a kind that did not come out: dropped on the way or before the sink."""
    return pipeline.dropped[kind] + pipeline.dropped_by_sinks["sink"][kind]


def test_where_the_newest_wins_a_slow_stage_holds_nothing_back() -> None:
    sink, late = Keep(), []

    def source() -> Iterator[int]:
        for number in range(200):
            time.sleep(0.001)
            late.append(number)
            yield number

    def slow(items: list[int]) -> list[int]:
        behind.append(late[-1] - items[0])
        time.sleep(0.01)
        return items

    behind: list[int] = []
    pipeline = Pipeline(
        [("decode", source())], [("slow", slow, 1)], [("sink", sink)], queue=1, drop_oldest_by=lambda _: "all"
    )
    pipeline.run()
    assert pipeline.work["decode"].items == 200
    assert lost(pipeline, "all") == 200 - len(sink.items) > 100
    assert sink.items == sorted(sink.items)
    assert sink.items[-1] == 199  # the last one has no newer one to give way to
    # What is worked on does not grow old: one waits before the stage, and one is in the source's hand.
    assert np.median(behind) <= 2


def test_work_tells_cpu_time_from_waiting() -> None:
    def sleepy(items: list[int]) -> list[int]:
        time.sleep(0.01)
        return items

    pipeline = Pipeline([("decode", iter(range(20)))], [("sleepy", sleepy, 1)], [("sink", Keep())])
    pipeline.run()
    assert pipeline.work["sleepy"].seconds >= 0.2
    assert pipeline.work["sleepy"].cpu_seconds < 0.1


@pytest.mark.parametrize("drop_oldest_by", [None, lambda _: "all"])
def test_an_abandoned_channel_refuses_and_an_ended_one_drains(drop_oldest_by: Callable[[int], str] | None) -> None:
    channel = Channel[int](2, drop_oldest_by)
    channel.put(1)
    channel.end()
    assert channel.take(5) == [1]
    assert channel.take(5) == []
    channel.abandon()
    with pytest.raises(Closed):
        channel.put(2)


def test_a_channel_gives_what_it_holds_one_by_one_to_its_end() -> None:
    channel = Channel[int](3)
    for number in range(3):
        channel.put(number)
    channel.end()
    assert list(channel) == [0, 1, 2]


def test_a_job_in_the_background_is_stopped_and_waited_for() -> None:
    stop, ended = threading.Event(), []
    with in_background("job", lambda: ended.append(stop.wait(10)), stop.set):
        assert ended == []
    assert ended == [True]


def test_the_error_of_a_job_in_the_background_is_raised() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), in_background("job", fail, lambda: None):
        pass
    with pytest.raises(ValueError, match="block"), in_background("job", fail, lambda: None):
        raise ValueError("block")


def test_sources_share_the_stages() -> None:
    sink, batches = Keep(), []

    def source(start: int, pause: float) -> Iterator[int]:
        for number in range(start, start + 100):
            time.sleep(pause)
            yield number

    def slow(items: list[int]) -> list[int]:
        batches.append(items)
        time.sleep(0.01)
        return items

    pipeline = Pipeline(
        [("fast", source(0, 0.001)), ("steady", source(1000, 0.004))],
        [("slow", slow, 2)],
        [("sink", sink)],
        queue=1,
        drop_oldest_by=lambda number: number // 1000,
    )
    pipeline.run()
    assert pipeline.work["fast"].items == pipeline.work["steady"].items == 100
    fast, steady = ([item for item in sink.items if item // 1000 == kind] for kind in (0, 1))
    assert (fast[-1], steady[-1]) == (99, 1099)  # a source that ends does not end the other
    assert lost(pipeline, 0) == 100 - len(fast)
    assert lost(pipeline, 1) == 100 - len(steady)
    assert any(len({item // 1000 for item in batch}) == 2 for batch in batches)  # one batch of both
    assert len(steady) > 20  # the faster one does not push it out


@pytest.mark.parametrize("queue", [1, 3])
def test_while_a_stage_works_only_the_newest_of_each_source_wait(queue: int) -> None:
    """The stage has its first batch in hand until both sources have given everything."""
    begun, ended, batches = threading.Event(), [threading.Event(), threading.Event()], []

    def source(kind: int) -> Iterator[int]:
        yield 1000 * kind
        assert begun.wait(10)
        yield from range(1000 * kind + 1, 1000 * kind + 100)
        ended[kind].set()  # asked for one more, so that the last one is in the queue

    def busy(items: list[int]) -> list[int]:
        batches.append(items)
        begun.set()
        assert all(each.wait(10) for each in ended)
        return items

    pipeline = Pipeline(
        [("one", source(0)), ("other", source(1))],
        [("busy", busy, 8)],
        [("sink", Keep())],
        queue=queue,
        drop_oldest_by=lambda number: number // 1000,
    )
    pipeline.run()
    newest = range(100 - queue, 100)
    _, waiting = batches
    assert sorted(waiting) == [*newest, *(1000 + number for number in newest)]
    assert [item for item in waiting if item < 1000] == [*newest]
    assert pipeline.dropped.total() == 200 - len(batches[0]) - len(waiting)


def test_a_sink_may_choose_how_many_wait_before_it() -> None:
    """Both sinks have the first item in hand until the source has given everything."""
    ended = threading.Event()

    class Busy(Keep):
        def __init__(self) -> None:
            super().__init__()
            self.begun = threading.Event()

        def write(self, item: int) -> None:
            self.begun.set()
            assert ended.wait(10)
            super().write(item)

    class Buffered(Busy):
        queue_size = 7

    plain, buffered = Busy(), Buffered()

    def source() -> Iterator[int]:
        yield 0
        assert plain.begun.wait(10)
        assert buffered.begun.wait(10)
        yield from range(1, 100)
        ended.set()

    pipeline = Pipeline(
        [("decode", source())], [], [("plain", plain), ("buffered", buffered)], queue=2, drop_oldest_by=lambda _: "all"
    )
    pipeline.run()
    assert plain.items == [0, 98, 99]
    assert buffered.items == [0, *range(93, 100)]
    assert {name: dropped["all"] for name, dropped in pipeline.dropped_by_sinks.items()} == {
        "plain": 97,
        "buffered": 92,
    }
    assert pipeline.dropped.total() == 0  # the stages dropped nothing


def test_of_a_kind_one_waits_whatever_the_batch() -> None:
    """A GPU's batch, or several stages, must not make a queue: what waits grows old."""
    pipeline = Pipeline([], [("batch", same, 8), ("one", same, 1)], [], 1, drop_oldest_by=lambda item: item % 3)
    for channel in pipeline.channels:
        for number in range(30):
            channel.put(number)
        assert channel.take(30) == [27, 28, 29]


def test_kinds_come_in_turn_however_fast_each_is() -> None:
    """The fast ones replace their own waiting item and keep its place in the line."""
    channel, fast, slow = Channel[str](1, drop_oldest_by=lambda item: item[0]), iter(range(100)), iter(range(100))
    taken = []
    for _ in range(10):
        channel.put(f"slow{next(slow)}")
        for _ in range(5):
            channel.put(f"fast{next(fast)}")
        taken += channel.take(1)
    assert [item[0] for item in taken] == ["s", "f"] * 5
    assert channel.dropped["f"] > 3 * channel.dropped["s"]


def test_a_placeholder_that_is_dropped_is_not_counted() -> None:
    channel = Channel[str](1, drop_oldest_by=lambda item: item[0], counts=lambda item: item[1] != "-")
    for item in ("a-", "a1", "a2", "a-", "b1", "b2"):
        channel.put(item)
    assert channel.take(9) == ["a-", "b2"]
    assert channel.dropped == {"a": 2, "b": 1}


def test_several_of_a_kind_stay_in_order_when_the_oldest_is_dropped() -> None:
    channel = Channel[str](2, drop_oldest_by=lambda item: item[0])
    for item in ("a1", "b1", "a2", "b2", "a3", "b3", "a4"):
        channel.put(item)
    assert channel.take(9) == ["a3", "b2", "a4", "b3"]


def test_what_was_dropped_can_be_asked_for_at_any_time() -> None:
    """A status page asks while other threads drop items of kinds that were not there before."""
    pipeline = Pipeline([], [("one", same, 1)], [], 1, drop_oldest_by=lambda item: item)
    stop, errors = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                pipeline.dropped.total()
            except RuntimeError as error:
                errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for number in range(30_000):
        pipeline.channels[0].put(number // 2)
        if number % 1000 == 0:
            pipeline.channels[0].take(1000)
    stop.set()
    asking.join()
    assert not errors


def test_items_of_two_sources_are_processed_at_the_same_time_and_those_of_one_in_order() -> None:
    together = threading.Barrier(2, timeout=5)
    seen: list[tuple[str, int]] = []

    def stage(items: list[tuple[str, int]]) -> list[tuple[str, int]]:
        together.wait()  # it would time out if the sources took turns
        seen.extend(items)
        return items

    items = [("a", 1), ("b", 2), ("a", 3)]
    with ThreadPoolExecutor(1) as workers:
        assert ByKey(stage, itemgetter(0), workers)(items) == items
    assert [item for item in seen if item[0] == "a"] == [("a", 1), ("a", 3)]
    assert ("b", 2) in seen


def test_an_error_for_one_source_is_raised() -> None:
    def stage(items: list[str]) -> list[str]:
        if items == ["b"]:
            raise ValueError("b is broken")
        return items

    with ThreadPoolExecutor(1) as workers, pytest.raises(ValueError, match="b is broken"):
        ByKey(stage, str, workers)(["a", "b"])


def counted(start: int, stop: threading.Event) -> Iterator[int]:
    """Count until the end, a thousand times per second."""
    for number in count(start):
        if stop.wait(0.001):
            return
        yield number


def test_sources_and_sinks_come_and_go_while_it_runs() -> None:
    first, second, always = Keep(), Keep(), Keep()
    held, stop = threading.Event(), threading.Event()

    def low() -> Iterator[int]:
        yield from range(5)
        held.wait()

    pipeline = Pipeline([("low", low())], [("pass", same, 1)], [("a", first), ("all", always)])
    with in_background("pipeline", pipeline.run, stop.set):
        with pipeline.held():
            held.set()
            pipeline.join("low")
            while len(always.items) < 5:
                time.sleep(0.001)
            pipeline.end_sink("a")
            assert first.items == list(range(5))
            assert first.closed
            pipeline.add_sink("a", second)
            pipeline.add_source("high", counted(100, stop))
        while len(second.items) < 10:
            time.sleep(0.001)
    assert always.items == [*range(5), *second.items]
    assert second.items == list(range(100, 100 + len(second.items)))
    assert second.closed
    with pytest.raises(Closed), pipeline.held():
        pass


def test_what_the_last_stage_has_seen_reaches_a_sink_that_is_ended() -> None:
    seen, sink, stop = [], Keep(), threading.Event()

    def slow_to_deliver(items: list[int]) -> list[int]:
        seen.extend(items)
        time.sleep(0.05)
        return items

    stages = [("slow", slow_to_deliver, 1)]
    pipeline = Pipeline([("source", counted(0, stop))], stages, [("sink", sink), ("all", Keep())])
    with in_background("pipeline", pipeline.run, stop.set):
        while len(seen) < 3:  # the third one is in the stage
            time.sleep(0.001)
        pipeline.end_sink("sink")
        assert sink.items[:3] == [0, 1, 2]


def test_a_sink_that_is_added_to_a_failed_pipeline_is_closed() -> None:
    def fail(items: list[int]) -> list[int]:
        raise OSError("disk full")

    late = Keep()
    pipeline = Pipeline([("source", iter(range(3)))], [("fail", fail, 1)], [("sink", Keep())])
    with pytest.raises(OSError, match="disk full"):
        pipeline.run()
    assert pipeline.failed
    pipeline.add_sink("late", late)
    pipeline.join("late")
    assert late.closed
    pipeline.end_sink("late")


def test_two_threads_have_different_names() -> None:
    with pytest.raises(ValueError, match="same: two sources, stages or sinks have this name"):
        Pipeline([("same", iter(range(3)))], [], [("same", Keep())])
