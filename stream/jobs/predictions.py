"""Results of the model for one image, or for one frame of a recording."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from av import VideoFrame

from polypstream.core.formatting import counted
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView, Region, region_above
from polypstream.errors import MissingExtra
from polypstream.jobs.image import prepare_image
from polypstream.media.scaling import Scaler, own_size
from polypstream.stages.findings import Rules, find_region
from polypstream.stages.overlay import draw_findings

if TYPE_CHECKING:
    import supervision


class Finding(NamedTuple):
    """A finding: one outlined region.

    Attributes:
        polygon: outline, int32 [n, 2], x and y in pixels of the image.
        box: left, top, width and height in pixels.
        confidence: highest probability in it, 0..1.
        track_id: number of the track in its recording, from 1; None for an image.
        carried: the frame does not show it. The outline is that of an earlier frame, moved along the motion, and the
            confidence is that of the last frame that showed it.
    """

    polygon: np.ndarray
    box: tuple[int, int, int, int]
    confidence: float
    track_id: int | None = None
    carried: bool = False

    def __repr__(self) -> str:
        return f"Finding(box={self.box}, confidence={self.confidence:.3f}, track_id={self.track_id})"


class Prediction(ABC):
    """Common base of ImageResult and FrameResult.

    Args:
        view: field of view given to the model, in pixels of the image.
        levels: probability map of the field of view, uint8 [size, size], 255 meaning 1.
    """

    def __init__(self, view: FieldOfView, levels: np.ndarray) -> None:
        self.view, self.levels = view, levels

    @property
    @abstractmethod
    def image(self) -> np.ndarray:
        """The image, uint8 RGB [H, W, 3]."""

    @property
    @abstractmethod
    def findings(self) -> list[Finding]:
        """The findings; empty if there are none."""

    @property
    @abstractmethod
    def region(self) -> Region | None:
        """The part of the image that contains all findings; None if there are none."""

    @property
    @abstractmethod
    def _shape(self) -> tuple[int, int]:
        """Height and width of the image."""

    @cached_property
    def mask(self) -> np.ndarray:
        """Mask of all findings, bool [H, W]."""
        mask = np.zeros(self._shape, bool)
        if self.region is not None:
            mask[self.region.slices] = self.region.mask > 0
        return mask

    @cached_property
    def probability(self) -> np.ndarray:
        """Probability of each pixel to belong to a polyp, float32 [H, W], 0..1; 0 outside `view`."""
        return self.probability_levels().astype(np.float32) / 255

    def probability_levels(self) -> np.ndarray:
        """The same in the 256 levels that the model returns.

        Returns:
            uint8 [H, W], 255 meaning 1.
        """
        levels = np.zeros(self._shape, np.uint8)
        region = region_above(self.levels, self.view, 0)
        if region is not None:
            levels[region.slices] = region.probability
        return levels

    def area_fraction(self, finding: Finding) -> float:
        """Share of the image that a finding covers: pixels of the mask, as in polyps.csv.

        Args:
            finding: one of `findings`.

        Returns:
            0..1.
        """
        assert self.region is not None  # there is a finding
        height, width = self._shape
        return self.region.area_of(finding.polygon) / (height * width)

    def plot(self) -> np.ndarray:
        """Draw the findings on a copy of the image.

        Returns:
            uint8 RGB [H, W, 3].
        """
        image = self.image.copy()
        if self.region is not None:
            draw_findings(image, self.region, [finding.polygon for finding in self.findings])
        return image

    def to_supervision(self) -> supervision.Detections:
        """Convert the findings to `supervision.Detections`.

        They have boxes, masks, confidences, class 0 and, in recordings, track numbers.

        Raises:
            MissingExtra: the library `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingExtra("to_supervision: needs the library supervision; pip install supervision") from error
        findings = self.findings
        if not findings:
            return supervision.Detections.empty()
        ids = [finding.track_id for finding in findings]
        return supervision.Detections(
            xyxy=np.array([(x, y, x + width, y + height) for _, (x, y, width, height), *_ in findings], np.float32),
            mask=np.array([self._mask_of(finding) for finding in findings]),
            confidence=np.array([finding.confidence for finding in findings], np.float32),
            class_id=np.zeros(len(findings), int),
            tracker_id=None if None in ids else np.array(ids),
            data={"class_name": np.array(["polyp"] * len(findings))},
        )

    def _mask_of(self, finding: Finding) -> np.ndarray:
        """The part of the mask inside the outline of one finding, bool [H, W]."""
        inside: np.ndarray = cv2.fillPoly(np.zeros(self._shape, np.uint8), [finding.polygon], 1)
        return inside.astype(bool) & self.mask


class ImageResult(Prediction):
    """Findings of the model in an image.

    Args:
        image: uint8 RGB [H, W, 3].
        view, levels: as for Prediction.
        rules: rules that decide what is a finding.

    Example:
        >>> import polypstream as pp
        >>> result = pp.Detector()("image.jpg")
        >>> result.mask.shape == result.image.shape[:2]
        True
    """

    def __init__(self, image: np.ndarray, view: FieldOfView, levels: np.ndarray, rules: Rules) -> None:
        super().__init__(view, levels)
        self._image, self.rules = image, rules

    @property
    def image(self) -> np.ndarray:
        """The image, uint8 RGB [H, W, 3]."""
        return self._image

    @property
    def _shape(self) -> tuple[int, int]:
        return self._image.shape[0], self._image.shape[1]

    @cached_property
    def _found(self) -> tuple[Region | None, list[np.ndarray]]:
        return find_region(self.levels, self.view, self.rules)

    @property
    def region(self) -> Region | None:
        """The part of the image that contains all findings; None if there are none."""
        return self._found[0]

    @cached_property
    def findings(self) -> list[Finding]:
        """The findings; empty if there are none."""
        region, outlines = self._found
        if region is None:
            return []
        return [Finding(outline, box_of(outline), _highest_inside(outline, region) / 255) for outline in outlines]

    def __repr__(self) -> str:
        height, width = self._shape
        return f"ImageResult({width}x{height}, {counted(len(self.findings), 'finding')})"


def predict(image: np.ndarray, size: int, segment: Callable[[np.ndarray], np.ndarray], rules: Rules) -> ImageResult:
    """Find polyps in an image: find its field of view, run the model on it, and apply the rules.

    Args:
        image: uint8 RGB [H, W, 3].
        size: side of the model's input in pixels.
        segment: runs the model: from uint8 RGB [size, size, 3] to uint8 [size, size], 255 meaning 1.
        rules: rules that decide what is a finding.
    """
    view, model_input = prepare_image(image, size)
    return ImageResult(image, view, segment(model_input), rules)


class FrameResult(Prediction):
    """Findings of the model in one frame of a recording, the same as those of `polypstream process`.

    Coordinates refer to the frame as stored. A rotation in the recording's metadata is not applied.

    Args:
        frame: the frame after all stages except the overlay.
        to_rgb: converts it to RGB.

    Attributes:
        index: number of the frame, from 0.
        seconds: presentation time in seconds.
        quality: whether it is blurred, overexposed or outside the body.
        segmented: the model saw this frame; False for the frames between, with `inference.every`.

    Example:
        >>> import polypstream as pp
        >>> for frame in pp.Detector().track("colon.mp4"):
        ...     for finding in frame.findings:
        ...         last = frame.seconds, finding.track_id
        >>> round(last[0]), last[1]
        (3, 1)
    """

    def __init__(self, frame: Frame, to_rgb: RgbConverter) -> None:
        super().__init__(frame.view, frame.probability)
        self._frame, self._to_rgb = frame, to_rgb
        self.index, self.seconds, self.quality = frame.index, frame.seconds, frame.quality
        self.segmented = frame.segmented

    @cached_property
    def image(self) -> np.ndarray:
        """The frame, uint8 RGB [H, W, 3]. It is converted at the first access."""
        return self._to_rgb(self._frame.in_memory())

    @property
    def _shape(self) -> tuple[int, int]:
        return self._frame.picture.height, self._frame.picture.width

    @property
    def region(self) -> Region | None:
        """The part of the frame that contains all findings; None if there are none."""
        return self._frame.region

    @cached_property
    def findings(self) -> list[Finding]:
        """The findings that are shown; empty if there are none."""
        frame = self._frame
        return [
            Finding(outline, box_of(outline), peak / 255, track or None, carried)
            for outline, track, peak, carried in zip(
                frame.outlines, frame.tracks, frame.peaks, frame.carried, strict=True
            )
        ]

    def __repr__(self) -> str:
        return f"FrameResult({self.index}, {self.seconds:.3f} s, {counted(len(self.findings), 'finding')})"


class RgbConverter:
    """Converts frames of one recording to RGB. May be used from any thread."""

    def __init__(self) -> None:
        self._scaler, self._lock = Scaler("rgb24", own_size), Lock()

    def __call__(self, picture: VideoFrame) -> np.ndarray:
        """Convert a frame.

        Returns:
            uint8 RGB [H, W, 3].
        """
        with self._lock:
            return self._scaler(picture).to_ndarray()


def box_of(polygon: np.ndarray) -> tuple[int, int, int, int]:
    """Bounding box of a polygon.

    Args:
        polygon: int32 [n, 2], x and y in pixels.

    Returns:
        Left, top, width and height in pixels.
    """
    x, y, width, height = cv2.boundingRect(polygon)
    return x, y, width, height


def _highest_inside(polygon: np.ndarray, region: Region) -> int:
    """Highest probability inside an outline, 0..255."""
    x, y, width, height = box_of(polygon)
    box = np.s_[y - region.y : y - region.y + height, x - region.x : x - region.x + width]
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [polygon - (x, y)], 255)
    return int(cv2.minMaxLoc(region.probability[box], inside)[1])
