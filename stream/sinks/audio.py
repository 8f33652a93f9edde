"""Copies the audio of a recording into a video file, in step with its pictures."""

from __future__ import annotations

import errno
import io
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast

import av
from av import AudioFrame, AudioResampler, BitStreamFilterContext, Codec
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from stream.pictures import MP4_LONGEST_STEP
from stream.sources.container import open_container, packets_of

# What MP4 holds and players play. FFmpeg also writes PCM, Vorbis or TrueHD there, but under conditions, and few
# players read it.
COPIED = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus"})
# Layouts that the AAC encoder takes. Others, and the unnamed ones of old codecs, become mono or stereo.
AAC_LAYOUTS = frozenset({"mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1"})
AAC_RATES = Codec("aac", "w").audio_rates or ()
# A packet that starts so much later than the one before it, and also later than the one after, has a damaged time.
JUMP_S = 1.0
# Packets read ahead, at most, in search of the first one of a track.
READ_AHEAD = 1000


class Audio:
    """Every audio track of a recording: packets copied, or encoded as AAC where MP4 cannot hold them.

    It reads the recording a second time: so memory stays bounded however the file interleaves sound and pictures,
    and frames stay the only thing that travels through the rooms. Damaged sound never costs a picture: what cannot
    be used is left out and counted.

    Attributes:
        damage: what was wrong with the sound, one phrase each.
        notes: what was not copied as it was.
    """

    def __init__(self, recording: Path, output: OutputContainer) -> None:
        self.damage: list[str] = []
        self.notes: list[str] = []
        self._output = output
        self._source = open_container(recording)
        output.metadata.update(self._source.metadata)
        for stream in self._source.streams:
            if stream.type != "audio":
                stream.discard = stream.discard.all
            if stream.type in ("subtitle", "data", "attachment"):
                self.notes.append(f"stream {stream.index} ({stream.type}) was not copied")
        usable = [track for track in self._source.streams.audio if self._is_usable(track)]
        self._packets = self._read(usable)
        self._ahead = deque(islice(self._packets, READ_AHEAD if any(map(_is_raw_aac, usable)) else 0))
        self._tracks = [_Track(track, self._ahead, output) for track in usable]
        self.notes += [track.note for track in self._tracks if track.note]

    def _is_usable(self, track: AudioStream) -> bool:
        if track.codec_context is not None and track.codec_context.sample_rate:
            return True
        self.notes.append(f"audio track {track.index} has an unknown codec and was not copied")
        return False

    def _read(self, tracks: list[AudioStream]) -> Iterator[Packet[AudioStream]]:
        if tracks:
            said: list[str] = []
            yield from cast("Iterator[Packet[AudioStream]]", packets_of(self._source, list(tracks), said))
            self.damage += [f"sound: {damage}" for damage in said]

    def mux_until(self, seconds: float) -> None:
        """Mux the packets that start before a time, in seconds; one of each track waits to see its successor."""
        while True:
            if not self._ahead:
                self._ahead.extend(islice(self._packets, 1))
            if not self._ahead:
                return
            when = _seconds(self._ahead[0])
            if when is not None and when > seconds:
                return
            packet = self._ahead.popleft()
            track = next(track for track in self._tracks if track.index == packet.stream.index)
            for ready in track.take(packet):
                self._mux(track, ready)

    def _mux(self, track: _Track, packet: Packet[AudioStream]) -> None:
        try:
            self._output.mux(packet)
        except FFmpegError as error:
            if error.errno != errno.EINVAL:  # the disk is full, say; but an impossible packet is only left out
                raise
            track.unusable += 1

    def close(self) -> None:
        """Close the recording, and sum up the damage; more than once does no harm."""
        self._source.close()
        for track in self._tracks:
            if track.unusable:
                self.damage.append(f"{track.unusable} packets of audio track {track.index} could not be used")
            track.unusable = 0


class _Track:
    """One audio track on its way into the output.

    Attributes:
        index: in the recording.
        note: what the user should know of it, or nothing.
        unusable: packets left out so far.
    """

    def __init__(self, source: AudioStream, ahead: deque[Packet[AudioStream]], output: OutputContainer) -> None:
        self.index, self.note, self.unusable = source.index, "", 0
        self._rate = source.codec_context.sample_rate
        self._filter: BitStreamFilterContext | None = None
        self._last_s: float | None = None
        self._pending: tuple[float, Packet[AudioStream]] | None = None
        name = source.codec_context.codec.canonical_name
        header = None
        if _is_raw_aac(source):
            self._filter = BitStreamFilterContext("aac_adtstoasc", source)
            header = _aac_header(source, ahead)
        self._resampler: AudioResampler | None = None
        self._sampled: tuple[str, str, int] | None = None
        self._encodes = name not in COPIED or not _fits_mp4(source, header)
        if self._encodes:
            layout = source.codec_context.layout
            plain = "mono" if layout.nb_channels == 1 else "stereo"
            wanted = layout.name if layout.name in AAC_LAYOUTS else plain
            rate = min(AAC_RATES, key=lambda rate: abs(rate - self._rate))
            self._target = output.add_stream("aac", rate=rate, layout=wanted)
            self.note = f"audio track {self.index} ({name}) was encoded as AAC, which every MP4 player reads"
        else:
            self._target = _add_copy(source, header, output)
        self._target.metadata.update(source.metadata)

    def take(self, packet: Packet[AudioStream]) -> list[Packet[AudioStream]]:
        """The output packets that can be muxed now that this packet, or the empty last one, is known."""
        if not packet.size:
            return self._release() + self._flush()
        when = _seconds(packet)
        if when is None:
            self.unusable += 1
            return []
        # Equal times are fine: Matroska rounds to milliseconds, and some codecs have packets shorter than that.
        if self._pending and when < self._pending[0]:
            # One of the two has a wrong time. It is the earlier one if that jumped ahead.
            self.unusable += 1
            if self._last_s is None or self._pending[0] - self._last_s <= JUMP_S:
                return []
            self._pending = None
        ready = self._release()
        self._pending = when, packet
        return ready

    def _release(self) -> list[Packet[AudioStream]]:
        """The pending packet as output packets, if time advances with it."""
        if self._pending is None:
            return []
        (when, packet), self._pending = self._pending, None
        if self._last_s is not None and not 0 <= when - self._last_s < MP4_LONGEST_STEP / self._rate:
            self.unusable += 1
            return []
        self._last_s = when
        try:
            return self._encode(packet) if self._encodes else self._copy(packet)
        except FFmpegError:
            self.unusable += 1
            return []

    def _flush(self) -> list[Packet[AudioStream]]:
        """What the encoder still holds; nothing if it was never given anything that it could use."""
        try:
            return self._target.encode(None) if self._encodes else []
        except FFmpegError:
            return []

    def _copy(self, packet: Packet[AudioStream]) -> list[Packet[AudioStream]]:
        copies = self._filter.filter(packet) if self._filter else [packet]
        for copy in copies:
            copy.stream = self._target
        return cast("list[Packet[AudioStream]]", copies)

    def _encode(self, packet: Packet[AudioStream]) -> list[Packet[AudioStream]]:
        fitting = [part for frame in packet.decode() for part in self._resample(frame)]
        return [encoded for part in fitting for encoded in self._target.encode(part)]

    def _resample(self, frame: AudioFrame) -> list[AudioFrame]:
        """As the encoder takes it; what a track's sound is like may change midway (broadcasts do so)."""
        sampled = frame.format.name, frame.layout.name, frame.sample_rate
        if self._resampler is None or sampled != self._sampled:
            target = self._target.codec_context
            self._resampler = AudioResampler(target.format, target.layout, target.sample_rate)
            self._sampled = sampled
        return self._resampler.resample(frame)


def _is_raw_aac(track: AudioStream) -> bool:
    """AAC as MPEG-TS has it: a header in every packet instead of one for the track, which MP4 wants."""
    context = track.codec_context
    return context.codec.canonical_name == "aac" and not context.extradata


def _add_copy(source: AudioStream, header: bytes | None, output: OutputContainer) -> AudioStream:
    copy = output.add_stream_from_template(source)
    if header is not None:
        copy.codec_context.extradata = header
    return copy


def _fits_mp4(source: AudioStream, header: bytes | None) -> bool:
    """Whether FFmpeg writes an MP4 header for this track; damaged files have tracks for which it does not."""
    try:
        with av.open(io.BytesIO(), "w", "mp4") as trial:
            _add_copy(source, header, trial)
            trial.start_encoding()
    except (FFmpegError, ValueError):
        return False
    return True


def _aac_header(track: AudioStream, ahead: deque[Packet[AudioStream]]) -> bytes | None:
    """The header for the track, which FFmpeg's aac_adtstoasc filter makes from the first packet that it can read."""
    probe = BitStreamFilterContext("aac_adtstoasc", track)
    for packet in ahead:
        if packet.size and packet.stream.index == track.index:
            try:
                for filtered in probe.filter(_copy_of(packet)):
                    if filtered.has_sidedata("new_extradata"):
                        return bytes(filtered.get_sidedata("new_extradata"))
            except FFmpegError:
                continue
    return None


def _copy_of(packet: Packet[AudioStream]) -> Packet[AudioStream]:
    copy = Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    return cast("Packet[AudioStream]", copy)


def _seconds(packet: Packet[AudioStream]) -> float | None:
    """When a packet starts, in seconds, if it says."""
    when = packet.pts if packet.dts is None else packet.dts
    return None if when is None else float(when * packet.time_base)
