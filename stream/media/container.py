"""Opening of recordings, and their packets. No other module opens recordings."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, cast

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from polypstream.core.formatting import counted
from polypstream.errors import SourceError
from polypstream.media.pictures import MAX_PIXELS

StreamT = TypeVar("StreamT", bound=Stream)
# Only containers of video and audio. FFmpeg's image, text, playlist and device demuxers are not allowed. They would
# read a photograph as a video, or a text file as a list of other files to open.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,mxf,asf,flv,live_flv,"
    "ogg,dv,nut,gxf,wtv,rm,mjpeg,yuv4mpegpipe,swf,vc1,gif,aac,mp3,wav,flac,w64,aiff,caf"
)

# Options of decoders, also of those that FFmpeg uses to probe a file.
LIMITS = {"max_pixels": str(MAX_PIXELS)}


def file_url(path: Path) -> str:
    """Convert a path to a URL for FFmpeg. Without the prefix `file:`, a name such as `12:30.mp4` would name a protocol.

    Args:
        path: a path.

    Returns:
        The URL.
    """
    return f"file:{path}"


def open_container(
    path: Path, accelerator: HWAccel | None = None, options: Mapping[str, str] = MappingProxyType({})
) -> InputContainer:
    """Open a recording for reading, without the files that it refers to. Decoders refuse more than MAX_PIXELS.

    Args:
        path: path of the recording.
        accelerator: decodes the pictures on a GPU.
        options: more options of the decoders of pictures.

    Returns:
        The open container.

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
        demuxing = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"} | LIMITS
        container = av.open(file_url(path), options=demuxing, metadata_errors="replace", hwaccel=accelerator)
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
        if stream.codec_context is not None:  # None for a codec that FFmpeg does not know
            stream.codec_context.options = LIMITS | dict(options)
    return container


def video_tracks(container: InputContainer) -> list[VideoStream]:
    """Find the tracks with moving pictures.

    Args:
        container: an open recording.

    Returns:
        The tracks, the one that is annotated first.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic]
    best = container.streams.best("video")
    return sorted(moving, key=lambda stream: stream is not best)


def demuxed(container: InputContainer, streams: Sequence[StreamT]) -> Iterator[Packet[StreamT] | None]:
    """Iterate over the packets of some streams.

    Args:
        container: an open recording.
        streams: the streams to read.

    Yields:
        Each packet; None for each packet of a track that did not exist at the beginning.

    Raises:
        FFmpegError: reading stopped early.
    """
    packets = cast("Iterator[Packet[StreamT]]", container.demux(*streams))
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except IndexError:  # PyAV's iterator ends with this error at such a track; a new iterator continues
            packets = cast("Iterator[Packet[StreamT]]", container.demux(*streams))
            yield None


def is_encrypted(packet: Packet[StreamT]) -> bool:
    """Whether a packet can only be decoded with a key (Common Encryption, ISO/IEC 23001-7).

    Args:
        packet: a packet.

    Returns:
        Whether it is encrypted.
    """
    # FFmpeg marks each packet of an MP4, but a WebM's track only once.
    return packet.has_sidedata("encryption_info") or "enc_key_id" in packet.stream.metadata


def packets_of(container: InputContainer, streams: list[Stream], damage: list[str]) -> Iterator[Packet[Stream]]:
    """Iterate over the packets of some streams, and then one empty packet for each stream.

    Args:
        container: an open recording.
        streams: the streams to read.
        damage: receives a phrase for each problem, such as an early end.

    Yields:
        Each packet.
    """
    unknown = 0
    try:
        for packet in demuxed(container, streams):
            if packet is None:
                unknown += 1
            else:
                yield packet
    except FFmpegError as error:
        damage.append(f"reading stopped early ({error.strerror})")
    if unknown:
        damage.append(f"left out: {counted(unknown, 'packet')} of a track that appears midway")
