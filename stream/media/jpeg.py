"""Pictures as JPEG files, as they are shown to people."""

from __future__ import annotations

from fractions import Fraction

import av
from av.video.codeccontext import VideoCodecContext

from polypstream.core.frame import Frame
from polypstream.core.orientation import AS_STORED, Orientation
from polypstream.media.scaling import Scaler

# Of the encoder's quantisers, 2 (best) to 31.
SNAPSHOT_QUANTISER = 2
# Wider than any picture.
WHOLE = 1 << 16


def snapshot(frame: Frame) -> bytes:
    """A frame's picture with all of its pixels, as JPEG."""
    return Jpeg(WHOLE, SNAPSHOT_QUANTISER)(frame.picture, frame.orientation)


class Jpeg:
    """Encodes pictures as JPEG, as they are shown to people.

    Args:
        width: the widest that a picture may be.
        quantiser: of FFmpeg's MJPEG encoder, 2 (best) to 31.
    """

    def __init__(self, width: int, quantiser: int) -> None:
        self._width, self._quantiser = width, quantiser
        self._orientation: Orientation | None = None
        self._encoder: VideoCodecContext | None = None

    def __call__(self, picture: av.VideoFrame, orientation: Orientation = AS_STORED) -> bytes:
        """One picture as a JPEG file."""
        if orientation != self._orientation:
            self._orientation = orientation
            # JPEG is BT.601 at full range (JFIF).
            colours = ":out_color_matrix=bt601:out_range=full"
            self._scale = Scaler("yuvj420p", self._size_of, colours=colours, then=orientation.filters())
        scaled = self._scale(picture)
        if self._encoder is None or (self._encoder.width, self._encoder.height) != (scaled.width, scaled.height):
            self._encoder, self._count = self._open(scaled), 0
        scaled.pts = self._count
        self._count += 1
        return b"".join(bytes(packet) for packet in self._encoder.encode(scaled))

    def _size_of(self, picture: av.VideoFrame) -> tuple[int, int]:
        """Width and height before it is turned, even, so that it is no wider than it may be as it is shown."""
        assert self._orientation is not None
        width, height = self._orientation.stretched(picture.width, picture.height)
        shown_width = height if self._orientation.swapped else width
        share = min(self._width, shown_width) / shown_width
        return max(2, round(width * share) & ~1), max(2, round(height * share) & ~1)

    def _open(self, scaled: av.VideoFrame) -> VideoCodecContext:
        encoder = VideoCodecContext.create("mjpeg", "w")
        encoder.width, encoder.height, encoder.pix_fmt = scaled.width, scaled.height, scaled.format.name
        encoder.time_base = Fraction(1, 1000)
        # With threads the encoder would hand out a picture only when the next ones have come.
        encoder.thread_count = 1
        encoder.options = {"qmin": str(self._quantiser), "qmax": str(self._quantiser)}
        return encoder
