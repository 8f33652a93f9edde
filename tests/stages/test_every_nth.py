"""The model on every Nth frame: between them findings move along the motion, and a scene never borrows another's."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from polypstream.archive.parts import plan_parts
from polypstream.core.config import load_settings
from polypstream.core.frame import Frame
from polypstream.errors import SettingsError
from polypstream.jobs.live import Live
from polypstream.jobs.process import Job, process
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.sources.open import open_source
from polypstream.stages.every_nth import EveryNth
from polypstream.stages.findings import FindingsTracker, Rules
from polypstream.stages.quality import QualityInspector
from polypstream.stages.smoothing import TemporalSmoother
from tests.conftest import frames_of as pictures_of
from tests.conftest import summary_of
from tests.stages.test_smoothing import SIZE, frames_of, polyp_at

EVERY = 3


@dataclass
class Model:
    """Finds what each frame has, and notes which frames it saw. The others lose what they have."""

    truth: list[np.ndarray]
    seen: list[int] = field(default_factory=list)

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        self.seen += [frame.index for frame in frames]
        for frame in frames:
            frame.probability = self.truth[frame.index]
        return frames


def analysed(frames: Iterator[Frame], truth: Callable[[int], np.ndarray] | None = None) -> tuple[list[Frame], Model]:
    """The frames after the stages, and the model; `truth` replaces what the frames show, by their number."""
    waiting = list(frames)
    for index, frame in enumerate(waiting):
        frame.index, frame.pts = index, index
    model = Model([frame.probability if truth is None else truth(frame.index) for frame in waiting])
    for frame in waiting:
        del frame.probability
    inspect, every, smoother, tracker = (
        QualityInspector(),
        EveryNth(model, EVERY),
        TemporalSmoother(estimate=False),
        FindingsTracker(Rules(0.5, 0.5), True),
    )
    for start in range(0, len(waiting), 4):
        tracker(smoother(every(inspect(waiting[start : start + 4]))))
    return waiting, model


def mask_of(frame: Frame) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    if frame.region is not None:
        region = frame.region
        height, width = region.mask.shape
        mask[region.y : region.y + height, region.x : region.x + width] = region.mask > 0
    return mask


def test_findings_move_to_the_frames_between() -> None:
    frames, model = analysed(frames_of(3, 12))
    assert model.seen == [0, 3, 6, 9]
    assert [frame.segmented for frame in frames] == [True, False, False] * 4
    for frame, truth in zip(frames, model.truth, strict=True):
        mask, expected = mask_of(frame), truth >= 128
        assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.9, frame.index
        assert frame.tracks == [1]
        assert frame.probability.max() > 200


def test_a_scene_that_begins_between_is_seen_at_once() -> None:
    other = list(frames_of(0, 5, seed=1))
    for frame in other:
        frame.model_input //= 3
    frames, model = analysed(chain(frames_of(0, 5), other), lambda index: polyp_at(64 if index < 5 else 30))
    assert model.seen == [0, 3, 5, 8]
    assert all(frame.tracks for frame in frames)  # from the first frame of a scene on, as without `every`
    assert mask_of(frames[4])[64, 64]
    for frame in frames[5:]:
        assert mask_of(frame)[64, 30]
        assert not mask_of(frame)[64, 64]


def test_what_the_model_saw_once_is_not_confirmed_by_its_copies() -> None:
    """It is large, so that two frames in a row would be enough."""
    nothing, large = np.zeros((SIZE, SIZE), np.uint8), np.full((SIZE, SIZE), 250, np.uint8)
    once, _ = analysed(frames_of(0, 15), lambda index: large if index == 6 else nothing)
    assert not any(frame.tracks for frame in once)
    twice, _ = analysed(frames_of(0, 15), lambda index: large if index in (6, 9) else nothing)
    assert [frame.index for frame in twice if frame.tracks] == [9, 10, 11]


def test_what_is_hidden_in_a_frame_stays_hidden_in_its_copies() -> None:
    """A faint piece apart from the largest one is not shown; see Tracker."""

    def truth(index: int) -> np.ndarray:
        seen = polyp_at(64)
        if index >= 3:
            seen[60:66, 84:90] = 150
        return seen

    waiting = list(frames_of(0, 9))
    model = Model([truth(index) for index in range(9)])
    stages = (
        QualityInspector(),
        EveryNth(model, EVERY),
        TemporalSmoother(estimate=False),
        FindingsTracker(Rules(0.5, 0.9), True),
    )
    for frame in waiting:
        for stage in stages:
            stage([frame])
    assert all(mask_of(frame)[64, 64] for frame in waiting)
    assert not any(mask_of(frame)[63, 87] for frame in waiting)


def test_process_says_which_frames_the_model_saw(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    clip = make(frames=45)
    settings = with_model(load_settings(None, [f"inference.every={EVERY}", "inference.provider=cpu"]), red_model)
    folder = process(Job(str(clip), tmp_path / "out", masks=True), make_segmenter(settings), settings).folder
    with (folder / "frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["segmented"] for row in rows] == ["1", "0", "0"] * 15
    assert [row["polyp_count"] for row in rows[:30]] == ["1"] * 30
    assert all(mask.any() for mask in pictures_of(folder / "masks.mkv", "gray")[:30])
    assert summary_of(folder)["settings"]["inference"]["every"] == EVERY  # type: ignore[index]


def test_where_it_does_not_fit_it_is_refused_or_left(make: Callable[..., Path], red_model: Path) -> None:
    with pytest.raises(SettingsError, match=r"inference\.every=3: needs findings\.steady=true"):
        load_settings(None, ["inference.every=3", "findings.steady=false"])
    clip = make(frames=60, options={"g": "10"})
    settings = with_model(load_settings(None, ["inference.every=3", "inference.provider=cpu"]), red_model)
    with pytest.raises(SettingsError, match=r"inference\.every=3: is for recordings"):
        Live([], make_segmenter(settings), settings, [])
    source = open_source(str(clip))
    assert plan_parts(source, settings, 0.8) is None  # parts would not know which frames the model saw
    assert plan_parts(source, load_settings(None, []), 0.8) is not None
    source.close()
