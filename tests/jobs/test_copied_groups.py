"""Whatever reads results reads those whose video has copied and encoded groups of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from polypstream.core.config import load_settings
from polypstream.jobs.annotations import write_annotations
from polypstream.jobs.process import Job, process
from polypstream.jobs.score import score
from polypstream.jobs.setup import make_segmenter, with_model
from tests.conftest import RED, Clip, call, frames_of, make_clip, summary_of
from tests.media.test_gop_copy import READ_NUMBER, numbered
from tests.web.serving import click_at, served, settings_for, until

FRAMES, MARKED = 96, range(30, 60)
GROUPS = {"g": "12", "sc_threshold": "0", "bf": "3"}


def drawn(clip: Clip, index: int) -> np.ndarray:
    """A numbered frame; MARKED have a red disc."""
    rgb = numbered(clip, FRAMES + index)  # these show none of their own
    lines, columns = np.ogrid[: clip.height, : clip.width]
    if index in MARKED:
        rgb[(columns - 160) ** 2 + (lines - 140) ** 2 <= 40**2] = RED
    return rgb


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording with a polyp in its middle groups of pictures."""
    return make_clip(tmp_path_factory.mktemp("recording"), Clip(frames=FRAMES, draw=drawn, options=GROUPS))


@pytest.fixture(scope="module")
def folders(recording: Path, red_model: Path) -> dict[str, Path]:
    """Results with copied and encoded groups, and with all frames encoded."""
    found = {}
    for unmarked in ("auto", "encode"):
        settings = with_model(load_settings(None, [f"output.video.unmarked={unmarked}"]), red_model)
        job = Job(str(recording), recording.parent / unmarked, masks=True)
        found[unmarked] = process(job, make_segmenter(settings), settings).folder
    counts: Any = summary_of(found["auto"])["unmarked"]
    assert counts["copied_gops"] >= 4
    assert counts["encoded_gops"] >= 3
    return found


def test_findings_tables_and_masks_are_the_same(folders: dict[str, Path]) -> None:
    one, other = folders.values()
    assert (one / "frames.csv").read_bytes() == (other / "frames.csv").read_bytes()
    tracks = [json.loads((folder / "findings.json").read_text())["tracks"] for folder in (one, other)]
    assert tracks[0] == tracks[1]
    assert len(tracks[0]) == 1
    for pair in zip(frames_of(one / "masks.mkv", "gray"), frames_of(other / "masks.mkv", "gray"), strict=True):
        np.testing.assert_array_equal(*pair)


def test_masks_writes_the_same_annotations(folders: dict[str, Path], recording: Path, tmp_path: Path) -> None:
    written = []
    for name, folder in folders.items():
        target, (annotated,) = write_annotations([str(recording)], [folder], "coco", tmp_path / name)
        assert annotated.pictures == FRAMES
        # about.json has the settings, and they differ.
        paths = [path for path in target.rglob("*.*") if path.name != "about.json"]
        written.append({path.relative_to(target): path.read_bytes() for path in paths})
    assert written[0] == written[1]


def test_score_gives_the_same_figures(folders: dict[str, Path]) -> None:
    one, other = (score(folder, folders["encode"] / "masks.mkv") for folder in folders.values())
    assert one == other
    assert (one["frames"], one["mean_dice"]) == (FRAMES, 1.0)


@pytest.mark.slow
def test_dicom_writes_the_same_captures(folders: dict[str, Path], recording: Path) -> None:
    pixels = []
    for folder in folders.values():
        call("dicom", recording, "--results", folder)
        pixels.append([pydicom.dcmread(path).PixelData for path in sorted((folder / "dicom").glob("*.dcm"))])
    assert pixels[0] == pixels[1]
    assert len(pixels[0]) == 2  # the capture and its segmentation


@pytest.mark.browser
def test_the_timeline_of_the_page_leads_into_copied_and_encoded_groups(
    recording: Path, red_model: Path, tmp_path: Path, browse: Callable[[], Any]
) -> None:
    driver = browse()
    with served(tmp_path / "served", settings_for(red_model)) as app:
        id_ = app.send(recording)
        assert app.wait_for(id_, "finished", "failed")["state"] == "finished"
        driver.get(f"{app.address}/recordings/{id_}")
        until(lambda: driver.execute_script("return document.querySelector('video').readyState >= 1"))
        canvas = "<canvas width=320 height=240></canvas>"
        driver.execute_script(f"document.body.insertAdjacentHTML('beforeend', '{canvas}')")
        for place in (0.05, 0.4, 0.9, 0.55, 0.2):
            click_at(driver, ".timeline", place)
            shown_at(driver, place * (FRAMES - 1) / 25)
            number = driver.execute_script(READ_NUMBER) - FRAMES
            assert number <= seconds_of(driver) * 25 <= number + 1


def seconds_of(driver: Any) -> float:
    return float(driver.execute_script("return document.querySelector('video').currentTime"))


def shown_at(driver: Any, seconds: float) -> None:
    """Wait until the video shows its frame at about a time."""
    until(lambda: seconds_of(driver) == pytest.approx(seconds, abs=0.1))
    until(lambda: not driver.execute_script("return document.querySelector('video').seeking"))
