"""From a probability map to findings: the blobs that are sure and large enough, the outline and the track of each."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from polypstream.core.config import Findings
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView, Region, grey_level, region_above
from polypstream.stages.tracking import MAX_TRACKS, Blob, Shown, Tracker


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


def find_region(probability: np.ndarray, view: FieldOfView, rules: Rules) -> tuple[Region | None, list[np.ndarray]]:
    """The findings of one probability map by itself, in picture pixels.

    Args:
        probability: uint8 [h, w] at the network's size, 0..255 meaning 0..1.
        view: the field of view that the network saw.
        rules: what counts as a finding.

    Returns:
        Where they are, None if there are none; the outline of each, int32 [n, 2], x and y.
    """
    labels, blobs = find_blobs(probability, probability, rules)
    sure = np.zeros(256, np.uint8)
    sure[1 : len(blobs) + 1] = [255 * blob.sure for blob in blobs]
    if not sure.any():
        return None, []
    return _enlarge(cv2.LUT(labels, sure), probability, view, rules.threshold)


def _enlarge(
    places: np.ndarray, reach: np.ndarray, view: FieldOfView, threshold: float
) -> tuple[Region | None, list[np.ndarray]]:
    """These places of a map and no others, in picture pixels, and their outlines.

    What is held on to, though it is not seen now, keeps its last shape. What is next to a finding stays as probable
    as it is, if below the threshold: the outline runs where the probability crosses that, between the map's pixels.
    Thin parts come apart there; what is finer than the map's own pixels is left out.
    """
    level = grey_level(threshold)
    region = region_above(cv2.copyTo(cv2.max(reach, level), places, cv2.min(reach, level - 1)), view, threshold)
    if region is None:
        return None, []
    finest = view.width * view.height / reach.size
    findings, specks = list[np.ndarray](), list[np.ndarray]()
    for outline in _outlines_of(region):
        (findings if cv2.contourArea(outline) >= finest else specks).append(outline)
    cv2.drawContours(region.mask, specks, -1, 0, cv2.FILLED, offset=(-region.x, -region.y))
    return (region, findings) if findings else (None, [])


def find_blobs(reach: np.ndarray, probability: np.ndarray, rules: Rules) -> tuple[np.ndarray, list[Blob]]:
    """The 8-connected blobs that are large enough, faint ones included.

    Args:
        reach: uint8 [h, w], the map whose threshold says how far a blob reaches.
        probability: uint8 [h, w], the map that says whether the network is sure of it now.
        rules: what counts as a finding.

    Returns:
        uint8 [h, w], each blob's label from 1 on and 0 elsewhere; the blobs in the order of their labels, 255 at most.
    """
    above = cv2.compare(reach, grey_level(rules.threshold), cv2.CMP_GE)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(above, ltype=cv2.CV_16U)
    blobs: list[Blob] = []
    renamed = np.zeros(count, np.uint8)
    for label in range(1, count):
        x, y, width, height, area = boxes[label]
        if area >= rules.smallest * reach.size and len(blobs) < MAX_TRACKS:
            box = np.s_[y : y + height, x : x + width]
            highest = probability[box][labels[box] == label].max()
            sure = bool(highest >= grey_level(max(rules.threshold, rules.peak)))
            blobs.append(Blob(len(blobs) + 1, float(area) / reach.size, sure))
            renamed[label] = len(blobs)
    if len(blobs) == count - 1:
        return labels.astype(np.uint8), blobs
    return renamed[labels], blobs


class FindingsTracker:
    """Attaches to each frame of a source its region, its outlines and the tracks that they belong to.

    Args:
        rules: what counts as a finding in one picture.
        steady: the frames come from a TemporalSmoother, and what is shown shall be as steady.

    Attributes:
        tracker: that remembers what was found.
    """

    def __init__(self, rules: Rules, steady: bool) -> None:
        self.rules, self._steady = rules, steady
        self.tracker = Tracker(patient=steady)

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """One outline around each 8-connected blob of the mask."""
        for frame in frames:
            reach = frame.smoothed if self._steady else frame.probability
            labels, blobs = find_blobs(reach, frame.probability, self.rules)
            motion = frame.motion if self._steady else None
            shown = self.tracker.update(frame.seconds, motion, labels, blobs)
            if shown is None:
                continue
            frame.region, frame.outlines = _enlarge(shown.slots, reach, frame.view, self.rules.threshold)
            frame.tracks = [_track_at(outline, shown, frame.view) for outline in frame.outlines]
        return frames


def _outlines_of(region: Region) -> list[np.ndarray]:
    """One polygon around each 8-connected blob, int32 [n, 2], x and y in picture pixels; holes have none."""
    offset = (region.x, region.y)
    # Not RETR_EXTERNAL, which passes over a blob in another's hole.
    contours, levels = cv2.findContours(region.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=offset)
    return [contour[:, 0] for contour, (*_, parent) in zip(contours, levels[0], strict=True) if parent < 0]


def _track_at(outline: np.ndarray, shown: Shown, view: FieldOfView) -> int:
    """The track that an outline goes around: the map's nearest places to its points tell."""
    rows, columns = shown.slots.shape
    x = ((outline[:, 0] - view.x) * columns // view.width).clip(0, columns - 1)
    y = ((outline[:, 1] - view.y) * rows // view.height).clip(0, rows - 1)
    # An outline lies less than a map's pixel outside.
    around = cv2.dilate(shown.slots, np.ones((3, 3), np.uint8))[y, x]
    return int(shown.numbers[np.bincount(around[around > 0], minlength=1).argmax()])
