"""Live sources: capture devices and network streams, which may disconnect and return."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.error import ExitError, InvalidDataError
from av.packet import Packet

from polypstream.core.addresses import back_off, reason, redacted, url_problem
from polypstream.core.config import LiveSettings
from polypstream.core.formatting import counted
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.live_pictures import LivePictures
from polypstream.core.live_sound import TIME_BASE, LiveSound
from polypstream.core.protocols import LiveSource, Signal, Source
from polypstream.errors import SourceError
from polypstream.media.audio_times import AudioPacket
from polypstream.media.color import forget_unknown_tags
from polypstream.media.container import demuxed
from polypstream.media.pictures import Conformer, black_picture, copy_of, picture_format
from polypstream.media.srt import srt_received
from polypstream.sources.demo import SCHEME
from polypstream.sources.devices import V4L2_PATHS
from polypstream.sources.live_clock import LiveClock
from polypstream.sources.live_pictures import PictureIntake, RecordingPictures
from polypstream.sources.live_sound import RecordingSound, StreamSound, sound_track_of
from polypstream.sources.open import open_source

# Prefix of a recording that is played as a live source.
# What stands before a recording that is played once, or again and again.
REPLAY, LOOP = "replay:", "loop:"
# Longest time for connecting, including the handshake and the wait for the first keyframe.
CONNECT_S = 5.0
# A replay slows down by more than this, in seconds, if decoding is too slow.
LATE_S = 0.1
# With the low-delay flag these decoders return frames in coding order, in which B-frames come too late.
IN_CODING_ORDER = frozenset(
    {"mpeg1video", "mpeg2video", "mpeg4", "h261", "h263", "flv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2",
     "wmv3", "vc1", "rv30", "rv40", "cavs", "svq3"}
)  # fmt: skip
# Size of the placeholder shown before the first frame.
NO_SIGNAL_SIZE = 1280, 720
# FFmpeg's device readers, by the prefix of a device's address.
DEVICES = {**dict.fromkeys(V4L2_PATHS, "v4l2"), "dshow:": "dshow", "avfoundation:": "avfoundation"}
DEVICE_OPTIONS = {"size": "video_size", "rate": "framerate", "format": "pixel_format"}
# How the values look: a pattern, and its words.
DEVICE_VALUES = {
    "size": (r"\d+x\d+", "WIDTHxHEIGHT, for instance 1920x1080"),
    "rate": (r"\d+([./]\d+)?", "a number of frames per second, for instance 30 or 30000/1001"),
}
V4L2_OPTIONS = DEVICE_OPTIONS | {"format": "input_format"}
# For each scheme the protocols that its stream may use: a playlist must not read files of this machine.
PROTOCOLS = {
    "rtsp": "rtsp,rtp,rtcp,srtp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,srtp,tcp,tls",
    "srt": "srt",
    "udp": "udp",
    "rtp": "rtp,udp",
    "tcp": "tcp",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tcp,tls",
    "http": "http,tcp,crypto",
    "https": "https,http,tls,tcp,crypto",
}
# Read little before the first frame, and buffer nothing.
NETWORK_OPTIONS = {"fflags": "nobuffer", "probesize": "500000", "analyzeduration": "500000"}
# RTSP over TCP loses no packets; some servers support UDP only.
SCHEME_OPTIONS = {
    "rtsp": {"rtsp_flags": "prefer_tcp"},
    "rtsps": {"rtsp_flags": "prefer_tcp"},
    # A buffer for half a second of a fast stream while the reader is busy. An overrun loses frames, not the connection.
    "udp": {"fifo_size": "20000", "overrun_nonfatal": "1"},
}


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a live source in FFmpeg's form.

    Attributes:
        url: may contain credentials; never shown.
        reader: FFmpeg's name of the device reader; None: a network stream.
        options: options of the reader.
    """

    url: str
    reader: str | None
    options: dict[str, str]


def parse_address(uri: str) -> Address:
    """Parse the address of a capture device or a network stream.

    Args:
        uri: a device (`/dev/video0?size=1920x1080&rate=60`, `dshow:NAME`, `avfoundation:0`) or a URL.

    Raises:
        SourceError: it is neither, or its port is wrong.
    """
    for start, reader in DEVICES.items():
        if uri.startswith(start):
            return _device(uri, reader)
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in PROTOCOLS or not parts.netloc:
        raise SourceError(
            f"{redacted(uri)}: is no live source. For a recording write replay:FILE, otherwise /dev/video0, "
            "dshow:NAME, avfoundation:0, rtsp://, srt://, udp://, rtmp://, http(s):// or demo:"
        )
    if problem := url_problem(uri):
        raise SourceError(f"{redacted(uri)}: {problem}")
    options = {**NETWORK_OPTIONS, **SCHEME_OPTIONS.get(parts.scheme, {})}
    return Address(uri, None, options | {"protocol_whitelist": PROTOCOLS[parts.scheme]})


def _device(uri: str, reader: str) -> Address:
    name, _, query = uri.partition("?")
    options, known = {}, V4L2_OPTIONS if reader == "v4l2" else DEVICE_OPTIONS
    for key, value in parse_qsl(query):
        if key not in known:
            raise SourceError(f"{uri}: there is no value {key}; a device has {', '.join(known)}")
        if key in DEVICE_VALUES and not re.fullmatch(DEVICE_VALUES[key][0], value):
            raise SourceError(f"{uri}: {key} is not {DEVICE_VALUES[key][1]}")
        options[known[key]] = value
    url = name if reader == "v4l2" else name.partition(":")[2]
    return Address(f"video={url}" if reader == "dshow" else url, reader, options)


def awaited(address: Address) -> str:
    """Say from where the first picture of a source must come.

    Args:
        address: of the source.

    Returns:
        Text for the user, without credentials.
    """
    if address.reader is not None:
        return f"video from the device {address.url}"
    parts = urlsplit(address.url)
    if parts.scheme in ("udp", "rtp"):
        return f"a sender to port {parts.port}"
    if dict(parse_qsl(parts.query)).keys() & {"listen"} or "mode=listener" in parts.query:
        return f"a sender that connects to port {parts.port}"
    return f"video from {parts.hostname}" + (f":{parts.port}" if parts.port else "")


def open_live(name: str, uri: str, settings: LiveSettings) -> LiveSource:
    """Open a live source.

    Args:
        name: name of the source for the user.
        uri: a device or URL as for `parse_address`, `replay:FILE`, `loop:FILE`, or `demo:`.
        settings: timeouts and attempts for devices and network streams.

    Raises:
        SourceError: the address is none of these, or the recording to replay cannot be opened.
    """
    if uri.startswith((REPLAY, LOOP, SCHEME)):
        recording = uri.removeprefix(REPLAY).removeprefix(LOOP)
        return Replay(name, lambda: open_source(recording), uri.startswith(LOOP))
    address = parse_address(uri)
    try:
        av.ContainerFormat(address.reader or "rtsp")
    except ValueError as error:
        raise SourceError(f"{uri}: this system has no such devices; see `polypstream devices`") from error
    return Stream(name, address, settings)


@dataclass(slots=True)
class Stream:
    """A LiveSource that reads a device or network stream, and reconnects after each loss.

    Args:
        name: name for the user.
        address: where to connect.
        settings: when the signal counts as lost, and how to reconnect.
    """

    name: str
    address: Address
    settings: LiveSettings
    format: PictureFormat | None = None
    signal: Signal = field(init=False)
    sound: LiveSound = field(default_factory=LiveSound)
    pictures: LivePictures = field(default_factory=LivePictures)
    _closed: threading.Event = field(default_factory=threading.Event)
    _opened: float = field(default_factory=time.monotonic)
    _clock: LiveClock = field(init=False)
    _wanted: PictureFormat | None = None
    _conform: Conformer = field(init=False)
    _kind: tuple[int, int, Fraction | None] | None = None
    _count: int = 0
    _asks_for_sound: bool = True
    _last_pts: int = -1

    def __post_init__(self) -> None:
        self.signal = Signal(problem=f"waiting for {awaited(self.address)}")
        self._clock = LiveClock(self._opened)

    def frames(self) -> Iterator[Frame]:
        """See LiveSource. Ends after `close`, or after the last attempt to connect."""
        attempts, most = 0, self.settings.most_attempts
        while not self._closed.is_set():
            attempts += 1
            try:
                with self._opened_container() as container:
                    for frame in self._read(container):
                        attempts = 0
                        yield frame
                if not self._closed.is_set():
                    self._lost(f"source ended; waiting for {awaited(self.address)}")
            except Exception as error:  # a library may raise anything; the stream may return unchanged
                nobody_there = isinstance(error, ExitError)
                self._lost(self._silence(attempts) if nobody_there else self._reason(error))
                # With sound that was announced and does not come, SRT gives no pictures either.
                self._asks_for_sound = not attempts or self._asks_for_sound == nobody_there
            if not self._closed.is_set():
                yield self._no_signal_frame()
            if attempts and attempts == most:
                self.signal.problem += f"; given up after {counted(most, 'attempt')}"
                self.signal.given_up = True
                return
            self._closed.wait(back_off(attempts, self.settings.longest_wait))
        self.sound.expect(False)
        self.signal.stop()

    def close(self) -> None:
        """End `frames`, after its current wait; this takes at most the timeout."""
        self._closed.set()

    def _reason(self, error: Exception) -> str:
        known = self.address.reader is None or not isinstance(error, FileNotFoundError)
        return reason(error, self.address.url) + ("" if known else "; see `polypstream devices`")

    def _silence(self, attempts: int) -> str:
        """Say how long nothing has arrived and, before the first picture, from where it is expected."""
        waited = max(CONNECT_S, self.settings.timeout) if attempts else self.settings.timeout
        expected = "" if self.format else f", waiting for {awaited(self.address)}"
        return f"no picture for {waited:g} s{expected}"

    @contextmanager
    def _opened_container(self) -> Iterator[InputContainer]:
        with ExitStack() as stack:
            address = self.address
            if address.url.startswith("srt:"):
                with_sound = self.sound.is_wanted and self._asks_for_sound
                local_url = stack.enter_context(srt_received(address.url, with_sound))
                address = replace(address, url=local_url, options=NETWORK_OPTIONS)
            container = av.open(
                address.url,
                format=address.reader,
                options=address.options,
                timeout=(max(CONNECT_S, self.settings.timeout), self.settings.timeout),
                metadata_errors="replace",
            )
            yield stack.enter_context(container)

    def _read(self, container: InputContainer) -> Iterator[Frame]:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise SourceError("it has no video")
        if stream.codec_context is None:
            raise SourceError("its pictures are in a codec that is not known")
        # Frame threads would delay the output by one frame per thread.
        stream.thread_type = "SLICE"
        if stream.codec_context.codec.canonical_name not in IN_CODING_ORDER:
            stream.codec_context.flags |= Flags.low_delay
        self._wanted = None  # a new connection may have another format of the same size
        self._clock.restart()
        sound = self._sound_of(container)
        copied = PictureIntake(stream, self.pictures, TIME_BASE) if self.pictures.is_wanted else None
        for packet in demuxed(container, [stream, *([sound.track] if sound else [])]):
            if self._closed.is_set():
                return
            if packet is None:
                continue
            arrived = time.monotonic()
            if sound and packet.stream is sound.track:
                sound.add(cast("AudioPacket", packet), arrived)
                continue
            if copied:
                copied.add(cast("Packet[av.VideoStream]", packet))
            pictures = self._pictures_of(cast("Packet[av.VideoStream]", packet))
            # A device's packets are in its driver's memory and must be freed before the device is closed.
            del packet
            for picture in pictures:
                self.signal.there, self.signal.problem = True, ""
                stored = picture.pts
                stream_time = None if stored is None else float(stored * cast(Fraction, picture.time_base))
                frame = self._frame(picture, self._clock.time_of(stream_time, arrived), arrived)
                if copied:
                    copied.shown(stored, frame.pts)
                yield frame

    def _sound_of(self, container: InputContainer) -> StreamSound | None:
        """The sound of a connection, if there is any and somebody records it."""
        track = sound_track_of(container) if self.sound.is_wanted else None
        self.sound.expect(track is not None)
        return StreamSound(self.name, track, self.sound, self._clock) if track else None

    def _pictures_of(self, packet: Packet[av.VideoStream]) -> list[av.VideoFrame]:
        """Decode a packet into frames of the current format, in memory that does not belong to a device."""
        pictures = []
        for picture in _decode(packet):
            forget_unknown_tags(picture)
            kind = (picture.width, picture.height, packet.stream.codec_context.sample_aspect_ratio)
            if self._wanted is None or kind != self._kind:
                self._kind = kind
                self._wanted = self.format = replace(picture_format(packet.stream, picture), time_base=TIME_BASE)
                self._conform = Conformer(self._wanted)
            fitting = self._conform(picture)
            in_device_memory = fitting is picture and packet.stream.codec_context.name == "rawvideo"
            pictures.append(copy_of(picture) if in_device_memory else fitting)
        return pictures

    def _lost(self, problem: str) -> None:
        self.sound.expect(False)
        self.signal.losses += self.signal.there
        self.signal.there, self.signal.problem = False, problem

    def _frame(self, picture: av.VideoFrame, seconds: float, arrived: float, has_signal: bool = True) -> Frame:
        """Make a frame of a picture: number it and set its timestamp. Timestamps always increase."""
        pts = max(round(seconds / TIME_BASE), self._last_pts + 1)
        picture.duration = round((picture.duration or 0) * (picture.time_base or 0) / TIME_BASE)
        picture.pts, picture.time_base, self._last_pts = pts, TIME_BASE, pts
        frame = Frame(self._count, picture, pts, TIME_BASE, arrived, self.name, has_signal=has_signal)
        if self.format:
            frame.orientation = self.format.orientation
        self._count += 1
        return frame

    def _no_signal_frame(self) -> Frame:
        """A black frame that stands for a missing signal."""
        size = (self.format.width, self.format.height) if self.format else NO_SIGNAL_SIZE
        now = time.monotonic()
        return self._frame(black_picture(*size), now - self._opened, now, has_signal=False)


def _decode(packet: Packet[av.VideoStream]) -> list[av.VideoFrame]:
    """The frames of a packet; none if the packet is damaged, since a live stream continues after damage."""
    try:
        return packet.decode()
    except InvalidDataError:
        return []


class Replay:
    """A LiveSource that plays a recording or a demo at its own frame rate.

    Args:
        name: name for the user.
        open_recording: opens the recording at its beginning.
        endless: play it again and again, until `close`. The timestamps go on.

    Raises:
        SourceError: the recording cannot be opened.
    """

    def __init__(self, name: str, open_recording: Callable[[], Source], endless: bool = False) -> None:
        self.name, self.signal = name, Signal(there=True, problem="")
        self.sound, self.pictures = LiveSound(), LivePictures()
        self._open, self._endless, self._closed = open_recording, endless, threading.Event()
        self._recording = open_recording()
        self.format: PictureFormat | None = self._recording.format
        # Number of frames so far, and the pts at which the latest one ends.
        self._count, self._end = 0, 0

    def frames(self) -> Iterator[Frame]:
        """See LiveSource. Each frame arrives when it is due and is decoded then, so decoding counts as latency."""
        with closing(self._recording):
            yield from self._played(self._recording)
        while self._endless and not self._closed.is_set():
            with closing(self._open()) as recording:
                yield from self._played(recording)
        if self._closed.is_set():
            self.signal.stop()
        else:
            self.signal.there, self.signal.ended = False, True

    def _played(self, recording: Source) -> Iterator[Frame]:
        with ExitStack() as stack:
            sound: RecordingSound | None = None
            pictures: RecordingPictures | None = None
            if recording.path is not None and self.sound.is_wanted:
                sound = RecordingSound(self.name, recording.path, recording.shifts, self.sound)
                stack.enter_context(closing(sound))
            if recording.path is not None and self.pictures.is_wanted:
                offset = round(recording.shifts.origin / recording.format.time_base)
                pictures = RecordingPictures(recording.path, offset, self.pictures)
                stack.enter_context(closing(pictures))
            yield from self._in_time(recording.frames(), sound, pictures)

    def _in_time(
        self, frames: Iterator[Frame], sound: RecordingSound | None, pictures: RecordingPictures | None
    ) -> Iterator[Frame]:
        """Yield each frame when it is due, and pass on the sound and the packets beside it."""
        due, shift = time.monotonic(), 0
        while not self._closed.wait(max(0.0, due - time.monotonic())):
            # If decoding is too slow, the replay slows down: a camera's latency would not grow either.
            due = max(due, time.monotonic() - LATE_S)
            frame = next(frames, None)
            if frame is None:
                break
            frame.arrived, frame.source = due, self.name
            if self._count and not frame.index:
                shift = self._end - frame.pts
            duration = frame.picture.duration or 0
            if sound is not None:
                sound.play_until(float((frame.pts + duration) * frame.time_base), float(shift * frame.time_base))
            if pictures is not None:
                pictures.play_until(frame.pts, frame.pts + shift)
            frame.index, frame.pts = self._count, frame.pts + shift
            frame.in_memory().pts = frame.pts
            self._count, self._end = self._count + 1, frame.pts + duration
            yield frame
            due += float(duration * frame.time_base)

    def close(self) -> None:
        """End `frames`."""
        self._closed.set()
