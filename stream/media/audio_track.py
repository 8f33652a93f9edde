"""One audio track, copied into an MP4 or encoded as AAC."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from typing import cast

import av
from av import AudioFrame, AudioLayout, AudioResampler, BitStreamFilterContext, Codec
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from polypstream.media.audio_times import AudioPacket
from polypstream.media.container import is_encrypted

# Codecs that MP4 can contain and that players support. FFmpeg can also write PCM, Vorbis or TrueHD to MP4, but only
# under conditions, and few players can read them.
COPIED = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus"})
# Layouts that the AAC encoder accepts and that every reader supports. Others are mixed to mono or stereo. FFmpeg writes
# 7.1 with a table of channels, at which programs that read it with PyAV 18.1 end.
AAC_LAYOUTS = frozenset({"mono", "stereo", "3.0", "4.0", "5.0", "5.1"})
AAC_RATES = Codec("aac", "w").audio_rates or ()
# FFmpeg's default layout for a number of channels, used if a file does not define their positions.
DEFAULT_LAYOUTS = {
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
# If audio starts later than expected by less than this, in seconds, the cause is rounding and not a gap.
ROUNDING_S = 0.02
# Audio that starts earlier than expected by more than this, in seconds, repeats what is already there.
REPEATED_S = 0.5


class AudioTrack:
    """One audio track, copied or encoded into the output.

    Args:
        source: the track. Its time base is that of the packets.
        first: the first packets of the track.
        since: leave out the packets before this time in seconds, and move the rest so that this time becomes 0; None:
            keep all.

    Attributes:
        index: index of the stream in the recording.
        note: information for the user, or an empty string.
        left_out: the track can neither be copied nor encoded.
        damage: why the track is left out, if it is damaged; otherwise an empty string.
        unusable: number of packets left out so far.
        options_index: index of the container options that the track needs.
        is_default: players should select this track.
    """

    def __init__(self, source: AudioStream, first: Sequence[AudioPacket], since: Fraction | None = None) -> None:
        self.index, self.note, self.damage, self.left_out = source.index, "", "", False
        self.unusable, self.options_index = 0, 0
        self._source, self._first = source, [packet for packet in first if packet.size]
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
        # Position of the next sample, counted from time 0.
        self._next: int | None = None
        assert source.time_base is not None
        self._since = None if since is None else round(since / source.time_base)

    @property
    def _is_raw_aac(self) -> bool:
        """Whether this is AAC as in MPEG-TS. It has a header in each packet, but MP4 needs one for the track."""
        context = self._source.codec_context
        return context.codec.canonical_name == "aac" and not context.extradata

    def choose(self, options: Sequence[dict[str, str]]) -> None:
        """Choose the first container options with which the packets can be copied. If there are none, encode.

        Args:
            options: the possible container options of the output, the preferred ones first.
        """
        layout = _decodable_layout(self._source)
        if any(is_encrypted(packet) for packet in self._first):
            self._leave_out("is encrypted")
            return
        if layout is not None and not self._can_be_decoded():
            self.left_out, self.damage = True, f"audio track {self.index} cannot be decoded and was not copied"
            return
        for options_index, each in enumerate(options if self._name in COPIED else ()):
            if self._can_be_copied(each):
                self.options_index = options_index
                return
        self._encodes = True
        if layout is None:
            self._leave_out("has channels in no known arrangement")
            return
        self._layout = layout if layout in AAC_LAYOUTS else "stereo"
        mixed = f", its channels ({layout}) mixed to stereo" if layout not in ("", self._layout) else ""
        self.note = f"audio track {self.index} ({self._name}) was encoded as AAC, which every MP4 player reads{mixed}"

    def _can_be_decoded(self) -> bool:
        """Whether any of the first packets can be decoded. No decoder can open a track with a damaged header."""
        decoded = False
        for packet in self._first:
            with suppress(FFmpegError):
                decoded = bool(self._source.codec_context.decode(copy_of(packet))) or decoded
        with suppress(FFmpegError):
            self._source.codec_context.flush_buffers()
        return decoded or not self._first

    def _leave_out(self, why: str) -> None:
        self.left_out, self.note = True, f"audio track {self.index} {why} and was not copied"

    def _can_be_copied(self, options: dict[str, str]) -> bool:
        """Whether FFmpeg can write an MP4 of this track alone. It cannot for some codecs and for damaged tracks.

        If the header is written with the first packets, the test must write a whole file.
        """
        with_packets = "empty_moov" not in options["movflags"]
        try:
            with av.open(io.BytesIO(), "w", "mp4", container_options=options) as trial:
                target = self._add_copy(trial)
                trial.start_encoding()
                for packet in self._first if with_packets else ():
                    copy = copy_of(packet)
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
        """Add the track to a file.

        Args:
            output: the file; its header must not be written yet.
            default: whether players should select this track.
        """
        if self._encodes:
            rate = min(AAC_RATES, key=lambda rate: abs(rate - self._rate))
            self._target = output.add_stream("aac", rate=rate, layout=self._layout)
        else:
            self._target = self._add_copy(output)
        self._target.metadata.update(self._source.metadata)
        kinds = self._source.disposition
        # Some players would play all tracks with the default flag at the same time.
        self._target.disposition = kinds | kinds.default if default else kinds & ~kinds.default

    def convert(self, packet: AudioPacket) -> list[AudioPacket]:
        """Convert a packet for the output.

        Args:
            packet: the packet, with its timestamps.

        Returns:
            Packets for the output; none if it is left out, or if the encoder still buffers it.
        """
        if self._since is not None and packet.pts is not None and packet.dts is not None:
            if packet.dts < self._since:
                return []
            packet.pts, packet.dts = packet.pts - self._since, packet.dts - self._since
        try:
            return self._encode(packet) if self._encodes else self._copy(packet)
        except FFmpegError:
            self.unusable += 1
            return []

    def flush(self) -> list[AudioPacket]:
        """Take the packets that the encoder still buffers.

        Returns:
            The packets; none if the encoder never received usable audio.
        """
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
        """Convert to the encoder's format. The format of a track may change midway, as in broadcasts."""
        sampled = frame.format.name, frame.layout.name, frame.sample_rate
        if self._resampler is None or sampled != self._sampled:
            target = self._target.codec_context
            self._resampler = AudioResampler(target.format, target.layout, target.sample_rate)
            self._sampled = sampled
        fitting = [part for part in self._resampler.resample(frame) if part.samples]
        return [part for part in fitting if self._set_time(part)]

    def _set_time(self, part: AudioFrame) -> bool:
        """Set the time of a part in samples: directly after the previous part if only rounding separates them.

        Timestamps in files are rounded, and PyAV rounds again when it splits frames for the encoder. Return False if
        the part lies completely within audio that is already there.
        """
        rate = part.sample_rate
        timed = part.pts is not None and part.time_base is not None
        stored = round((part.pts or 0) * (part.time_base or 0) * rate) if timed else self._next
        if self._next is None or stored is None or stored - self._next > ROUNDING_S * rate:
            place = stored or 0
        elif self._next - stored > REPEATED_S * rate:
            return False  # the part lies completely within audio that is already there
        else:
            place = self._next
        part.pts, part.time_base = place, Fraction(1, rate)
        self._next = place + part.samples
        return True


def _decodable_layout(track: AudioStream) -> str | None:
    """Return the channel layout that the track's decoder will output, and set it on the decoder.

    An empty string means that only the decoder knows it. None means that it is unknown.
    """
    layout = track.codec_context.layout
    # If a file has its own channel order, PyAV 18.1 frees memory that FFmpeg frees as well, and the process crashes. An
    # object that is never freed does no harm. A decoder that is given a standard order creates no more of them.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    if not layout.nb_channels:
        return ""
    try:
        name = AudioLayout(layout.name).name
    except ValueError:
        name = ""
    name = name if name and "channels" not in name else DEFAULT_LAYOUTS.get(layout.nb_channels, "")
    if not name:
        return None
    track.codec_context.layout = name
    return name


def _aac_header(track: AudioStream, packets: Sequence[AudioPacket]) -> bytes | None:
    """Return the track header that FFmpeg's filter aac_adtstoasc makes from the first packet it can read."""
    probe = BitStreamFilterContext("aac_adtstoasc", track)
    for packet in packets:
        try:
            for filtered in probe.filter(copy_of(packet)):
                if filtered.has_sidedata("new_extradata"):
                    return bytes(filtered.get_sidedata("new_extradata"))
        except FFmpegError:
            continue
    return None


def copy_of(packet: AudioPacket) -> AudioPacket:
    """Copy a packet, without its stream.

    Args:
        packet: the packet.
    """
    copy = Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base, copy.duration = packet.pts, packet.dts, packet.time_base, packet.duration
    return cast("AudioPacket", copy)
