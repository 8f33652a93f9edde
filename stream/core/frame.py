"""Frame: one picture on its way through the rooms, and what each room attaches to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from av import VideoFrame

from polypstream.core.orientation import AS_STORED, Orientation

if TYPE_CHECKING:
    from polypstream.stages.field_of_view import FieldOfView, Region
    from polypstream.stages.quality import Quality
    from polypstream.stages.smoothing import Motion


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
        signal: the source gave it; otherwise it stands for the want of one, and the network never sees it.
        problem: why the network did not see it, for people; by the segmenter's guard.
        markers_age: seconds since the frame arrived that the markers were found in; 0 if it is this one.
        view: the field of view that the network saw; by the viewer.
        network_picture: uint8 RGB [size, size, 3], the field of view at the network's size; by the viewer.
        quality: what is wrong with the picture; by the inspector, in recordings.
        probability: uint8 [size, size], 0..255 meaning 0..1; by the segmenter.
        motion: since the frame before, None where another scene begins; by the steadier, if there is one.
        steadied: uint8 [size, size], the probability smoothed along that motion; by the steadier.
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
    signal: bool = True
    problem: str = ""
    markers_age: float = 0.0
    view: FieldOfView = field(init=False, repr=False)
    network_picture: np.ndarray = field(init=False, repr=False)
    quality: Quality = field(init=False, repr=False)
    probability: np.ndarray = field(init=False, repr=False)
    motion: Motion | None = field(init=False, repr=False)
    steadied: np.ndarray = field(init=False, repr=False)
    region: Region | None = None
    outlines: list[np.ndarray] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)
