"""The findings of one image at every threshold, for the threshold slider of the image page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polypstream.core.geometry import FieldOfView
from polypstream.stages.findings import Rules, find_blobs

LEVELS = 256


def finding_levels(probability: np.ndarray, rules: Rules) -> tuple[np.ndarray, list[int]]:
    """Apply the rules to a probability map at each threshold instead of at that of the rules.

    With a higher threshold a blob becomes smaller, and its highest probability stays the same or becomes lower. So a
    pixel that belongs to a finding at one threshold belongs to one at each lower threshold. One number per pixel holds
    the findings of all thresholds: the highest threshold at which the pixel belongs to a finding.

    Args:
        probability: uint8 [h, w], 255 meaning 1.
        rules: what counts as a finding. Its threshold is not used.

    Returns:
        The highest threshold at which each pixel belongs to a finding, uint8 [h, w], 255 meaning 1, and 0 where there
        is none; for each threshold from 0 to 255 the number of findings.
    """
    highest, counts = np.zeros_like(probability), np.zeros(LEVELS, int)
    before = -1
    # Between two grey levels that occur in the map, the blobs do not change.
    for level in map(int, np.unique(probability[probability > 0])):
        labels, blobs = find_blobs(probability, probability, replace(rules, threshold=level / 255))
        is_finding = np.zeros(LEVELS, bool)
        is_finding[[blob.label for blob in blobs if blob.confident]] = True
        highest[is_finding[labels]] = level
        counts[before + 1 : level + 1] = np.count_nonzero(is_finding)
        before = level
    return highest, counts.tolist()


def enlarge_finding_levels(highest: np.ndarray, view: FieldOfView, probability: np.ndarray) -> np.ndarray:
    """Enlarge the result of `finding_levels` to the size of the image.

    An image pixel belongs to a finding at a threshold if both hold, as in `find_region`:

    - its interpolated probability reaches the threshold;
    - one of the four map pixels from which it is interpolated belongs to a finding. The four touch each other, so those
      that reach the threshold belong to the same blob.

    A few pixels may differ by rounding, and `find_region` also removes specks that are smaller than a map pixel.

    Args:
        highest: uint8 [h, w], of `finding_levels`.
        view: the field of view that the map covers.
        probability: uint8 [H, W], the probability of each pixel of the image.

    Returns:
        The highest threshold at which each pixel of the image belongs to a finding, uint8 [H, W].
    """
    padded = np.pad(highest, 1, mode="edge")
    pairs = np.maximum(padded[:-1], padded[1:])
    blocks = np.maximum(pairs[:, :-1], pairs[:, 1:])
    # Index of the block of each image pixel. Pixel centres are aligned, as in `region_above`.
    rows, columns = (
        np.floor((np.arange(length) + 0.5) * size / length + 0.5).astype(int)
        for length, size in zip((view.height, view.width), highest.shape, strict=True)
    )
    enlarged = np.zeros_like(probability)
    view.crop(enlarged)[:] = blocks[np.ix_(rows, columns)]
    return np.minimum(enlarged, probability)
