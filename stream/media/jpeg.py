"""Encoding of frames as JPEG, oriented for display."""

from __future__ import annotations

from fractions import Fraction

import av
from av.video.codeccontext import VideoCodecContext

from polypstream.core.frame import Frame
from polypstream.core.orientation import AS_STORED, Orientation
from polypstream.media.scaling import shown_within

# Quantiser of FFmpeg's MJPEG encoder, 2 (best) to 31.
SNAPSHOT_QUANTISER = 2
# A maximum width that no frame exceeds.
WHOLE = 1 << 16


def snapshot(frame: Frame) -> bytes:
    """Encode a frame as JPEG at its full resolution.

    Args:
        frame: the frame.

    Returns:
        The JPEG file.
    """
    return Jpeg(WHOLE, SNAPSHOT_QUANTISER)(frame.in_memory(), frame.orientation)


class Jpeg:
    """Encodes frames as JPEG, oriented for display.

    Args:
        width: the maximum width of the image in pixels.
        quantiser: quantiser of FFmpeg's MJPEG encoder, 2 (best) to 31.
    """

    def __init__(self, width: int, quantiser: int) -> None:
        self._width, self._quantiser = width, quantiser
        self._orientation: Orientation | None = None
        self._encoder: VideoCodecContext | None = None

    def __call__(self, picture: av.VideoFrame, orientation: Orientation = AS_STORED) -> bytes:
        """Encode one frame.

        Args:
            picture: the frame.
            orientation: how it is displayed.

        Returns:
            The JPEG file.
        """
        if orientation != self._orientation:
            self._orientation = orientation
            # JPEG uses BT.601 with full range (JFIF).
            colours = ":out_color_matrix=bt601:out_range=full"
            self._scale = shown_within(self._width, "yuvj420p", orientation, colours)
        scaled = self._scale(picture)
        if self._encoder is None or (self._encoder.width, self._encoder.height) != (scaled.width, scaled.height):
            self._encoder, self._count = self._open(scaled), 0
        scaled.pts = self._count
        self._count += 1
        return b"".join(bytes(packet) for packet in self._encoder.encode(scaled))

    def _open(self, scaled: av.VideoFrame) -> VideoCodecContext:
        encoder = VideoCodecContext.create("mjpeg", "w")
        encoder.width, encoder.height, encoder.pix_fmt = scaled.width, scaled.height, scaled.format.name
        encoder.time_base = Fraction(1, 1000)
        # With threads the encoder would output a frame only after it has received the next ones.
        encoder.thread_count = 1
        encoder.options = {"qmin": str(self._quantiser), "qmax": str(self._quantiser)}
        return encoder
