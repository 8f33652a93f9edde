"""Video files: annotated.mp4 and masks.mkv. This is the one place that makes them."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from av.video.frame import PictureType
from av.video.stream import VideoStream

from polypstream.core.config import VideoSettings
from polypstream.core.files import writing
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.timestamps import ClockShifts
from polypstream.errors import OutputError
from polypstream.media.audio import Audio
from polypstream.media.container import file_url, open_container, packets_of
from polypstream.media.encoders import NO_B_FRAMES, Encoder, choose_encoder
from polypstream.media.pictures import longest_step, planes_of
from polypstream.media.scaling import Filtered

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
# With this a video is playable before its last audio track has begun. But FFmpeg cannot write such a header for AC-3
# and E-AC-3, of which it must see a packet first, and FFmpeg 8.1 crashes when a track starts later than 31 bits of its
# time scale, as recordings of a running transport stream do. Without it the header comes with the first fragment.
AT_ONCE = "+empty_moov"
LATE_START_S = 600
MAX_TIMESCALE = 2**31 - 1
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
    if pictures.field_order != "progressive":
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
        audio_from: recording whose audio, chapters and metadata are copied.
        settings: the encoder, its speed and its quality.
        origin: pts at which the file's time begins, for pictures alone.
        shifts: by how much the times of the recording were moved.

    Attributes:
        encoder: FFmpeg's name of the encoder in use.
        frames: encoded so far.
        bytes: of encoded pictures written so far.
        packets: of pictures and sound written so far.
        notes: what could not be copied as it was.
        damage: what was wrong with the sound; complete once the file is closed.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        pictures: PictureFormat,
        audio_from: Path | None,
        settings: VideoSettings,
        origin: int = 0,
        shifts: ClockShifts | None = None,
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
        self._interlaced = None if pictures.field_order == "progressive" else Filtered("setfield", pictures.field_order)
        # When the last key frame came out of the encoder or was asked for, in seconds.
        self._key_frame_s = float("-inf")
        self._held: Packet[VideoStream] | None = None
        self._pictures_out = 0
        self._ends: float | None = None
        self._file, self._audio = open_mp4(path, pictures, audio_from, shifts)
        try:
            self._stream = add_pictures(self._file, encoder, pictures, _encoder_options(encoder, pictures, settings))
            if self._audio:
                self._audio.add_to(self._file)
                self.notes += self._audio.notes
            with writing(path):
                self._file.start_encoding()
        except BaseException:
            self._file.close()
            raise

    @property
    def packets(self) -> int:
        return self._pictures_out + (self._audio.packets if self._audio else 0)

    def write(self, frame: Frame) -> None:
        """Encode a picture, and mux it with the audio up to its time."""
        picture = pad(frame.picture, *self._padding)
        if self._interlaced and not picture.interlaced_frame:
            picture = self._interlaced(picture)
        with writing(self._path):
            # The source's own picture types would force the encoder's.
            picture.pict_type = PictureType.I if self._wants_key_frame(frame.seconds) else PictureType.NONE
            self._mux(self._stream.encode(picture))
        self.frames += 1
        self._ends = None if frame.last else frame.seconds + float((picture.duration or 0) * frame.time_base)

    def _wants_key_frame(self, seconds: float) -> bool:
        """By time: the encoder counts frames, of a rate that a recording may announce wrongly."""
        wanted = seconds - self._key_frame_s >= KEY_FRAME_EVERY_S
        if wanted:
            self._key_frame_s = seconds
        return wanted

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        """Each picture waits for the next one: a fragment that ends with it would else end by a guessed duration.

        FFmpeg then takes the pictures of the next fragment to follow at once (ff_mov_write_packet).
        """
        for packet in packets:
            if packet.is_keyframe:
                self._key_frame_s = max(self._key_frame_s, float((packet.pts or 0) * packet.time_base))
            if self._held is not None and self._held.dts is not None and packet.dts is not None:
                self._held.duration = packet.dts - self._held.dts
            self._release()
            self._held = packet

    def _release(self) -> None:
        packet, self._held = self._held, None
        if packet is None:
            return
        if self._audio:
            self._audio.mux_until(float((packet.pts or 0) * packet.time_base))
        self.bytes += packet.size
        # Other sinks have the same picture at the same time: its own pts must stay.
        if self._origin and packet.pts is not None and packet.dts is not None:
            packet.pts, packet.dts = packet.pts - self._origin, packet.dts - self._origin
        self._file.mux(packet)
        self._pictures_out += 1

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
        self._release()
        if self._audio:
            # Where the pictures were cut short, by Ctrl-C for instance, so is the sound.
            self._audio.mux_until(float("inf") if self._ends is None else self._ends)
            self._audio.finish()


class MaskVideo:
    """masks.mkv: one lossless grey picture a frame, 0 or 255, at the picture's size and pts (FFV1 in Matroska).

    Matroska counts time in milliseconds: a pts is the frame's own, rounded to those.
    """

    def __init__(self, path: Path, pictures: PictureFormat) -> None:
        self._path = path
        self._shape = (pictures.height, pictures.width)
        self._time_base = pictures.time_base
        self._file = open_output(path, MASK_OPTIONS)
        # Version 3 with slices: decoded and encoded in parallel, each slice with a checksum. A line cannot be divided.
        slices = "4" if min(self._shape) > 1 else "1"
        options = {"level": "3", "slices": slices, "slicecrc": "1", "g": "1"}
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


def open_mp4(
    path: Path, pictures: PictureFormat, audio_from: Path | None, shifts: ClockShifts | None
) -> tuple[OutputContainer, Audio | None]:
    """Create an MP4 whose header can be written for the sound that shall go into it, and plan that.

    Args:
        path: the file to write.
        pictures: format of its pictures.
        audio_from: recording whose audio, chapters and metadata are to be copied.
        shifts: by how much the times of the recording were moved.

    Raises:
        OutputError: it cannot be created.
    """
    ways = _mp4_options(pictures)
    if audio_from is None:
        return open_output(path, ways[0]), None
    longest = longest_step(pictures.time_base) * pictures.time_base
    audio = Audio(audio_from, shifts or ClockShifts(), float(pictures.start), longest, ways)
    try:
        file = open_output(path, audio.options)
        file.set_chapters(audio.chapters())
    except BaseException:
        audio.close()
        raise
    return file, audio


def _mp4_options(pictures: PictureFormat) -> list[dict[str, str]]:
    """Of the container of annotated.mp4, for each way in which its header may be written, the best one first."""
    # Tracks start in units of the movie's own time scale, milliseconds unless told otherwise.
    options = MP4_OPTIONS | {"movie_timescale": str(_timescale(pictures.time_base))}
    at_once = options | {"movflags": options["movflags"] + AT_ONCE}
    return [at_once, options] if abs(pictures.start) < LATE_START_S else [options]


def check_frames(path: Path, frames: int, on_activity: Callable[[object], None] = lambda _: None) -> None:
    """See that a video that was written holds so many pictures, by reading it; nothing is decoded.

    Args:
        path: of the video.
        frames: that it should have.
        on_activity: told how many were read so far, now and then.

    Raises:
        OutputError: it holds another number.
    """
    damage: list[str] = []
    found = 0
    with open_container(path) as container:
        stream = container.streams.video[0]
        for other in container.streams:
            if other is not stream:
                other.discard = other.discard.all
        for packet in packets_of(container, [stream], damage):
            found += packet.size > 0
            if found % 1000 == 0:
                on_activity(found)
    if found != frames:
        raise OutputError(f"{path}: {found} of the {frames} frames that were written can be read; please report this")


def _encoder_options(encoder: Encoder, pictures: PictureFormat, settings: VideoSettings) -> dict[str, str]:
    key_frames = max(1, round(pictures.rate * KEY_FRAME_EVERY_S))
    options = {**encoder.quality(settings.preset, settings.crf), **NO_B_FRAMES, "g": str(key_frames)}
    if pictures.field_order == "bff":
        options |= encoder.lower_field_first
    return {**options, **encoder.no_delay} if pictures.rate < FEW_PER_SECOND else options


def _timescale(time_base: Fraction) -> int:
    """Units per second in which the pictures' times and, where it fits, 48 kHz audio's are whole numbers."""
    common = math.lcm(time_base.denominator, AUDIO_RATE)
    return common if common <= MAX_TIMESCALE else time_base.denominator
