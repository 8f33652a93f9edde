"""The file of `live --rooms`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from polypstream.core.config import Settings
from polypstream.errors import SettingsError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_rooms import Rooms, read_rooms
from polypstream.sinks.rolling import RollingRecording
from tests.conftest import Kept, call, pts_of


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
    settings, kept = Settings.model_validate({"live": {"max_staleness": 60.0}}), Kept()
    video = make(frames=50)
    sources = open_sources([f"a=replay:{video}", f"b=replay:{video}"], settings)
    live = Live(sources, Segmenter(red_model, "cpu"), settings, [("kept", kept)], {"b": "pass-through"})
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
