"""The sound of a live source: packets of the last seconds, which recordings and clips read at their own pace."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import takewhile

from av.audio.stream import AudioStream

# Time base of live frames and of their sound, as in broadcasting. Times count from the moment at which the source was
# opened.
TIME_BASE = Fraction(1, 90_000)


@dataclass(frozen=True, slots=True)
class SoundData:
    """A packet of sound.

    Attributes:
        data: its bytes.
        pts: its time in units of TIME_BASE.
        duration: its length in units of TIME_BASE; 0 if it is not known.
    """

    data: bytes
    pts: int
    duration: int


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """What packets of sound have in common.

    Attributes:
        codec: FFmpeg's name of the codec.
        rate: samples per second.
        layout: FFmpeg's name of the channel layout.
        extradata: header of the codec, or None.
        template: a stream with these properties, which depends on no source.
        first: the first packets, which show whether the sound can be decoded.
        packet_s: length of a packet in seconds, if FFmpeg does not say it; otherwise 0.
    """

    codec: str
    rate: int
    layout: str
    extradata: bytes | None
    template: AudioStream = field(compare=False, repr=False)
    first: Sequence[bytes] = field(compare=False, repr=False)
    packet_s: float = field(compare=False, default=0.0)


class LiveSound:
    """The sound of a live source, on the clock of its frames."""

    def __init__(self) -> None:
        self._expected = False
        self._seconds = 0.0
        self._packets: deque[tuple[SoundFormat, SoundData]] = deque()
        self._changed = threading.Condition()

    def keep(self, seconds: float) -> None:
        """Ask for the last seconds. What nobody asks for is neither read nor kept.

        Args:
            seconds: how much is kept at least.
        """
        self._seconds = max(self._seconds, seconds)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody has asked for it."""
        return self._seconds > 0

    @property
    def end(self) -> int | None:
        """Where the newest packet ends, in units of TIME_BASE; None if there was none."""
        with self._changed:
            return self._packets[-1][1].pts + self._packets[-1][1].duration if self._packets else None

    def expect(self, is_coming: bool) -> None:
        """Say, as the source, whether sound is coming.

        Args:
            is_coming: the source has announced sound, or has ended.
        """
        with self._changed:
            self._expected = is_coming
            self._changed.notify_all()

    def add(self, packet_format: SoundFormat, packet: SoundData) -> None:
        """Add a packet, as the source.

        Args:
            packet_format: its format.
            packet: the packet. It starts after the one before.
        """
        with self._changed:
            self._packets.append((packet_format, packet))
            oldest = packet.pts - self._seconds / TIME_BASE
            while self._packets[0][1].pts < oldest:
                self._packets.popleft()
            self._changed.notify_all()

    def since(self, packet_format: SoundFormat, pts: int) -> list[SoundData]:
        """Return the packets of a format that start at a time or later, the oldest first.

        Args:
            packet_format: the format.
            pts: the time in units of TIME_BASE.
        """
        with self._changed:
            newest = takewhile(lambda each: each[1].pts >= pts, reversed(self._packets))
            return [packet for its_format, packet in newest if its_format == packet_format][::-1]

    def format_since(self, pts: int) -> SoundFormat | None:
        """Return the format of the newest packet.

        Args:
            pts: a time in units of TIME_BASE.

        Returns:
            The format; None if there is no sound since that time.
        """
        with self._changed:
            if not self._packets or self._packets[-1][1].pts < pts:
                return None
            return self._packets[-1][0]

    def wait_until(self, pts: int, seconds: float) -> None:
        """Wait until sound up to a time has come, if it is coming.

        Args:
            pts: the time in units of TIME_BASE.
            seconds: longest wait.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: not self._expected or (self._packets and self._packets[-1][1].pts >= pts), seconds
            )
