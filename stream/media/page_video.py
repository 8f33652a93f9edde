"""Encoding of frames as H.264 for a browser's decoder (WebCodecs), oriented for display."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from polypstream.core.config import VideoSettings
from polypstream.core.frame import DrawnMarkers, Frame, PictureFormat
from polypstream.core.orientation import Orientation
from polypstream.media.encoders import choose_encoder
from polypstream.media.frame_encoder import FrameEncoder, encoder_options, open_encoder
from polypstream.media.h264 import split_start_codes, unit_type
from polypstream.media.scaling import shown_within

SEQUENCE_PARAMETERS = 7  # nal_unit_type
PIXEL_FORMAT = "yuv420p"
# A fast preset, and a quality that is close to that of the JPEGs of the page (docs/performance.md).
SETTINGS = VideoSettings(codec="auto", preset="superfast", crf=22.5)
# FFmpeg's number of BT.709, as matrix, primaries and transfer function.
BT709 = int(Colorspace.ITU709)
# Units per second of the timestamps, and a frame rate that is seldom exceeded.
CLOCK, RATE = 90_000, 60
# How far the outlines that the page draws may lie from those of the findings, in pixels of the video. An outline has
# one point per pixel, which would need as many bits as the video. The line is at least as wide as this.
TOLERANCE = 1.0


@dataclass(frozen=True, slots=True)
class Sequence:
    """What a decoder must know before a key frame.

    Attributes:
        codec: profile and level, as browsers write them (RFC 6381).
        width, height: size in pixels.
    """

    codec: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class PageMarkers:
    """The markers of a picture, which the page draws.

    Attributes:
        colour, opacity: as in DrawnMarkers.
        width: of the lines in pixels of the video; 0 if there are none.
        polygons: x and y of each point, in pixels of the video; (0, 0) is its left top corner.
        labels: text beside each polygon; may be empty.
    """

    colour: str
    opacity: float
    width: float
    polygons: list[list[list[float]]]
    labels: list[str]


@dataclass(frozen=True, slots=True)
class StreamedPicture:
    """An encoded picture.

    Attributes:
        data: its NAL units, each behind a start code. Those of a key frame include the parameter sets.
        key_frame_of: what the decoder must know, if it is a key frame; otherwise None.
        markers: its markers, which are not in the picture; None if there are none, or if they are in the picture.
    """

    data: bytes
    key_frame_of: Sequence | None
    markers: PageMarkers | None = None


class PageEncoder:
    """Encodes frames without delay and without their markers. If the displayed size changes, a new sequence begins.

    The markers of a heat map stay in the picture.

    Args:
        width: the maximum width of the video in pixels.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._orientation: Orientation | None = None
        self._size = (0, 0)
        self._encode: FrameEncoder
        # Markers of the frames that the encoder has not finished, by their timestamps.
        self._markers: dict[int, PageMarkers] = {}

    def __call__(self, frame: Frame, seconds: float, key_frame: bool = False) -> list[StreamedPicture]:
        """Encode a frame.

        Args:
            frame: the frame. Its timestamp is not used, since that of a source may jump.
            seconds: when it is shown, later than the frame before.
            key_frame: make it a key frame. Without this, there is one after each change and every two seconds.

        Returns:
            The pictures that are finished; with most encoders this frame's.

        Raises:
            av.FFmpegError: the encoder failed.
        """
        if frame.orientation != self._orientation:
            self._orientation = frame.orientation
            colours = ":out_color_matrix=bt709:out_range=limited"
            self._scale = shown_within(self._width, PIXEL_FORMAT, frame.orientation, colours)
        scaled = self._scale(frame.drawn.unmarked if frame.drawn else frame.in_memory())
        if (scaled.width, scaled.height) != self._size:
            self._size = scaled.width, scaled.height
            self._encode = _encoder_for(*self._size)
            self._markers.clear()
        if key_frame:
            self._encode.request_key_frame()
        scaled.pts, scaled.time_base = round(seconds * CLOCK), Fraction(1, CLOCK)
        if frame.drawn:
            self._markers[scaled.pts] = _shown_markers(frame.drawn, frame.orientation, *self._size)
        return [self._streamed(packet) for packet in self._encode.encode(scaled, seconds)]

    def _streamed(self, packet: Packet[VideoStream]) -> StreamedPicture:
        data, markers = bytes(packet), self._markers.pop(packet.pts or 0, None)
        return StreamedPicture(data, Sequence(_codec_of(data), *self._size) if packet.is_keyframe else None, markers)


def _shown_markers(drawn: DrawnMarkers, orientation: Orientation, width: int, height: int) -> PageMarkers:
    """Map markers from the stored frame to the video of the page, which has this size."""
    stored = drawn.unmarked.width, drawn.unmarked.height
    scale = np.divide((width, height), orientation.size(*stored))
    polygons = []
    for polygon in drawn.polygons:
        # A point of an outline is the centre of a pixel.
        shown = orientation.points(polygon + 0.5, *stored) * scale
        simpler = cv2.approxPolyDP(shown.astype(np.float32), TOLERANCE, True)[:, 0]
        polygons.append(simpler.astype(float).round(1).tolist())
    return PageMarkers(drawn.colour, drawn.opacity, round(drawn.width * scale[1], 2), polygons, drawn.labels)


def _encoder_for(width: int, height: int) -> FrameEncoder:
    pictures = PictureFormat(
        width,
        height,
        PIXEL_FORMAT,
        Fraction(1, CLOCK),
        Fraction(RATE),
        colorspace=BT709,
        color_range=int(ColorRange.MPEG),
        color_primaries=BT709,
        color_trc=BT709,
    )
    encoder = choose_encoder(SETTINGS.codec, PIXEL_FORMAT)
    options = {**encoder_options(encoder, pictures, SETTINGS), **encoder.no_delay, **encoder.compact}
    context = open_encoder(encoder, pictures, options)
    # With threads, x264 cuts pictures into slices: larger, and no faster where other work fills the cores.
    context.thread_count = 1
    return FrameEncoder(context.encode, pictures)


def _codec_of(key_frame: bytes) -> str:
    """Return the codec string of a key frame. Profile and level are the first bytes of the sequence parameters."""
    parameters = next(unit for unit in split_start_codes(key_frame) if unit_type(unit) == SEQUENCE_PARAMETERS)
    return f"avc1.{parameters[1:4].hex()}"
