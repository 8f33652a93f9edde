"""From a probability map to findings: the blobs that are sure and large enough, and the outline of each."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stream.config import Findings
from stream.frame import Frame
from stream.view import FieldOfView, Region, grey_level, region_above


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as a finding in one picture.

    Two thresholds, as in Canny's edge detector (1986): the lower one says how far a finding reaches, the higher one
    whether it is one. Faint blobs on healthy wall are not, and a polyp's own edge keeps its place.

    Attributes:
        threshold: probability from which a pixel counts as polyp, 0..1.
        peak: probability that a blob must reach somewhere, 0..1.
        smallest: share of the field of view that a blob must cover, 0..1.
    """

    threshold: float
    peak: float = 0.0
    smallest: float = 0.0


def choose_rules(wanted: Findings, threshold: float, peak: float) -> Rules:
    """The rules that the settings ask for; `threshold` and `peak` are the model's own."""
    return Rules(
        threshold if wanted.threshold == "model" else wanted.threshold,
        peak if wanted.peak == "model" else wanted.peak,
        wanted.smallest,
    )


def find_region(probability: np.ndarray, view: FieldOfView, rules: Rules) -> Region | None:
    """The findings of one probability map, in picture pixels; None where there are none.

    Args:
        probability: uint8 [h, w] at the network's size, 0..255 meaning 0..1.
        view: the field of view that the network saw.
        rules: what counts as a finding.
    """
    highest = int(probability.max())
    if highest < grey_level(max(rules.threshold, rules.peak)):
        return None
    return region_above(_only_findings(probability, rules), view, rules.threshold)


def _only_findings(probability: np.ndarray, rules: Rules) -> np.ndarray:
    """The map with 0 for each 8-connected blob that is too faint or too small."""
    above = cv2.compare(probability, grey_level(rules.threshold), cv2.CMP_GE)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(above, ltype=cv2.CV_16U)
    kept = probability
    for label in range(1, count):
        x, y, width, height, area = boxes[label]
        box = np.s_[y : y + height, x : x + width]
        blob = labels[box] == label
        faint = probability[box][blob].max() < grey_level(rules.peak)
        if faint or area < rules.smallest * probability.size:
            kept = kept.copy() if kept is probability else kept
            kept[box][blob] = 0
    return kept


class Finder:
    """Attaches to each frame its region and outlines.

    Args:
        rules: what counts as a finding.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """One outline for each 8-connected blob of the mask."""
        for frame in frames:
            frame.region = find_region(frame.probability, frame.view, self.rules)
            if frame.region is not None:
                offset = (frame.region.x, frame.region.y)
                outlines, _ = cv2.findContours(
                    frame.region.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=offset
                )
                frame.outlines = [outline[:, 0] for outline in outlines]
        return frames
