"""What a run found and what there was: a recording as arrays, from which all figures are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import cv2
import numpy as np

from polypstream.errors import DataError
from polypstream.jobs.results import Outline, Run
from polypstream.jobs.score import stored_planes
from polypstream.study.shapes import Box, TruePolyp, Truth

MASKS = "masks.mkv"


@dataclass(frozen=True, slots=True)
class Observation:
    """A recording. A mark is what a run shows of one track in one frame. A target is one polyp in one frame.

    Attributes:
        name: name of the recording.
        seconds: presentation time of each frame in seconds, float [frames].
        polyps: names of the polyps of the ground truth.
        target_frame: frame of each target, rising, int [targets].
        target_polyp: its polyp, as a place in `polyps`, int [targets].
        target_share: share of the field of view that it covers, 0..1, float [targets]. Of boxes, that of the box.
        target_box: box around it in pixels of the stored frame, float [targets, 4]: x, y, width, height.
        mark_frame: frame of each mark, rising, int [marks].
        mark_track: its track, int [marks].
        mark_probability: its highest probability, 0..1, float [marks].
        mark_share: share of the field of view that it covers, 0..1, float [marks].
        mark_box: box around it, as for targets, float [marks, 4].
        pair_mark, pair_target: a mark and a target that overlap in a frame, int [pairs].
        pair_overlap: area of their intersection in pixels, float [pairs].
        pair_iou: their intersection over union, 0..1, float [pairs].
        dice, iou: of all marks and all targets of each frame, float [frames]; None: only boxes are known.
    """

    name: str
    seconds: np.ndarray
    polyps: list[str]
    target_frame: np.ndarray
    target_polyp: np.ndarray
    target_share: np.ndarray
    target_box: np.ndarray
    mark_frame: np.ndarray
    mark_track: np.ndarray
    mark_probability: np.ndarray
    mark_share: np.ndarray
    mark_box: np.ndarray
    pair_mark: np.ndarray
    pair_target: np.ndarray
    pair_overlap: np.ndarray
    pair_iou: np.ndarray
    dice: np.ndarray | None = None
    iou: np.ndarray | None = None

    @property
    def step(self) -> float:
        """Mean duration of a frame in seconds."""
        count = len(self.seconds)
        return float(self.seconds[-1] - self.seconds[0]) / (count - 1) if count > 1 else 0.0

    @property
    def minutes(self) -> float:
        """Length of the recording in minutes."""
        return max((float(self.seconds[-1] - self.seconds[0]) + self.step) / 60, 1e-9)


class _Target(NamedTuple):
    frame: int
    polyp: int
    share: float
    box: Box


class _Mark(NamedTuple):
    frame: int
    track: int
    probability: float
    share: float
    box: Box


class _Pair(NamedTuple):
    mark: int
    target: int
    overlap: float
    iou: float


# Columns that do not hold integers: their type, and the shape of a value.
_COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    **dict.fromkeys(("probability", "share", "overlap", "iou"), (np.float64, ())),
    "box": (np.float64, (4,)),
}


@dataclass(slots=True)
class _Rows:
    """The arrays of an Observation as lists that grow. `places` has the place of each polyp by its name."""

    places: dict[str, int] = field(default_factory=dict)
    targets: list[_Target] = field(default_factory=list)
    marks: list[_Mark] = field(default_factory=list)
    pairs: list[_Pair] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)


def observe(run: Run, truth: Truth, on_frame: Callable[[int], None] = lambda _: None) -> Observation:
    """Compare a run with the ground truth, frame by frame.

    Args:
        run: the run.
        truth: its ground truth.
        on_frame: called with the number of frames compared so far.

    Raises:
        DataError: the ground truth or the run cannot be read, or they differ in number or size of frames.
    """
    seconds, outlines, area = run.frames["pts_s"], run.outlines(), _view_area(run)
    if not len(seconds):
        raise DataError(f"{run.folder}: holds no frames")
    rows = _Rows()
    masks = _found_masks(run, outlines, len(seconds)) if truth.has_masks else repeat(None)
    for frame, (polyps, found) in enumerate(zip(truth.frames, masks, strict=False)):
        _add_frame(rows, frame, polyps, outlines.get(frame, []), area, run.picture_size)
        if found is not None:
            _add_dice(rows, polyps, found)
        on_frame(frame + 1)
    return _finished(run.folder.name, seconds, rows, truth.has_masks)


def _view_area(run: Run) -> float:
    """Area of the field of view in pixels."""
    width, height = run.summary.get("field_of_view", (0, 0, *run.picture_size))[2:]
    return float(width * height)


def _found_masks(run: Run, outlines: dict[int, list[Outline]], frames: int) -> Iterator[np.ndarray]:
    """What the run found in each frame, uint8 [height, width]: from its masks, or else from its outlines."""
    if (run.folder / MASKS).is_file():
        count = 0
        for _, mask in stored_planes(run.folder / MASKS):
            count += 1
            yield cv2.compare(mask, 127, cv2.CMP_GT)
        if count != frames:
            raise DataError(f"{run.folder / MASKS}: holds {count} frames; frames.csv has {frames}")
        return
    for frame in range(frames):
        mask = np.zeros(run.picture_size[::-1], np.uint8)
        for outline in outlines.get(frame, []):
            mask |= outline.mask(*run.picture_size)
        yield mask


def _add_frame(
    rows: _Rows,
    frame: int,
    polyps: Sequence[TruePolyp],
    outlines: Sequence[Outline],
    area: float,
    size: tuple[int, int],
) -> None:
    first_target = len(rows.targets)
    for polyp in polyps:
        place = rows.places.setdefault(polyp.name, len(rows.places))
        rows.targets.append(_Target(frame, place, _area(polyp) / area, polyp.box))
    for outline in outlines:
        x, y, width, height = cv2.boundingRect(np.concatenate(outline.polygons))
        mask, box = outline.mask(*size), (float(x), float(y), float(width), float(height))
        rows.marks.append(_Mark(frame, outline.track_id, outline.probability, cv2.countNonZero(mask) / area, box))
        for target, polyp in enumerate(polyps, first_target):
            overlap, iou = _box_overlap(box, polyp.box) if polyp.mask is None else _mask_overlap(mask, polyp.mask)
            if overlap > 0:
                rows.pairs.append(_Pair(len(rows.marks) - 1, target, overlap, iou))


def _area(polyp: TruePolyp) -> float:
    return polyp.box[2] * polyp.box[3] if polyp.mask is None else float(cv2.countNonZero(polyp.mask))


def _box_overlap(one: Box, other: Box) -> tuple[float, float]:
    """Area of the intersection, and intersection over union."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    overlap = max(0.0, width) * max(0.0, height)
    union = one[2] * one[3] + other[2] * other[3] - overlap
    return overlap, overlap / union if union else 0.0


def _mask_overlap(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Area of the intersection, and intersection over union."""
    overlap = cv2.countNonZero(cv2.bitwise_and(one, cv2.compare(other, 0, cv2.CMP_GT)))
    union = cv2.countNonZero(one) + cv2.countNonZero(other) - overlap
    return float(overlap), overlap / union if union else 0.0


def _add_dice(rows: _Rows, polyps: Sequence[TruePolyp], found: np.ndarray) -> None:
    """Dice and intersection over union of a frame; 1 if nothing is there and nothing is found."""
    real = np.zeros_like(found)
    for polyp in polyps:
        if polyp.mask is not None:
            real[polyp.mask > 0] = 255
    both = cv2.countNonZero(cv2.bitwise_and(real, found))
    total = cv2.countNonZero(real) + cv2.countNonZero(found)
    rows.dice.append(2 * both / total if total else 1.0)
    rows.iou.append(both / (total - both) if total else 1.0)


def _finished(name: str, seconds: np.ndarray, rows: _Rows, has_masks: bool) -> Observation:
    """Convert the lists to arrays."""
    columns: dict[str, Any] = {
        f"{kind}_{key}": np.array([getattr(row, key) for row in table], dtype).reshape(-1, *shape)
        for kind, of, table in (
            ("target", _Target, rows.targets),
            ("mark", _Mark, rows.marks),
            ("pair", _Pair, rows.pairs),
        )
        for key, dtype, shape in ((key, *_COLUMNS.get(key, (np.int64, ()))) for key in of._fields)
    }
    return Observation(
        name=name,
        seconds=np.asarray(seconds, np.float64),
        polyps=list(rows.places),
        dice=np.array(rows.dice) if has_masks else None,
        iou=np.array(rows.iou) if has_masks else None,
        **columns,
    )
