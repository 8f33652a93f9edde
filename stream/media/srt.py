"""SRT through the ffmpeg program, because PyAV's wheels are built without SRT.

The packets are exchanged unchanged with the program over localhost. Secrets of an address are not on the program's
command line, which every user of the machine can read. They are passed on standard input or in a private file.
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
# The input is probed only briefly, so that the first packet is passed on early.
LOW_DELAY = {"fflags": "nobuffer", "probesize": "500000", "analyzeduration": "500000"}
# Packets are copied unchanged. MPEG-TS needs no header before the first frame.
COPIED = ["-map", "0:v:0", "-c", "copy", "-flush_packets", "1", "-muxdelay", "0", "-f", "mpegts"]
# Pictures wait for sound until the next picture only.
WITH_SOUND = ["-map", "0:a:0?", "-max_interleave_delta", "1"]
# A list of inputs for FFmpeg's concat demuxer, on standard input. Only SRT is allowed in it. Whatever the peer sends is
# read as a stream only, because a playlist could open files of this machine.
CONCAT_INPUT = ["-f", "concat", "-safe", "0", "-protocol_whitelist", "pipe,srt", "-i", "pipe:0"]
# Otherwise the list is probed for five seconds if sound is announced and does not come.
PROMPT_LIST = ["-analyzeduration", "500000"]
ONLY_SRT = {"protocol_whitelist": "srt", "format_whitelist": "mpegts"}
# Options of an SRT address that grant access to anyone who knows them.
SECRET = ("passphrase", "streamid", "srt_streamid")
LISTEN = "?listen=1"
# A listening writer stops after this time without a peer, in milliseconds. A reader has its own timeout.
LISTEN_TIMEOUT = "&listen_timeout=3000"


@contextmanager
def srt_received(url: str, sound: bool = False) -> Iterator[str]:
    """Receive from an SRT address while the block runs.

    Args:
        url: the SRT address.
        sound: receive the first track of sound, too. Pictures come a frame later then. If sound is announced and none
            comes, the program ends without having passed anything on.

    Yields:
        The address from which to read MPEG-TS.

    Raises:
        SourceError: the ffmpeg program is not installed.
    """
    here = _free_address()
    quoted = url.replace("'", r"'\''")
    options = "".join(f"option {name} {value}\n" for name, value in (ONLY_SRT | LOW_DELAY).items())
    # The program starts before the listener exists. This is safe, because it needs longer to probe its input.
    script = f"ffconcat version 1.0\nfile '{quoted}'\n{options}"
    with _ffmpeg([*PROMPT_LIST, *CONCAT_INPUT, *(WITH_SOUND if sound else ()), *COPIED, here], script):
        yield here + LISTEN


@contextmanager
def srt_sent(url: str) -> Iterator[str]:
    """Send to an SRT address while the block runs.

    Args:
        url: the SRT address.

    Yields:
        The address to which to write MPEG-TS.

    Raises:
        SourceError: the ffmpeg program is not installed.
    """
    here = _free_address()
    address, secrets = _without_secrets(url)
    prompt = [word for name, value in LOW_DELAY.items() for word in (f"-{name}", value)]
    with tempfile.TemporaryDirectory(prefix="polypstream-") as folder:  # only its owner can open it
        preset = Path(folder) / "srt.ffpreset"
        preset.write_text("".join(f"{name}={value}\n" for name, value in secrets))
        with _ffmpeg([*prompt, "-f", "mpegts", "-i", here, "-fpre", str(preset), *COPIED, address]):
            yield here + LISTEN + LISTEN_TIMEOUT


def _without_secrets(url: str) -> tuple[str, list[tuple[str, str]]]:
    """Split an address into the address without secrets and the secret options."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    public = urlencode([option for option in options if option[0] not in SECRET])
    return urlunsplit(parts._replace(query=public)), [option for option in options if option[0] in SECRET]


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def _ffmpeg(arguments: list[str], text: str = "") -> Iterator[None]:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise SourceError("srt:// needs the ffmpeg program; install it")
    process = subprocess.Popen([ffmpeg, *QUIET, *arguments], stdin=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # the program has already ended, and nothing will be received
            process.stdin.write(text)
            process.stdin.close()
        yield
    finally:
        process.kill()
        process.wait()
