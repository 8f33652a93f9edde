"""Stage `findings`: from a probability map to findings with outlines and track numbers."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from polypstream.core.config import Findings
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView, Region, grey_level, region_above
from polypstream.stages.tracking import MAX_TRACKS, Blob, Tracker, VisibleTracks


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as a finding.

    This is hysteresis thresholding with two thresholds, as in Canny's edge detector (1986). The low threshold defines
    the extent of a finding. The high threshold decides whether it is one. Therefore faint blobs on healthy mucosa are
    rejected, and the outline of a polyp is not shrunk.

    Attributes:
        threshold: low threshold, the probability from which a pixel counts as polyp, 0..1.
        peak: high threshold, the probability that a blob must reach somewhere, 0..1.
        smallest: share of the field of view that a blob must cover, 0..1.
        shortest: seconds for which a finding must reach `peak` before it is shown. It does not apply to images.
    """

    threshold: float
    peak: float = 0.0
    smallest: float = 0.0
    shortest: float = 0.0


def choose_rules(wanted: Findings, threshold: float, peak: float) -> Rules:
    """Combine the settings with the model's own thresholds.

    Args:
        wanted: the settings.
        threshold: the model's threshold, 0..1.
        peak: the model's peak, 0..1.

    Returns:
        The rules.
    """
    return Rules(
        threshold if wanted.threshold == "model" else wanted.threshold,
        peak if wanted.peak == "model" else wanted.peak,
        wanted.smallest,
        wanted.shortest,
    )


def find_region(probability: np.ndarray, view: FieldOfView, rules: Rules) -> tuple[Region | None, list[np.ndarray]]:
    """Find the findings of one probability map by itself.

    Args:
        probability: uint8 [h, w] at the model's input size, 0..255 meaning 0..1.
        view: the field of view that the model saw.
        rules: what counts as a finding.

    Returns:
        The region of the findings in pixels of the frame, or None if there are none; the outline of each finding,
        int32 [n, 2], x and y.
    """
    labels, blobs = find_blobs(probability, probability, rules)
    confident = np.zeros(256, np.uint8)
    confident[1 : len(blobs) + 1] = [255 * blob.confident for blob in blobs]
    if not confident.any():
        return None, []
    return _enlarge(cv2.LUT(labels, confident), probability, view, rules.threshold)


def _enlarge(
    selected: np.ndarray, extent_map: np.ndarray, view: FieldOfView, threshold: float
) -> tuple[Region | None, list[np.ndarray]]:
    """Map selected pixels of a probability map into the frame, and trace their outlines.

    Selected pixels are raised to the threshold. Therefore a track that is kept although this frame does not show it
    keeps its last shape. All other pixels are limited to the level below the threshold. The outline follows the
    threshold between the map's pixels, so thin parts may be separated there. Parts smaller than one map pixel are
    removed.

    Args:
        selected: uint8 [h, w], nonzero for the selected pixels.
        extent_map: uint8 [h, w], 0..255 meaning 0..1.
        view: the field of view that the model saw.
        threshold: the low threshold, 0..1.

    Returns:
        The region in pixels of the frame, or None if nothing is left; its outlines, int32 [n, 2], x and y.
    """
    level = grey_level(threshold)
    limited = cv2.copyTo(cv2.max(extent_map, level), selected, cv2.min(extent_map, level - 1))
    region = region_above(limited, view, threshold)
    if region is None:
        return None, []
    smallest = view.width * view.height / extent_map.size
    findings, too_small = list[np.ndarray](), list[np.ndarray]()
    for outline in _outlines_of(region):
        (findings if cv2.contourArea(outline) >= smallest else too_small).append(outline)
    cv2.drawContours(region.mask, too_small, -1, 0, cv2.FILLED, offset=(-region.x, -region.y))
    return (region, findings) if findings else (None, [])


def find_blobs(extent_map: np.ndarray, probability: np.ndarray, rules: Rules) -> tuple[np.ndarray, list[Blob]]:
    """Find the 8-connected blobs that are large enough, including those below the high threshold.

    Args:
        extent_map: uint8 [h, w], the map that is compared with the low threshold.
        probability: uint8 [h, w], the map that is compared with the high threshold.
        rules: what counts as a finding.

    Returns:
        uint8 [h, w] with the label of each blob, from 1, and 0 elsewhere; the blobs in the order of their labels, at
        most 255.
    """
    above = cv2.compare(extent_map, grey_level(rules.threshold), cv2.CMP_GE)
    labels, blobs = np.zeros(extent_map.shape, np.uint8), list[Blob]()
    x, y, width, height = cv2.boundingRect(above)
    if not width:
        return labels, blobs
    # To label a part is faster. It begins at even places, since OpenCV numbers the blobs by squares of two pixels.
    part = np.s_[y & ~1 : y + height, x & ~1 : x + width]
    count, components, boxes, _ = cv2.connectedComponentsWithStats(above[part], ltype=cv2.CV_16U)
    new_labels = np.zeros(count, np.uint8)
    for component in range(1, count):
        x, y, width, height, area = boxes[component]
        if area >= rules.smallest * extent_map.size and len(blobs) < MAX_TRACKS:
            box = np.s_[y : y + height, x : x + width]
            inside = components[box] == component
            highest = probability[part][box][inside].max()
            confident = bool(highest >= grey_level(max(rules.threshold, rules.peak)))
            level = max(highest, extent_map[part][box][inside].max())
            blobs.append(Blob(len(blobs) + 1, float(area) / extent_map.size, confident, int(level)))
            new_labels[component] = len(blobs)
    labels[part] = new_labels[components]
    return labels, blobs


class FindingsTracker:
    """Sets the region, the outlines and the track numbers of each frame of one source.

    Args:
        rules: what counts as a finding.
        steady: use the smoothed probability, and confirm and hold tracks over time. Frames must come from a
            TemporalSmoother.

    Attributes:
        rules: as above.
        tracker: the tracks of the source.
    """

    def __init__(self, rules: Rules, steady: bool) -> None:
        self.rules, self._steady = rules, steady
        self.tracker = Tracker(steady, rules.shortest)

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `region`, `outlines`, `tracks`, `peaks` and `carried` of each frame.

        Each 8-connected blob has one outline.

        Args:
            frames: frames of one source with `quality`, in the order of their timestamps.

        Returns:
            The same frames.
        """
        for frame in frames:
            extent_map = frame.smoothed if self._steady else frame.probability
            visible = self._visible(frame, extent_map)
            if visible is None:
                continue
            frame.region, frame.outlines = _enlarge(visible.slots, extent_map, frame.view, self.rules.threshold)
            slots = [_slot_at(outline, visible, frame.view) for outline in frame.outlines]
            frame.tracks = [int(visible.numbers[slot]) for slot in slots]
            frame.peaks = [visible.levels[slot] for slot in slots]
            frame.carried = [slot in visible.carried for slot in slots]
        return frames

    def _visible(self, frame: Frame, extent_map: np.ndarray) -> VisibleTracks | None:
        """The tracks that are shown in a frame."""
        motion = frame.motion if self._steady else None
        if not frame.segmented:
            assert motion is not None  # or the model would have seen the frame
            return self.tracker.move(frame.seconds, motion)
        labels, blobs = find_blobs(extent_map, frame.probability, self.rules)
        return self.tracker.update(frame.seconds, motion, labels, blobs, frame.quality.blurred)


def _outlines_of(region: Region) -> list[np.ndarray]:
    """Trace one polygon per 8-connected blob, int32 [n, 2], x and y in pixels of the frame; holes are ignored."""
    offset = (region.x, region.y)
    # RETR_EXTERNAL would miss a blob inside the hole of another one.
    contours, levels = cv2.findContours(region.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=offset)
    return [contour[:, 0] for contour, (*_, parent) in zip(contours, levels[0], strict=True) if parent < 0]


def _slot_at(outline: np.ndarray, visible: VisibleTracks, view: FieldOfView) -> int:
    """Return the slot of the track that an outline encloses, from the map pixels nearest to its points."""
    rows, columns = visible.slots.shape
    x = ((outline[:, 0] - view.x) * columns // view.width).clip(0, columns - 1)
    y = ((outline[:, 1] - view.y) * rows // view.height).clip(0, rows - 1)
    # An outline may lie outside its blob by less than one map pixel.
    around = cv2.dilate(visible.slots, np.ones((3, 3), np.uint8))[y, x]
    return int(np.bincount(around[around > 0], minlength=1).argmax())
