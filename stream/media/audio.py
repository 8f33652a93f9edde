"""Copying of a recording's audio into a video file, synchronous with the video."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError

from polypstream.core.formatting import counted
from polypstream.core.timestamps import ClockShifts
from polypstream.media.audio_times import AudioPacket, AudioTimes
from polypstream.media.audio_track import AudioTrack
from polypstream.media.container import open_container, packets_of

if TYPE_CHECKING:
    from av.container.core import Chapter

# Number of packets that are read of each track before the first one is written, and the limit for all tracks.
PACKETS_AHEAD, MAX_AHEAD = 8, 1000
# A track that begins later than this after the video, in seconds, is late. It delays a header that needs its first
# packet.
LATE_S = 2.0
# Errors of the disk. Any other error concerns the packet that was being written.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EPIPE})


class _Track(NamedTuple):
    """A track of the recording, and the one that is made of it."""

    times: AudioTimes
    output: AudioTrack


class Audio:
    """All audio tracks of a recording. Packets are copied, or encoded as AAC if MP4 cannot contain them.

    It reads the recording a second time. Therefore memory stays bounded, however the file interleaves audio and video,
    and the pipeline transports only frames. Damaged audio never costs a video frame: unusable packets are left out and
    counted.

    Args:
        recording: path of the recording.
        shifts: the offsets that were added to the timestamps of its video.
        start: time of its first frame in seconds.
        longest: the longest step between two frames that the output can store, in seconds.
        options: the possible container options of the output, which decide how the header is written; the preferred
            ones come first.
        since: leave out chapters and the audio before this time of the video in seconds, and move the rest so that
            this time becomes 0; None: keep all.

    Attributes:
        damage: problems of the audio, one phrase each.
        notes: what was not copied unchanged, one phrase each.
        is_late: whether a track begins so late that the header must be written before.
        options: the container options with which all tracks can be written.
        packets: number of packets written so far.

    Raises:
        SourceError: the recording cannot be opened.
    """

    def __init__(
        self,
        recording: Path,
        shifts: ClockShifts,
        start: float,
        longest: Fraction,
        options: Sequence[dict[str, str]],
        since: Fraction | None = None,
    ) -> None:
        self.damage: list[str] = []
        self.notes: list[str] = []
        self.packets = 0
        self._shifts, self._since, self._reading_damage = shifts, since, list[str]()
        self._source = open_container(recording)
        for stream in self._source.streams:
            if stream.type != "audio":
                stream.discard = stream.discard.all
            if stream.type in ("subtitle", "data", "attachment"):
                self.notes.append(f"stream {stream.index} ({stream.type}) was not copied")
        known = [track for track in self._source.streams.audio if self._is_known(track)]
        self._packets = cast("Iterator[AudioPacket]", packets_of(self._source, list(known), self._reading_damage))
        self._ahead = deque(self._first_packets(known))
        self._tracks: list[_Track] = []
        for source in known:
            first = [packet for packet in self._ahead if packet.stream is source]
            self._tracks.append(_Track(AudioTimes(source, shifts, longest, first), AudioTrack(source, first, since)))
        # If the header waits for the first packet of one track, it must not wait for a late track as well.
        self.is_late = any(track.times.begins > start + LATE_S for track in self._tracks)
        for _, output in self._tracks:
            output.choose(options[:1] if self.is_late else options)
            self.notes += [output.note] if output.note else []
            self.damage += [output.damage] if output.damage else []
        self._tracks = [track for track in self._tracks if not track.output.left_out]
        self.options = options[max((track.output.options_index for track in self._tracks), default=0)]

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
        """Add the tracks and the recording's metadata to a file.

        Args:
            output: the file; its header must not be written yet.
        """
        self._output = output
        output.metadata.update(self._source.metadata)
        default = next((track.output for track in self._tracks if track.output.is_default), None)
        for track in self._tracks:
            track.output.add_to(output, track.output is default)

    def chapters(self) -> list[Chapter]:
        """Return the recording's chapters, shifted as its video was.

        Returns:
            The chapters in PyAV's format.
        """
        if self._since is not None:
            return []
        chapters = self._source.chapters()
        for chapter in chapters:
            by = round(self._shifts.origin / chapter["time_base"]) if chapter["time_base"] else 0
            chapter["start"], chapter["end"] = chapter["start"] + by, chapter["end"] + by
        return chapters

    def mux_until(self, seconds: float) -> None:
        """Mux the packets that start before a time.

        Args:
            seconds: the time in seconds; all video up to it must have been muxed.
        """
        more = True
        while more:
            for track in self._tracks:
                for packet in track.times.until(seconds):
                    self._mux(track.output, track.output.convert(packet))
            more = not any(track.times.is_beyond(seconds) for track in self._tracks) and self._read_one()

    def _read_one(self) -> bool:
        """Read one packet for its track. Return whether there was one, or whether a track's end became known."""
        packet = self._ahead.popleft() if self._ahead else next(self._packets, None)
        if packet is None:
            return sum(track.times.end() for track in self._tracks) > 0
        for track in self._tracks:
            if track.output.index == packet.stream.index:
                track.times.add(packet)
        return True

    def finish(self) -> None:
        """Mux the packets that the encoders still buffer."""
        for track in self._tracks:
            self._mux(track.output, track.output.flush())

    def _mux(self, track: AudioTrack, packets: Iterable[AudioPacket]) -> None:
        self.packets += mux_usable(self._output, track, packets)

    def close(self) -> None:
        """Close the recording and add up the damage; may be called more than once."""
        self._source.close()
        self.damage += [f"sound: {damage}" for damage in self._reading_damage]
        self._reading_damage.clear()
        for _, output in self._tracks:
            if output.unusable:
                self.damage.append(
                    f"{counted(output.unusable, 'packet')} of audio track {output.index} could not be used"
                )
            output.unusable = 0


def mux_usable(file: OutputContainer, track: AudioTrack, packets: Iterable[AudioPacket]) -> int:
    """Mux packets, and leave out those that the muxer refuses.

    Args:
        file: the file.
        track: counts the packets that are left out.
        packets: the packets.

    Returns:
        Number of packets that were muxed.

    Raises:
        FFmpegError: the disk is full, or fails.
    """
    muxed = 0
    for packet in packets:
        try:
            file.mux(packet)
            muxed += 1
        except FFmpegError as error:
            if error.errno in DISK_ERRORS:
                raise
            track.unusable += 1
    return muxed
