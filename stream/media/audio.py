"""Copies the audio of a recording into a video file, in step with its pictures."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError

from polypstream.core.timestamps import ClockShifts
from polypstream.media.audio_track import AudioPacket, AudioTrack
from polypstream.media.container import open_container, packets_of

if TYPE_CHECKING:
    from av.container.core import Chapter

# Of each track so many packets are read before the first one is written, but no more than so many in all.
PACKETS_AHEAD, MAX_AHEAD = 8, 1000
# A track that begins so many seconds after the pictures holds up the header of a file that needs its first packet.
LATE_S = 2.0
# Errors of the disk; any other one is about the packet that was to be written.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EPIPE})


class Audio:
    """Every audio track of a recording: packets copied, or encoded as AAC where MP4 cannot hold them.

    It reads the recording a second time: so memory stays bounded however the file interleaves sound and pictures,
    and frames stay the only thing that travels through the stages. Damaged sound never costs a picture: what cannot
    be used is left out and counted.

    Args:
        recording: its file.
        shifts: by how much the times of its pictures were moved.
        start: time of its first picture, in seconds.
        longest: the longest step between two pictures that the output can store, in seconds.
        options: for each of the ways in which the output's header may be written, the container's options, the
            best way first.

    Attributes:
        damage: what was wrong with the sound, one phrase each.
        notes: what was not copied as it was.
        options: of the way that all of its tracks can be written in.
        packets: written so far.
    """

    def __init__(
        self,
        recording: Path,
        shifts: ClockShifts,
        start: float,
        longest: Fraction,
        options: Sequence[dict[str, str]],
    ) -> None:
        self.damage: list[str] = []
        self.notes: list[str] = []
        self.packets = 0
        self._shifts, self._said = shifts, list[str]()
        self._source = open_container(recording)
        for stream in self._source.streams:
            if stream.type != "audio":
                stream.discard = stream.discard.all
            if stream.type in ("subtitle", "data", "attachment"):
                self.notes.append(f"stream {stream.index} ({stream.type}) was not copied")
        known = [track for track in self._source.streams.audio if self._is_known(track)]
        self._packets = cast("Iterator[AudioPacket]", packets_of(self._source, list(known), self._said))
        self._ahead = deque(self._first_packets(known))
        tracks = [
            AudioTrack(source, shifts, longest, [packet for packet in self._ahead if packet.stream is source])
            for source in known
        ]
        # A header that waits for the first packet of one track must not wait for a late one as well.
        late = any(track.begins > start + LATE_S for track in tracks)
        for track in tracks:
            track.choose(options[:1] if late else options)
        self._tracks = [track for track in tracks if not track.left_out]
        self.options = options[max((track.way for track in self._tracks), default=0)]
        self.notes += [track.note for track in tracks if track.note]
        self.damage += [track.damage for track in tracks if track.damage]

    def _is_known(self, track: AudioStream) -> bool:
        if track.codec_context is not None and track.codec_context.sample_rate:
            return True
        self.notes.append(f"audio track {track.index} has an unknown codec and was not copied")
        return False

    def _first_packets(self, tracks: Sequence[AudioStream]) -> Iterator[AudioPacket]:
        missing = {track.index: PACKETS_AHEAD for track in tracks}
        for _ in range(MAX_AHEAD if tracks else 0):
            packet = next(self._packets, None)
            if packet is None:
                return
            yield packet
            missing[packet.stream.index] -= 1
            if max(missing.values()) <= 0:
                return

    def add_to(self, output: OutputContainer) -> None:
        """Add the tracks to a file whose header is not written yet, and what else the recording says of itself."""
        self._output = output
        output.metadata.update(self._source.metadata)
        default = next((track.index for track in self._tracks if track.is_default), None)
        for track in self._tracks:
            track.add_to(output, track.index == default)

    def chapters(self) -> list[Chapter]:
        """The recording's chapters, moved as its pictures were."""
        chapters = self._source.chapters()
        for chapter in chapters:
            by = round(self._shifts.origin / chapter["time_base"]) if chapter["time_base"] else 0
            chapter["start"], chapter["end"] = chapter["start"] + by, chapter["end"] + by
        return chapters

    def mux_until(self, seconds: float) -> None:
        """Mux the packets that start before a time, in seconds, up to which all pictures have been muxed."""
        more = True
        while more:
            for track in self._tracks:
                for packet in track.until(seconds):
                    self._mux(track, packet)
            more = not any(track.is_beyond(seconds) for track in self._tracks) and self._read_one()

    def _read_one(self) -> bool:
        """Read a packet for its track; whether there was one, or its end became known."""
        packet = self._ahead.popleft() if self._ahead else next(self._packets, None)
        if packet is None:
            return sum(track.end() for track in self._tracks) > 0
        for track in self._tracks:
            if track.index == packet.stream.index:
                track.add(packet)
        return True

    def finish(self) -> None:
        """Mux what the encoders still hold."""
        for track in self._tracks:
            for packet in track.flush():
                self._mux(track, packet)

    def _mux(self, track: AudioTrack, packet: AudioPacket) -> None:
        try:
            self._output.mux(packet)
            self.packets += 1
        except FFmpegError as error:
            if error.errno in DISK_ERRORS:
                raise
            track.unusable += 1  # an impossible packet is only left out

    def close(self) -> None:
        """Close the recording, and sum up the damage; more than once does no harm."""
        self._source.close()
        self.damage += [f"sound: {damage}" for damage in self._said]
        self._said.clear()
        for track in self._tracks:
            if track.unusable:
                self.damage.append(f"{track.unusable} packets of audio track {track.index} could not be used")
            track.unusable = 0
