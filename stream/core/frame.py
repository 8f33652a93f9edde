"""Frame: one picture on its way through the stages, and what each stage attaches to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import cv2
import numpy as np
from av import VideoFrame

from polypstream.core.geometry import FieldOfView, Region
from polypstream.core.orientation import AS_STORED, Orientation

# FFmpeg's words: pictures hold no two fields, or the upper one, or the lower one, is the earlier.
FieldOrder = Literal["progressive", "tff", "bff"]


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """What a sink must know before the first picture.

    Attributes:
        width, height: in pixels, as stored (before rotation).
        pixel_format: FFmpeg's name; planar YUV, 8 or 10 bits.
        time_base: seconds per unit of pts.
        rate: nominal pictures per second.
        start: time of the first picture in seconds.
        sample_aspect_ratio: width of a pixel over its height; 0 if unknown.
        display_matrix: FFmpeg's nine integers that rotate the picture for display, or None.
        colorspace, color_range, color_primaries, color_trc: FFmpeg's numbers of the colour tags (2, or 0 for the
            range: untagged).
        field_order: whether pictures hold two fields, and which is the earlier.
    """

    width: int
    height: int
    pixel_format: str
    time_base: Fraction
    rate: Fraction
    start: Fraction = Fraction(0)
    sample_aspect_ratio: Fraction = Fraction(0)
    display_matrix: tuple[int, ...] | None = None
    colorspace: int = 2
    color_range: int = 0
    color_primaries: int = 2
    color_trc: int = 2
    field_order: FieldOrder = "progressive"

    @property
    def orientation(self) -> Orientation:
        """What is done to a picture to show it to people."""
        return Orientation.of(self.display_matrix, self.sample_aspect_ratio)


@dataclass(frozen=True, slots=True)
class Quality:
    """What is wrong with a picture.

    Attributes:
        blurred: nothing in it is sharp, or it is dark.
        overexposed: a large part is white.
        outside: it is not red as mucosa is, so outside the body (or dyed, or in narrow-band light).
    """

    blurred: bool
    overexposed: bool
    outside: bool


@dataclass(frozen=True, slots=True)
class Motion:
    """How a picture moved since the one before.

    Attributes:
        origin: float32 [h, w, 2], for each place of the map its x and y in the one before.
        trust: float32 [h, w], 0..1, how much it looks like that place.
    """

    origin: np.ndarray
    trust: np.ndarray

    def followed(self, before: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        """A map of the picture before, where its places are now; 0 what came into view."""
        moved: np.ndarray = cv2.remap(before, self.origin, None, interpolation, borderValue=0)
        return moved


@dataclass(slots=True)
class Frame:
    """One picture.

    Attributes:
        index: number of the picture in its source, from 0.
        picture: as decoded, planar YUV.
        pts: presentation time in units of time_base, exact.
        time_base: seconds per unit of pts.
        arrived: when it came in, in seconds of time.monotonic.
        source: where it comes from, where there are several.
        last: the source ends with it.
        orientation: how it is turned and stretched for people.
        has_signal: False for a placeholder, shown while the source sends nothing; inference skips it.
        problem: why the network did not see it, for people; by the segmenter's guard.
        markers_age: seconds since the frame arrived that the markers were found in; 0 if it is this one.
        view: the field of view that the network saw; by the viewer.
        model_input: uint8 RGB [size, size, 3], the field of view at the network's size; by the viewer.
        quality: what is wrong with the picture; by the inspector, in recordings.
        probability: uint8 [size, size], 0..255 meaning 0..1; by the segmenter.
        motion: since the frame before, None where another scene begins; by the steadier, if there is one.
        smoothed: uint8 [size, size], the probability smoothed along that motion; by the steadier.
        region: the findings, in picture pixels; by the finder. None: there are none.
        outlines: int32 [n, 2] polygons (x, y) in picture pixels, one a finding; by the finder.
        tracks: for each outline the number of the polyp that it is; by the finder.
    """

    index: int
    picture: VideoFrame
    pts: int
    time_base: Fraction
    arrived: float = field(default_factory=time.monotonic)
    source: str = ""
    last: bool = False
    orientation: Orientation = AS_STORED
    has_signal: bool = True
    problem: str = ""
    markers_age: float = 0.0
    view: FieldOfView = field(init=False, repr=False)
    model_input: np.ndarray = field(init=False, repr=False)
    quality: Quality = field(init=False, repr=False)
    probability: np.ndarray = field(init=False, repr=False)
    motion: Motion | None = field(init=False, repr=False)
    smoothed: np.ndarray = field(init=False, repr=False)
    region: Region | None = None
    outlines: list[np.ndarray] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)
