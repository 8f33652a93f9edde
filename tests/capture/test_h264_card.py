"""A capture card that gives H.264: a library stands in for its driver, because the kernel's virtual cards give none."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import pytest

import polypstream as pp
from tests.conftest import call, pts_of
from tests.jobs.test_live_copy import slices_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc for the library that stands in for a driver"),
]

DEVICE = "/dev/video90"


@pytest.fixture
def video(make: Callable[..., Path]) -> Path:
    return make(name="clip.ts", frames=75, options={"g": "20", "bf": "0", "preset": "ultrafast"})


@pytest.fixture
def card(video: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of programs that have the card, which gives the pictures of the video."""
    library, pictures, folder = tmp_path / "card.so", tmp_path / "pictures", tmp_path / "dev"
    source = Path(__file__).with_name("h264_card.c")
    subprocess.run(["gcc", "-Wall", "-Werror", "-O", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    folder.mkdir()
    (folder / Path(DEVICE).name).touch()
    with av.open(str(video)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    pictures.write_bytes(b"".join(struct.pack("<I", len(packet)) + packet for packet in packets))
    return {"LD_PRELOAD": str(library), "CARD_PICTURES": str(pictures), "CARD_FOLDER": str(folder)}


def test_it_is_listed_with_its_format(card: dict[str, str]) -> None:
    listed = call("devices", **card).stdout
    assert f"{DEVICE}  H.264 card\n    h264 (H.264): 320x240\n" in listed


@pytest.mark.parametrize("values", ["", "?format=h264"])
def test_its_packets_are_copied_and_its_pictures_marked(
    values: str, card: dict[str, str], video: Path, red_model: Path, tmp_path: Path
) -> None:
    rooms = tmp_path / "rooms.yaml"
    rooms.write_text(f"- {{name: room, source: '{DEVICE}{values}', record: r.mp4, record_clean: c.mp4}}")
    settings = ["--set", "live.most_attempts=1", "--set", "live.max_staleness=60.0"]
    done = call("live", "--rooms", rooms, "--model", red_model, *settings, check=False, **card)
    assert done.returncode == 1
    assert "No such device" in done.stderr
    assert "given up after 1 attempt" in done.stderr
    assert "encoded" not in done.stderr
    assert slices_of(tmp_path / "c.mp4") == slices_of(video)
    run = pp.load_run(tmp_path / "c")
    assert len(run.frames["frame"]) == 75
    assert run.tracks
    assert len(pts_of(tmp_path / "r.mp4")) > 20
