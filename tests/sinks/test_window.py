"""The window, on a virtual screen, worked by real keys."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from polypstream.sinks.findings import read_findings
from tests.conftest import call, command, pts_of

TOOLS = ("Xvfb", "xdotool", "ffmpeg")
SCREEN = (800, 600)


@pytest.fixture
def screen() -> Iterator[str]:
    """A virtual screen; its DISPLAY."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    read, write = os.pipe()
    size = f"{SCREEN[0]}x{SCREEN[1]}x24"
    server = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", size], pass_fds=[write])
    os.close(write)
    with os.fdopen(read) as number:
        yield f":{number.readline().strip()}"
    server.terminate()
    server.wait()


def grab(display: str) -> np.ndarray:
    """The screen, uint8 RGB."""
    size = f"{SCREEN[0]}x{SCREEN[1]}"
    raw = ["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    grabbed = subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "x11grab", "-video_size", size, "-i", display, *raw],
        check=True,
        capture_output=True,
    )
    return np.frombuffer(grabbed.stdout, np.uint8).reshape(SCREEN[1], SCREEN[0], 3)


def outlined(picture: np.ndarray) -> bool:
    """Whether the marker's green is to be seen."""
    channels = picture.astype(int)
    return bool(((channels[..., 1] - channels[..., 0] > 60) & (channels[..., 1] - channels[..., 2] > 60)).sum() > 50)


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"


@pytest.mark.realtime
def test_the_window_shows_markers_and_obeys_keys(
    screen: str, tmp_path: Path, make: Callable[..., Path], red_model: Path
) -> None:
    # The disc is there for two thirds of the clip. Without reordered frames, a clip that is saved now has the packet of
    # the frame on the screen.
    video = make(frames=1500, options={"bf": "0"})
    files = ("--record", str(tmp_path / "r.mp4"), "--clips", str(tmp_path / "clips"))
    wanted = ("--window", "--model", str(red_model), *files)
    environment = os.environ | {"DISPLAY": screen}
    running = subprocess.Popen(
        [*command(), "live", f"room=replay:{video}", *wanted], env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL
    )

    def press(key: str) -> None:
        find = ["xdotool", "search", "--onlyvisible", "--name", "room"]
        window = subprocess.run(find, env=environment, check=True, capture_output=True, text=True).stdout.split()[0]
        subprocess.run(["xdotool", "windowfocus", window, "key", "--window", window, key], env=environment, check=True)

    try:
        until(lambda: outlined(grab(screen)), seconds=35)
        press("o")
        until(lambda: not outlined(grab(screen)))
        press("o")
        until(lambda: outlined(grab(screen)))
        press("s")
        until(lambda: bool(list(tmp_path.glob("room-*.jpg"))))
        snapshot = cv2.imread(str(next(tmp_path.glob("room-*.jpg"))), cv2.IMREAD_COLOR_RGB)
        assert snapshot.shape == (240, 320, 3)
        assert outlined(snapshot)
        press("2")
        press("c")
        until(lambda: bool(list(tmp_path.glob("clips/room-*/findings.json"))))
        press("q")
        running.wait(timeout=20)
    finally:
        running.kill()
    assert len(pts_of(tmp_path / "r.mp4")) > 10
    for folder in (tmp_path / "r", next(tmp_path.glob("clips/room-*/"))):
        assert [mark["kind"] for mark in read_findings(folder)["marks"]] == ["withdrawal-begins"]


def test_without_a_screen_it_says_so(make: Callable[..., Path], red_model: Path) -> None:
    video = make(frames=3)
    done = call(
        "live", f"replay:{video}", "--window", "--model", red_model, check=False, DISPLAY="", WAYLAND_DISPLAY=""
    )
    assert done.returncode == 1
    assert "--window: there is no screen here" in done.stderr


@pytest.mark.slow
def test_the_window_of_a_room_that_is_removed_closes(
    screen: str, tmp_path: Path, make: Callable[..., Path], red_model: Path
) -> None:
    file, video, environment = tmp_path / "rooms.yaml", make(frames=50), os.environ | {"DISPLAY": screen}
    rooms = [f"- {{name: {name}, source: 'loop:{video}'}}\n" for name in ("stays", "leaves")]
    file.write_text("".join(rooms))
    words = [*command(), "live", "--rooms", str(file), "--window", "--model", str(red_model)]

    def is_open(name: str) -> bool:
        find = ["xdotool", "search", "--onlyvisible", "--name", name]
        return subprocess.run(find, env=environment, capture_output=True, check=False).returncode == 0

    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as running:
        try:
            until(lambda: is_open("stays") and is_open("leaves"), 60)
            file.write_text(rooms[0])
            running.send_signal(signal.SIGHUP)
            until(lambda: not is_open("leaves"))
            assert is_open("stays")
        finally:
            running.send_signal(signal.SIGINT)
