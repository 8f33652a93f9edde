"""Video files: annotated.mp4 and masks.mkv. No other module creates video files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from polypstream.core.config import VideoSettings
from polypstream.core.files import writing
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.live_pictures import PicturePacket
from polypstream.core.marks import Mark
from polypstream.core.pipeline import QUEUE
from polypstream.core.timestamps import ClockShifts
from polypstream.errors import OutputError
from polypstream.media.audio import Audio
from polypstream.media.container import file_url, open_container, packets_of
from polypstream.media.encoders import Encoder, choose_encoder
from polypstream.media.frame_encoder import FrameEncoder, encoder_options, padding, set_picture_format
from polypstream.media.gop_copy import GopCopy
from polypstream.media.live_audio import LiveAudio, LiveAudioSource
from polypstream.media.live_copy import LiveCopy, add_copied, packet_of
from polypstream.media.pictures import longest_step

if TYPE_CHECKING:
    from av.container.core import Chapter

# A killed process loses the current fragment. The documented limit is two seconds, so fragments are much shorter.
FRAGMENT_US = 500_000
MASK_OPTIONS = {"cluster_time_limit": "500", "flush_packets": "1"}
MP4_OPTIONS = {
    # Edit lists define when a track starts. A fragmented file contains them only with this option.
    "movflags": "+hybrid_fragmented",
    "use_editlist": "1",
    "frag_duration": str(FRAGMENT_US),
    # A track without packets, such as audio that ends early, delays the others for this time. The default is 10 s.
    "max_interleave_delta": str(FRAGMENT_US),
    "flush_packets": "1",
}
# With the first flag a video is playable before its last audio track has begun. FFmpeg cannot write such a header for
# AC-3 and E-AC-3, because it needs a packet of these first. FFmpeg 8.1 crashes if a track starts later than 31 bits of
# its time scale. Recordings of a running transport stream do so. With the second flag the header is written when all
# tracks have begun. With neither, a file that was not closed is played without its first fragment.
HEADER_AT_START, HEADER_LATER = "+empty_moov", "+delay_moov"
LATE_START_S = 600
MAX_TIMESCALE = 2**31 - 1
AUDIO_RATE = 48_000
# Units per second of the times of chapters.
MS = 1000


def open_output(path: Path, options: dict[str, str]) -> OutputContainer:
    """Create a video file.

    Args:
        path: the file to write.
        options: FFmpeg's options of the container.

    Returns:
        The open container.

    Raises:
        OutputError: it cannot be created.
    """
    with writing(path):
        return av.open(file_url(path), "w", container_options=options)


def add_pictures(
    file: OutputContainer, encoder: Encoder, pictures: PictureFormat, options: dict[str, str]
) -> VideoStream:
    """Add a stream that encodes frames of a source, padded as `padding` says.

    Args:
        file: the file to which the stream is added.
        encoder: an encoder that accepts the frames' pixel format.
        pictures: format of the frames.
        options: options of the encoder.

    Returns:
        The stream.
    """
    stream = cast(VideoStream, file.add_stream(encoder.codec, options=options))
    set_picture_format(stream.codec_context, pictures)
    stream.time_base = pictures.time_base
    if pictures.display_matrix is not None:
        stream.set_display_matrix(pictures.display_matrix)
    stream.codec_context.pix_fmt = encoder.takes[pictures.pixel_format]
    return stream


def _chapters_of(marks: Sequence[Mark], ends: float) -> list[Chapter]:
    """Return the chapters of a video, in PyAV's format: each begins at a mark and ends at the next one.

    Args:
        marks: marks of the video.
        ends: end of the video in seconds.
    """
    ordered = sorted(marks, key=lambda mark: mark.seconds)
    limits = [*(round(mark.seconds * MS) for mark in ordered), round(ends * MS)]
    return [
        {
            "id": number,
            "start": start,
            "end": max(end, start + 1),
            "time_base": Fraction(1, MS),
            "metadata": {"title": mark.title},
        }
        for number, (mark, (start, end)) in enumerate(zip(ordered, pairwise(limits), strict=True))
    ]


class AnnotatedVideo:
    """annotated.mp4: the frames as H.264, with a copy of every audio track of the recording.

    The frames are encoded. With `copying`, groups of pictures in which nothing is drawn are the recording's packets.

    The file is a hybrid fragmented MP4 (FFmpeg's `movflags=hybrid_fragmented`). While it is written, it can be played
    up to its last fragment. When it is closed, it becomes an ordinary MP4.

    Args:
        path: the file to write.
        pictures: format of the frames.
        audio_from: recording whose audio, chapters and metadata are copied, or the sound of a live source.
        settings: the encoder, its speed and its quality.
        origin: pts at which the file's timeline begins, if it holds a range of the recording: earlier sound and all
            chapters are left out; None: the whole recording.
        shifts: the offsets that were added to the recording's timestamps.
        copying: copies packets, and is closed with the file; None: all frames are encoded.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        frames: number of frames accepted so far.
        bytes: size of the video packets written so far.
        packets: number of video and audio packets written so far.
        notes: what could not be copied unchanged.
        damage: problems of the audio; complete once the file is closed.
        queue_size: number of frames that may wait in a pipeline. It may be set before the pipeline is made.

    Raises:
        OutputError: the file cannot be written.
    """

    queue_size = QUEUE

    def __init__(
        self,
        path: Path,
        pictures: PictureFormat,
        audio_from: Path | LiveAudioSource | None,
        settings: VideoSettings,
        origin: int | None = None,
        shifts: ClockShifts | None = None,
        copying: GopCopy | LiveCopy | None = None,
    ) -> None:
        encoder = choose_encoder(settings.codec, pictures.pixel_format)
        self._path, self._origin, self.encoder, self.frames, self.bytes = path, origin or 0, encoder.codec, 0, 0
        self.notes: list[str] = []
        self.damage: list[str] = []
        right, below = padding(pictures)
        if right or below:
            width, height = pictures.width + right, pictures.height + below
            self.notes.append(
                f"its odd size {pictures.width}x{pictures.height} was padded to {width}x{height}, as H.264 needs"
            )
        self._previous_packet: Packet[VideoStream] | None = None
        self._video_packets = 0
        self._ends: float | None = None
        # End of the last frame, in units of its pts.
        self._end_pts = 0
        self._copying = copying
        reordered = bool(copying and copying.reordered)
        self._file, self._audio = open_mp4(path, pictures, audio_from, shifts, origin, reordered)
        try:
            if copying:
                self._stream = copying.add_to(self._file)
            else:
                options = encoder_options(encoder, pictures, settings)
                self._stream = add_pictures(self._file, encoder, pictures, options)
            self._frames = copying or FrameEncoder(self._stream.encode, pictures)
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
        """Number of video and audio packets written so far."""
        return self._video_packets + (self._audio.packets if self._audio else 0)

    def write(self, frame: Frame) -> None:
        """Encode a frame, or keep its number until its group is copied, and mux the audio up to its time.

        Args:
            frame: the frame.

        Raises:
            OutputError: the file cannot be written.
        """
        with writing(self._path):
            self._mux(self._frames.packets(frame))
        self.frames += 1
        self._end_pts = frame.pts + (frame.picture.duration or 0)
        self._ends = None if frame.last else frame.seconds + float((frame.picture.duration or 0) * frame.time_base)

    def _mux(self, packets: Iterable[Packet[VideoStream]]) -> None:
        """Mux each packet after the next one has arrived, so that its exact duration is known.

        Otherwise a fragment would end with a guessed duration. FFmpeg then assumes that the next fragment's frames
        follow immediately (ff_mov_write_packet).
        """
        for packet in packets:
            if self._previous_packet is not None and self._previous_packet.dts is not None and packet.dts is not None:
                self._previous_packet.duration = packet.dts - self._previous_packet.dts
            self._release()
            self._previous_packet = packet

    def _release(self) -> None:
        packet, self._previous_packet = self._previous_packet, None
        if packet is None:
            return
        if self._audio:
            self._audio.mux_until(float((packet.pts or 0) * packet.time_base))
        self.bytes += packet.size
        packet.stream = self._stream
        # The packet's pts is changed, not the frame's, because other sinks use the same frame.
        if self._origin and packet.pts is not None and packet.dts is not None:
            packet.pts, packet.dts = packet.pts - self._origin, packet.dts - self._origin
        self._file.mux(packet)
        self._video_packets += 1

    def set_chapters(self, marks: Sequence[Mark], ends: float) -> None:
        """Set the chapters of the file, which are written when it is closed.

        Args:
            marks: where they begin. Their times count from the beginning of the file.
            ends: end of the file in seconds.
        """
        if marks:
            self._file.set_chapters(_chapters_of(marks, ends))

    def close(self) -> None:
        """Flush the encoder and the audio, and finish the file. If this fails, what was written remains playable.

        Raises:
            OutputError: the file cannot be written.
        """
        try:
            with writing(self._path), closing(self._file):
                if self.frames:
                    self._flush()
        finally:
            if self._copying:
                self._copying.close()
            if self._audio:
                self._audio.close()
                self.damage = self._audio.damage

    def _flush(self) -> None:
        self._mux(self._frames.flush())
        last = self._previous_packet
        if last is not None and last.pts is not None:
            last.duration = _last_duration(last.pts, last.duration or 0, self._end_pts)
            if self._ends is not None:  # copied packets may be ahead of the frames
                self._ends = max(self._ends, float((last.pts + last.duration) * last.time_base))
        self._release()
        if self._audio:
            # If the video ended early, for example by Ctrl-C, the audio ends at the same time.
            self._audio.mux_until(float("inf") if self._ends is None else self._ends)
            self._audio.finish()


def _last_duration(pts: int, duration: int, ends: int) -> int:
    """Return the duration of the last packet of a file.

    FFmpeg ends the track where its last fragment ends. Reordered frames before that may be shown later.

    Args:
        pts: pts of the packet.
        duration: its duration.
        ends: when the frame that is shown last ends.
    """
    return max(duration, ends - pts)


def write_packets(
    path: Path,
    pictures: PictureFormat,
    packets: Sequence[PicturePacket],
    sound: LiveAudioSource | None,
    marks: Sequence[Mark] = (),
) -> None:
    """Write an MP4 of pictures that were encoded before. Its time begins at the first one.

    Args:
        path: the file to write.
        pictures: format of the pictures.
        packets: their packets, of the same format, beginning with a key picture.
        sound: sound of their source; None: there is none.
        marks: become chapters. Their times count from the first picture.

    Raises:
        OutputError: the file cannot be written.
    """
    origin, packet_format = packets[0].pts, packets[0].format
    file, audio = open_mp4(path, pictures, sound, None, origin, packet_format.reordered)
    with writing(path), closing(file):
        stream = add_copied(file, packet_format, pictures)
        if audio:
            audio.add_to(file)
        file.start_encoding()
        if marks:  # FFmpeg moves the first chapter to 0 if it knows of it when it writes the header
            file.set_chapters(_chapters_of(marks, float((packets[-1].pts - origin) * pictures.time_base)))
        step = 0
        for each, following in zip_longest(packets, packets[1:]):
            step = following.dts - each.dts if following else step
            packet = packet_of(each, pictures, step)
            if following is None:
                packet.duration = _last_duration(each.pts, step, max(packet.pts for packet in packets) + step)
            packet.stream, packet.pts, packet.dts = stream, each.pts - origin, each.dts - origin
            if audio:
                audio.mux_until(float((each.pts + step) * pictures.time_base))
            file.mux(packet)
        if audio:
            audio.finish()


class MaskVideo:
    """masks.mkv: one lossless grey image per frame, 0 or 255, with the frame's size and pts (FFV1 in Matroska).

    Matroska counts time in milliseconds. Therefore each pts is the frame's pts rounded to milliseconds.

    Args:
        path: the file to write.
        pictures: format of the frames.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, pictures: PictureFormat) -> None:
        self._path = path
        self._shape = (pictures.height, pictures.width)
        self._time_base = pictures.time_base
        self._file = open_output(path, MASK_OPTIONS)
        # Version 3 with slices: they are coded in parallel, and each has a checksum. A single row cannot be divided.
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
        self._empty = np.zeros(self._shape, np.uint8)

    def write(self, frame: Frame) -> None:
        """Encode a frame's mask.

        Args:
            frame: the frame.
        """
        mask = self._empty
        if frame.region is not None:
            mask = np.zeros(self._shape, np.uint8)
            mask[frame.region.slices] = frame.region.mask
        self.write_grey(mask, frame.pts)

    def write_grey(self, grey: np.ndarray, pts: int) -> None:
        """Encode a mask.

        Args:
            grey: uint8 [height, width].
            pts: presentation timestamp in units of the source's time base.
        """
        picture = av.VideoFrame.from_ndarray(grey, "gray")
        picture.pts, picture.time_base = pts, self._time_base
        with writing(self._path):
            self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file."""
        with writing(self._path), closing(self._file):
            self._file.mux(self._stream.encode(None))


def open_mp4(
    path: Path,
    pictures: PictureFormat,
    audio_from: Path | LiveAudioSource | None,
    shifts: ClockShifts | None,
    origin: int | None = None,
    reordered: bool = False,
) -> tuple[OutputContainer, Audio | LiveAudio | None]:
    """Create an MP4, and prepare its audio. The audio decides how the header is written.

    Args:
        path: the file to write.
        pictures: format of its frames.
        audio_from: recording whose audio, chapters and metadata are copied, or the sound of a live source; None: none.
        shifts: the offsets that were added to the recording's timestamps.
        origin: as for `AnnotatedVideo`.
        reordered: frames may be decoded in another order than they are shown.

    Returns:
        The open container, and the audio if there is any.

    Raises:
        OutputError: the file cannot be created.
    """
    since = None if origin is None else origin * pictures.time_base
    options = _mp4_options(pictures, since or Fraction(0))
    if isinstance(audio_from, LiveAudioSource):
        # A header that waits for the first packet of sound might wait for ever.
        return open_output(path, options[0]), LiveAudio(audio_from, options[0], since or Fraction(0))
    if audio_from is None:
        return open_output(path, options[-1] if reordered else options[0]), None
    longest = longest_step(pictures.time_base) * pictures.time_base
    audio = Audio(audio_from, shifts or ClockShifts(), float(pictures.start), longest, options, since)
    try:
        # The first reordered frame is decoded before it is shown. A header that was written at the start does not say
        # so. The frames of a file that was not closed would be late by a few frames.
        file = open_output(path, options[-1] if reordered and not audio.is_late else audio.options)
        file.set_chapters(audio.chapters())
    except BaseException:
        audio.close()
        raise
    return file, audio


def _mp4_options(pictures: PictureFormat, since: Fraction) -> list[dict[str, str]]:
    """Return the possible container options of annotated.mp4, the preferred ones first.

    Args:
        pictures: format of the frames.
        since: time in the recording at which the file's timeline begins, in seconds.
    """
    # Tracks start in units of the movie's time scale, which is milliseconds by default.
    options = MP4_OPTIONS | {"movie_timescale": str(_timescale(pictures.time_base))}
    at_start, later = (options | {"movflags": options["movflags"] + flag} for flag in (HEADER_AT_START, HEADER_LATER))
    return [at_start, later] if pictures.start - since < LATE_START_S else [later]


def check_frames(path: Path, frames: int, on_activity: Callable[[object], None] = lambda _: None) -> None:
    """Count the frames of a written video by reading its packets. Nothing is decoded.

    Args:
        path: path of the video.
        frames: the expected number of frames.
        on_activity: called regularly with the number of frames read so far.

    Raises:
        OutputError: the number of frames differs.
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


def _timescale(time_base: Fraction) -> int:
    """Return units per second in which timestamps of the video and, if possible, of 48 kHz audio are whole numbers."""
    common = math.lcm(time_base.denominator, AUDIO_RATE)
    return common if common <= MAX_TIMESCALE else time_base.denominator
