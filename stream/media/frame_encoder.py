"""Encoding of the frames of a source: format, options, padding, fields and keyframes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import av
import cv2
from av.codec.context import Flags
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.stream import VideoStream

from polypstream.core.config import VideoSettings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.media.encoders import NO_B_FRAMES, Encoder
from polypstream.media.pictures import planes_of
from polypstream.media.scaling import Filtered

KEY_FRAME_EVERY_S = 2
# Below this frame rate the encoder must not delay frames, because a few frames would already be seconds.
LOW_RATE = 12


class FrameEncoder:
    """Encodes frames, and requests keyframes at regular times.

    Args:
        encode: encodes a frame and returns the packets that are finished; None flushes.
        pictures: format of the frames.
    """

    def __init__(
        self,
        encode: Callable[[av.VideoFrame | None], list[Packet[VideoStream]]],
        pictures: PictureFormat,
    ) -> None:
        self._encode, self._padding = encode, padding(pictures)
        self._interlaced = None if pictures.field_order == "progressive" else Filtered("setfield", pictures.field_order)
        # Time in seconds of the last keyframe that the encoder output or that was requested.
        self._key_frame_s = float("-inf")

    def encode(self, picture: av.VideoFrame, seconds: float) -> list[Packet[VideoStream]]:
        """Encode a frame.

        Args:
            picture: the frame.
            seconds: its time.

        Returns:
            The packets that are finished.
        """
        picture = pad(picture, *self._padding)
        if self._interlaced and not picture.interlaced_frame:
            picture = self._interlaced(picture)
        # Otherwise the encoder would use the frame types of the source.
        picture.pict_type = PictureType.I if self._wants_key_frame(seconds) else PictureType.NONE
        return self._noted(self._encode(picture))

    def packets(self, frame: Frame) -> list[Packet[VideoStream]]:
        """Encode the picture of a frame; see `encode`."""
        return self.encode(frame.in_memory(), frame.seconds)

    def request_key_frame(self) -> None:
        """Make the next frame a key frame."""
        self._key_frame_s = float("-inf")

    def flush(self) -> list[Packet[VideoStream]]:
        """Finish, and return the last packets."""
        return self._noted(self._encode(None))

    def _wants_key_frame(self, seconds: float) -> bool:
        """Decide by time. The encoder counts frames, and a recording may announce a wrong frame rate."""
        wanted = seconds - self._key_frame_s >= KEY_FRAME_EVERY_S
        if wanted:
            self._key_frame_s = seconds
        return wanted

    def _noted(self, packets: list[Packet[VideoStream]]) -> list[Packet[VideoStream]]:
        for packet in packets:
            if packet.is_keyframe:
                self._key_frame_s = max(self._key_frame_s, float((packet.pts or 0) * packet.time_base))
        return packets


def open_encoder(encoder: Encoder, pictures: PictureFormat, options: Mapping[str, str]) -> VideoCodecContext:
    """Create an encoder whose packets go to no file.

    Args:
        encoder: an encoder that accepts the frames' pixel format.
        pictures: format of the frames.
        options: options of the encoder.

    Returns:
        The encoder. It opens with its first frame.
    """
    context = cast(VideoCodecContext, VideoCodecContext.create(encoder.codec, "w"))
    context.options = dict(options)
    set_picture_format(context, pictures)
    context.pix_fmt = encoder.takes[pictures.pixel_format]
    return context


def set_picture_format(context: VideoCodecContext, pictures: PictureFormat) -> None:
    """Set the size, timing, pixel shape and colour tags of an encoder.

    Args:
        context: the encoder; changed in place.
        pictures: format of the source's frames.
    """
    right, below = padding(pictures)
    context.width, context.height = pictures.width + right, pictures.height + below
    context.pix_fmt, context.time_base = pictures.pixel_format, pictures.time_base
    context.framerate = pictures.rate
    context.sample_aspect_ratio = pictures.sample_aspect_ratio
    context.colorspace, context.color_range = pictures.colorspace, pictures.color_range
    context.color_primaries, context.color_trc = pictures.color_primaries, pictures.color_trc
    # Without this flag every frame lasts 1/rate, and the last frame of a variable-rate recording has a wrong duration.
    context.flags |= Flags.frame_duration
    if pictures.field_order != "progressive":
        context.flags |= Flags.interlaced_dct


def encoder_options(encoder: Encoder, pictures: PictureFormat, settings: VideoSettings) -> dict[str, str]:
    """Return the options of an encoder.

    Args:
        encoder: the encoder.
        pictures: format of the source's frames.
        settings: speed and quality.
    """
    key_frames = max(1, round(pictures.rate * KEY_FRAME_EVERY_S))
    options = {**encoder.quality(settings.preset, settings.crf), **NO_B_FRAMES, "g": str(key_frames)}
    if pictures.field_order == "bff":
        options |= encoder.lower_field_first
    return {**options, **encoder.no_delay} if pictures.rate < LOW_RATE else options


def pad(picture: av.VideoFrame, right: int, below: int) -> av.VideoFrame:
    """Pad a frame by repeating its last column and row.

    Args:
        picture: the frame.
        right: number of columns to add.
        below: number of rows to add.

    Returns:
        A padded copy, or the frame itself if there is nothing to add. Chroma planes already cover the added pixels.
    """
    if not right and not below:
        return picture
    padded = av.VideoFrame(picture.width + right, picture.height + below, picture.format.name)
    for source, target in zip(planes_of(picture), planes_of(padded), strict=True):
        rows, columns = target.shape[0] - source.shape[0], target.shape[1] - source.shape[1]
        target[:] = cv2.copyMakeBorder(source, 0, rows, 0, columns, cv2.BORDER_REPLICATE)
    padded.pts, padded.time_base, padded.duration = picture.pts, picture.time_base, picture.duration
    padded.colorspace, padded.color_range = picture.colorspace, picture.color_range
    return padded


def padding(pictures: PictureFormat) -> tuple[int, int]:
    """Compute the padding of frames: H.264 stores only whole chroma samples.

    Args:
        pictures: format of the frames.

    Returns:
        Number of columns and rows to add.
    """
    chroma = av.VideoFormat(pictures.pixel_format, 64, 64)
    across, down = 64 // chroma.chroma_width(), 64 // chroma.chroma_height()
    return -pictures.width % across, -pictures.height % down
