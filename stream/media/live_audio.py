"""The sound of a live source in a video file, synchronous with its pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from polypstream.core.formatting import counted
from polypstream.core.live_sound import TIME_BASE, LiveSound, SoundData, SoundFormat
from polypstream.media.audio import mux_usable
from polypstream.media.audio_times import AudioPacket
from polypstream.media.audio_track import AudioTrack

# Codecs of transport streams whose packets FFmpeg can read alone, by its names of their formats.
ELEMENTARY_STREAMS = "aac,ac3,eac3,mp3"


class LiveAudioSource(NamedTuple):
    """The sound of a live source that a file shall have.

    Attributes:
        sound: the sound.
        format: format of the track. Sound of another format is left out.
    """

    sound: LiveSound
    format: SoundFormat


class LiveAudio:
    """The sound of a live source in one file. Packets are copied, or encoded as AAC if MP4 cannot contain them.

    Args:
        source: the sound.
        options: the container options of the output.
        since: time of the source at which the file begins, in seconds.

    Attributes:
        damage: problems of the sound, one phrase each.
        notes: what is not copied unchanged, one phrase each.
        packets: number of packets written so far.
    """

    def __init__(self, source: LiveAudioSource, options: Mapping[str, str], since: Fraction) -> None:
        self._sound, self._format = source
        self._stream = _detached(self._format.template)
        self._track = AudioTrack(
            self._stream, [_packet_of(SoundData(data, 0, 0), self._stream) for data in self._format.first], since
        )
        # A header that waits for the first packet must not wait for sound that has paused.
        self._track.choose([dict(options)])
        self.notes = [self._track.note] if self._track.note else []
        self.damage = [self._track.damage] if self._track.damage else []
        self.packets = 0
        self._next = round(since / TIME_BASE)

    def add_to(self, output: OutputContainer) -> None:
        """Add the track to a file.

        Args:
            output: the file; its header must not be written yet.
        """
        self._output = output
        if not self._track.left_out:
            self._track.add_to(output, True)

    def mux_until(self, seconds: float) -> None:
        """Mux the packets that start before a time and have arrived.

        Args:
            seconds: the time of the source in seconds.
        """
        if self._track.left_out:
            return
        for sound in self._sound.since(self._format, self._next):
            if sound.pts * TIME_BASE > seconds:
                return
            self._next = sound.pts + 1
            self.packets += mux_usable(self._output, self._track, self._track.convert(_packet_of(sound, self._stream)))

    def finish(self) -> None:
        """Mux the packets that the encoder still buffers."""
        if not self._track.left_out:
            self.packets += mux_usable(self._output, self._track, self._track.flush())

    def close(self) -> None:
        """Add up the damage."""
        if self._track.unusable:
            self.damage.append(f"{counted(self._track.unusable, 'packet')} of its sound could not be used")
            self._track.unusable = 0


def _detached(stream: AudioStream) -> AudioStream:
    """Copy a stream, with a decoder of its own. The copy outlives the container of the stream, and has TIME_BASE."""
    copy = av.open(io.BytesIO(), "w", format="null").add_stream_from_template(stream)
    copy.time_base = TIME_BASE
    return copy


def sound_format_of(stream: AudioStream, first: Sequence[bytes]) -> SoundFormat | None:
    """Find the format of a live source's sound.

    Args:
        stream: its stream.
        first: its first packets.

    Returns:
        The format; None if FFmpeg cannot find it out.
    """
    template: AudioStream | None = _detached(stream)
    packet_s = 0.0
    if not (stream.codec_context.sample_rate and _can_decode(_detached(stream), first)):
        template, packet_s = _examined(first)
    if template is None:
        return None
    context = template.codec_context
    name, layout = context.codec.canonical_name, context.layout.name
    return SoundFormat(name, context.sample_rate, layout, context.extradata, template, first, packet_s)


def _can_decode(stream: AudioStream, packets: Sequence[bytes]) -> bool:
    """Whether its decoder, which is used for this, accepts any of these packets."""
    for data in packets:
        with suppress(FFmpegError):
            if stream.codec_context.decode(Packet(data)):
                return True
    return False


def _examined(first: Sequence[bytes]) -> tuple[AudioStream | None, float]:
    """Let FFmpeg look at the first packets of a transport stream: few or none had come when it looked at the source.

    Args:
        first: the packets.

    Returns:
        A stream of such packets, and the length of a packet in seconds.
    """
    try:
        options = {"format_whitelist": ELEMENTARY_STREAMS}
        with cast(InputContainer, av.open(io.BytesIO(b"".join(first)), options=options)) as packets:
            (found,) = packets.streams.audio
            lengths = [float((packet.duration or 0) * packet.time_base) for packet in packets.demux(found)]
            return _detached(found), max(lengths)
    except (FFmpegError, ValueError):
        return None, 0.0


def _packet_of(sound: SoundData, stream: AudioStream) -> AudioPacket:
    packet = cast("AudioPacket", Packet(sound.data))
    packet.stream, packet.time_base = stream, TIME_BASE
    packet.pts = packet.dts = sound.pts
    packet.duration = sound.duration
    return packet
