"""A recording: a file that FFmpeg can demux and decode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, dropwhile
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.error import EOFError as DecoderFlushedError
from av.error import FFmpegError, InvalidDataError
from av.stream import Stream

from stream.errors import SourceError
from stream.frame import Frame
from stream.pictures import MOST_PIXELS, in_format, longest_step, picture_format
from stream.sources.container import open_container, packets_of
from stream.view import thumbnail_size

THUMBNAILS = 9
# How much before its announced end a recording may end and still be whole: a stream's own duration is exact but for
# the last frames' (muxers round), a container's covers audio too, which often outlasts the pictures.
END_FRAMES = 3
END_S = 2.0
# Where seeking does not land before the place that was asked for, so many seconds earlier is tried.
EARLIER_S = (0, 5, 30)
MATROSKA_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def results_stem(path: Path) -> str:
    """The name of the folder for a recording's results: its own without the ending, and never `..` or hidden."""
    return path.stem.strip(".") or "recording"


class Recording:
    """Frames of a file, every one, in order.

    Args:
        path: of the file.
        untimed_rate: pictures per second, for a stream whose pictures carry no times; None: as the stream says.

    Attributes:
        codec: FFmpeg's name of that of its pictures.

    Raises:
        SourceError: the file cannot be read, has no moving picture, or none that can be decoded.
    """

    def __init__(self, path: Path, untimed_rate: Fraction | None = None) -> None:
        self.path = path
        self.name, self.stem = str(path), results_stem(path)
        self.damage: list[str] = []
        self.notes: list[str] = []
        self._undecodable = self._concealed = self._untimed = self._mistimed = self._resized = 0
        self._container = open_container(path)
        try:
            self._stream = self._picture_stream()
            self._stream.thread_type = "AUTO"
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                most = MOST_PIXELS // 10**6
                raise SourceError(f"{path}: none of its pictures can be decoded, or they exceed {most} million pixels")
            self._first = first
            self.codec = self._stream.codec_context.codec.canonical_name
            self.format = picture_format(self._stream, self._first)
            if untimed_rate and first.pts is None:
                self.format = replace(self.format, rate=untimed_rate)
        except BaseException:
            self._container.close()
            raise
        self.expected_frames = self._stream.frames or self._frames_from_duration()

    def _picture_stream(self) -> av.VideoStream:
        moving = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & stream.disposition.attached_pic
        ]
        if not moving:
            raise SourceError(f"{self.path}: has no moving picture (only sound or stills)")
        best = self._container.streams.best("video")
        return best if best in moving else moving[0]

    def _frames_from_duration(self) -> int | None:
        seconds, _ = self._announced_duration()
        return round(seconds * self.format.rate) if seconds else None

    def frames(self, since: int | None = None, until: int | None = None) -> Iterator[Frame]:
        """Frames in order, once. Damage is noted in `damage` when the last one is out.

        Args:
            since: pts of the first one, or that before which it comes; None: the recording's first.
            until: pts before which the last one comes; None: the recording's last.
        """
        last_pts: int | None = None
        index, end = 0, 0.0
        step = max(1, round(1 / (self.format.rate * self.format.time_base)))
        for picture in chain([self._first], self._decoded) if since is None else self._pictures_since(since):
            self._concealed += picture.is_corrupt
            self._resized += (picture.width, picture.height) != (self.format.width, self.format.height)
            fitting = in_format(picture, self.format)
            duration = picture.duration if picture.pts is not None else 0  # without a time it is a guess
            fitting.pts = last_pts = pts = self._usable_pts(picture, last_pts, step)
            if until is not None and pts >= until:
                break
            # Without a duration the last picture would lie behind the end of an MP4, and players drop it.
            fitting.duration = duration or step
            end = float((pts + fitting.duration) * self.format.time_base)
            yield Frame(index, fitting, pts, self.format.time_base)
            index += 1
        else:
            self._note_damage(index, end)
            return
        self._note_damage(index, None)

    def _pictures_since(self, since: int) -> Iterator[av.VideoFrame]:
        """Pictures from a time on; none where the recording does not let itself be entered before it."""
        for earlier in EARLIER_S:
            self._container.seek(since - round(earlier / self.format.time_base), stream=self._stream)
            # What comes before the first key frame may refer to pictures that were not read.
            pictures = dropwhile(lambda picture: not picture.key_frame, self._decode())
            first = next(pictures, None)
            if first is not None and first.pts is not None and first.pts <= since:
                return dropwhile(lambda each: each.pts is not None and each.pts < since, chain([first], pictures))
        return iter(())

    def key_frames(self, every: float) -> list[int]:
        """The pts of key frames at which the recording can be cut into equal parts.

        Args:
            every: about how many seconds a part shall last.

        Returns:
            One fewer than there are parts; empty where it is too short, or has no such places.
        """
        seconds, _ = self._announced_duration()
        parts = round(seconds / every) if seconds else 1
        found: list[int] = []
        if parts < 2 or self._first.pts is None:
            return found
        with open_container(self.path) as container:
            stream = container.streams[self._stream.index]
            length = round((seconds or 0) / self.format.time_base)
            for number in range(1, parts):
                place = self._first.pts + length * number // parts
                key_frame = _key_frame_after(container, stream, place, found[-1] if found else self._first.pts)
                if key_frame is not None:
                    found.append(key_frame)
        return found

    def _usable_pts(self, picture: av.VideoFrame, last: int | None, step: int) -> int:
        """The picture's own pts if time advances with it, and not by more than MP4 can count; else a likely one."""
        pts = picture.pts
        if pts is None:
            self._untimed += 1
        elif last is None or 0 < pts - last <= longest_step(self.format.time_base):
            return pts
        else:
            self._mistimed += 1
        return 0 if last is None else last + step

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Decode on past damage, counting it."""
        for packet in packets_of(self._container, [self._stream], self.damage):
            try:
                yield from cast("list[av.VideoFrame]", packet.decode())
            except InvalidDataError:
                self._undecodable += 1
            except DecoderFlushedError:
                return  # a second empty packet, after reading had to be taken up again
            except FFmpegError as error:
                self.damage.append(f"decoding stopped early ({error.strerror})")
                return

    def _note_damage(self, frames: int, end: float | None) -> None:
        """What was found wrong with so many frames, of which the last one ended the recording then, if it did."""
        if self._untimed == frames:
            self.notes.append(
                f"its pictures carry no times; they were spaced at {float(self.format.rate):g} per second"
            )
            self._untimed = 0
        for count, what in (
            (self._undecodable, "packets could not be decoded"),
            (self._concealed, "pictures are damaged"),
            (self._untimed + self._mistimed, "pictures had no usable time and were given one"),
            (self._resized, "pictures changed their size and were scaled"),
        ):
            if count:
                self.damage.append(f"{count} {what}")
        announced, tolerance = self._announced_duration()
        start = float(self.format.start)
        # Matroska counts its duration from zero, other containers from the first picture.
        if announced and end is not None and max(end, end - start) < announced - tolerance:
            self.damage.append(f"it ends at {end - start:.1f} s of {announced:.1f} s")

    def _announced_duration(self) -> tuple[float | None, float]:
        """Announced duration of the pictures and how far it can be trusted, both in seconds."""
        exact = float(END_FRAMES / self.format.rate)
        if self._stream.duration is not None:
            return float(self._stream.duration * self.format.time_base), exact
        tagged = MATROSKA_DURATION.fullmatch(self._stream.metadata.get("DURATION", ""))
        if tagged:
            hours, minutes, seconds = tagged.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds), exact
        container = self._container.duration
        return (container / av.time_base if container else None), END_S

    def thumbnails(self) -> list[np.ndarray]:
        """Full-range grey thumbnails from all over the recording, for finding the field of view; looked for once."""
        return self._thumbnails

    @cached_property
    def _thumbnails(self) -> list[np.ndarray]:
        size = thumbnail_size(self.format.width, self.format.height)
        pictures = [self._first]
        if self._container.duration:
            with open_container(self.path) as container:
                stream = container.streams[self._stream.index]
                assert isinstance(stream, av.VideoStream)
                for number in range(THUMBNAILS):
                    pictures += _picture_near(container, stream, (number + 0.5) / THUMBNAILS)
        return [_thumbnail(picture, size) for picture in pictures]

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        self._container.close()


def _picture_near(container: InputContainer, stream: av.VideoStream, share: float) -> list[av.VideoFrame]:
    """The key frame before a place in a recording, 0..1 of its duration; none where it cannot be had."""
    try:
        container.seek((container.start_time or 0) + int((container.duration or 0) * share))
        for packet in packets_of(container, [stream], []):
            pictures = cast("list[av.VideoFrame]", packet.decode())
            if pictures:
                return pictures[:1]
    except FFmpegError:
        pass  # a damaged or unseekable place: the other thumbnails serve
    return []


def _key_frame_after(container: InputContainer, stream: Stream, place: int, last: int) -> int | None:
    """The pts of the key frame at a place, or near it, but after the last one; None where there is none.

    Seeking in an indexed file ends at the key frame before a place, in a transport stream at any packet.
    """
    try:
        container.seek(place, stream=stream)
        for packet in packets_of(container, [stream], []):
            if packet.pts is None or packet.pts > 2 * place - last:
                return None
            if packet.is_keyframe and packet.pts > last:
                return packet.pts
    except FFmpegError:
        pass  # a damaged or unseekable place
    return None


def _thumbnail(picture: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    grey = picture.reformat(*size, "gray", interpolation="AREA", dst_color_range="JPEG")
    return np.ascontiguousarray(grey.to_ndarray())
