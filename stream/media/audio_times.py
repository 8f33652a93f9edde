"""The timestamps of one audio track of a recording, moved as those of its video were."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from av.audio.stream import AudioStream
from av.packet import Packet

from polypstream.core.timestamps import ClockShifts, TimestampCorrector
from polypstream.media.pictures import MP4_LONGEST_STEP

# The largest distance in a file, in seconds, between audio and the video that it belongs to.
MAX_AV_DISTANCE_S = 5.0

AudioPacket: TypeAlias = "Packet[AudioStream]"


class _TimedPacket(NamedTuple):
    """A packet and its timestamp in units of its time base."""

    packet: AudioPacket
    time: int


class AudioTimes:
    """Gives the packets of an audio track increasing timestamps, synchronous with the video.

    Args:
        source: the track in the recording.
        shifts: the offsets that were added to the timestamps of the video.
        longest: the longest step between two packets that the output can store, in seconds.
        first: the first packets of the track.

    Attributes:
        begins: time of the first packet in seconds; infinite if there is none yet.
    """

    def __init__(
        self, source: AudioStream, shifts: ClockShifts, longest: Fraction, first: Sequence[AudioPacket]
    ) -> None:
        assert source.time_base is not None
        self._shifts, self._time_base = shifts, source.time_base
        # Timestamps can be equal: Matroska rounds to milliseconds, and some codecs have shorter packets.
        longest = min(longest, Fraction(MP4_LONGEST_STEP, source.codec_context.sample_rate))
        shift, steps = round(shifts.origin / self._time_base), int(longest / self._time_base)
        self._corrector = TimestampCorrector[AudioPacket](self._time_base, steps, shift, self._restart, least=0)
        self._restarts = 0
        self._ready = deque[_TimedPacket]()
        self._taken_until_s = float("-inf")
        times = [
            time * self._time_base for packet in first if packet.size and (time := stored_time(packet)) is not None
        ]
        self.begins = float(times[0] + shifts.origin) if times else float("inf")

    def add(self, packet: AudioPacket) -> None:
        """Add the next packet.

        Args:
            packet: the packet; an empty one marks the end of the track.
        """
        if packet.size:
            self._corrector.add(packet, stored_time(packet), packet.duration or 0)
        else:
            self.end()

    def end(self) -> bool:
        """Declare that no more packets will come.

        Returns:
            Whether this is the first call.
        """
        return self._corrector.end()

    def until(self, seconds: float) -> Iterator[AudioPacket]:
        """Take the packets that start before a time.

        Args:
            seconds: the time in seconds.

        Yields:
            The packets, with their new timestamps.
        """
        self._taken_until_s = seconds
        for packet, time in self._corrector.settled():
            self._ready.append(_TimedPacket(packet, time))
        while self._ready and self._ready[0].time * self._time_base <= seconds:
            packet, time = self._ready.popleft()
            stored = stored_time(packet)
            packet.pts = time if packet.pts is None or stored is None else packet.pts + time - stored
            packet.dts = time if packet.dts is None or stored is None else packet.dts + time - stored
            yield packet

    def is_beyond(self, seconds: float) -> bool:
        """Whether enough of the track was read.

        Args:
            seconds: a time in seconds.

        Returns:
            Whether the packets read so far extend beyond the time, or whether their timestamps depend on more video.
        """
        return self._corrector.waiting or bool(self._ready and self._ready[-1].time * self._time_base > seconds)

    def _restart(self, stored: int, follows: int) -> int | None:
        """Return the new shift after a restart of the clock: that of the video, which is read first."""
        number = self._restarts + 1
        while (shift := self._shifts.after(number)) is not None:
            moved = stored + round(shift / self._time_base)
            if abs(moved - follows) * self._time_base <= MAX_AV_DISTANCE_S:
                self._restarts = number
                return moved - stored
            number += 1
        if self._taken_until_s < follows * self._time_base + MAX_AV_DISTANCE_S:
            return None
        return follows - stored  # the video was not shifted there, so only the audio has a wrong clock


def stored_time(packet: AudioPacket) -> int | None:
    """Return the stored timestamp of a packet in units of its time base, if it has one.

    Args:
        packet: the packet.
    """
    return packet.pts if packet.dts is None else packet.dts
