"""Opening a user's file of any container to read, and its packets. This is the one place that does."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from polypstream.errors import SourceError
from polypstream.media.pictures import MAX_PIXELS

StreamT = TypeVar("StreamT", bound=Stream)
# Only containers of moving pictures: not FFmpeg's picture, text, playlist and device readers, which would take a
# photograph for a video, or a text file for a list of other files to open.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,mxf,asf,flv,live_flv,"
    "ogg,dv,nut,gxf,wtv,rm,mjpeg,yuv4mpegpipe,swf,vc1,gif,aac,mp3,wav,flac,w64,aiff,caf"
)

# Of decoders, also of those that FFmpeg itself uses to find out what is in a file.
LIMITS = {"max_pixels": str(MAX_PIXELS)}


def file_url(path: Path) -> str:
    """A path as FFmpeg takes it whatever its name: without the prefix, `12:30.mp4` names a protocol."""
    return f"file:{path}"


def open_container(path: Path) -> InputContainer:
    """Open a file for reading, and nothing that it may point to; pictures of more than MAX_PIXELS are not decoded.

    Raises:
        SourceError: there is no such file, or FFmpeg cannot read it as a recording.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"{path}: is a folder, not a recording")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{path}: is not a regular file; copy the recording to one first")
        if status.st_size == 0:
            raise SourceError(f"{path}: is empty")
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"} | LIMITS
        container = av.open(file_url(path), options=options, metadata_errors="replace")
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except PermissionError as error:
        raise SourceError(f"{path}: may not be read (permission denied)") from error
    except (FFmpegError, ValueError) as error:
        raise SourceError(
            f"{path}: not a recording that can be read; it is no video file, or its beginning or index is lost"
        ) from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    for stream in container.streams.video:
        if stream.codec_context is not None:  # of a codec that FFmpeg knows
            stream.codec_context.options = LIMITS
    return container


def demuxed(container: InputContainer, streams: Sequence[StreamT]) -> Iterator[Packet[StreamT] | None]:
    """Every packet of some streams; None for each packet of a track that was not there at the beginning.

    Raises:
        FFmpegError: the reading stopped early.
    """
    packets = cast("Iterator[Packet[StreamT]]", container.demux(*streams))
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except IndexError:  # such a track: PyAV's iterator ends with this error, a new one goes on
            packets = cast("Iterator[Packet[StreamT]]", container.demux(*streams))
            yield None


def is_encrypted(packet: Packet[StreamT]) -> bool:
    """Whether a packet can only be decoded with a key, which nobody gave (Common Encryption, ISO/IEC 23001-7)."""
    # FFmpeg says so on each packet of an MP4, and once for a track of a WebM.
    return packet.has_sidedata("encryption_info") or "enc_key_id" in packet.stream.metadata


def packets_of(container: InputContainer, streams: list[Stream], damage: list[str]) -> Iterator[Packet[Stream]]:
    """Every packet of some streams, then an empty one for each; what stops the reading early goes to `damage`."""
    strangers = 0
    try:
        for packet in demuxed(container, streams):
            if packet is None:
                strangers += 1
            else:
                yield packet
    except FFmpegError as error:
        damage.append(f"reading stopped early ({error.strerror})")
    if strangers:
        damage.append(f"{strangers} packets of a track that appears midway were left out")
