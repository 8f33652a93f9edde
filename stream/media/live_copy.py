"""Copies the packets of a live source's H.264 into a video file, as they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import cast

import av
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.live_pictures import LivePictures, PacketFormat, PicturePacket
from polypstream.media.frame_encoder import set_picture_format


class LiveCopy:
    """Takes the packets of a live source for one file, in the order of decoding.

    Args:
        source: the packets.
        first: the first one; a key picture.
        pictures: format of the frames.

    Attributes:
        next: number of the packet that is taken next.
        limit: number of the first packet that does not belong to the file; None: it is not known yet.
        has_ended: packets of another format have come, or the next one is not kept any more.
        reordered: whether frames may be decoded in another order than they are shown.
    """

    def __init__(self, source: LivePictures, first: PicturePacket, pictures: PictureFormat) -> None:
        self._source, self._format, self._pictures = source, first.format, pictures
        self.next, self.reordered = first.number, first.format.reordered
        self.limit: int | None = None
        self.has_ended = False
        self._step = max(1, round(1 / (pictures.rate * pictures.time_base)))
        # pts of the frames that are in the file, and that were not asked for yet.
        self._in_file: list[int] = []

    def add_to(self, file: OutputContainer) -> VideoStream:
        """Add the stream of the packets to a file.

        Args:
            file: the file.

        Returns:
            The stream.
        """
        return add_copied(file, self._format, self._pictures)

    def packets(self, _: Frame) -> Iterator[Packet[VideoStream]]:
        """Take the packets that have come."""
        return self._take()

    def flush(self) -> Iterator[Packet[VideoStream]]:
        """Take the last packets."""
        return self._take()

    def _take(self) -> Iterator[Packet[VideoStream]]:
        for each in self._source.since(self.next):
            self.has_ended = each.number != self.next or each.format != self._format
            if self.has_ended or each.number == self.limit:
                return
            self.next += 1
            heappush(self._in_file, each.pts)
            yield packet_of(each, self._pictures, self._step)

    def frames_until(self, pts: float) -> Iterator[int]:
        """Yield the pts of the file's frames up to a time, in the order in which they are shown. Each comes once.

        Args:
            pts: the time in units of the frames' time base.
        """
        while self._in_file and self._in_file[0] <= pts:
            yield heappop(self._in_file)

    def close(self) -> None:
        """Do nothing: the source is closed by itself."""


def add_copied(file: OutputContainer, packet_format: PacketFormat, pictures: PictureFormat) -> VideoStream:
    """Add a stream of copied packets to a file.

    Args:
        file: the file.
        packet_format: format of the packets.
        pictures: format of their frames.

    Returns:
        The stream.
    """
    stream = file.add_stream_from_template(packet_format.template)
    set_picture_format(stream.codec_context, pictures)
    stream.codec_context.extradata = packet_format.extradata
    stream.time_base = pictures.time_base
    if pictures.display_matrix is not None:
        stream.set_display_matrix(pictures.display_matrix)
    return stream


def packet_of(each: PicturePacket, pictures: PictureFormat, duration: int) -> Packet[VideoStream]:
    """Make a packet for a file.

    Args:
        each: the packet of the source.
        pictures: format of its frame.
        duration: how long its frame is shown, in units of the frames' time base.
    """
    packet = cast("Packet[VideoStream]", Packet(each.data))
    packet.pts, packet.dts, packet.time_base = each.pts, each.dts, pictures.time_base
    packet.duration, packet.is_keyframe = duration, each.is_key
    return packet


def detached_video(stream: VideoStream) -> VideoStream:
    """Copy a stream. The copy outlives the container of the stream.

    Args:
        stream: the stream.
    """
    return av.open(io.BytesIO(), "w", format="null").add_stream_from_template(stream)
