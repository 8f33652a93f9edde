"""Pictures of one track of a file, decoded past damage, which is counted."""

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

# Where seeking does not land before the place that was asked for, so many seconds earlier is tried.
EARLIER_S = (0, 5, 30)


class Decoding:
    """Decodes a video track from where its container stands.

    Args:
        path: of the file.
        container: of it, to be read from.
        stream: the track.

    Attributes:
        damage: what ended the reading early, one phrase each.
        undecodable: packets that could not be decoded.
        encrypted: it goes on encrypted, and ends here.
        sound_end: when the sound ends that lies beside the pictures, in seconds; 0 if there is none.
    """

    def __init__(self, path: Path, container: InputContainer, stream: av.VideoStream) -> None:
        self._path, self._container, self._stream = path, container, stream
        self.damage: list[str] = []
        self.undecodable = 0
        self.encrypted = False
        self.sound_end = 0.0
        # Packets that went into the decoder, less the pictures and errors that came out.
        self._owed = 0
        self._again = False
        self._tags: tuple[int, int, int, int] | None = None
        # Of a pixel: width over height, now and in the first picture, as the pictures say.
        self._shape: Fraction | None = None
        self._first_shape: Fraction | None = None

    def pictures(self) -> Iterator[av.VideoFrame]:
        """Every picture that can be decoded, in order; its time is what the file says, or None.

        Where its pixels have another shape than those of the first one, `opaque` is the one over the other.
        """
        last: int | None = None
        for picture in self._decoded(self._packets()):
            last = picture.pts
            yield picture
        if self._owed > 0 and last is not None and not self._again:
            yield from self._still_owed(last)

    def _packets(self) -> Iterator[Packet[av.VideoStream]]:
        sound = self._container.streams.audio
        for packet in packets_of(self._container, [self._stream, *sound], self.damage):
            if packet.stream is self._stream:  # the last, empty one says so only there
                if packet.size and is_encrypted(packet):
                    self.encrypted = True
                    return
                yield cast("Packet[av.VideoStream]", packet)
            elif packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self.sound_end = max(self.sound_end, end)

    def _decoded(self, packets: Iterator[Packet[av.VideoStream]]) -> Iterator[av.VideoFrame]:
        for packet in packets:
            self._owed += packet.size > 0
            try:
                pictures = packet.decode()
            except InvalidDataError:
                self.undecodable += 1
                self._owed -= 1
            except DecoderFlushedError:
                return  # a second empty packet, after reading had to be taken up again
            except FFmpegError as error:
                self.damage.append(f"decoding stopped early ({error.strerror})")
                return
            else:
                self._owed -= len(pictures)
                for picture in pictures:
                    forget_unknown_tags(picture)
                    self._settle(picture)
                    yield picture

    def _settle(self, picture: av.VideoFrame) -> None:
        """Tags change with a key frame only.

        A decoder that reorders gives those of the next key frame to the last pictures before it, where they have none
        of their own (libavcodec/decode.c). PyAV 18.1 does not tell the shape of a frame's pixels, the decoder does.
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
        """Every picture from a time on; none where the file does not let itself be entered before it."""
        assert self._stream.time_base is not None
        for earlier in EARLIER_S:
            try:
                self._container.seek(pts - round(earlier / self._stream.time_base), stream=self._stream)
            except FFmpegError:  # a place that it has no index for
                continue
            # What comes before the first key frame may refer to pictures that were not read.
            pictures = dropwhile(lambda picture: not picture.key_frame, self.pictures())
            first = next(pictures, None)
            if first is not None and first.pts is not None and first.pts <= pts:
                return dropwhile(lambda each: each.pts is not None and each.pts < pts, chain([first], pictures))
        return iter(())

    def _still_owed(self, last: int) -> Iterator[av.VideoFrame]:
        """Pictures that the decoder's threads held when it met damage at the very end.

        PyAV 18.1 then gives up what is behind the damage. So the end is decoded once more, by one thread.
        """
        with open_container(self._path) as container:
            stream = container.streams[self._stream.index]
            assert isinstance(stream, av.VideoStream)
            stream.thread_type = "SLICE"
            again, most = Decoding(self._path, container, stream), self._owed
            again._again = True
            pictures = again.pictures_since(last)
            if (picture := next(pictures, None)) is None or picture.pts != last:
                return
            known = again.undecodable
            yield from islice(pictures, most)
            self.undecodable += again.undecodable - known
