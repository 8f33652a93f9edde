"""Decoding of one video track of a file, past damaged packets, which are counted."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.error import EOFError as DecoderFlushedError
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet

from polypstream.media.color import forget_unknown_tags
from polypstream.media.container import is_encrypted, open_container, packets_of

# Seconds to seek back before the wanted time. The next value is tried if the seek lands behind that time.
SEEK_BACK_S = (0, 5, 30)


class Decoding:
    """Decodes a video track from the current position of its container.

    Args:
        path: file of the container.
        container: open container to read from.
        stream: video track to decode.

    Attributes:
        damage: reasons why reading or decoding stopped early, one phrase each.
        undecodable: number of packets that could not be decoded.
        encrypted: True if decoding stopped at an encrypted packet.
        sound_end: end of the sound in the packets read so far, in seconds; 0 if there is none.
    """

    def __init__(self, path: Path, container: InputContainer, stream: av.VideoStream) -> None:
        self._path, self._container, self._stream = path, container, stream
        self.damage: list[str] = []
        self.undecodable = 0
        self.encrypted = False
        self.sound_end = 0.0
        # Packets sent to the decoder, minus the frames and errors that it returned.
        self._pending = 0
        self._is_retry = False
        self._tags: tuple[int, int, int, int] | None = None
        # Sample aspect ratio (pixel width over height) of the current and of the first frame, from the decoder.
        self._shape: Fraction | None = None
        self._first_shape: Fraction | None = None

    def pictures(self) -> Iterator[av.VideoFrame]:
        """Decode all frames that can be decoded.

        Yields:
            The frames in order. `pts` is the file's timestamp, or None. `opaque` is set if the pixel shape differs from
            that of the first frame: it is the frame's sample aspect ratio divided by the first one's.
        """
        last: int | None = None
        for picture in self._decoded(self._packets()):
            last = picture.pts
            yield picture
        if self._pending > 0 and last is not None and not self._is_retry:
            yield from self._frames_behind_damage(last)

    def _packets(self) -> Iterator[Packet[av.VideoStream]]:
        sound = self._container.streams.audio
        for packet in packets_of(self._container, [self._stream, *sound], self.damage):
            if packet.stream is self._stream:  # the last, empty packet names its track only here
                if packet.size and is_encrypted(packet):
                    self.encrypted = True
                    return
                yield cast("Packet[av.VideoStream]", packet)
            elif packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self.sound_end = max(self.sound_end, end)

    def _decoded(self, packets: Iterator[Packet[av.VideoStream]]) -> Iterator[av.VideoFrame]:
        for packet in packets:
            self._pending += packet.size > 0
            try:
                pictures = packet.decode()
            except InvalidDataError:
                self.undecodable += 1
                self._pending -= 1
            except DecoderFlushedError:
                return  # a second empty packet, sent because reading was resumed
            except FFmpegError as error:
                self.damage.append(f"decoding stopped early ({error.strerror})")
                return
            else:
                self._pending -= len(pictures)
                for picture in pictures:
                    forget_unknown_tags(picture)
                    self._fix_tags(picture)
                    yield picture

    def _fix_tags(self, picture: av.VideoFrame) -> None:
        """Correct the colour tags of a frame, and note its pixel shape. Both change at keyframes only.

        A decoder that reorders frames gives the last frames before a keyframe the tags of that keyframe, if these
        frames have no tags of their own (libavcodec/decode.c). PyAV 18.1 does not give the pixel shape of a frame.
        Only the decoder has it.
        """
        if picture.key_frame or self._tags is None:
            self._tags = picture.colorspace, picture.color_range, picture.color_primaries, picture.color_trc
            shape = self._stream.codec_context.sample_aspect_ratio or self._shape
            self._first_shape = self._first_shape or shape
            self._shape = shape
        else:
            picture.colorspace, picture.color_range, picture.color_primaries, picture.color_trc = self._tags
        if self._shape and self._first_shape and self._shape != self._first_shape:
            picture.opaque = self._shape / self._first_shape

    def pictures_since(self, pts: int) -> Iterator[av.VideoFrame]:
        """Decode all frames from a timestamp on.

        Args:
            pts: the first timestamp, in units of the track's time base.

        Returns:
            The frames in order; nothing if the file cannot be entered before `pts`.
        """
        pictures = self.pictures_from_key_frame(pts)
        return dropwhile(lambda each: each.pts is not None and each.pts < pts, pictures)

    def pictures_from_key_frame(self, pts: int) -> Iterator[av.VideoFrame]:
        """Decode all frames from a keyframe on.

        Args:
            pts: a timestamp in units of the track's time base; the keyframe is at this time or before.

        Returns:
            The frames in order; nothing if the file cannot be entered before `pts`.
        """
        assert self._stream.time_base is not None
        for earlier in SEEK_BACK_S:
            try:
                self._container.seek(pts - round(earlier / self._stream.time_base), stream=self._stream)
            except FFmpegError:  # the index does not cover this time
                continue
            # Frames before the first keyframe may refer to frames that were not read.
            pictures = dropwhile(lambda picture: not picture.key_frame, self.pictures())
            first = next(pictures, None)
            if first is not None and first.pts is not None and first.pts <= pts:
                return chain([first], pictures)
        return iter(())

    def _frames_behind_damage(self, last: int) -> Iterator[av.VideoFrame]:
        """Decode the frames that the decoder's threads still held when they met damage at the very end.

        PyAV 18.1 drops the frames behind the damage in this case. So one thread decodes the end of the file again.

        Args:
            last: pts of the last frame decoded.
        """
        with open_container(self._path) as container:
            stream = container.streams[self._stream.index]
            assert isinstance(stream, av.VideoStream)
            stream.thread_type = "SLICE"
            retry, most = Decoding(self._path, container, stream), self._pending
            retry._is_retry = True
            pictures = retry.pictures_since(last)
            if (picture := next(pictures, None)) is None or picture.pts != last:
                return
            reported = retry.undecodable
            yield from islice(pictures, most)
            self.undecodable += retry.undecodable - reported
