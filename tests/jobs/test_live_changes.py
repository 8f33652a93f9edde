"""What changes in live video is logged once."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.protocols import Signal
from polypstream.errors import SourceError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_changes import LiveChanges
from polypstream.jobs.live_outputs import pushes_of
from polypstream.jobs.live_status import describe
from polypstream.sources.devices import Device, check_device
from polypstream.sources.live import parse_address
from tests.conftest import Kept, call, free_port

FAST_FOR_EVER = Settings.model_validate({"live": {"longest_wait": 0.1}})
FAST = Settings.model_validate({"live": {"most_attempts": 2, "longest_wait": 0.1}})


class Room:
    """A source whose signal is set by the test."""

    name, format = "room", None

    def __init__(self) -> None:
        self.signal = Signal(there=True, problem="")

    def frames(self) -> Iterator[Frame]:
        yield from ()

    def close(self) -> None:
        pass


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "polypstream")
    return lambda: [f"{each.levelname} {each.getMessage()}" for each in caplog.records]


def test_a_signal_that_is_lost_and_returns(said: Callable[[], list[str]]) -> None:
    room = Room()
    changes = LiveChanges([room])
    for _ in range(2):
        changes.look({})
    room.signal.there, room.signal.problem, room.signal.losses = False, "no picture for 5 s", 1
    for _ in range(2):
        changes.look({})
    room.signal.there, room.signal.problem = True, ""
    for _ in range(2):
        changes.look({})
    assert said() == ["WARNING room: the signal is lost (no picture for 5 s)", "INFO room: the signal is back"]


def test_an_output_that_fails_and_works_again(said: Callable[[], list[str]]) -> None:
    changes = LiveChanges([])
    for problem in ("", "Connection refused", "Connection refused", "", ""):
        changes.look({"push 1": problem})
    assert said() == ["WARNING push 1: Connection refused", "INFO push 1: works again"]


@pytest.mark.slow
def test_a_push_that_nobody_takes_is_said_once(
    make: Callable[..., Path], red_model: Path, said: Callable[[], list[str]]
) -> None:
    sources = open_sources([f"room=replay:{make(frames=50)}"], FAST)
    address = f"tcp://127.0.0.1:{free_port()}"
    pushes = pushes_of([address], sources, FAST)
    Live(sources, Segmenter(red_model, "cpu"), FAST, pushes).run(lambda: None, 0.05)
    assert said() == [f"WARNING push to {address}: Connection refused"]


def test_a_source_that_was_stopped_did_not_end(make: Callable[..., Path], red_model: Path) -> None:
    kept = Kept()
    live = Live(
        open_sources([f"room=replay:{make(frames=100)}"], FAST), Segmenter(red_model, "cpu"), FAST, [("k", kept)]
    )
    live.run(lambda: live.close() if kept.frames else None, 0.05)
    (status,) = live.status()
    assert describe(status).startswith("room: stopped, ")


def test_the_last_line_keeps_why_nothing_arrived(red_model: Path) -> None:
    """Another program has the port. The reason must not be lost when the user stops the run."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        (source,) = open_sources([f"room=udp://127.0.0.1:{other.getsockname()[1]}"], FAST_FOR_EVER)
        live = Live([source], Segmenter(red_model, "cpu"), FAST_FOR_EVER, [("k", Kept())])
        live.run(
            lambda: live.close() if "port" in source.signal.problem and "sender" not in source.signal.problem else None
        )
    (status,) = live.status()
    assert describe(status).startswith(
        "room: stopped without a signal (another program on this machine uses this port already; "
    )


@pytest.mark.slow
def test_a_source_that_is_given_up_is_a_failure(red_model: Path, tmp_path: Path) -> None:
    """A service manager starts it again then."""
    address = f"tcp://127.0.0.1:{free_port()}"
    few = ("--set", "live.most_attempts=2", "--set", "live.longest_wait=0.1", "--model", red_model)
    done = call("live", f"room={address}", "--record", tmp_path / "r.mp4", *few, check=False)
    assert done.returncode == 1
    assert "room: Connection refused; given up after 2 attempts" in done.stderr


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("size=big", "size is not WIDTHxHEIGHT, for instance 1920x1080"),
        ("rate=fast", "rate is not a number of frames per second, for instance 30 or 30000/1001"),
    ],
)
def test_values_of_a_device_that_are_none(query: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        parse_address(f"/dev/video0?{query}")
    assert parse_address("/dev/video0?size=1280x720&rate=30000/1001").options["framerate"] == "30000/1001"


def test_a_device_that_never_was_there_is_refused_at_once() -> None:
    """From the command line. A file of rooms waits for it: the other rooms go on."""
    for command in (
        ("live", "room=/dev/video99?rate=30", "--serve", "127.0.0.1:0"),
        ("serve", "--live", "/dev/video99"),
    ):
        refused = call(*command, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith("polypstream: /dev/video99: there is no such device. ")
    check_device("/dev/null")
    check_device("replay:/dev/video99")


def test_the_devices_that_are_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Device(f"/dev/video{number}", "a card", ["yuyv422: 640x480"]) for number in (0, 2)]
    monkeypatch.setattr("polypstream.sources.devices.list_devices", lambda: found)
    with pytest.raises(
        SourceError, match=r"/dev/video99: there is no such device. This machine has /dev/video0, /dev/video2$"
    ):
        check_device("/dev/video99")


@pytest.mark.slow
def test_a_device_that_is_not_there_leads_to_the_list(red_model: Path) -> None:
    live = Live(open_sources(["room=/dev/video99"], FAST), Segmenter(red_model, "cpu"), FAST, [("k", Kept())])
    live.run(lambda: None)
    assert live.failed_sources() == [
        "room: No such file or directory; see `polypstream devices`; given up after 2 attempts"
    ]
