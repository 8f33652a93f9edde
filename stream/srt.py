"""SRT by way of the ffmpeg program, since PyAV's wheels are built without it.

The packets go unchanged between the program and us, over loopback.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from stream.errors import SourceError

QUIET = ["-nostdin", "-loglevel", "quiet", "-fflags", "nobuffer", "-analyzeduration", "500000"]
# Copied as they are; MPEG-TS needs no header before the first picture.
COPIED = ["-map", "0:v:0", "-c", "copy", "-flush_packets", "1", "-muxdelay", "0", "-f", "mpegts"]
# Whatever the other side sends, it is read as a stream and nothing else: a playlist would open this machine's files.
ONLY_SRT = ["-f", "mpegts", "-protocol_whitelist", "srt"]
LISTEN = "?listen=1"
# A writer that listens gives up after so many milliseconds without its peer; a reader has a timeout of its own.
GIVE_UP = "&listen_timeout=3000"


@contextmanager
def srt_received(url: str) -> Iterator[str]:
    """The address on which to read what comes from an SRT address.

    Raises:
        SourceError: the ffmpeg program is not installed.
    """
    here = _free_address()
    # It is started before there is a listener, and takes longer than that to find out what comes.
    with _ffmpeg([*ONLY_SRT, "-i", url, *COPIED, here]):
        yield here + LISTEN


@contextmanager
def srt_sent(url: str) -> Iterator[str]:
    """The address to which to write MPEG-TS that shall go to an SRT address.

    Raises:
        SourceError: the ffmpeg program is not installed.
    """
    here = _free_address()
    with _ffmpeg(["-f", "mpegts", "-i", here, *COPIED, url]):
        yield here + LISTEN + GIVE_UP


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def _ffmpeg(arguments: list[str]) -> Iterator[None]:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise SourceError("srt:// needs the ffmpeg program; install it")
    process = subprocess.Popen([ffmpeg, *QUIET, *arguments])
    try:
        yield
    finally:
        process.kill()
        process.wait()
