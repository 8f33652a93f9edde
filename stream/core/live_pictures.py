"""The packets of a live source's pictures, which recordings and clips copy at their own pace."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import takewhile

from av.video.stream import VideoStream

# Limit of the memory for each source in bytes.
MOST_BYTES = 500_000_000


@dataclass(frozen=True, slots=True)
class PacketFormat:
    """What packets of pictures have in common.

    Attributes:
        extradata: the decoder configuration for an MP4 (avcC).
        reordered: whether pictures may be decoded in another order than they are shown.
        template: a stream with these properties, which depends on no source.
    """

    extradata: bytes
    reordered: bool
    template: VideoStream = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PicturePacket:
    """The packet of a picture, as MP4 stores it.

    Attributes:
        number: its place among the packets of the source, in the order of decoding.
        format: its format.
        data: its bytes, without parameter sets.
        pts: time of its frame, in units of the frames' time base.
        dts: when it is decoded, in the same units.
        is_key: it is an IDR picture: nothing that follows refers to what was before.
    """

    number: int
    format: PacketFormat
    data: bytes
    pts: int
    dts: int
    is_key: bool


class LivePictures:
    """The packets of a live source's last pictures, in whole groups, on the clock of its frames.

    Each packet is here before its frame has left the source, or, if frames are reordered, a few frames later.

    Args:
        most_bytes: limit of the memory. The oldest group is dropped first.

    Attributes:
        problem: why they cannot be copied now, for the user; empty if they can be.
        bytes: size of what is kept.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.problem, self._most_bytes, self.bytes = "the source sends no H.264", most_bytes, 0
        self._seconds = 0.0
        self._packets: deque[PicturePacket] = deque()
        self._keys: deque[PicturePacket] = deque()
        self._count = 0
        self._last_dts: int | None = None
        self._lock = threading.Lock()

    def keep(self, seconds: float) -> None:
        """Ask for the last seconds. What nobody asks for is not kept.

        Args:
            seconds: how much is kept at least, and a group of pictures more at most.
        """
        self._seconds = max(self._seconds, seconds)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody has asked for them."""
        return self._seconds > 0

    def add(
        self, packet_format: PacketFormat, data: bytes, times: tuple[int, int], is_key: bool, unit: Fraction
    ) -> None:
        """Add a packet, as the source.

        Args:
            packet_format, data, is_key: as in PicturePacket.
            times: pts and dts.
            unit: the frames' time base.
        """
        with self._lock:
            pts, dts = times
            dts = dts if self._last_dts is None else max(dts, self._last_dts + 1)
            self._last_dts = dts
            packet = PicturePacket(self._count, packet_format, data, max(pts, dts), dts, is_key)
            self._count += 1
            if is_key:
                self._keys.append(packet)
            if not self._keys:
                return
            self._packets.append(packet)
            self.bytes += len(data)
            oldest = packet.pts - self._seconds / unit
            while len(self._keys) > 1 and (self._keys[1].pts <= oldest or self.bytes > self._most_bytes):
                self._drop_group()

    def _drop_group(self) -> None:
        self._keys.popleft()
        while self._packets[0] is not self._keys[0]:
            self.bytes -= len(self._packets.popleft().data)

    def since(self, number: int) -> list[PicturePacket]:
        """Return the packets from a place on, in the order of decoding.

        Args:
            number: the place.
        """
        with self._lock:
            return list(takewhile(lambda each: each.number >= number, reversed(self._packets)))[::-1]

    def key_since(self, number: int) -> PicturePacket | None:
        """Return the first key picture from a place on; None if there is none.

        Args:
            number: the place.
        """
        with self._lock:
            return next((each for each in self._keys if each.number >= number), None)

    def newest_key(self, pts: int) -> PicturePacket | None:
        """Return the newest key picture up to a time; None if there is none.

        Args:
            pts: the time in units of the frames' time base.
        """
        with self._lock:
            return next((each for each in reversed(self._keys) if each.pts <= pts), None)

    def last(self, seconds: float, unit: Fraction) -> list[PicturePacket]:
        """Return the packets of the last seconds that have the same format, from a key picture on.

        Args:
            seconds: how much at least; a group of pictures more at most.
            unit: the frames' time base.
        """
        with self._lock:
            if not self._packets:
                return []
            newest = self._packets[-1]
            keys = takewhile(lambda each: each.format == newest.format, reversed(self._keys))
            first = None
            for first in keys:
                if first.pts <= newest.pts - seconds / unit:
                    break
            begins = newest.number + 1 if first is None else first.number
        return self.since(begins)
