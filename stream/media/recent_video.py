"""The last seconds of a video, encoded and in memory, to be saved as a clip when they turn out to matter."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import av
from av.codec.context import Flags

from polypstream.core.config import VideoSettings
from polypstream.core.frame import PictureFormat
from polypstream.media.encoders import Encoder, choose_encoder
from polypstream.media.frame_encoder import FrameEncoder, encoder_options, open_encoder
from polypstream.media.video import EncodedPicture

Note = TypeVar("Note")


@dataclass(frozen=True, slots=True)
class Kept(Generic[Note]):
    """A picture that is kept.

    Attributes:
        picture: its packet.
        note: what the user of RecentVideo keeps with it.
    """

    picture: EncodedPicture
    note: Note


@dataclass(slots=True)
class _Group(Generic[Note]):
    """A group of pictures, which begins with a key frame."""

    pictures: list[Kept[Note]] = field(default_factory=list)
    bytes: int = 0


class RecentVideo(Generic[Note]):
    """Encodes pictures and keeps the last ones, in whole groups of pictures.

    Args:
        pictures: their format.
        settings: the encoder and its quality.
        seconds: how much is kept at least, as soon as it has come; a group more at most.
        most_bytes: limit of the memory. The oldest group is dropped first.

    Attributes:
        format: format of the pictures.
        bytes: size of what is kept.

    Raises:
        OutputError: the encoder does not work.
    """

    def __init__(self, pictures: PictureFormat, settings: VideoSettings, seconds: float, most_bytes: int) -> None:
        self.format, self._seconds, self._most_bytes = pictures, seconds, most_bytes
        self._encoder: Encoder = choose_encoder(settings.codec, pictures.pixel_format)
        self.options = {**encoder_options(self._encoder, pictures, settings), **self._encoder.no_delay}
        context = open_encoder(self._encoder, pictures, self.options)
        # MP4 has the parameter sets in its header, not in the packets.
        context.flags |= Flags.global_header
        self._encode = FrameEncoder(context.encode, pictures)
        self._notes: deque[Note] = deque()
        self._groups: deque[_Group[Note]] = deque()
        self.bytes = 0

    @property
    def encoder(self) -> Encoder:
        """The encoder of the packets."""
        return self._encoder

    def add(self, picture: av.VideoFrame, note: Note) -> None:
        """Encode and keep a picture.

        Args:
            picture: the picture, with its pts.
            note: kept with it.
        """
        self._notes.append(note)
        seconds = float((picture.pts or 0) * self.format.time_base)
        for packet in self._encode.encode(picture, seconds):
            data = bytes(packet)
            pts = packet.pts or 0
            encoded = EncodedPicture(data, pts, packet.dts if packet.dts is not None else pts, packet.is_keyframe)
            # Frames are not reordered.
            self._keep(Kept(encoded, self._notes.popleft()))
        self._drop(seconds)

    def _keep(self, kept: Kept[Note]) -> None:
        if kept.picture.is_key_frame:
            self._groups.append(_Group())
        group = self._groups[-1]
        group.pictures.append(kept)
        group.bytes += len(kept.picture.data)
        self.bytes += len(kept.picture.data)

    def _drop(self, now: float) -> None:
        while len(self._groups) > 1:
            rest = float(self._groups[1].pictures[0].picture.pts * self.format.time_base)
            if now - rest < self._seconds and self.bytes <= self._most_bytes:
                return
            self.bytes -= self._groups.popleft().bytes

    def kept(self) -> Sequence[Kept[Note]]:
        """Return what is kept, the oldest first. The first one is a key frame."""
        return [kept for group in self._groups for kept in group.pictures]
