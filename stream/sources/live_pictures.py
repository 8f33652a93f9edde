"""Where the packets of live pictures come from, to be copied: a stream, or a recording that is played as live."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.packet import Packet
from av.video.stream import VideoStream

from polypstream.core.live_pictures import LivePictures, PacketFormat
from polypstream.media.container import open_container, packets_of, video_tracks
from polypstream.media.h264 import (
    IDR,
    PPS,
    SPS,
    NotSupported,
    ParameterSets,
    SequenceParameters,
    join_lengths,
    picture_units,
    splitter_of,
    unit_type,
)
from polypstream.media.live_copy import detached_video

# More packets do not wait for their frames. Decoders hold at most 16 frames.
MOST_WAITING = 64
NO_KEY_PICTURE = "no group of its pictures has begun with an IDR picture yet"
NO_TIMES = "its packets lack timestamps"
CORRECTED = "its timestamps were corrected"


@dataclass(slots=True)
class _Waiting:
    """A packet that waits for its frame.

    Attributes:
        stored: its timestamp in the stream; None: it has none, and its frame comes before the next packet.
        ahead: how much earlier it is decoded than shown, in units of the stream.
        format, data, is_key: as in PicturePacket.
        pts: pts of its frame; None until that has come.
    """

    stored: int | None
    ahead: int
    format: PacketFormat
    data: bytes
    is_key: bool
    pts: int | None = None


class PictureIntake:
    """Passes the packets of one connection on when their frames have been decoded. Others are left out.

    Args:
        stream: the video.
        pictures: takes the packets; its `problem` says if they cannot be copied.
        unit: time base of the frames.
    """

    def __init__(self, stream: VideoStream, pictures: LivePictures, unit: Fraction) -> None:
        self._stream, self._pictures, self._unit = stream, pictures, unit
        self._waiting: deque[_Waiting] = deque()
        self._sets = ParameterSets([], [])
        self._format: PacketFormat | None = None
        context = stream.codec_context
        extradata = context.extradata or b""
        self._split = splitter_of(extradata)
        self._given_up = self._begun = False
        if context.codec.canonical_name != "h264":
            self.give_up(f"the source sends {context.codec.canonical_name}, not H.264")
        elif extradata:
            try:
                self._sets = ParameterSets.parse(extradata)
                self._choose_format()
            except NotSupported as error:
                self.give_up(str(error))

    def give_up(self, why: str) -> None:
        """Copy nothing more of this connection.

        Args:
            why: the reason, for the user.
        """
        self._given_up, self._pictures.problem = True, why
        self._waiting.clear()

    def add(self, packet: Packet[VideoStream]) -> None:
        """Add a packet, before it is decoded.

        Args:
            packet: the packet.
        """
        if self._given_up or not packet.size:
            return
        # RTSP has no decoding times, and the first picture of a device has no times at all. Unless frames are
        # reordered, each is shown when it is decoded.
        if packet.pts is not None and packet.dts is not None:
            ahead = packet.pts - packet.dts
        elif not self._stream.codec_context.has_b_frames:
            ahead = 0
        else:
            self.give_up(NO_TIMES)
            return
        try:
            units = self._split(bytes(packet))
            self._update_sets(units)
        except NotSupported as error:
            self.give_up(str(error))
            return
        kept = picture_units(units)
        if self._format is not None and kept:
            is_key = any(unit_type(unit) == IDR for unit in kept)
            self._waiting.append(_Waiting(packet.pts, ahead, self._format, join_lengths(kept), is_key))
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()

    def _update_sets(self, units: list[bytes]) -> None:
        """Note the parameter sets of a packet. If they are others, packets have another format from now on."""
        sequence = [unit for unit in units if unit_type(unit) == SPS]
        picture = [unit for unit in units if unit_type(unit) == PPS]
        if sequence and sequence != list(self._sets.sequence):
            self._sets = ParameterSets(sequence, picture)
        elif any(unit not in self._sets.picture for unit in picture):
            self._sets = self._sets._replace(picture=[*self._sets.picture, *picture])
        else:
            return
        self._choose_format()

    def _choose_format(self) -> None:
        self._format = None
        if not (self._sets.sequence and self._sets.picture):
            return
        if not all(SequenceParameters.parse(each).progressive for each in self._sets.sequence):
            raise NotSupported("it may have interlaced frames")
        reordered = bool(self._stream.codec_context.has_b_frames)
        self._format = PacketFormat(self._sets.avcc(), reordered, detached_video(self._stream))

    def shown(self, stored: int | None, pts: int) -> None:
        """Pass on the packets whose frames have come.

        Args:
            stored: timestamp of a frame in the stream.
            pts: the one that it has got.
        """
        if self._given_up:
            return
        own = next((each for each in reversed(self._waiting) if each.stored == stored), None)
        if own is None:
            return
        own.pts = pts
        while self._waiting and self._is_due(self._waiting[0], own):
            self._pass_on(self._waiting.popleft())

    def _is_due(self, packet: _Waiting, own: _Waiting) -> bool:
        """Whether the frame of a packet has come, or will not come because that of another one has."""
        if packet.stored is None or own.stored is None:
            return True  # frames are not reordered
        return packet.pts is not None or packet.stored < own.stored

    def _pass_on(self, packet: _Waiting) -> None:
        self._begun = self._begun or packet.is_key
        self._pictures.problem = "" if self._begun else NO_KEY_PICTURE
        if packet.pts is None or not self._begun:
            return  # it could not be decoded, or a copy of it could not be
        assert self._stream.time_base is not None
        dts = packet.pts - round(packet.ahead * self._stream.time_base / self._unit)
        self._pictures.add(packet.format, packet.data, (packet.pts, dts), packet.is_key, self._unit)


class RecordingPictures:
    """The packets of a recording that is played as live. They are read beside the frames.

    Args:
        recording: path of the recording.
        offset: what was added to its timestamps, in units of its time base.
        pictures: takes the packets.

    Raises:
        SourceError: the recording cannot be opened.
    """

    def __init__(self, recording: Path, offset: int, pictures: LivePictures) -> None:
        self._container, self._offset = open_container(recording), offset
        stream = video_tracks(self._container)[0]
        assert stream.time_base is not None
        self._packets = packets_of(self._container, [stream], [])
        self._intake = PictureIntake(stream, pictures, stream.time_base)
        self._read: set[int] = set()

    def play_until(self, pts: int, played: int) -> None:
        """Pass on the packet of a frame, and those that are decoded before it.

        Args:
            pts: pts of the frame in the recording.
            played: the one with which it is played.
        """
        stored = pts - self._offset
        while stored not in self._read:
            packet = next(self._packets, None)
            if packet is None or len(self._read) > MOST_WAITING:
                self._intake.give_up(CORRECTED)
                return
            if packet.pts is None:
                self._intake.give_up(NO_TIMES)
                return
            self._read.add(packet.pts)
            self._intake.add(cast("Packet[av.VideoStream]", packet))
        self._read = {each for each in self._read if each > stored}
        self._intake.shown(stored, played)

    def close(self) -> None:
        """Close the recording."""
        self._container.close()
