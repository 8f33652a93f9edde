"""On a real colonoscopy with a true mask for every frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polypstream.core.config import Settings
from polypstream.jobs.process import Job, process
from polypstream.jobs.setup import make_segmenter
from polypstream.models.data import find_pairs, read_pair
from polypstream.models.evaluation import compare, evaluate, load_model
from polypstream.stages.findings import choose_rules
from tests.conftest import frames_of, pts_of

# Neighbouring frames look alike: one of so many is segmented again as a picture.
STEP = 4


@pytest.mark.slow
def test_frames_of_a_recording_score_as_the_same_pictures_do_as_files(real_data: Path, tmp_path: Path) -> None:
    clip = real_data / "clips" / "cvc_seq01-15_384x288_25fps.mp4"
    folder = process(Job(str(clip), tmp_path, masks=True), make_segmenter(Settings()), Settings()).folder
    assert pts_of(folder / "annotated.mp4") == pts_of(clip)
    pairs = find_pairs(real_data / "cvc-clinicdb")
    masks = frames_of(folder / "masks.mkv", "gray")
    frames = [compare(mask, read_pair(pair)[1]).dice for mask, pair in zip(masks, pairs, strict=True)]
    model = load_model("shipped")
    rules = choose_rules(Settings().findings, model.threshold, model.peak)
    pictures = [result.counts.dice for result in evaluate(model, rules, pairs[::STEP])]
    assert np.mean(frames) > 0.7
    assert abs(np.mean(frames[::STEP]) - np.mean(pictures)) <= 0.02
