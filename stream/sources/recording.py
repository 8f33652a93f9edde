"""A recording: a file that FFmpeg can demux and decode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Stream

from polypstream.core.frame import FieldOrder, Frame, PictureFormat
from polypstream.core.geometry import thumbnail_size
from polypstream.core.timestamps import ClockShifts, TimestampCorrector
from polypstream.errors import SourceError
from polypstream.media.color import forget_unknown_tags
from polypstream.media.container import open_container, packets_of
from polypstream.media.pictures import (
    MAX_PIXELS,
    MAX_RATE,
    MAX_SIDE,
    Conformer,
    field_order_of,
    longest_step,
    picture_format,
)
from polypstream.sources.decoding import Decoding

THUMBNAILS = 9
# How much before its announced end a recording may end and still be whole: a stream's own duration is exact but for
# the last frames' (muxers round), a container's covers audio too, which often outlasts the pictures.
END_FRAMES = 3
END_S = 2.0
# Containers whose tracks announce the duration of the file, not their own.
SHARED_DURATION = ("asf", "flv")
# Containers whose number of frames may have those in it that were never stored.
COUNTS_GAPS = ("avi",)
MATROSKA_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
# An announced number of frames per second is believed while the times agree with it to this share.
RATE_TOLERANCE = 0.05


def results_stem(path: Path) -> str:
    """The name of the folder for a recording's results: its own without the ending, and never `..` or hidden."""
    return path.stem.strip(".") or "recording"


class _Timed(NamedTuple):
    """A picture, its time before `ClockShifts.origin` is added, and the time of the next one; None: it is the last."""

    picture: av.VideoFrame
    pts: int
    following: int | None


class _Announced(NamedTuple):
    """How long a recording says that it is.

    Attributes:
        seconds: its duration; None: it does not say.
        tolerance: how far that can be trusted, in seconds.
        shared: it covers the sound too.
    """

    seconds: float | None
    tolerance: float
    shared: bool


class Recording:
    """Frames of a file, every one, in order.

    Args:
        path: of the file.
        untimed_rate: pictures per second, for a stream whose pictures carry no times; None: as the stream says.

    Attributes:
        codec: FFmpeg's name of that of its pictures.
        shifts: by how much the times of the file were moved.

    Raises:
        SourceError: the file cannot be read, has no moving picture, or none that can be decoded.
    """

    def __init__(self, path: Path, untimed_rate: Fraction | None = None) -> None:
        self.path = path
        self.name, self.stem = str(path), results_stem(path)
        self.damage: list[str] = []
        self.notes: list[str] = []
        self.shifts = ClockShifts()
        self._concealed = self._changed = 0
        self._mender: TimestampCorrector[av.VideoFrame]
        # Frames handed out, and the time that they have covered, in seconds.
        self._read, self._covered = 0, 0.0
        # When the last picture ends by what the file says, in seconds.
        self._latest_told = 0.0
        self._closed = False
        self._container = open_container(path)
        try:
            self._stream = self._picture_stream()
            self._stream.thread_type = "AUTO"
            self._decoding = Decoding(path, self._container, self._stream)
            decoded = self._decoding.pictures()
            first = next(decoded, None)
            if first is None:
                raise SourceError(f"{path}: {self._why_nothing()}")
            if max(first.width, first.height) > MAX_SIDE:
                raise SourceError(
                    f"{path}: its pictures have {first.width}x{first.height} pixels; {MAX_SIDE} on a side are the most"
                )
            self.codec = self._stream.codec_context.codec.canonical_name
            self._format = picture_format(self._stream, first)
            if untimed_rate and first.pts is None:
                self._format = replace(self._format, rate=untimed_rate)
            self._timed = self._with_times(chain([first], decoded))
            self._first = next(self._timed)
            self.shifts.origin = self._origin()
            self._format = replace(self._format, start=self._seconds(self._first.pts))
        except BaseException:
            self._container.close()
            raise

    def _picture_stream(self) -> av.VideoStream:
        moving = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & stream.disposition.attached_pic
        ]
        if not moving:
            raise SourceError(f"{self.path}: has no moving picture (only sound or stills)")
        best = self._container.streams.best("video")
        stream = best if best in moving else moving[0]
        for other in moving:
            if other is not stream:
                self.notes.append(f"video track {other.index} was left out: only track {stream.index} is looked at")
        return stream

    def _why_nothing(self) -> str:
        if self._decoding.encrypted:
            return "is encrypted; decrypt it first"
        return f"none of its pictures can be decoded, or they exceed {MAX_PIXELS // 10**6} million pixels"

    def _origin(self) -> Fraction:
        """Seconds to add to all times, sound's too, so that none is negative."""
        first = self._first.pts * self._format.time_base
        if first >= 0:
            return Fraction(0)
        # Sound often begins a little earlier; long before it, there is something wrong with that.
        start = Fraction(self._container.start_time or 0, av.time_base)
        earliest = start if first - END_S < start < first else first
        return -(earliest // self._format.time_base) * self._format.time_base

    def _seconds(self, pts: int) -> Fraction:
        return pts * self._format.time_base + self.shifts.origin

    @cached_property
    def format(self) -> PictureFormat:
        """What is the same for every picture."""
        if self._format.field_order != "progressive" or self._closed:
            return self._format
        # A recording may begin with progressive pictures, such as a still title, and hold interlaced ones.
        orders = [look.field_order for look in self._looks if look.field_order != "progressive"]
        return replace(self._format, field_order=orders[0]) if orders else self._format

    @property
    def expected_frames(self) -> int | None:
        """How many frames it has: as it says, or else by the time that those read so far have covered."""
        frames = self._stream.frames
        if frames and self._container.format.name not in COUNTS_GAPS:
            return frames
        seconds, _, _ = self._announced()
        if not seconds:
            return frames or None
        told = frames or round(seconds * self._format.rate)
        if self._covered <= 0:
            return told
        by_time = max(self._read, round(self._read * seconds / self._covered))
        return told if abs(by_time - told) <= RATE_TOLERANCE * told else by_time

    def frames(self, since: int | None = None, until: int | None = None) -> Iterator[Frame]:
        """Frames in order, once. Damage is noted in `damage` when the last one is out.

        Args:
            since: pts of the first one, or that before which it comes; None: the recording's first.
            until: pts before which the last one comes; None: the recording's last.
        """
        origin = round(self.shifts.origin / self._format.time_base)
        timed: Iterator[_Timed] = chain([self._first], self._timed)
        if since is not None:
            timed = self._with_times(self._decoding.pictures_since(since - origin))
        conform, orientation, end = Conformer(self._format), self._format.orientation, 0.0
        for index, (picture, told, following) in enumerate(timed):
            pts = told + origin
            if until is not None and pts >= until:
                self._note_damage(index, None)
                return
            fitting = conform(picture, self._shape_of(picture))
            fitting.pts, fitting.duration = pts, self._duration(picture, told, following)
            end = float((pts + fitting.duration) * self._format.time_base)
            self._read, self._covered = index + 1, end - float(self._format.start)
            yield Frame(
                index,
                fitting,
                pts,
                self._format.time_base,
                last=following is None,
                orientation=orientation,
            )
        self._note_damage(self._read, end)

    def as_stored(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """The time of each picture in seconds, and the picture as it was decoded; once, in place of `frames`."""
        for picture, pts, _ in chain([self._first], self._timed):
            yield float(self._seconds(pts)), picture

    def _shape_of(self, picture: av.VideoFrame) -> Fraction:
        """Of the picture's pixels, over that of the first one's, counting what is wrong or different on the way."""
        ratio = cast(Fraction | None, picture.opaque) or Fraction(1)
        self._concealed += picture.is_corrupt
        size = self._format.width, self._format.height
        self._changed += ratio != 1 or (picture.width, picture.height) != size
        return ratio

    @property
    def _step(self) -> int:
        step = round(1 / (self._format.rate * self._format.time_base))
        return max(1, min(step, longest_step(self._format.time_base)))

    def _duration(self, picture: av.VideoFrame, pts: int, following: int | None) -> int:
        """How long a picture is shown, in units of the time base: as the file says if it says something sensible."""
        announced = self._stream.guessed_rate
        if announced and announced > MAX_RATE and following is not None:
            return following - pts
        # Without a time it is a guess. Without a duration the last picture would lie behind the end of an MP4, and
        # players drop it.
        stated = (picture.duration if picture.pts is not None else 0) or self._step
        return min(stated, longest_step(self._format.time_base))

    def _with_times(self, pictures: Iterator[av.VideoFrame]) -> Iterator[_Timed]:
        """Pictures with times that advance."""
        time_base = self._format.time_base

        def restart(told: int, follows: int) -> int:
            self.shifts.restarts.append((follows - told) * time_base)
            self.notes.append(
                f"its clock was set anew after {float(self._seconds(follows)):.1f} s; what follows was moved, to go on"
            )
            return follows - told

        mender = self._mender = TimestampCorrector(time_base, longest_step(time_base), 0, restart)
        held: tuple[av.VideoFrame, int] | None = None
        for picture, pts in mender.correct(self._told(picture) for picture in pictures):
            if held is not None:
                yield _Timed(*held, pts)
            held = picture, pts
        self._note_times()
        if held is not None:
            yield _Timed(*held, None)

    def _told(self, picture: av.VideoFrame) -> tuple[av.VideoFrame, int | None, int]:
        """What a picture says of its time, for the mender."""
        if picture.pts is not None:
            self._latest_told = max(self._latest_told, float(self._seconds(picture.pts + self._step)))
        return picture, picture.pts, self._step

    @property
    def was_mended(self) -> bool:
        """Whether its pictures or their times, as far as they were read, are not just as the file has them."""
        mender = self._mender
        return bool(mender.corrected or 0 < mender.missing < mender.count or self.shifts.restarts or self._changed)

    def _note_times(self) -> None:
        missing, mended = self._mender.missing, self._mender.corrected
        if missing and missing == self._mender.count:
            self.notes.append(
                f"its pictures carry no times; they were spaced at {float(self._format.rate):g} per second"
            )
        elif missing or mended:
            self.notes.append(
                f"{missing + mended} pictures had no usable time and were given one between their neighbours'"
            )

    def key_frames(self, every: float) -> list[int]:
        """The pts of key frames at which the recording can be cut into equal parts.

        Args:
            every: about how many seconds a part shall last.

        Returns:
            One fewer than there are parts; empty where it is too short, or has no such places.
        """
        seconds, _, _ = self._announced()
        parts = round(seconds / every) if seconds else 1
        found: list[int] = []
        if parts < 2 or self._first.picture.pts is None:
            return found
        origin = round(self.shifts.origin / self._format.time_base)
        with open_container(self.path) as container:
            stream = container.streams[self._stream.index]
            length = round((seconds or 0) / self._format.time_base)
            last = self._first.pts
            for number in range(1, parts):
                place = self._first.pts + length * number // parts
                key_frame = _key_frame_after(container, stream, place, last)
                if key_frame is not None:
                    last = key_frame
                    found.append(key_frame + origin)
        return found

    def _note_damage(self, frames: int, end: float | None) -> None:
        """What was found wrong with so many frames, of which the last one ended the recording then, if it did."""
        self.damage += self._decoding.damage
        for count, what in (
            (self._decoding.undecodable, "packets could not be decoded"),
            (self._concealed, "pictures are damaged"),
        ):
            if count:
                self.damage.append(f"{count} {what}")
        if self._changed:
            self.notes.append(
                f"{self._changed} pictures changed their size or the shape of their pixels and were fitted"
            )
        if end is None:
            return
        start = float(self._format.start)
        if self._decoding.encrypted:
            self.damage.append(f"from {end - start:.1f} s on it is encrypted")
            return
        announced, tolerance, shared = self._announced()
        # A wrong time of one picture, which was mended, is what some containers take for their end.
        end = max(end, self._latest_told) if self._mender.corrected else end
        if shared:
            end = max(end, self._decoding.sound_end + float(self.shifts.after(len(self.shifts.restarts)) or 0))
        # Matroska counts its duration from zero, other containers from the first picture.
        if announced and max(end, end - start) < announced - tolerance:
            self.damage.append(f"it ends at {end - start:.1f} s of {announced:.1f} s")

    def _announced(self) -> _Announced:
        exact = float(END_FRAMES / self._format.rate)
        if self._stream.duration is not None and self._container.format.name not in SHARED_DURATION:
            return _Announced(float(self._stream.duration * self._format.time_base), exact, shared=False)
        tagged = MATROSKA_DURATION.fullmatch(self._stream.metadata.get("DURATION", ""))
        if tagged:
            hours, minutes, seconds = tagged.groups()
            return _Announced(int(hours) * 3600 + int(minutes) * 60 + float(seconds), exact, shared=False)
        container = self._container.duration
        return _Announced(container / av.time_base if container else None, END_S, shared=True)

    def thumbnails(self) -> list[np.ndarray]:
        """Full-range grey thumbnails from all over the recording, for finding the field of view; looked for once."""
        return [look.thumbnail for look in self._looks]

    @cached_property
    def _looks(self) -> list[_Look]:
        size = thumbnail_size(self._format.width, self._format.height)
        pictures = [self._first.picture]
        if self._container.duration:
            with open_container(self.path) as container:
                stream = container.streams[self._stream.index]
                assert isinstance(stream, av.VideoStream)
                for number in range(THUMBNAILS):
                    pictures += _picture_near(container, stream, (number + 0.5) / THUMBNAILS)
        return [_Look(_thumbnail(picture, size), field_order_of(picture)) for picture in pictures]

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        self._closed = True
        self._container.close()


class _Look(NamedTuple):
    """What a picture from somewhere in the recording tells."""

    thumbnail: np.ndarray
    field_order: FieldOrder


def _picture_near(container: InputContainer, stream: av.VideoStream, share: float) -> list[av.VideoFrame]:
    """The key frame before a place in a recording, 0..1 of its duration; none where it cannot be had."""
    try:
        container.seek((container.start_time or 0) + int((container.duration or 0) * share))
        for packet in packets_of(container, [stream], []):
            pictures = cast("list[av.VideoFrame]", packet.decode())
            if pictures:
                forget_unknown_tags(pictures[0])
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
