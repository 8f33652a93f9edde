"""Frame: one frame of a video, and the results that each stage attaches to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, Protocol

import cv2
import numpy as np
from av import VideoFrame

from polypstream.core.geometry import FieldOfView, Region
from polypstream.core.orientation import AS_STORED, Orientation

# FFmpeg's names: a frame has no fields, its top field is the earlier one, or its bottom field is.
FieldOrder = Literal["progressive", "tff", "bff"]


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """Properties that all frames of a source share. A sink needs them before the first frame.

    Attributes:
        width, height: size in pixels as stored, before rotation.
        pixel_format: FFmpeg's name of the pixel format; planar YUV, 8 or 10 bits.
        time_base: seconds per unit of pts.
        rate: nominal frames per second.
        start: time of the first frame in seconds.
        sample_aspect_ratio: width of a pixel divided by its height; 0 if unknown.
        display_matrix: FFmpeg's nine integers that rotate the frame for display, or None.
        colorspace, color_range, color_primaries, color_trc: FFmpeg's numbers of the colour tags. 2 means untagged; for
            the range 0 means untagged.
        field_order: whether a frame has two fields, and which one is earlier.
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
        """How a stored frame is transformed for display."""
        return Orientation.of(self.display_matrix, self.sample_aspect_ratio)


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality problems of a frame.

    Attributes:
        blurred: no part of it is sharp, or it is dark.
        overexposed: a large part of it is white.
        outside: it is less red than mucosa. It shows the outside of the body, dyed mucosa or narrow-band light.
    """

    blurred: bool
    overexposed: bool
    outside: bool


@dataclass(frozen=True, slots=True)
class Motion:
    """How the image moved since the previous frame (backward optical flow).

    Attributes:
        origin: float32 [h, w, 2]. For each pixel of the probability map, its x and y in the previous map.
        similarity: float32 [h, w], 0..1. For each pixel, how similar the image is to its origin in the previous frame.
    """

    origin: np.ndarray
    similarity: np.ndarray

    def warp(self, before: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        """Move a map of the previous frame along the motion.

        Args:
            before: map of the previous frame, [h, w].
            interpolation: OpenCV's interpolation flag.

        Returns:
            The map for this frame, [h, w]; 0 where the pixel was not visible in the previous frame.
        """
        moved: np.ndarray = cv2.remap(before, self.origin, None, interpolation, borderValue=0)
        return moved


class RemotePicture(Protocol):
    """A picture whose pixels are not in the memory of the CPU: a GPU has them, or they are fetched when needed."""

    @property
    def width(self) -> int:
        """Width in pixels."""
        ...

    @property
    def height(self) -> int:
        """Height in pixels."""
        ...

    @property
    def duration(self) -> int:
        """How long it is shown, in units of the time base."""
        ...

    def download(self) -> VideoFrame:
        """Get the pixels into the memory of the CPU.

        Returns:
            The decoded frame, planar YUV.
        """
        ...


@dataclass(frozen=True, slots=True)
class FetchedPicture:
    """A picture that is fetched when its pixels are needed.

    Attributes:
        width, height: size in pixels.
        duration: how long it is shown, in units of the time base.
        fetch: returns the picture.
    """

    width: int
    height: int
    duration: int
    fetch: Callable[[], VideoFrame]

    def download(self) -> VideoFrame:
        """Return the picture."""
        return self.fetch()


@dataclass(frozen=True, slots=True)
class DrawnMarkers:
    """What the overlay has drawn on a picture, for those that draw it themselves.

    Attributes:
        unmarked: the picture before the markers were drawn, with everything else that is drawn on it.
        colour: of the markers, #rrggbb.
        opacity: of the fill of each polygon, 0..1; 0 if only lines are drawn.
        width: of the lines in pixels of the frame; 0 if there are none.
        polygons: int32 [n, 2] each, x and y in pixels of the frame.
        labels: text beside each polygon; may be empty.
    """

    unmarked: VideoFrame
    colour: str
    opacity: float
    width: int
    polygons: list[np.ndarray]
    labels: list[str]


@dataclass(slots=True)
class Frame:
    """One frame, and what the stages attach to it.

    Attributes:
        index: number of the frame in its source, from 0.
        picture: the decoded frame, planar YUV, or a RemotePicture; `in_memory` gives its pixels.
        pts: presentation timestamp in units of time_base, exact.
        time_base: seconds per unit of pts.
        arrived: time.monotonic when the source delivered the frame, in seconds.
        source: name of the source, if there are several.
        last: the frame is the last one of its source.
        orientation: how the frame is rotated, mirrored and stretched for display.
        as_recorded: picture and pts are exactly those of the recording. Who changes the picture clears it.
        clean: the picture before anything is drawn on it, for recordings without markers; set by stage `clean`, in live
            video only.
        drawn: the markers that are drawn on the picture, and the picture without them; set by stage `overlay`, in live
            video for the page only. None: no markers are drawn, or those of a heat map.
        has_signal: False for a placeholder, which is shown while the source sends nothing. Inference skips it.
        problem: why the frame has no markers, as text for the user; set by FailSafe and LatestMarkers.
        markers_age: seconds since the arrival of the frame whose markers are drawn; 0 if they belong to this frame.
        view: field of view that the model sees; set by stage `crop`.
        model_input: uint8 RGB [size, size, 3], the field of view at the model's input size; set by stage `crop`.
        quality: quality problems of the frame; set by stage `quality`.
        segmented: the model saw this frame; set by stage `segment`. Otherwise the model saw an earlier one, and
            `probability` is that of the frame before, moved along the motion by stage `smooth`.
        probability: uint8 [size, size], 0..255 meaning 0..1; set by stage `segment`.
        motion: motion since the previous frame, None at the start of a scene; set by stage `smooth`, if it is enabled,
            or by stage `segment` with `inference.every`.
        smoothed: uint8 [size, size], the probability smoothed along the motion; set by stage `smooth`.
        region: the findings in pixels of the frame, or None if there are none; set by stage `findings`.
        outlines: int32 [n, 2] polygons (x, y) in pixels of the frame, one per finding; set by stage `findings`.
        tracks: track number of each outline; set by stage `findings`.
        peaks: highest probability of each outline's track, 0..255: of the model or smoothed. A track that is kept
            although this frame does not show it has that of the last frame that did. Set by stage `findings`.
        carried: for each outline, whether this frame does not show its track, so that the outline is that of an earlier
            frame, moved along the motion; set by stage `findings`.
        areas: number of pixels of each outline's finding, where `region` is not kept; None: `region` has them.
    """

    index: int
    picture: VideoFrame | RemotePicture
    pts: int
    time_base: Fraction
    arrived: float = field(default_factory=time.monotonic)
    source: str = ""
    last: bool = False
    orientation: Orientation = AS_STORED
    as_recorded: bool = False
    clean: VideoFrame | None = None
    drawn: DrawnMarkers | None = None
    has_signal: bool = True
    problem: str = ""
    markers_age: float = 0.0
    segmented: bool = True
    view: FieldOfView = field(init=False, repr=False)
    model_input: np.ndarray = field(init=False, repr=False)
    quality: Quality = field(init=False, repr=False)
    probability: np.ndarray = field(init=False, repr=False)
    motion: Motion | None = field(init=False, repr=False)
    smoothed: np.ndarray = field(init=False, repr=False)
    region: Region | None = None
    outlines: list[np.ndarray] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    carried: list[bool] = field(default_factory=list)
    areas: list[int] | None = None

    def clear_findings(self) -> None:
        """Remove all findings, as if the model had found nothing. `probability` stays as it is."""
        self.region, self.areas = None, None
        self.outlines, self.tracks, self.peaks, self.carried = [], [], [], []

    def area_of(self, place: int) -> int:
        """Number of pixels of the mask that belong to a finding.

        Args:
            place: its place in `outlines`.
        """
        if self.areas is not None:
            return self.areas[place]
        assert self.region is not None  # or there would be no outline
        return self.region.area_of(self.outlines[place])

    def in_memory(self) -> VideoFrame:
        """Return the decoded frame. A RemotePicture is downloaded, once."""
        if not isinstance(self.picture, VideoFrame):
            self.picture = self.picture.download()
        return self.picture

    @property
    def seconds(self) -> float:
        """Presentation timestamp in seconds."""
        # The same as float(pts * time_base), which is ten times slower: Python divides integers with one rounding.
        return self.pts * self.time_base.numerator / self.time_base.denominator
