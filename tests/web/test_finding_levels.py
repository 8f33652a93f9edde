"""The findings at every threshold, for the slider of the image page, against find_region at single thresholds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from polypstream.core.geometry import FieldOfView, grey_level, region_above
from polypstream.stages.findings import Rules, find_region
from polypstream.web.finding_levels import enlarge_finding_levels, finding_levels

VIEW = FieldOfView(10, 6, 410, 330)
SHAPE = (360, 440)


def smooth_map(seed: int) -> np.ndarray:
    """uint8 [128, 128] with blobs of all sizes and heights."""
    noise = np.random.default_rng(seed).standard_normal((128, 128)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    return np.clip(110 + 80 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def probability_of(levels: np.ndarray) -> np.ndarray:
    probability, region = np.zeros(SHAPE, np.uint8), region_above(levels, VIEW, 0)
    assert region is not None
    probability[region.slices] = region.probability
    return probability


@pytest.mark.parametrize("seed", range(3))
def test_each_threshold_gives_the_findings_of_find_region(seed: int) -> None:
    levels, rules = smooth_map(seed), Rules(0.5, 0.9, 0.002)
    highest, counts = finding_levels(levels, rules)
    enlarged = enlarge_finding_levels(highest, VIEW, probability_of(levels))
    found = []
    for threshold in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        region, outlines = find_region(levels, VIEW, Rules(threshold, rules.peak, rules.smallest))
        mask = np.zeros(SHAPE, bool)
        if region is not None:
            mask[region.slices] = region.mask > 0
        # Enlarging a part of the map rounds a few pixels to other levels.
        assert ((enlarged >= grey_level(threshold)) != mask).mean() < 1e-4
        assert counts[grey_level(threshold)] == len(outlines)
        found.append(len(outlines))
    assert len(set(found)) >= 3


def test_a_blob_is_a_finding_only_where_it_is_large_and_sure_enough() -> None:
    levels = np.zeros((100, 100), np.uint8)
    levels[10:30, 10:30] = 100  # never reaches the peak
    levels[50:80, 50:80] = 60
    levels[60:70, 60:70] = 200  # reaches it, and is large enough up to 200
    levels[5:7, 80:82] = 255  # too small
    highest, counts = finding_levels(levels, Rules(0.5, 0.7, 0.01))
    assert (np.unique(highest) == [0, 60, 200]).all()
    assert (highest == 60).sum() == 800
    assert (highest == 200).sum() == 100
    assert counts == [1] * 201 + [0] * 55
    assert finding_levels(np.zeros((8, 8), np.uint8), Rules(0.5))[1] == [0] * 256
