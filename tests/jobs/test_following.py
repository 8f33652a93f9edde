"""Frames by their number, and outlines that are carried along the motion of the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from polypstream.core.config import load_settings
from polypstream.errors import DataError
from polypstream.jobs.following import follow
from polypstream.jobs.frame_reader import FrameReader
from polypstream.jobs.process import Job, process
from polypstream.jobs.results import load_run
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.jobs.uncertain import choose_uncertain, uncertainty
from tests.conftest import Clip, frames_of, make_clip, picture

# A wall that moves one pixel per frame, and another one from frame CUT on.
FRAMES, CUT, RADIUS = 110, 70, 24
WALLS = [
    cv2.resize(
        np.random.default_rng(seed).integers(60, 130, (30, 60), np.uint8), (640, 320), interpolation=cv2.INTER_CUBIC
    )
    for seed in (1, 2)
]


def wall(clip: Clip, index: int) -> np.ndarray:
    left = 120 - index
    grey = np.ascontiguousarray(WALLS[index >= CUT][:240, left : left + 320])
    if index < CUT:
        cv2.circle(grey, (60 + index, 120), RADIUS, 170, -1)
    return np.repeat(grey[..., None], 3, axis=2)


def disc_of(index: int) -> np.ndarray:
    return cv2.circle(np.zeros((240, 320), np.uint8), (60 + index, 120), RADIUS, 1, -1)


def make_run(folder: Path, clip: Clip, model: Path) -> tuple[Path, Path]:
    """A recording, and the folder of its results."""
    recording = make_clip(folder, clip)
    settings = with_model(load_settings(None, []), model)
    return recording, process(Job(str(recording), folder / "results"), make_segmenter(settings), settings).folder


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> tuple[Path, Path]:
    # Keyframes are rare, so that a frame is not where a seek ends.
    clip = Clip(frames=FRAMES, draw=wall, options={"crf": "15", "g": "200", "keyint_min": "200", "sc_threshold": "0"})
    return make_run(tmp_path_factory.mktemp("moving"), clip, red_model)


@pytest.fixture
def reader(moving: tuple[Path, Path]) -> Iterator[FrameReader]:
    with closing(FrameReader(load_run(moving[1]), str(moving[0]))) as found:
        yield found


def test_a_frame_is_exactly_that_of_its_number(reader: FrameReader, moving: tuple[Path, Path]) -> None:
    expected = frames_of(moving[0], "gray")
    for index in (0, 109, 60, 59, 61, 3, 30, 100):  # there and back
        read = cv2.imdecode(np.frombuffer(reader.jpeg(index), np.uint8), cv2.IMREAD_GRAYSCALE)
        differences = [np.abs(read.astype(int) - each).mean() for each in expected[max(0, index - 1) : index + 2]]
        assert differences.index(min(differences)) == min(index, 1)
        assert min(differences) < 4
    assert [frame.index for frame in reader.frames_from(105)] == [105, 106, 107, 108, 109]


def test_what_is_not_there_is_said(reader: FrameReader, moving: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no frame 110"):
        reader.jpeg(FRAMES)
    other = make_clip(tmp_path, Clip(frames=60, time_base=None, pts=[3 * index for index in range(60)]))
    with closing(FrameReader(load_run(moving[1]), str(other))) as wrong, pytest.raises(DataError, match="other times"):
        wrong.jpeg(5)


def test_an_outline_moves_with_the_wall_in_both_directions(reader: FrameReader) -> None:
    outlines, _ = cv2.findContours(disc_of(35), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = follow(reader, 35, [outline[:, 0] for outline in outlines])
    assert 35 not in found
    assert min(found) < 15
    assert max(found) > 55
    for frame, polygons in found.items():
        carried, truth = cv2.fillPoly(np.zeros((240, 320), np.uint8), polygons, 1), disc_of(frame)
        assert np.count_nonzero(carried & truth) / np.count_nonzero(carried | truth) > 0.9


def test_an_outline_ends_with_its_scene(reader: FrameReader) -> None:
    outlines, _ = cv2.findContours(disc_of(60), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = follow(reader, 60, [outline[:, 0] for outline in outlines])
    assert max(found) == CUT - 1
    shorter = follow(reader, 60, [outline[:, 0] for outline in outlines], seconds=0.2)
    assert sorted(shorter) == [55, 56, 57, 58, 59, 61, 62, 63, 64, 65]


def test_uncertain_frames_come_first_and_are_apart(tmp_path: Path, red_model: Path) -> None:
    def fading(clip: Clip, index: int) -> np.ndarray:
        rgb = picture(clip, index)
        if index >= 200:  # half as probable as a finding must be, and only here
            rgb[100:140, 100:140] = (170, 90, 90)
        return rgb

    _, folder = make_run(tmp_path, Clip(frames=225, draw=fading), red_model)
    run = load_run(folder)
    assert uncertainty(run)[210] > uncertainty(run)[50]
    first, second, *others = choose_uncertain(run, 20)
    # The track ends some frames after frame 150, in which the disc has gone.
    assert any(150 <= each.frame <= 175 for each in (first, second))
    assert any(each.frame >= 200 for each in (first, second))
    assert len({each.frame for each in (first, second, *others)}) == 20
    assert len(choose_uncertain(run, 1000)) == 225
