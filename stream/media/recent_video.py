"""The last seconds of a video, encoded and in memory, to be saved as a clip when they turn out to matter."""

from __future__ import annotations

import io

import av
from av.codec.context import Flags

from polypstream.core.config import VideoSettings
from polypstream.core.frame import PictureFormat
from polypstream.core.live_pictures import LivePictures, PacketFormat
from polypstream.media.encoders import choose_encoder
from polypstream.media.frame_encoder import FrameEncoder, encoder_options, open_encoder
from polypstream.media.video import add_pictures


class RecentVideo:
    """Encodes pictures and keeps the last ones, in whole groups of pictures.

    Args:
        pictures: their format.
        settings: the encoder and its quality.
        seconds: how much is kept at least, as soon as it has come; a group more at most.
        most_bytes: limit of the memory. The oldest group is dropped first.

    Attributes:
        format: format of the pictures.
        packets: what is kept.

    Raises:
        OutputError: the encoder does not work.
    """

    def __init__(self, pictures: PictureFormat, settings: VideoSettings, seconds: float, most_bytes: int) -> None:
        self.format, self.packets = pictures, LivePictures(most_bytes)
        self.packets.keep(seconds)
        encoder = choose_encoder(settings.codec, pictures.pixel_format)
        options = {**encoder_options(encoder, pictures, settings), **encoder.no_delay}
        context = open_encoder(encoder, pictures, options)
        # MP4 has the parameter sets in its header, not in the packets.
        context.flags |= Flags.global_header
        self._context, self._encode = context, FrameEncoder(context.encode, pictures)
        self._template = add_pictures(av.open(io.BytesIO(), "w", format="null"), encoder, pictures, options)
        self._packet_format: PacketFormat | None = None

    def add(self, picture: av.VideoFrame) -> None:
        """Encode and keep a picture.

        Args:
            picture: the picture, with its pts.
        """
        seconds = float((picture.pts or 0) * self.format.time_base)
        for packet in self._encode.encode(picture, seconds):
            if self._packet_format is None:
                self._packet_format = PacketFormat(self._context.extradata or b"", False, self._template)
            pts = packet.pts or 0
            times = pts, packet.dts if packet.dts is not None else pts
            self.packets.add(self._packet_format, bytes(packet), times, packet.is_keyframe, self.format.time_base)
