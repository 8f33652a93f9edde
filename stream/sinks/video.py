"""Video files: annotated.mp4 and masks.mkv. This is the one place that makes them."""

from __future__ import annotations

import math
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from stream.config import VideoSettings
from stream.frame import Frame
from stream.pictures import PictureFormat, planes_of
from stream.sinks.audio import Audio
from stream.sinks.encoders import NO_B_FRAMES, Encoder, choose_encoder
from stream.sinks.files import writing
from stream.sources.container import file_url

# A killed process loses the fragment being written: keep it well under the two seconds that we promise.
FRAGMENT_US = 500_000
KEY_FRAME_EVERY_S = 2
# At fewer pictures per second even a handful in the encoder are seconds: it then keeps none.
FEW_PER_SECOND = 12
MASK_OPTIONS = {"cluster_time_limit": "500", "flush_packets": "1"}
MP4_OPTIONS = {
    # A fragmented file has edit lists, which say when a track starts, only if told so.
    "movflags": "+hybrid_fragmented",
    "use_editlist": "1",
    "frag_duration": str(FRAGMENT_US),
    # A track without packets (sound that ends early) holds the others back for so long; by default ten seconds.
    "max_interleave_delta": str(FRAGMENT_US),
    "flush_packets": "1",
}
# With `empty_moov` a video is playable before its last audio track has begun. But FFmpeg 8.1 crashes there when a track
# starts later than 31 bits of its time scale, as recordings of a running transport stream do.
LATE_START_S = 600
MOST_TIMESCALE = 2**31 - 1
AUDIO_RATE = 48_000


def open_output(path: Path, options: dict[str, str]) -> OutputContainer:
    """Create a video file.

    Raises:
        OutputError: it cannot be created.
    """
    with writing(path):
        return av.open(file_url(path), "w", container_options=options)


def set_picture_format(stream: VideoStream, pictures: PictureFormat, width: int, height: int) -> None:
    """Give an encoder the size, times, shape and colour tags of the source's pictures."""
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = width, height, pictures.pixel_format
    context.time_base = stream.time_base = pictures.time_base
    context.framerate = pictures.rate
    context.sample_aspect_ratio = pictures.sample_aspect_ratio
    context.colorspace, context.color_range = pictures.colorspace, pictures.color_range
    context.color_primaries, context.color_trc = pictures.color_primaries, pictures.color_trc
    # Without this flag every picture lasts 1/rate, and the last one of a variable-rate recording ends wrongly.
    context.flags |= Flags.frame_duration
    if pictures.interlaced:
        context.flags |= Flags.interlaced_dct
    if pictures.display_matrix is not None:
        stream.set_display_matrix(pictures.display_matrix)


def add_pictures(
    file: OutputContainer, encoder: Encoder, pictures: PictureFormat, options: dict[str, str]
) -> VideoStream:
    """A stream that encodes pictures of a source, padded as `padding` says.

    Args:
        file: the stream is added to it.
        encoder: takes the pictures' pixel format.
        pictures: what the source's have in common.
        options: of the encoder.
    """
    stream = cast(VideoStream, file.add_stream(encoder.codec, options=options))
    right, below = padding(pictures)
    set_picture_format(stream, pictures, pictures.width + right, pictures.height + below)
    stream.codec_context.pix_fmt = encoder.takes[pictures.pixel_format]
    return stream


class AnnotatedVideo:
    """annotated.mp4: the pictures encoded as H.264, every audio track of the recording copied beside them.

    A hybrid fragmented MP4 is playable up to its last fragment at any moment, and becomes an ordinary MP4 when it
    is closed (FFmpeg's `movflags=hybrid_fragmented`).

    Args:
        path: the file to write.
        pictures: format of the frames to come.
        audio_from: recording whose audio and metadata are copied.
        settings: the encoder, its speed and its quality.
        origin: pts at which the file's time begins, for pictures alone.

    Attributes:
        encoder: FFmpeg's name of the encoder in use.
        frames: encoded so far.
        bytes: of encoded pictures written so far.
        notes: what could not be copied as it was.
        damage: what was wrong with the sound; complete once the file is closed.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(
        self, path: Path, pictures: PictureFormat, audio_from: Path | None, settings: VideoSettings, origin: int = 0
    ) -> None:
        encoder = choose_encoder(settings.codec, pictures.pixel_format)
        self._path, self._origin, self.encoder, self.frames, self.bytes = path, origin, encoder.codec, 0, 0
        self.notes: list[str] = []
        self.damage: list[str] = []
        self._padding = padding(pictures)
        width, height = pictures.width + self._padding[0], pictures.height + self._padding[1]
        if any(self._padding):
            self.notes.append(
                f"its odd size {pictures.width}x{pictures.height} was padded to {width}x{height}, as H.264 needs"
            )
        self._file = open_output(path, mp4_options(pictures))
        options = _encoder_options(encoder, pictures, settings)
        self._stream = add_pictures(self._file, encoder, pictures, options)
        self._audio = Audio(audio_from, self._file) if audio_from else None
        if self._audio:
            self.notes += self._audio.notes

    def write(self, frame: Frame) -> None:
        """Encode a picture, and mux it with the audio up to its time."""
        picture = pad(frame.picture, *self._padding)
        picture.pict_type = 0  # the source's own picture types would force the encoder's
        with writing(self._path):
            if self._audio:
                self._audio.mux_until(frame.seconds)
            self._mux(self._stream.encode(picture))
        self.frames += 1

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        # Other sinks have the same picture at the same time: its own pts must stay.
        for packet in packets:
            self.bytes += packet.size
            if self._origin and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - self._origin, packet.dts - self._origin
        self._file.mux(packets)

    def close(self) -> None:
        """Flush the encoder and the audio and finish the file; what was written stays playable if that fails."""
        try:
            with writing(self._path), closing(self._file):
                if self.frames:
                    self._flush()
        finally:
            if self._audio:
                self._audio.close()
                self.damage = self._audio.damage

    def _flush(self) -> None:
        self._mux(self._stream.encode(None))
        if self._audio:
            self._audio.mux_until(float("inf"))


class MaskVideo:
    """masks.mkv: one lossless grey picture a frame, 0 or 255, at the picture's size and pts (FFV1 in Matroska).

    Matroska counts time in milliseconds: a pts is the frame's own, rounded to those.
    """

    def __init__(self, path: Path, pictures: PictureFormat) -> None:
        self._path = path
        self._shape = (pictures.height, pictures.width)
        self._time_base = pictures.time_base
        self._file = open_output(path, MASK_OPTIONS)
        # Version 3 with slices: decoded and encoded in parallel, each slice with a checksum.
        options = {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}
        self._stream = self._file.add_stream("ffv1", rate=pictures.rate, options=options)
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = pictures.width, pictures.height, "gray"
        context.time_base = pictures.time_base
        context.sample_aspect_ratio = pictures.sample_aspect_ratio
        context.color_range = 2
        if pictures.display_matrix is not None:
            self._stream.set_display_matrix(pictures.display_matrix)
        self._nothing = np.zeros(self._shape, np.uint8)

    def write(self, frame: Frame) -> None:
        """Encode a frame's mask."""
        mask = self._nothing
        if frame.region is not None:
            mask = np.zeros(self._shape, np.uint8)
            mask[frame.region.slices] = frame.region.mask
        self.write_grey(mask, frame.pts)

    def write_grey(self, grey: np.ndarray, pts: int) -> None:
        """Encode one uint8 [height, width] picture."""
        picture = av.VideoFrame.from_ndarray(grey, "gray")
        picture.pts, picture.time_base = pts, self._time_base
        with writing(self._path):
            self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file."""
        with writing(self._path), closing(self._file):
            self._file.mux(self._stream.encode(None))


def pad(picture: av.VideoFrame, right: int, below: int) -> av.VideoFrame:
    """A copy with its last column and line repeated so often; chroma planes already cover them."""
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
    """Columns and lines to add: H.264 stores whole chroma samples only."""
    chroma = av.VideoFormat(pictures.pixel_format, 64, 64)
    across, down = 64 // chroma.chroma_width(), 64 // chroma.chroma_height()
    return -pictures.width % across, -pictures.height % down


def mp4_options(pictures: PictureFormat) -> dict[str, str]:
    """Of the container of annotated.mp4."""
    # Tracks start in units of the movie's own time scale, milliseconds unless told otherwise.
    options = MP4_OPTIONS | {"movie_timescale": str(_timescale(pictures.time_base))}
    if abs(pictures.start) < LATE_START_S:
        options["movflags"] += "+empty_moov"
    return options


def _encoder_options(encoder: Encoder, pictures: PictureFormat, settings: VideoSettings) -> dict[str, str]:
    key_frames = max(1, round(pictures.rate * KEY_FRAME_EVERY_S))
    options = {**encoder.quality(settings.preset, settings.crf), **NO_B_FRAMES, "g": str(key_frames)}
    return {**options, **encoder.no_delay} if pictures.rate < FEW_PER_SECOND else options


def _timescale(time_base: Fraction) -> int:
    """Units per second in which the pictures' times and, where it fits, 48 kHz audio's are whole numbers."""
    common = math.lcm(time_base.denominator, AUDIO_RATE)
    return common if common <= MOST_TIMESCALE else time_base.denominator
