"""The file of `live --rooms`."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from polypstream.core.config import Settings
from polypstream.core.pipeline import in_background
from polypstream.errors import PolypstreamError, SettingsError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_rooms import Rooms, read_rooms
from polypstream.sinks.rolling import RollingRecording
from tests.conftest import Kept, call, command, pts_of

LATE = Settings.model_validate({"live": {"max_staleness": 60.0}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no list of rooms; begin each room with `- name:`; see docs/live.md"),
        ("- name: [", "is not valid YAML in line 1"),
        ("- name: a\n- b", "entry 1 (a): source: is missing; write the address of a source, as for `polypstream live`"),
        ("- {name: a, source: s}\n- b", "entry 2: is no room; write name: and source:"),
        ("- {name: a b, source: s}", "entry 1: name: write a name of letters, digits, - and _"),
        ("- {name: a, source: s, display: fast}", "entry 1 (a): display: write in-step or pass-through"),
        ("- {name: a, source: s, record: r.avi}", "entry 1 (a): record: write a file name that ends in .mp4"),
        ("- {name: a, source: s, push: 5}", "entry 1 (a): push: write an address, or a list of addresses"),
        (
            "- {name: a, source: s, recrod: r.mp4}",
            "entry 1 (a): recrod: there is no such entry; a room has name, source, record, record_clean, push, display",
        ),
        ("- {name: a, source: s}\n- {name: a, source: t}", "entry 2 (a): has the name a, as entry 1 has"),
        (
            "- {name: a, source: s, record: r.mp4}\n- {name: b, source: t, record_clean: r.mp4}",
            "entry 2 (b): has the file r.mp4, as entry 1 has",
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_and_entry(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rooms.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_rooms(file)
    assert str(refused.value) == f"{file}: {said}"


def test_passwords_are_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "rooms.yaml"
    file.write_text("- name: a\n  source: rtsp://u:secret@h/s\n  push: {a: rtsp://u:secret@h/s}\n")
    with pytest.raises(SettingsError) as refused:
        read_rooms(file)
    assert "secret" not in str(refused.value)


def test_the_example_of_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
    example = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert example is not None
    (tmp_path / "rooms.yaml").write_text(example[1])
    rooms = Rooms(tmp_path / "rooms.yaml", Settings(), masks=False, clips=None)
    assert [room.display for room in rooms.open()] == [None, "pass-through", None]
    ((_, recording),) = rooms.open()[0].sinks
    assert isinstance(recording, RollingRecording)
    assert re.search(rf" {re.escape(str(tmp_path))}/room1-\d{{8}}-\d{{6}}\.mp4$", recording.aim)


@pytest.mark.slow
def test_each_room_is_shown_in_its_own_way(make: Callable[..., Path], red_model: Path) -> None:
    kept, video = Kept(), make(frames=50)
    sources = open_sources([f"a=replay:{video}", f"b=replay:{video}"], LATE)
    live = Live(sources, Segmenter(red_model, "cpu"), LATE, [("kept", kept)], {"b": "pass-through"})
    live.run(lambda: None)
    a, b = live.status()
    assert a.findings_of["own"] == a.shown > 10
    assert b.findings_of["own"] == 0
    assert b.findings_of["earlier"] > 10
    for name in ("a", "b"):
        assert any(frame.region is not None for frame in kept.frames if frame.source == name)


@pytest.mark.slow
def test_the_rooms_of_a_file_are_recorded(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    file, video = tmp_path / "rooms.yaml", make(frames=30)
    file.write_text(
        f"- name: room1\n  source: replay:{video}\n  record_clean: one.mp4\n  display: pass-through\n"
        f"- name: room2\n  source: replay:{video}\n  record: two.mp4\n"
    )
    done = call("live", "--rooms", file, "--model", red_model, "--set", "live.max_staleness=60.0")
    assert f"room1: is recorded without markers in {tmp_path / 'one.mp4'}" in done.stderr
    for name in ("one", "two"):
        assert len(pts_of(tmp_path / f"{name}.mp4")) > 10
        assert (tmp_path / name / "findings.json").is_file()
    refused = call("live", "demo:", "--rooms", file, check=False)
    assert "--rooms: leave out SOURCE, --record, --record-clean and --push; the file has them" in refused.stderr
    nothing = call("live", check=False)
    assert "live: name a SOURCE, such as /dev/video0, or give --rooms FILE.yaml" in nothing.stderr


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)


@contextmanager
def running(file: Path, model: Path) -> Iterator[tuple[Rooms, Live, Kept]]:
    """The rooms of a file, which run; all of them have shown some frames."""
    rooms, kept = Rooms(file, LATE, masks=False, clips=None), Kept()
    opened = rooms.open()
    sinks = [*(sink for room in opened for sink in room.sinks), ("kept", kept)]
    live = Live([room.source for room in opened], Segmenter(model, "cpu"), LATE, sinks, rooms.displays, changes=True)
    with in_background("live", lambda: live.run(lambda: None), live.close):
        until(lambda: all(each.shown > 5 for each in live.status()))
        yield rooms, live, kept


@pytest.mark.slow
def test_a_reload_ends_starts_and_restarts_rooms_and_leaves_the_others_alone(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    # Without reordered frames, the packet of each frame is there before the frame is shown.
    file, video = tmp_path / "rooms.yaml", make(frames=20, options={"bf": "0"})
    stays = f"- {{name: stays, source: 'loop:{video}', record_clean: stays.mp4}}\n"
    leaves = f"- {{name: leaves, source: 'loop:{video}', record: leaves.mp4}}\n"
    moves = f"- {{name: moves, source: 'loop:{video}', record: moves.mp4}}\n"
    moved = f"- {{name: moves, source: 'loop:{video}', record: moved.mp4, display: pass-through}}\n"
    comes = f"- {{name: comes, source: 'loop:{video}', record_clean: comes.mp4}}\n"
    file.write_text(stays + leaves + moves)
    with running(file, red_model) as (rooms, live, kept):
        source = live.sources[0]
        file.write_text(moved + stays + comes)
        changes = rooms.reload(live)
        assert str(changes) == "comes added, leaves removed, moves restarted, 1 room unchanged"
        assert len(pts_of(tmp_path / "leaves.mp4")) == count(kept, "leaves") > 5
        assert (tmp_path / "leaves" / "findings.json").is_file()
        assert live.sources[0] is source
        assert [each.source for each in live.status()] == ["stays", "moves", "comes"]
        assert live.numbers == {"stays": 0, "leaves": 1, "moves": 2, "comes": 3}
        until(
            lambda: len(list((tmp_path / "comes").glob("*.csv"))) == 1 and live.status()[1].findings_of["earlier"] > 5
        )
        assert str(rooms.reload(live)) == "3 rooms unchanged"
        file.write_text(moved.replace("moved.mp4", "again.mp4") + stays + comes)
        assert rooms.reload(live).restarted == ["moves"]
        earlier = live.status()[1].findings_of["earlier"]
        until(lambda: live.status()[1].findings_of["earlier"] > earlier + 5)
        assert [each.problem for each in live.status()] == ["", "", ""]
    for each in live.status():
        assert each.frames_in == each.shown + sum(each.dropped.values())
        assert (each.losses, each.unrecorded) == (0, 0)
    # Its packets are copied: none is missing, and there may be that of a frame that was on its way at the end.
    times = pts_of(tmp_path / "stays.mp4")
    assert {later - earlier for earlier, later in pairwise(times)} == {Fraction(1, 25)}
    assert 0 <= len(times) - count(kept, "stays") <= 2
    recorded = [len(pts_of(tmp_path / f"{name}.mp4")) for name in ("moves", "moved", "again")]
    assert sum(recorded) == count(kept, "moves")
    for one, other in pairwise(frame for frame in kept.frames if frame.source == "moves"):
        assert one.index < other.index
        assert one.seconds < other.seconds


def count(kept: Kept, name: str) -> int:
    return sum(frame.source == name for frame in kept.frames)


@pytest.mark.slow
def test_all_rooms_may_be_replaced(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    file, video = tmp_path / "rooms.yaml", make(frames=20)
    file.write_text(f"- {{name: old, source: 'loop:{video}'}}\n")
    with running(file, red_model) as (rooms, live, kept):
        file.write_text(f"- {{name: new, source: 'loop:{video}', display: pass-through}}\n")
        rooms.reload(live)
        until(lambda: count(kept, "new") > 5)
        assert [each.source for each in live.status()] == ["new"]
    with pytest.raises(SettingsError, match="the rooms are ending"):
        file.write_text(f"- {{name: old, source: 'loop:{video}'}}\n")
        rooms.reload(live)


@pytest.mark.slow
def test_a_file_that_is_wrong_changes_nothing(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    file, video = tmp_path / "rooms.yaml", make(frames=20)
    good = f"- {{name: a, source: 'loop:{video}', record: a.mp4}}\n"
    file.write_text(good)
    with running(file, red_model) as (rooms, live, kept):
        sources = list(live.sources)
        for wrong, said in (
            ("- name: [", "is not valid YAML in line 1"),
            (f"{good}- {{name: b, source: 'loop:{tmp_path}/none.mp4'}}", "none.mp4"),
            (f"- {{name: b, source: 'loop:{video}', push: 'ftp://h'}}", "--push ftp://h: write rtsp://"),
            (good.replace("}", ", display: pass-through}"), "a.mp4: exists already; give another --record"),
        ):
            file.write_text(wrong)
            with pytest.raises(PolypstreamError, match=re.escape(said)):
                rooms.reload(live)
            shown = count(kept, "a")
            until(lambda shown=shown: count(kept, "a") > shown)
            assert live.sources == sources
    assert len(pts_of(tmp_path / "a.mp4")) == count(kept, "a")


@pytest.mark.slow
def test_the_command_reads_its_file_again_on_sighup_and_when_it_is_asked(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    file, video, log = tmp_path / "rooms.yaml", make(frames=20), tmp_path / "log.txt"
    rooms = [f"- {{name: room{number}, source: 'loop:{video}', record: room{number}.mp4}}\n" for number in range(4)]
    file.write_text(rooms[0] + rooms[1])
    options = ["--serve", "127.0.0.1:0", "--model", str(red_model), "--set", "live.max_staleness=60.0"]
    words = [*command(), "live", "--rooms", str(file), *options]
    with log.open("w") as written, subprocess.Popen(words, stdout=written, stderr=subprocess.STDOUT) as running:
        try:
            until(lambda: "room1: is recorded in" in log.read_text())
            address = re.search(r"http://\S+/", log.read_text())
            assert address is not None
            until(lambda: all(each["shown"] > 5 for each in status(address[0])))
            file.write_text(rooms[0] + rooms[2])
            running.send_signal(signal.SIGHUP)
            until(lambda: f"{file}: read again: room2 added, room1 removed, 1 room unchanged" in log.read_text())
            assert "room1: recorded " in log.read_text()
            file.write_text("rooms:")
            running.send_signal(signal.SIGHUP)
            until(lambda: "is no list of rooms; begin each room with `- name:`; see docs/live.md" in log.read_text())
            refused = requests.post(f"{address[0]}api/rooms/reload", timeout=30)
            assert refused.status_code == 409
            assert refused.json()["detail"].endswith("see docs/live.md; nothing was changed")
            file.write_text(rooms[0] + rooms[2] + rooms[3])
            done = requests.post(f"{address[0]}api/rooms/reload", timeout=30)
            assert done.json() == {"added": ["room3"], "removed": [], "restarted": [], "unchanged": ["room0", "room2"]}
            assert [each["source"] for each in status(address[0])] == ["room0", "room2", "room3"]
            until(lambda: all(each["shown"] > 5 for each in status(address[0])))
        finally:
            running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    for number in (0, 2, 3):
        assert f"room{number}: recorded " in log.read_text().rpartition("read again")[2]


def status(address: str) -> list[dict[str, Any]]:
    return list(requests.get(f"{address}status.json", timeout=30).json())
