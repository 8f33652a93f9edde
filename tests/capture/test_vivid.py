"""A capture card: the kernel's virtual one, `vivid`, by real V4L2. `make test-capture` boots a kernel for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from polypstream.core.config import Settings
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from tests.conftest import Kept, call

DRIVER = Path("/sys/bus/platform/drivers/vivid")
CARD = "vivid.0"
DEVICE = "/dev/video0"
# An emulated processor is slow: what is late is shown all the same.
SETTINGS = Settings.model_validate({"live": {"max_staleness": 60.0}})

pytestmark = pytest.mark.skipif(not DRIVER.is_dir(), reason="needs the kernel's virtual camera: make test-capture")


def play(uri: str, model: Path, steps: Callable[[Live, Kept], Iterator[None]]) -> tuple[Live, Kept]:
    """Watch a device until the steps are over."""
    kept = Kept()
    live = Live(open_sources([f"room={uri}"], SETTINGS), Segmenter(model, "cpu"), SETTINGS, [("kept", kept)])
    script = steps(live, kept)

    def poll() -> None:
        if next(script, "over") == "over":
            live.close()

    live.run(poll)
    return live, kept


def until(true: Callable[[], object], seconds: float = 30) -> Iterator[None]:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        yield


def test_the_device_is_listed_with_its_formats() -> None:
    everything = call("devices").stdout
    listed = everything.partition(f"{DEVICE}  vivid")[2].splitlines()
    assert listed, everything
    for name in ("yuyv422", "nv12"):
        (line,) = [line for line in listed if line.strip().startswith(f"{name} (")]
        assert "1920x1080" in line


@pytest.mark.parametrize("pixel_format", ["yuyv422", "nv12"])
@pytest.mark.parametrize(("width", "height"), [(640, 360), (1280, 720)])
def test_its_pictures_are_marked(pixel_format: str, width: int, height: int, red_model: Path) -> None:
    """The card shows colour bars; the model finds the red one."""

    def steps(live: Live, kept: Kept) -> Iterator[None]:
        yield from until(lambda: sum(frame.has_signal for frame in kept.frames) >= 15)

    uri = f"{DEVICE}?format={pixel_format}&size={width}x{height}"
    live, kept = play(uri, red_model, steps)
    seen = [frame for frame in kept.frames if frame.has_signal]
    assert {(frame.picture.width, frame.picture.height) for frame in seen} == {(width, height)}
    assert any(frame.region is not None for frame in seen)
    assert (seen[0].picture.to_ndarray() != seen[-1].picture.to_ndarray()).any()
    (status,) = live.status()
    assert status.shown + sum(status.dropped.values()) == status.frames_in


def test_a_card_that_is_unplugged_is_picked_up_when_it_is_back(red_model: Path) -> None:
    """With another size, as after a change at the endoscope's processor."""
    returned: list[float] = []

    def steps(live: Live, kept: Kept) -> Iterator[None]:
        yield from until(lambda: any(frame.has_signal for frame in kept.frames))
        (DRIVER / "unbind").write_text(CARD)
        yield from until(lambda: not live.status()[0].signal)
        (DRIVER / "bind").write_text(CARD)
        started, before = time.monotonic(), len(kept.frames)
        yield from until(lambda: any(frame.has_signal for frame in kept.frames[before:]))
        returned.append(time.monotonic() - started)

    live, kept = play(DEVICE, red_model, steps)
    assert live.status()[0].losses >= 1
    assert returned[0] < 3
    assert any(not frame.has_signal for frame in kept.frames)


def test_the_size_may_change_while_it_is_away(red_model: Path) -> None:
    def steps(live: Live, kept: Kept) -> Iterator[None]:
        yield from until(lambda: any(frame.has_signal for frame in kept.frames))
        (DRIVER / "unbind").write_text(CARD)
        yield from until(lambda: not live.status()[0].signal)
        (DRIVER / "bind").write_text(CARD)
        # The driver keeps the size that it was last opened with, as a card keeps that of its input.
        yield from until(lambda: _opened_at("1280x720"))
        yield from until(lambda: any(frame.has_signal and frame.picture.width == 1280 for frame in kept.frames))

    _, kept = play(DEVICE, red_model, steps)
    assert len({frame.picture.width for frame in kept.frames if frame.has_signal}) == 2


def _opened_at(size: str) -> bool:
    try:
        av.open(DEVICE, format="v4l2", options={"video_size": size}).close()
    except OSError:
        return False
    return True
