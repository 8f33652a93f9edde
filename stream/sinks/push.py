"""Sends live video with its markers to another network address."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress

import av
from av.container import OutputContainer
from av.error import FFmpegError

from polypstream.core.addresses import back_off, reason, redacted, url_problem
from polypstream.core.config import VideoSettings
from polypstream.core.formatting import counted
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.protocols import CONNECTING, LiveSource
from polypstream.errors import SettingsError, SourceError
from polypstream.media.encoders import NO_B_FRAMES, choose_encoder
from polypstream.media.frame_encoder import pad, padding
from polypstream.media.pictures import Conformer
from polypstream.media.srt import srt_sent
from polypstream.media.video import add_pictures

# FFmpeg's container for each scheme.
CONTAINERS = {"rtsp": "rtsp", "srt": "mpegts", "udp": "mpegts", "tcp": "mpegts", "rtmp": "flv", "rtmps": "flv"}
OPTIONS = {"rtsp": {"rtsp_transport": "tcp"}, "udp": {"pkt_size": "1316"}}
CONNECT_S = 3.0
# A new receiver waits for a keyframe. One second is acceptable for viewers.
KEY_FRAME_EVERY_S = 1


class Push:
    """A sink that encodes a source without delay and sends it. It reconnects after each loss of the connection.

    Frames that arrive without a connection are dropped, so the pipeline never waits.

    Args:
        url: `rtsp://`, `srt://`, `udp://`, `tcp://` or `rtmp://`. It may contain credentials, which are never shown.
        source: source whose frames are sent; frames of other sources are ignored.
        settings: settings of the encoder.
        longest_wait: longest time between two attempts to connect, in seconds.

    Attributes:
        problem: reason why nothing is sent now, for the user; empty if frames are sent.
        frames: number of frames sent.

    Raises:
        SettingsError: the scheme of the URL is not supported, or its port is wrong.
    """

    def __init__(self, url: str, source: LiveSource, settings: VideoSettings, longest_wait: float) -> None:
        self._scheme = url.partition("://")[0].lower()
        if self._scheme not in CONTAINERS:
            raise SettingsError(f"--push {redacted(url)}: write {', '.join(f'{each}://' for each in CONTAINERS)}")
        if problem := url_problem(url):
            raise SettingsError(f"--push {redacted(url)}: {problem}")
        self._url, self._source, self._settings, self._longest_wait = url, source, settings, longest_wait
        self._output: OutputContainer | None = None
        self._srt = ExitStack()
        self._attempts, self._not_before = 0, 0.0
        self.problem, self.frames = CONNECTING, 0

    @property
    def source(self) -> str:
        """Name of the source."""
        return self._source.name

    @property
    def aim(self) -> str:
        """Where the source is sent to, for the user."""
        return f"is sent to {redacted(self._url)}"

    @property
    def doing(self) -> str:
        """What has been sent, for the user."""
        return f"{counted(self.frames, 'frame')} sent to {redacted(self._url)}"

    def write(self, frame: Frame) -> None:
        """Encode and send a frame, or reconnect if the next attempt is due."""
        if frame.source != self._source.name or self._source.format is None:
            return
        if self._output is None and time.monotonic() < self._not_before:
            return
        try:
            self._send(frame, self._source.format)
        except (FFmpegError, SourceError) as error:
            self._lost(reason(error, self._url))

    def _send(self, frame: Frame, pictures: PictureFormat) -> None:
        if self._output is not None and pictures != self._pictures:
            self.close()  # the receiver gets a new stream, as from an encoder whose input changed
        if self._output is None:
            self._connect(pictures)
        assert self._output is not None
        picture = pad(self._conform(frame.in_memory()), *padding(pictures))
        self._output.mux(self._stream.encode(picture))
        self.problem, self._attempts = "", 0
        self.frames += 1

    def _connect(self, pictures: PictureFormat) -> None:
        encoder = choose_encoder(self._settings.codec, pictures.pixel_format)
        # A receiver that stops reading must not block the sink. FFmpeg's RTSP sender has no such timeout.
        send_timeout = {"rw_timeout": str(round(CONNECT_S * 1e6))} if self._scheme != "rtsp" else {}
        options = {**OPTIONS.get(self._scheme, {}), **send_timeout, "flush_packets": "1"}
        url = self._srt.enter_context(srt_sent(self._url)) if self._scheme == "srt" else self._url
        self._output = av.open(url, "w", format=CONTAINERS[self._scheme], container_options=options, timeout=CONNECT_S)
        quality = encoder.quality(self._settings.preset, self._settings.crf)
        key_frames = {"g": str(max(1, round(pictures.rate * KEY_FRAME_EVERY_S)))}
        encoding = {**quality, **NO_B_FRAMES, **encoder.no_delay, **key_frames}
        self._stream, self._pictures = add_pictures(self._output, encoder, pictures, encoding), pictures
        self._conform = Conformer(pictures)

    def _lost(self, problem: str) -> None:
        self.problem = problem
        self._not_before = time.monotonic() + back_off(self._attempts, self._longest_wait)
        self._attempts += 1
        self.close()

    def close(self) -> None:
        """End the stream, and tell the receiver if it is still connected."""
        output, self._output = self._output, None
        if output is not None:
            with suppress(FFmpegError):  # the connection may be lost
                output.mux(self._stream.encode(None))
                output.close()
        self._srt.close()
