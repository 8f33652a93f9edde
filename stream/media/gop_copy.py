"""Copies groups of pictures (GOPs) of an H.264 recording in which nothing is drawn, and encodes only the others.

A GOP begins with an IDR picture. No picture of it refers to another GOP, so each can be replaced by itself. It is
decided when its last frame arrives, or its first changed one. Frames are not held meanwhile: the packets of the GOP
are, and the frames before a changed one are decoded from them once more.

Encoded pictures have a parameter set of another id that describes the same decoder. Their packets take the decoding
times of the packets that they replace. So a decoder does not notice the change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import av
from av.codec.context import Flags
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from polypstream.core.config import VideoSettings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.timestamps import ClockShifts
from polypstream.errors import OutputError
from polypstream.media.container import is_encrypted, open_container, packets_of, video_tracks
from polypstream.media.encoders import ENCODERS, choose_encoder
from polypstream.media.frame_encoder import FrameEncoder, encoder_options, padding, set_picture_format
from polypstream.media.h264 import (
    IDR,
    PPS,
    SPS,
    NotSupported,
    ParameterSets,
    SequenceParameters,
    join_lengths,
    picture_units,
    split_start_codes,
    splitter_of,
    unit_type,
)

# A longer GOP is encoded. Its packets would take memory, and a killed process would lose all of it.
LONGEST_GOP_S = 20
LARGEST_GOP_BYTES = 64 * 2**20
# A seek in a transport stream ends at any packet. The groups before the wanted time are passed over.
ENTER_BEFORE_S = 5
CODEC = "libx264"
# profile_idc and x264's name of the profile.
PROFILES = {66: "baseline", 77: "main", 100: "high", 110: "high10", 122: "high422", 244: "high444"}
# At a smaller crf x264 is lossless, which only one profile allows.
LOSSY_CRF, LOSSLESS_PROFILE = 1, 244
# Constraint flag 3 of these profiles: all pictures are intra pictures.
INTRA_ONLY, INTRA_PROFILES = 0x10, (110, 122, 244)
MARKED, DAMAGED, LONG = "marked", "damaged, mistimed or incomplete", f"longer than {LONGEST_GOP_S} seconds"
CHANGED = "behind a change of the parameter sets"
ENTERED_LATE = "before the first complete group"


class CannotCopy(Exception):
    """No GOP of a recording can be copied. The message is the reason, for the user."""


@dataclass(slots=True)
class CopyCounts:
    """What was copied and what was encoded.

    Attributes:
        copied_gops, copied_frames: number of groups and frames that are the recording's own.
        encoded_gops, encoded_frames: number of groups and frames that were encoded.
        reasons: number of encoded groups by the reason.
    """

    copied_gops: int = 0
    copied_frames: int = 0
    encoded_gops: int = 0
    encoded_frames: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def why_none(self) -> str | None:
        """Why nothing was copied; None: something was."""
        if self.copied_gops or not self.reasons:
            return None
        return f"every group of pictures is {' or '.join(sorted(self.reasons))}"


class Gop(NamedTuple):
    """A group of pictures, or a piece of one that cannot be copied.

    Attributes:
        packets: its packets in the order of decoding; empty if it cannot be copied.
        pts: pts of its frames in ascending order.
        dts: dts of its packets in ascending order; empty if they are not usable.
        end: pts of the first frame behind it; None: it is the last one.
        problem: why it cannot be copied; empty if it can be.
    """

    packets: list[Packet[VideoStream]]
    pts: list[int]
    dts: list[int]
    end: int | None
    problem: str


class _Gathered:
    """Gathers the packets of one GOP."""

    def __init__(self, problem: str = "") -> None:
        self.packets: list[Packet[VideoStream]] = []
        self.problem, self._bytes = problem, 0

    def add(self, packet: Packet[VideoStream], problem: str) -> None:
        """Append a packet, and note what is wrong with it."""
        self.packets.append(packet)
        self._bytes += packet.size
        self.problem = self.problem or problem

    @property
    def pts(self) -> list[int]:
        return sorted(packet.pts for packet in self.packets if packet.pts is not None)

    @property
    def is_long(self) -> bool:
        """Whether it is too long to be copied."""
        if not self.packets or self._bytes > LARGEST_GOP_BYTES:
            return bool(self.packets)
        first, last = self.packets[0], self.packets[-1]
        if first.pts is None or last.pts is None:
            return False
        return (last.pts - first.pts) * last.time_base > LONGEST_GOP_S

    def gop(self, end: int | None, problem: str = "") -> Gop:
        """Finish it; `end` is the pts of the first frame behind it."""
        pts = self.pts
        self._fill_decoding_times(pts)
        dts = [packet.dts for packet in self.packets if packet.dts is not None]
        problem = self.problem or problem
        complete = len(pts) == len(dts) == len(self.packets)
        ordered = all(before < after for times in (pts, dts) for before, after in pairwise(times))
        possible = complete and all(cast(int, each.dts) <= cast(int, each.pts) for each in self.packets)
        if not (possible and ordered and (end is None or not pts or pts[-1] < end)):
            return Gop([], pts, [], end, problem or DAMAGED)
        if problem:
            self.packets.clear()
        return Gop(self.packets, pts, dts, end, problem)

    def _fill_decoding_times(self, pts: list[int]) -> None:
        """Give the first packets a dts. FFmpeg leaves it out at the start of containers that store no dts."""
        following: int | None = None
        for packet in reversed(self.packets):
            if packet.dts is None and following is not None and len(pts) > 1:
                packet.dts = following - (pts[1] - pts[0])
            following = packet.dts


@contextmanager
def _closing_after_failure(opened: GopReader | GopCopy) -> Iterator[None]:
    """Close what could not be made ready.

    Raises:
        CannotCopy: the block raised NotSupported.
    """
    try:
        yield
    except BaseException as error:
        opened.close()
        if isinstance(error, NotSupported):
            raise CannotCopy(str(error)) from error
        raise


class GopReader:
    """Reads the GOPs of a recording one after another.

    Args:
        path: the recording.
        offset: added to all timestamps, in units of the time base.
        since: pts, with the offset, of the first frame that is wanted; None: from the start.

    Attributes:
        stream: its video track.
        sets: its parameter sets.

    Raises:
        CannotCopy: it has no video track that can be copied.
        SourceError: it cannot be read.
    """

    def __init__(self, path: Path, offset: int, since: int | None = None) -> None:
        self._container: InputContainer = open_container(path)
        self._offset, self._since = offset, since
        with _closing_after_failure(self):
            self.stream = video_tracks(self._container)[0]
            if self.stream.codec_context.codec.canonical_name != "h264":
                raise CannotCopy("it is not H.264")
            extradata = self.stream.codec_context.extradata or b""
            self.sets = ParameterSets.parse(extradata)
            self._split = splitter_of(extradata)
            self._is_byte_stream = self._split is split_start_codes
            self._known = {*self.sets.sequence, *self.sets.picture}
            self._gops = self._read()

    def next(self) -> Gop | None:
        """Read the next GOP; None: there are no more."""
        return next(self._gops, None)

    def _read(self) -> Iterator[Gop]:
        if self._since is not None:
            try:
                earlier = round(ENTER_BEFORE_S / self.stream.time_base) if self.stream.time_base else 0
                self._container.seek(self._since - self._offset - earlier, stream=self.stream)
            except FFmpegError:
                return
        gathered, sticky = _Gathered(ENTERED_LATE), ""
        packets = cast("Iterator[Packet[VideoStream]]", packets_of(self._container, [self.stream], []))
        for packet in packets:
            if not packet.size:
                continue
            is_first, problem, sticky = self._examine(packet, sticky)
            self._move(packet)
            if is_first or gathered.is_long:
                if gathered.packets:
                    yield gathered.gop(packet.pts, "" if is_first else LONG)
                gathered = _Gathered("" if is_first else LONG)
            gathered.add(packet, problem or sticky)
        if gathered.packets:
            yield gathered.gop(None)

    def _examine(self, packet: Packet[VideoStream], sticky: str) -> tuple[bool, str, str]:
        """Whether a GOP begins with a packet, what is wrong with it, and what is wrong from now on."""
        if packet.has_sidedata("new_extradata"):
            sticky = CHANGED
        try:
            units = self._split(bytes(packet))
        except NotSupported:
            return False, DAMAGED, sticky
        if any(unit_type(unit) in (SPS, PPS) and unit not in self._known for unit in units):
            sticky = CHANGED
        damaged = not units or packet.is_corrupt or packet.is_discard or is_encrypted(packet)
        return any(unit_type(unit) == IDR for unit in units), DAMAGED if damaged else "", sticky

    def _move(self, packet: Packet[VideoStream]) -> None:
        if packet.pts is not None:
            packet.pts += self._offset
        if packet.dts is not None:
            packet.dts += self._offset

    def first_pictures(self, gop: Gop, count: int) -> Iterator[av.VideoFrame]:
        """Decode the first frames of a GOP.

        If a frame of a damaged recording is not decoded this time, another one stands for it.

        Args:
            gop: a GOP with its packets.
            count: number of frames.

        Yields:
            The frames, in the order of their pts.

        Raises:
            OutputError: they cannot be decoded.
        """
        missing = deque(gop.pts[:count])
        last: av.VideoFrame | None = None
        for picture in self._decoded(gop) if missing else ():
            while missing and (picture.pts or 0) >= missing[0]:
                missing.popleft()
                yield picture
            if not missing:
                return
            last = picture
        if missing and last is None:
            raise OutputError(f"{len(missing)} frames could not be decoded a second time; please report this")
        for _ in missing:
            yield cast(av.VideoFrame, last)

    def _decoded(self, gop: Gop) -> Iterator[av.VideoFrame]:
        context = VideoCodecContext.create("h264", "r")
        # Frame threads would hold many frames, and PyAV gives up those that they hold when it meets damage.
        context.extradata, context.thread_type = self.stream.codec_context.extradata, "SLICE"
        for packet in (*gop.packets, None):
            try:
                yield from context.decode(packet)
            except InvalidDataError:
                continue

    def converted(self, packet: Packet[VideoStream]) -> Packet[VideoStream]:
        """Return a packet of the recording as MP4 stores it.

        Args:
            packet: the packet.
        """
        units = self._split(bytes(packet))
        kept = picture_units(units)
        return packet if len(kept) == len(units) and not self._is_byte_stream else with_units(packet, kept)

    def close(self) -> None:
        """Close the recording."""
        self._container.close()


def with_units(packet: Packet[VideoStream], units: list[bytes]) -> Packet[VideoStream]:
    """Copy a packet, with other content.

    Args:
        packet: the packet.
        units: NAL units of the copy.
    """
    copy = cast("Packet[VideoStream]", Packet(join_lengths(units)))
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
    return copy


class GopCopy:
    """Turns the frames of a recording into packets: the recording's own where nothing is drawn.

    Args:
        path: the recording.
        pictures: format of its frames.
        settings: how the other frames are encoded.
        offset: by how much the recording's timestamps are moved, in units of the time base.
        since: pts of the first frame; None: the recording's first.

    Attributes:
        counts: what was copied so far.
        reordered: whether frames may be decoded in another order than they are shown.

    Raises:
        CannotCopy: no GOP of the recording can be copied.
    """

    def __init__(
        self, path: Path, pictures: PictureFormat, settings: VideoSettings, offset: int, since: int | None = None
    ) -> None:
        if choose_encoder(settings.codec, pictures.pixel_format).codec != CODEC:
            raise CannotCopy(f"only {CODEC} can encode frames that fit between them")
        if pictures.field_order != "progressive":
            raise CannotCopy("its frames are interlaced")
        if any(padding(pictures)):
            raise CannotCopy("its odd size must be padded")
        self._pictures, self._settings, self.counts = pictures, settings, CopyCounts()
        self._reader = GopReader(path, offset, since)
        with _closing_after_failure(self):
            self._prepare()
        self._encoder: FrameEncoder | None = None
        # For each frame that the encoder holds, the dts that its packet shall have.
        self._planned: deque[int] = deque()
        self._last_dts: int | None = None
        # Number of frames of the current GOP that arrived, and whether it was copied or is encoded.
        self._arrived, self._decided = 0, False
        self._gop = self._reader.next()
        # Time from the decoding to the showing of the first frame of a GOP.
        self._delay = self._gop.pts[0] - self._gop.dts[0] if self._gop and self._gop.dts else 0

    def _prepare(self) -> None:
        """Make the parameter sets for encoded frames."""
        sets, context = self._reader.sets, self._reader.stream.codec_context
        if len(sets.sequence) != 1:
            raise CannotCopy("it has several sequence parameter sets")
        theirs = SequenceParameters.parse(sets.sequence[0])
        if theirs.profile not in PROFILES or (theirs.profile in INTRA_PROFILES and theirs.constraints & INTRA_ONLY):
            raise CannotCopy(f"x264 cannot write its profile {theirs.profile}")
        if self._settings.crf < LOSSY_CRF and theirs.profile != LOSSLESS_PROFILE:
            raise CannotCopy(f"output.video.crf below {LOSSY_CRF} is lossless, which its profile cannot hold")
        if not theirs.progressive:
            raise CannotCopy("it may have interlaced frames")
        if self._pictures.pixel_format != context.pix_fmt:
            raise CannotCopy(f"its pixel format {context.pix_fmt} is converted")
        usability = theirs.usability()
        tags = self._pictures.color_primaries, self._pictures.color_trc, self._pictures.colorspace
        if usability.colours not in (None, tags):
            raise CannotCopy("its colour tags are unknown, or not those of the file")
        self.reordered = context.has_b_frames
        if self.reordered and not usability.states_reordering:
            raise CannotCopy("it has B-frames and does not say how many frames a decoder must hold")
        self._options = {"profile": PROFILES[theirs.profile], "x264-params": f"sps-id={sets.free_id()}"}
        ours = ParameterSets.parse(self._open_encoder().extradata or b"")
        alike = SequenceParameters.parse(ours.sequence[0]).alike(theirs).unit()
        self._extradata = sets._replace(sequence=[*sets.sequence, alike], picture=[*sets.picture, *ours.picture]).avcc()

    def _open_encoder(self) -> VideoCodecContext:
        context = cast(VideoCodecContext, VideoCodecContext.create(CODEC, "w"))
        set_picture_format(context, self._pictures)
        context.flags |= Flags.global_header
        context.options = encoder_options(ENCODERS[CODEC], self._pictures, self._settings) | self._options
        context.open()
        return context

    def add_to(self, file: OutputContainer) -> VideoStream:
        """Add the stream of the packets to a file.

        Args:
            file: the file.

        Returns:
            The stream.
        """
        stream = file.add_stream_from_template(self._reader.stream)
        set_picture_format(stream.codec_context, self._pictures)
        stream.codec_context.extradata = self._extradata
        stream.time_base = self._pictures.time_base
        return stream

    def packets(self, frame: Frame) -> Iterator[Packet[VideoStream]]:
        """Take a frame.

        Args:
            frame: the next frame.

        Yields:
            The packets that are finished. There may be many at once, so they are made one by one.
        """
        yield from self._advance(frame.pts)
        place, self._arrived = self._arrived, self._arrived + 1
        if not self._decided:
            gop, problem = self._gop, self._problem(frame, place)
            if gop is not None and not problem:
                if self._arrived == len(gop.pts):
                    yield from self._copy(gop)
                return
            yield from self._encode_first(place, problem)
        yield from self._encode(frame.in_memory(), frame.pts)

    def _problem(self, frame: Frame, place: int) -> str:
        """Why the current GOP cannot be copied if this is its frame number `place`; empty if it can be."""
        gop = self._gop
        if gop is None:
            return DAMAGED
        if gop.problem:
            return gop.problem
        if gop.pts[place] != frame.pts:
            return DAMAGED
        if frame.as_recorded:
            return ""
        return MARKED if frame.region is not None else DAMAGED

    def _advance(self, pts: int) -> Iterator[Packet[VideoStream]]:
        """Go on to the GOP of a frame."""
        while self._gop is not None and self._gop.end is not None and pts >= self._gop.end:
            yield from self._encode_unfinished()
            self._gop, self._arrived, self._decided = self._reader.next(), 0, False

    def _encode_unfinished(self) -> Iterator[Packet[VideoStream]]:
        """Encode the frames of the current GOP, if not all of them arrived."""
        if self._arrived and not self._decided:
            yield from self._encode_first(self._arrived, DAMAGED)

    def _copy(self, gop: Gop) -> Iterator[Packet[VideoStream]]:
        yield from self._finish_encoder()
        if self._last_dts is not None and gop.dts[0] <= self._last_dts:
            yield from self._encode_first(self._arrived, DAMAGED)
            return
        self._decided, self._last_dts = True, gop.dts[-1]
        self.counts.copied_gops += 1
        self.counts.copied_frames += len(gop.packets)
        gop.packets[0].is_keyframe = True
        yield from map(self._reader.converted, gop.packets)

    def _encode_first(self, count: int, reason: str) -> Iterator[Packet[VideoStream]]:
        """Decide that the current GOP is encoded, and encode its first frames, which arrived and were not held."""
        self._decided = True
        self.counts.encoded_gops += 1
        self.counts.reasons[reason] += 1
        if self._gop is None:
            return
        for place, picture in enumerate(self._reader.first_pictures(self._gop, count)):
            picture.pts, picture.time_base = self._gop.pts[place], self._pictures.time_base
            yield from self._encode(picture, picture.pts)
        self._gop.packets.clear()  # the reader has the same list

    def _encode(self, picture: av.VideoFrame, pts: int) -> list[Packet[VideoStream]]:
        if self._encoder is None:
            self._encoder = FrameEncoder(self._open_encoder().encode, self._pictures)
        self._planned.append(self._decoding_time(pts))
        self.counts.encoded_frames += 1
        return self._timed(self._encoder.encode(picture, float(pts * self._pictures.time_base)))

    def _decoding_time(self, pts: int) -> int:
        """Return the dts for an encoded frame: those of the packets of its GOP, in the order of the frames."""
        if self._gop is not None and self._gop.dts:
            place = bisect_left(self._gop.pts, pts)
            if place < len(self._gop.pts) and self._gop.pts[place] == pts:
                return self._gop.dts[place]
        return pts - self._delay

    def _timed(self, packets: list[Packet[VideoStream]]) -> list[Packet[VideoStream]]:
        """Give packets of the encoder, which does not reorder frames, their dts, and the form that MP4 stores."""
        finished = []
        for packet in packets:
            units = split_start_codes(bytes(packet))
            copy = with_units(packet, picture_units(units))
            assert copy.pts is not None
            dts = min(self._planned.popleft(), copy.pts)
            copy.dts = dts if self._last_dts is None else max(dts, self._last_dts + 1)
            copy.time_base, self._last_dts = self._pictures.time_base, copy.dts
            finished.append(copy)
        return finished

    def _finish_encoder(self) -> list[Packet[VideoStream]]:
        encoder, self._encoder = self._encoder, None
        return self._timed(encoder.flush()) if encoder else []

    def flush(self) -> Iterator[Packet[VideoStream]]:
        """Finish, and yield the last packets."""
        yield from self._encode_unfinished()
        yield from self._finish_encoder()

    def close(self) -> None:
        """Close the recording."""
        self._reader.close()


def open_copying(
    path: Path | None, pictures: PictureFormat, settings: VideoSettings, shifts: ClockShifts, since: int | None = None
) -> tuple[GopCopy | None, str | None]:
    """Copy the GOPs of a recording in which nothing is drawn, if the settings ask for it and it can be done.

    Args:
        path: the recording; None: nothing of the source may be copied.
        pictures: format of its frames.
        settings: how annotated.mp4 is written.
        shifts: the offsets that were added to the recording's timestamps.
        since: pts of the first frame; None: the recording's first.

    Returns:
        The object that copies, or None and the reason.

    Raises:
        OutputError: the settings demand to copy, and it cannot be done.
    """
    if settings.unmarked == "encode":
        return None, "output.video.unmarked is encode"
    try:
        if path is None:
            raise CannotCopy("its packets may not be copied, or there are none (de-identification, demo)")
        return GopCopy(path, pictures, settings, round(shifts.origin / pictures.time_base), since), None
    except CannotCopy as error:
        if settings.unmarked == "copy":
            raise OutputError(f"output.video.unmarked copy: {error}; choose auto or encode") from error
        return None, str(error)
