"""SRT by way of the ffmpeg program, since PyAV's wheels are built without it.

The packets go unchanged between the program and us, over loopback. What may be secret in an address is not on the
program's command line, which everybody on the machine can read: it comes by standard input, or in a file of our own.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from polypstream.errors import SourceError

QUIET = ["-nostdin", "-loglevel", "quiet"]
# Little is looked at before the first packet is handed on.
PROMPT = {"fflags": "nobuffer", "probesize": "500000", "analyzeduration": "500000"}
# Copied as they are; MPEG-TS needs no header before the first picture.
COPIED = ["-map", "0:v:0", "-c", "copy", "-flush_packets", "1", "-muxdelay", "0", "-f", "mpegts"]
# A list of inputs (FFmpeg's concat demuxer), which it reads from us and in which nothing but SRT may stand. Whatever
# the other side sends, it is read as a stream and nothing else: a playlist would open this machine's files.
LISTED = ["-f", "concat", "-safe", "0", "-protocol_whitelist", "pipe,srt", "-i", "pipe:0"]
ONLY_SRT = {"protocol_whitelist": "srt", "format_whitelist": "mpegts"}
# Parts of an SRT address that let in who knows them.
SECRET = ("passphrase", "streamid", "srt_streamid")
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
    quoted = url.replace("'", r"'\''")
    options = "".join(f"option {name} {value}\n" for name, value in (ONLY_SRT | PROMPT).items())
    # It is started before there is a listener, and takes longer than that to find out what comes.
    with _ffmpeg([*LISTED, *COPIED, here], f"ffconcat version 1.0\nfile '{quoted}'\n{options}"):
        yield here + LISTEN


@contextmanager
def srt_sent(url: str) -> Iterator[str]:
    """The address to which to write MPEG-TS that shall go to an SRT address.

    Raises:
        SourceError: the ffmpeg program is not installed.
    """
    here = _free_address()
    address, secrets = _without_secrets(url)
    prompt = [word for name, value in PROMPT.items() for word in (f"-{name}", value)]
    with tempfile.TemporaryDirectory(prefix="polypstream-") as folder:  # which only its owner can enter
        preset = Path(folder) / "srt.ffpreset"
        preset.write_text("".join(f"{name}={value}\n" for name, value in secrets))
        with _ffmpeg([*prompt, "-f", "mpegts", "-i", here, "-fpre", str(preset), *COPIED, address]):
            yield here + LISTEN + GIVE_UP


def _without_secrets(url: str) -> tuple[str, list[tuple[str, str]]]:
    """An address without what may be secret in it, and that."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    open_ones = urlencode([option for option in options if option[0] not in SECRET])
    return urlunsplit(parts._replace(query=open_ones)), [option for option in options if option[0] in SECRET]


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def _ffmpeg(arguments: list[str], told: str = "") -> Iterator[None]:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise SourceError("srt:// needs the ffmpeg program; install it")
    process = subprocess.Popen([ffmpeg, *QUIET, *arguments], stdin=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, and nothing will come
            process.stdin.write(told)
            process.stdin.close()
        yield
    finally:
        process.kill()
        process.wait()
