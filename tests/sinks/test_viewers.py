"""Viewers of live video: when each one gets which picture, and that nothing is encoded for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from polypstream.core.frame import DrawnMarkers, Frame
from polypstream.core.orientation import AS_STORED, Orientation
from polypstream.media.page_video import PageEncoder, Sequence, StreamedPicture
from polypstream.sinks import viewers
from polypstream.sinks.browser import Browser
from polypstream.sinks.viewers import Viewer, Viewers

KEY = StreamedPicture(b"key", Sequence("avc1.64001f", 320, 240))
OTHERS = [StreamedPicture(bytes([number]), None) for number in range(9)]


def frame(width: int = 320, height: int = 240, level: int = 90, orientation: Orientation | None = None) -> Frame:
    picture = av.VideoFrame.from_ndarray(np.full((height, width, 3), level, np.uint8), "rgb24").reformat(
        format="yuv420p"
    )
    return Frame(0, picture, 0, Fraction(1, 25), source="room", orientation=orientation or AS_STORED)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def give(viewer: Viewer, *pictures: StreamedPicture) -> None:
    for picture in pictures:
        viewer.offer(picture)
    await asyncio.sleep(0)


def test_a_viewer_begins_with_a_key_frame() -> None:
    async def test() -> None:
        viewer = Viewer()
        await give(viewer, OTHERS[0], KEY, OTHERS[1])
        assert [await viewer.next(), await viewer.next()] == [KEY, OTHERS[1]]

    run(test)


def test_a_late_viewer_goes_on_with_the_next_key_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "LATE_S", 0.05)

    async def test() -> None:
        late, quick = Viewer(), Viewer()
        for viewer in (late, quick):
            await give(viewer, KEY, OTHERS[0])
            assert await viewer.next() is KEY
        quick.shown()
        await asyncio.sleep(0.1)
        for viewer in (late, quick):
            await give(viewer, OTHERS[1])
        assert [await quick.next(), await quick.next()] == OTHERS[:2]
        await give(late, KEY)  # it has still not shown the first one
        late.shown()
        await give(late, OTHERS[2], KEY, OTHERS[3])
        assert [await late.next(), await late.next()] == [KEY, OTHERS[3]]

    run(test)


def test_what_waits_for_a_viewer_that_shows_nothing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "LATE_S", 0.05)

    async def test() -> None:
        viewer = Viewer()
        await give(viewer, KEY)
        await viewer.next()
        await asyncio.sleep(0.1)
        await give(viewer, *OTHERS, KEY, *OTHERS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(viewer.next(), 0.1)

    run(test)


def test_a_source_is_encoded_once_for_all_and_not_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    class Counting(PageEncoder):
        def __call__(self, frame: Frame, seconds: float, key_frame: bool = False) -> list[StreamedPicture]:
            encoded.append(key_frame)
            return super().__call__(frame, seconds, key_frame)

    monkeypatch.setattr(viewers, "PageEncoder", Counting)

    async def test() -> None:
        source, both = Viewers(1280), [Viewer(), Viewer()]
        source.write(frame())
        assert encoded == []
        for viewer in both:
            source.join(viewer, frame)
        assert len(source) == 2
        source.write(frame())
        assert encoded == [True, True, False]
        await asyncio.sleep(0)
        first = [await both[0].next() for _ in range(3)]
        second = [await both[1].next() for _ in range(2)]
        assert first[1:] == second
        assert [each.key_frame_of is not None for each in first if each] == [True, True, False]
        for viewer in both:
            source.leave(viewer)
        source.write(frame())
        assert len(encoded) == 3

    run(test)


def test_the_end_is_told_to_those_who_watch_and_to_those_who_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        source, before, after = Viewers(1280), Viewer(), Viewer()
        source.join(before, frame)
        source.end()
        source.join(after, frame)
        await asyncio.sleep(0)
        assert await before.next() is None
        assert await after.next() is None

    run(test)


def test_an_encoder_that_fails_ends_the_video_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise av.error.ExternalError(1, "no session is left")

    monkeypatch.setattr(viewers, "PageEncoder", lambda _: fail)

    async def test() -> None:
        source, viewer = Viewers(1280), Viewer()
        source.join(viewer, frame)
        source.write(frame())
        assert await viewer.next() is None

    run(test)


def decoded(pictures: list[StreamedPicture]) -> list[np.ndarray]:
    """uint8 RGB [height, width, 3] of each picture, as a decoder sees them that knows nothing but their bytes."""
    decoder = av.CodecContext.create("h264", "r")
    frames = [each for picture in [*pictures, None] for each in decoder.decode(picture and av.Packet(picture.data))]
    return [each.to_ndarray(format="rgb24") for each in frames]


def test_before_the_first_frame_there_is_a_picture_that_says_so() -> None:
    async def test() -> None:
        browser = Browser()
        async with browser.video("room") as viewer:
            picture = await viewer.next()
            assert picture is not None
            (shown,) = decoded([picture])
            assert shown.shape == (720, 1280, 3)
            assert shown[-60:, :400].max() > 180, "something is written there"
            browser.write(frame())
            picture = await viewer.next()
            assert picture is not None
            assert picture.key_frame_of is not None
            assert picture.key_frame_of.width == 320
        assert browser.viewers("room") == 0

    run(test)


def test_a_new_size_or_orientation_begins_a_new_sequence() -> None:
    encode = PageEncoder(640)
    turned = Orientation(swapped=True)
    frames = [frame(), frame(), frame(1280, 720, 200), frame(1280, 720, 30, turned), frame(321, 241)]
    pictures = [picture for number, each in enumerate(frames) for picture in encode(each, number / 25)]
    assert len(pictures) == len(frames)
    sizes = [each.key_frame_of and (each.key_frame_of.width, each.key_frame_of.height) for each in pictures]
    assert sizes == [(320, 240), None, (640, 360), (640, 1138), (320, 240)]
    assert {each.key_frame_of.codec[:9] for each in pictures if each.key_frame_of} == {"avc1.6400"}
    shown = decoded(pictures)
    assert [each.shape[:2] for each in shown] == [(240, 320), (240, 320), (360, 640), (1138, 640), (240, 320)]
    for each, level in zip(shown, (90, 90, 200, 30, 90), strict=True):
        assert np.abs(each.astype(int) - level).max() <= 4


def test_markers_are_told_where_they_are_in_the_turned_and_smaller_video() -> None:
    marked = frame(1920, 1080, level=200, orientation=Orientation(swapped=True, mirrored=True))
    box = np.array([(100, 200), (300, 200), (300, 260), (100, 260)], np.int32)
    marked.drawn = DrawnMarkers(frame(1920, 1080).in_memory(), "#40ff60", 0.3, 4, [box], ["7"])
    (picture,) = PageEncoder(540)(marked, 0.0)
    (shown,) = decoded([picture])
    assert np.abs(shown.astype(int) - 90).max() <= 4  # the picture without them
    assert picture.markers is not None
    assert (picture.markers.colour, picture.markers.opacity, picture.markers.labels) == ("#40ff60", 0.3, ["7"])
    assert picture.markers.width == 2
    (polygon,) = picture.markers.polygons
    x, y = np.array(polygon).T
    right, left, top, bottom = 540 - 200.5 / 2, 540 - 260.5 / 2, 100.5 / 2, 300.5 / 2
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((left, right, top, bottom), abs=0.1)
    (picture,) = PageEncoder(540)(frame(), 0.0)
    assert picture.markers is None
