"""Where the sound of live sources comes from: a stream, or a recording that is played as live."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

from av.audio.stream import AudioStream
from av.container import InputContainer

from polypstream.core.formatting import counted
from polypstream.core.live_sound import TIME_BASE, LiveSound, SoundData, SoundFormat
from polypstream.core.timestamps import ClockShifts
from polypstream.media.audio import PACKETS_AHEAD
from polypstream.media.audio_times import AudioPacket, AudioTimes
from polypstream.media.audio_track import ROUNDING_S
from polypstream.media.container import open_container, packets_of
from polypstream.media.live_audio import sound_format_of
from polypstream.sources.live_clock import LiveClock

# Sound waits for so long for frames of the same time, in seconds, and at most so many packets of it wait.
WAIT_S, MOST_WAITING = 1.0, 1000
# In MP4 the packet before a pause of the sound lasts until its end. No codec has packets as long as this, in seconds.
LONGEST_PACKET_S = 1.0
log = logging.getLogger(__name__)


def sound_track_of(container: InputContainer) -> AudioStream | None:
    """Return the track of sound that is kept.

    Args:
        container: an open recording or stream.

    Returns:
        The track; None if there is no sound, or only of unknown codecs.
    """
    best = container.streams.best("audio")  # none of those that have not sent anything
    tracks = [best] if isinstance(best, AudioStream) else container.streams.audio
    return next((track for track in tracks if track.codec_context is not None), None)


class _Packet(NamedTuple):
    """A packet of sound, with its times in seconds.

    Attributes:
        data: its bytes.
        stored: its timestamp; None: it follows the packet before.
        duration: its length; 0 if it is not known.
        arrived: when it arrived, of time.monotonic.
    """

    data: bytes
    stored: float | None
    duration: float
    arrived: float


def _packet_of(packet: AudioPacket, arrived: float) -> _Packet:
    stored = packet.dts if packet.pts is None else packet.pts
    duration = float((packet.duration or 0) * packet.time_base)
    return _Packet(
        bytes(packet),
        None if stored is None else float(stored * packet.time_base),
        duration if duration < LONGEST_PACKET_S else 0.0,
        arrived,
    )


class _Intake:
    """Passes packets on when their format and their times are known.

    Sound that begins before the end of earlier sound is left out.

    Args:
        name: name of the source, for messages.
        track: the track of the packets.
        sound: takes the packets.
        time_of: returns the time of a packet on the clock of the frames in seconds, or None if it must wait. The second
            argument is its timestamp.
    """

    def __init__(
        self, name: str, track: AudioStream, sound: LiveSound, time_of: Callable[[_Packet, float], float | None]
    ) -> None:
        self._name, self._track, self._sound, self._time_of = name, track, sound, time_of
        self._waiting: deque[_Packet] = deque(maxlen=MOST_WAITING)
        self._format: SoundFormat | None = None
        # Timestamp of a packet that has none itself.
        self._next: float | None = None
        self._left_out, self._told = 0, False

    def add(self, packet: _Packet) -> None:
        """Add the next packet."""
        self._waiting.append(packet)
        if self._format is not None or len(self._waiting) >= PACKETS_AHEAD:
            self.pass_on()

    def pass_on(self) -> None:
        """Pass on the packets that wait, as far as their times are known."""
        if self._format is None and self._waiting:
            self._format = sound_format_of(self._track, [packet.data for packet in self._waiting])
            if self._format is None:
                self._waiting.clear()
                self._tell_that_it_is_not_known()
        while self._format is not None and self._waiting and self._take(self._format, self._waiting[0]):
            self._waiting.popleft()

    def _tell_that_it_is_not_known(self) -> None:
        if not self._told:
            log.warning(f"{self._name}: its sound is not recorded, because FFmpeg does not find out its format")
        self._told = True

    def _take(self, sound_format: SoundFormat, packet: _Packet) -> bool:
        """Pass a packet on, if its time is known. Return whether it is."""
        stored = self._next if packet.stored is None else packet.stored
        if stored is None:
            return True  # there is no telling where it belongs
        seconds = self._time_of(packet, stored)
        if seconds is None:
            return False
        duration = packet.duration or sound_format.packet_s
        self._next = stored + duration
        self._give(sound_format, SoundData(packet.data, round(seconds / TIME_BASE), round(duration / TIME_BASE)))
        return True

    def _give(self, sound_format: SoundFormat, packet: SoundData) -> None:
        end = self._sound.end
        if end is not None and packet.pts < end - ROUNDING_S / TIME_BASE:
            self._left_out += 1
            return
        if self._left_out:
            left_out, self._left_out = counted(self._left_out, "packet"), 0
            log.info(f"{self._name}: left out: {left_out} of sound whose times are those of earlier sound")
        self._sound.add(sound_format, packet)


class StreamSound:
    """The sound of one connection to a stream.

    Args:
        name: name of the source, for messages.
        track: its track.
        sound: takes the packets.
        clock: the clock of the frames.

    Attributes:
        track: its track.
    """

    def __init__(self, name: str, track: AudioStream, sound: LiveSound, clock: LiveClock) -> None:
        self.track, self._clock, self._now = track, clock, 0.0
        self._intake = _Intake(name, track, sound, self._time_of)
        self._follows: float | None = None

    def add(self, packet: AudioPacket, arrived: float) -> None:
        """Add the next packet.

        Args:
            packet: the packet.
            arrived: its time of arrival, of time.monotonic.
        """
        self._now = arrived
        if packet.size:
            self._intake.add(_packet_of(packet, arrived))

    def _time_of(self, packet: _Packet, stored: float) -> float | None:
        seconds = self._clock.time_of_sound(stored, self._follows, self._now - packet.arrived > WAIT_S)
        if seconds is not None:
            self._follows = stored
        return seconds


class RecordingSound:
    """The sound of a recording that is played as live. It is read beside the pictures.

    Args:
        name: name of the source, for messages.
        recording: path of the recording.
        shifts: the offsets that were added to the timestamps of its video.
        sound: takes the packets.

    Raises:
        SourceError: the recording cannot be opened.
    """

    def __init__(self, name: str, recording: Path, shifts: ClockShifts, sound: LiveSound) -> None:
        self._container, self._sound = open_container(recording), sound
        self._times: AudioTimes | None = None
        stream = sound_track_of(self._container)
        sound.expect(stream is not None)
        if stream is None or not stream.codec_context.sample_rate:
            return
        for other in self._container.streams:
            if other is not stream:
                other.discard = other.discard.all
        self._packets = packets_of(self._container, [stream], [])
        self._times, self._later = AudioTimes(stream, shifts, Fraction(1 << 31), []), 0.0
        self._intake = _Intake(name, stream, sound, lambda _, stored: stored + self._later)

    def play_until(self, seconds: float, later: float) -> None:
        """Pass on the packets that start before a time.

        Args:
            seconds: the time in the recording, in seconds; all its pictures up to it have been read.
            later: added to the times of the packets, in seconds.
        """
        if self._times is None:
            return
        self._later, more = later, True
        while more:
            for timed in self._times.until(seconds):
                self._intake.add(_packet_of(timed, 0.0))
            packet = None if self._times.is_beyond(seconds) else next(self._packets, None)
            more = packet is not None
            if packet is not None:
                self._times.add(cast("AudioPacket", packet))

    def close(self) -> None:
        """Pass on what waits, and close the recording."""
        if self._times is not None:
            self._intake.pass_on()
        self._sound.expect(False)
        self._container.close()
