"""One audio track of a recording on its way into an MP4: copied, or encoded as AAC."""

from __future__ import annotations

import ctypes
import io
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple, TypeAlias, cast

import av
from av import AudioFrame, AudioLayout, AudioResampler, BitStreamFilterContext, Codec
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from polypstream.core.timestamps import ClockShifts, TimestampCorrector
from polypstream.media.container import is_encrypted
from polypstream.media.pictures import MP4_LONGEST_STEP

# What MP4 holds and players play. FFmpeg also writes PCM, Vorbis or TrueHD there, but under conditions, and few
# players read it.
COPIED = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus"})
# Layouts that the AAC encoder takes and every reader knows. Others become mono or stereo: 7.1 is written with a table
# of channels, at which programs that read with PyAV 18.1 end.
AAC_LAYOUTS = frozenset({"mono", "stereo", "3.0", "4.0", "5.0", "5.1"})
AAC_RATES = Codec("aac", "w").audio_rates or ()
# FFmpeg's own layout of so many channels, where a file does not say where each belongs.
USUAL_LAYOUTS = {
    1: "mono",
    2: "stereo",
    3: "2.1",
    4: "4.0",
    5: "5.0",
    6: "5.1",
    7: "6.1",
    8: "7.1",
    16: "hexadecagonal",
}
# Times of sound are off by so much, in seconds, without a gap being meant.
ROUNDED_S = 0.02
# Sound lies in a file so many seconds away, at most, from the pictures that it belongs to.
APART_S = 5.0

AudioPacket: TypeAlias = "Packet[AudioStream]"


class _Ready(NamedTuple):
    """A packet and its time in units of its time base."""

    packet: AudioPacket
    time: int


class AudioTrack:
    """One audio track on its way into the output.

    Args:
        source: the track.
        shifts: by how much the times of the pictures were moved.
        longest: the longest step between two packets that the output can store, in seconds.
        first: its first packets.

    Attributes:
        index: in the recording.
        note: what the user should know of it, or nothing.
        left_out: it can neither be copied nor encoded.
        damage: why, if it is damaged.
        unusable: packets left out so far.
        way: the number of the options that the output needs for it.
        begins: when it does, in seconds; infinite if no packet has come yet.
        is_default: players shall choose it.
    """

    def __init__(
        self, source: AudioStream, shifts: ClockShifts, longest: Fraction, first: Sequence[AudioPacket]
    ) -> None:
        self.index, self.note, self.damage, self.left_out = source.index, "", "", False
        self.unusable, self.way = 0, 0
        self._source, self._shifts, self._first = source, shifts, [packet for packet in first if packet.size]
        self.is_default = bool(source.disposition & source.disposition.default)
        self._rate = source.codec_context.sample_rate
        self._name = source.codec_context.codec.canonical_name
        self._encodes, self._layout = False, ""
        self._filter: BitStreamFilterContext | None = None
        self._header: bytes | None = None
        if self._is_raw_aac:
            self._filter = BitStreamFilterContext("aac_adtstoasc", source)
            self._header = _aac_header(source, self._first)
        self._resampler: AudioResampler | None = None
        self._sampled: tuple[str, str, int] | None = None
        # Where the next sample belongs, counted from time 0.
        self._next: int | None = None
        assert source.time_base is not None
        self._time_base = source.time_base
        # Times can be equal: Matroska rounds to milliseconds, and some codecs have packets shorter than that.
        longest = min(longest, Fraction(MP4_LONGEST_STEP, self._rate))
        shift, steps = round(shifts.origin / self._time_base), int(longest / self._time_base)
        self._mender = TimestampCorrector[AudioPacket](self._time_base, steps, shift, self._restart, least=0)
        self._restarts = 0
        self._ready = deque[_Ready]()
        self._passed = float("-inf")
        times = [told * self._time_base for packet in self._first if (told := _told(packet)) is not None]
        self.begins = float(times[0] + shifts.origin) if times else float("inf")

    @property
    def _is_raw_aac(self) -> bool:
        """AAC as MPEG-TS has it: a header in every packet instead of one for the track, which MP4 wants."""
        context = self._source.codec_context
        return context.codec.canonical_name == "aac" and not context.extradata

    def choose(self, options: Sequence[dict[str, str]]) -> None:
        """Choose the first way of writing the output in which the packets can be copied; if there is none, encode."""
        layout = _decodable_layout(self._source)
        if any(is_encrypted(packet) for packet in self._first):
            self._leave_out("is encrypted")
            return
        if layout is not None and not self._can_be_decoded():
            self.left_out, self.damage = True, f"audio track {self.index} cannot be decoded and was not copied"
            return
        for way, each in enumerate(options if self._name in COPIED else ()):
            if self._can_be_copied(each):
                self.way = way
                return
        self._encodes = True
        if layout is None:
            self._leave_out("has channels in no known arrangement")
            return
        self._layout = layout if layout in AAC_LAYOUTS else "stereo"
        mixed = f", its channels ({layout}) mixed to stereo" if layout not in ("", self._layout) else ""
        self.note = f"audio track {self.index} ({self._name}) was encoded as AAC, which every MP4 player reads{mixed}"

    def _can_be_decoded(self) -> bool:
        """Whether any of the first packets can: of a track with a damaged header, nobody's decoder would open."""
        decoded = False
        for packet in self._first:
            with suppress(FFmpegError):
                decoded = bool(self._source.codec_context.decode(_copy_of(packet))) or decoded
        with suppress(FFmpegError):
            self._source.codec_context.flush_buffers()
        return decoded or not self._first

    def _leave_out(self, why: str) -> None:
        self.left_out, self.note = True, f"audio track {self.index} {why} and was not copied"

    def _can_be_copied(self, options: dict[str, str]) -> bool:
        """Whether FFmpeg writes an MP4 of this track alone: for some codecs, and damaged tracks, it does not.

        Where the header is written with the first packets, it takes a whole file to tell.
        """
        with_packets = "empty_moov" not in options["movflags"]
        try:
            with av.open(io.BytesIO(), "w", "mp4", container_options=options) as trial:
                target = self._add_copy(trial)
                trial.start_encoding()
                for packet in self._first if with_packets else ():
                    copy = _copy_of(packet)
                    copy.stream = target
                    trial.mux(copy)
        except (FFmpegError, ValueError):
            return False
        return not with_packets or bool(self._first)

    def _add_copy(self, output: OutputContainer) -> AudioStream:
        copy = output.add_stream_from_template(self._source)
        if self._header is not None:
            copy.codec_context.extradata = self._header
        return copy

    def add_to(self, output: OutputContainer, default: bool) -> None:
        """Add the track to a file."""
        if self._encodes:
            rate = min(AAC_RATES, key=lambda rate: abs(rate - self._rate))
            self._target = output.add_stream("aac", rate=rate, layout=self._layout)
        else:
            self._target = self._add_copy(output)
        self._target.metadata.update(self._source.metadata)
        kinds = self._source.disposition
        # Players that play every track marked so would play them at once.
        self._target.disposition = kinds | kinds.default if default else kinds & ~kinds.default

    def add(self, packet: AudioPacket) -> None:
        """Take in the next packet; an empty one comes last."""
        if packet.size:
            self._mender.add(packet, _told(packet), packet.duration or 0)
        else:
            self.end()

    def end(self) -> bool:
        """No more packets will come; whether that was not known."""
        return self._mender.end()

    def until(self, seconds: float) -> Iterator[AudioPacket]:
        """The output packets of those packets that start before a time."""
        self._passed = seconds
        for packet, time in self._mender.settled():
            self._ready.append(_Ready(packet, time))
        while self._ready and self._ready[0].time * self._time_base <= seconds:
            yield from self._output_of(*self._ready.popleft())

    def is_beyond(self, seconds: float) -> bool:
        """Whether what was read ends after a time, or cannot be told before more pictures have come."""
        return self._mender.waiting or bool(self._ready and self._ready[-1].time * self._time_base > seconds)

    def _restart(self, told: int, follows: int) -> int | None:
        """The new shift where the track's clock was set anew: that of the pictures, which come first."""
        number = self._restarts + 1
        while (shift := self._shifts.after(number)) is not None:
            moved = told + round(shift / self._time_base)
            if abs(moved - follows) * self._time_base <= APART_S:
                self._restarts = number
                return moved - told
            number += 1
        if self._passed < follows * self._time_base + APART_S:
            return None
        return follows - told  # no picture was moved there: the sound alone has a wrong clock

    def _output_of(self, packet: AudioPacket, time: int) -> list[AudioPacket]:
        told = _told(packet)
        packet.pts = time if packet.pts is None or told is None else packet.pts + time - told
        packet.dts = time if packet.dts is None or told is None else packet.dts + time - told
        try:
            return self._encode(packet) if self._encodes else self._copy(packet)
        except FFmpegError:
            self.unusable += 1
            return []

    def flush(self) -> list[AudioPacket]:
        """What the encoder still holds; nothing if it was never given anything that it could use."""
        try:
            return self._target.encode(None) if self._encodes else []
        except FFmpegError:
            return []

    def _copy(self, packet: AudioPacket) -> list[AudioPacket]:
        copies = self._filter.filter(packet) if self._filter else [packet]
        for copy in copies:
            copy.stream = self._target
        return cast("list[AudioPacket]", copies)

    def _encode(self, packet: AudioPacket) -> list[AudioPacket]:
        fitting = [part for frame in packet.decode() for part in self._resample(frame)]
        return [encoded for part in fitting for encoded in self._target.encode(part)]

    def _resample(self, frame: AudioFrame) -> list[AudioFrame]:
        """As the encoder takes it; what a track's sound is like may change midway (broadcasts do so)."""
        sampled = frame.format.name, frame.layout.name, frame.sample_rate
        if self._resampler is None or sampled != self._sampled:
            target = self._target.codec_context
            self._resampler = AudioResampler(target.format, target.layout, target.sample_rate)
            self._sampled = sampled
        fitting = [part for part in self._resampler.resample(frame) if part.samples]
        return [part for part in fitting if self._is_placed(part)]

    def _is_placed(self, part: AudioFrame) -> bool:
        """Give a part its time in samples, directly behind the one before it where that is what was meant.

        Times of files are rounded, and PyAV rounds again where it cuts parts for the encoder. Whether it has a place.
        """
        rate = part.sample_rate
        timed = part.pts is not None and part.time_base is not None
        told = round((part.pts or 0) * (part.time_base or 0) * rate) if timed else self._next
        if self._next is None or told is None or told - self._next > ROUNDED_S * rate:
            place = told or 0
        elif self._next - told > APART_S * rate / 10:
            return False  # it lies wholly in what is there already
        else:
            place = self._next
        part.pts, part.time_base = place, Fraction(1, rate)
        self._next = place + part.samples
        return True


def _decodable_layout(track: AudioStream) -> str | None:
    """The layout in which a track's decoder, having been told, gives its channels.

    Empty where only the decoder knows; None where nobody does.
    """
    layout = track.codec_context.layout
    # Where a file has an order of channels of its own, PyAV 18.1 frees what FFmpeg frees as well, and the process ends.
    # An object that is never freed does no harm, and a decoder that is told a usual order makes no more of them.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    if not layout.nb_channels:
        return ""
    try:
        name = AudioLayout(layout.name).name
    except ValueError:
        name = ""
    name = name if name and "channels" not in name else USUAL_LAYOUTS.get(layout.nb_channels, "")
    if not name:
        return None
    track.codec_context.layout = name
    return name


def _aac_header(track: AudioStream, packets: Sequence[AudioPacket]) -> bytes | None:
    """The header for the track, which FFmpeg's aac_adtstoasc filter makes from the first packet that it can read."""
    probe = BitStreamFilterContext("aac_adtstoasc", track)
    for packet in packets:
        try:
            for filtered in probe.filter(_copy_of(packet)):
                if filtered.has_sidedata("new_extradata"):
                    return bytes(filtered.get_sidedata("new_extradata"))
        except FFmpegError:
            continue
    return None


def _copy_of(packet: AudioPacket) -> AudioPacket:
    copy = Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base, copy.duration = packet.pts, packet.dts, packet.time_base, packet.duration
    return cast("AudioPacket", copy)


def _told(packet: AudioPacket) -> int | None:
    """When a packet starts, in units of its time base, if it says."""
    return packet.pts if packet.dts is None else packet.dts
