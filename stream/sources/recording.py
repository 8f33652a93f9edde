"""A recording: a video file that FFmpeg can demux and decode."""

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
from av.video.frame import PictureType

from polypstream.core.formatting import counted
from polypstream.core.frame import FieldOrder, Frame, PictureFormat
from polypstream.core.geometry import thumbnail_size
from polypstream.core.time_range import TimeRange
from polypstream.core.timestamps import ClockShifts, TimestampCorrector
from polypstream.errors import SourceError
from polypstream.media.color import forget_unknown_tags
from polypstream.media.container import open_container, packets_of, video_tracks
from polypstream.media.nvdec import GpuDecoder
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
# A recording that ends this long before its announced end is still complete. A video track's own duration is exact
# except for the last frames, since muxers round it. A container's duration also covers the sound, which often lasts
# longer than the video.
END_FRAMES = 3
END_S = 2.0
# Containers whose tracks announce the duration of the whole file.
SHARED_DURATION = ("asf", "flv")
# Containers that are entered anywhere at exactly the times of the whole recording. In others a seek ends at a wrong
# place (AVI, transport streams without an index), or a clock that was set anew makes a time ambiguous.
EXACT_SEEK = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# A range is entered this many seconds earlier: corrected timestamps, and frames that de-identification blanks, depend
# on those before.
LEAD_S = 2
# Containers whose number of frames may include frames that were never stored.
COUNTS_GAPS = ("avi",)
MATROSKA_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
# The announced number of frames is used while it differs from the estimate by timestamps by at most this share.
RATE_TOLERANCE = 0.05


def results_stem(path: Path) -> str:
    """Name of the folder for a recording's results: the file name without its ending, never `..` or hidden.

    Args:
        path: path of the recording.
    """
    return path.stem.strip(".") or "recording"


class _Timed(NamedTuple):
    """A decoded frame with its timestamp.

    Attributes:
        picture: the frame.
        pts: its timestamp before `ClockShifts.origin` is added, in units of the time base.
        following: pts of the next frame; None: this is the last one.
    """

    picture: av.VideoFrame
    pts: int
    following: int | None


class _Announced(NamedTuple):
    """The duration that a recording announces.

    Attributes:
        seconds: duration in seconds; None: not announced.
        tolerance: possible error of it, in seconds.
        shared: True if it covers the sound too.
    """

    seconds: float | None
    tolerance: float
    shared: bool


class Recording:
    """A Source that decodes every frame of a video file, in order.

    Args:
        path: the file.
        untimed_rate: frames per second for a stream whose frames have no timestamps; None: as the stream announces.

    Attributes:
        codec: FFmpeg's name of the video codec.
        shifts: by how much the file's timestamps were moved.

    Raises:
        SourceError: the file cannot be read, has no video track, or no frame can be decoded.
    """

    def __init__(self, path: Path, untimed_rate: Fraction | None = None) -> None:
        self.path = path
        self.name, self.stem = str(path), results_stem(path)
        self.damage: list[str] = []
        self.notes: list[str] = []
        self.shifts = ClockShifts()
        self._concealed = self._changed = 0
        self._corrector: TimestampCorrector[av.VideoFrame]
        # Number of frames yielded, and their total duration in seconds.
        self._frames_read, self._seconds_read = 0, 0.0
        # End of the last frame by the file's own timestamps, in units of the time base.
        self._latest_stated_end = 0
        self._closed = False
        # pts from which `frames` begins at the latest, and pts before which it ends.
        self._limits: tuple[int | None, int | None] = None, None
        self._gpu: GpuDecoder | None = None
        self._entered: InputContainer | None = None
        self._container = open_container(path)
        try:
            self._stream = self._picture_stream()
            self._decoding = self._decoding_of(self._container)
            decoded = self._decoding.pictures()
            first = next(decoded, None)
            if first is None:
                raise SourceError(f"{path}: {self._undecodable_reason()}")
            if max(first.width, first.height) > MAX_SIDE:
                raise SourceError(
                    f"{path}: its pictures have {first.width}x{first.height} pixels; {MAX_SIDE} on a side are the most"
                )
            self.codec = self._stream.codec_context.codec.canonical_name
            self._format = picture_format(self._stream, first)
            if self._format.time_base != self._stream.time_base:
                self.notes.append(
                    f"states one frame in {float(self._stream.time_base or 0):.0f} seconds, which cannot be right; "
                    f"{self._format.rate} frames per second were assumed"
                )
            if untimed_rate and first.pts is None:
                self._format = replace(self._format, rate=untimed_rate)
            self._notes_before = [*self.notes]
            self._timed = self._with_times(chain([first], decoded))
            self._first = next(self._timed)
            self.shifts.origin = self._origin()
            self._format = replace(self._format, start=self._seconds(self._first.pts))
        except BaseException:
            self._container.close()
            raise

    def _picture_stream(self) -> av.VideoStream:
        moving = video_tracks(self._container)
        if not moving:
            raise SourceError(f"{self.path}: has no video (only sound or still images)")
        stream, *others = moving
        for other in others:
            self.notes.append(f"video track {other.index} was left out: only track {stream.index} is processed")
        return stream

    def _undecodable_reason(self) -> str:
        if self._decoding.encrypted:
            return "is encrypted; decrypt it first"
        return f"none of its pictures can be decoded, or they exceed {MAX_PIXELS // 10**6} million pixels"

    def _origin(self) -> Fraction:
        """Seconds to add to all timestamps, also those of the sound, so that none is negative."""
        first = self._first.pts * self._format.time_base
        if first >= 0:
            return Fraction(0)
        # Sound often begins slightly before the first frame. Sound that begins much earlier has wrong timestamps.
        start = Fraction(self._container.start_time or 0, av.time_base)
        earliest = start if first - END_S < start < first else first
        return -(earliest // self._format.time_base) * self._format.time_base

    def _seconds(self, pts: int) -> Fraction:
        """Presentation time in seconds of a pts before `ClockShifts.origin` is added."""
        return pts * self._format.time_base + self.shifts.origin

    @cached_property
    def format(self) -> PictureFormat:
        """Properties that all frames have in common."""
        if self._format.field_order != "progressive" or self._closed:
            return self._format
        # A recording may begin with progressive frames, such as a still title, before interlaced ones.
        orders = [sample.field_order for sample in self._samples if sample.field_order != "progressive"]
        return replace(self._format, field_order=orders[0]) if orders else self._format

    @property
    def expected_frames(self) -> int | None:
        """Number of frames, as announced, or estimated from the duration of the frames read so far; None: unknown."""
        frames = self._stream.frames
        if frames and self._container.format.name not in COUNTS_GAPS:
            return frames
        seconds, _, _ = self._announced()
        if not seconds:
            return frames or None
        announced = frames or round(seconds * self._format.rate)
        if self._seconds_read <= 0:
            return announced
        by_time = max(self._frames_read, round(self._frames_read * seconds / self._seconds_read))
        return announced if abs(by_time - announced) <= RATE_TOLERANCE * announced else by_time

    def frames(self, since: int | None = None, until: int | None = None) -> Iterator[Frame]:
        """Yield the frames in order. Can be called once.

        After the last frame, damage is added to `damage`.

        Args:
            since: yield frames from this pts on; None: from the start.
            until: yield frames before this pts; None: to the end.
        """
        origin = round(self.shifts.origin / self._format.time_base)
        timed: Iterator[_Timed] = chain([self._first], self._timed)
        if since is not None:
            timed = self._with_times(self._taken(self._decoding.pictures_since(since - origin)))
        elif self._limits != (None, None):
            timed, until = self._entering(timed, origin), self._limits[1]
        conform = Conformer(self._format, self._gpu.surface_format if self._gpu else None)
        time_base, orientation, end = self._format.time_base, self._format.orientation, 0.0
        start = float(self._format.start)
        for index, (picture, stated, following) in enumerate(timed):
            pts = stated + origin
            if until is not None and pts >= until:
                self._note_damage(index, None)
                return
            stored = picture.pts
            fitting = conform(picture, self._shape_of(picture))
            fitting.pts, fitting.duration = pts, self._duration(picture, stated, following)
            fitting.time_base = time_base
            end = (pts + fitting.duration) * time_base.numerator / time_base.denominator
            self._frames_read, self._seconds_read = index + 1, end - start
            yield Frame(
                index,
                fitting,
                pts,
                time_base,
                last=following is None,
                orientation=orientation,
                as_recorded=fitting is picture
                and stored == stated
                and not self.shifts.restarts
                and not picture.is_corrupt,
            )
        self._note_damage(self._frames_read, end)

    def decode_on(self, gpu: GpuDecoder) -> str:
        """Decode on a GPU. Call it before `frames`.

        Args:
            gpu: the decoder. `frames` then yields pictures in its `surface_format`, and pictures in memory where the
                GPU could not decode them.

        Returns:
            Why the recording is decoded on the CPU nevertheless; empty if it is not.
        """
        wanted = self._format
        if wanted.pixel_format not in ("yuv420p", "yuvj420p"):
            return f"{gpu.name} is used for 8-bit 4:2:0 video, and its pixel format is {wanted.pixel_format}"
        if wanted.width % 2 or wanted.height % 2:
            return f"{gpu.name} is used for even sizes, and it has {wanted.width}x{wanted.height} pixels"
        if self.format.field_order != "progressive":
            return f"{gpu.name} is not used for interlaced video"
        try:
            container = gpu.open(self.path)
        except SourceError as error:
            return str(error)
        decoding = self._decoding_of(container, gpu)
        pictures = map(gpu.surface, decoding.pictures())
        first = next(pictures, None)
        if first is None or first.format.name != gpu.surface_format:
            container.close()
            return f"{gpu.name} cannot decode it"
        stream = container.streams[self._stream.index]
        self._container.close()
        self._gpu, self._container, self._decoding = gpu, container, decoding
        self._stream = cast(av.VideoStream, stream)
        self.notes, self.shifts.restarts = self._notes_before, []
        self._timed = self._with_times(chain([first], pictures))
        self._first = next(self._timed)
        return ""

    def _decoding_of(self, container: InputContainer, gpu: GpuDecoder | None = None) -> Decoding:
        stream = container.streams[self._stream.index]
        assert isinstance(stream, av.VideoStream)
        # Each thread that decodes frames holds a surface of its own. With 16 of them NVDEC would need more than the 32
        # that it has, and FFmpeg would decode on the CPU.
        stream.thread_type = "SLICE" if gpu else "AUTO"
        return Decoding(self.path, container, stream)

    def _taken(self, pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        return map(self._gpu.surface, pictures) if self._gpu else pictures

    def limit(self, times: TimeRange) -> None:
        """Let `frames` begin shortly before a range of time and end with it. Frames before it must be left out.

        A recording that cannot be entered there for certain is decoded from the start.

        Args:
            times: the range.
        """
        self._limits = times.pts(self._format.time_base)

    def _entering(self, timed: Iterator[_Timed], origin: int) -> Iterator[_Timed]:
        """Frames from shortly before the limit on, if the recording can be entered there; otherwise all frames."""
        since, _ = self._limits
        entry = (since or 0) - origin - round(LEAD_S / self._format.time_base)
        if since is None or entry <= self._first.pts or self._container.format.name not in EXACT_SEEK:
            return timed
        # Another container: if it cannot be entered, this one is still at its start.
        container = self._entered = self._gpu.open(self.path) if self._gpu else open_container(self.path)
        decoding = self._decoding_of(container, self._gpu)
        pictures = self._taken(decoding.pictures_from_key_frame(entry))
        first = next(pictures, None)
        # With periodic intra refresh a P picture counts as a keyframe, and what follows is not exact at once.
        if first is None or first.pts is None or first.pict_type != PictureType.I:
            return timed
        self._decoding = decoding
        return self._with_times(chain([first], pictures))

    def as_stored(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield the frames as decoded, without any conversion. Can be called once, in place of `frames`.

        Yields:
            Presentation time in seconds, and the frame.
        """
        for picture, pts, _ in chain([self._first], self._timed):
            yield float(self._seconds(pts)), picture

    def _shape_of(self, picture: av.VideoFrame) -> Fraction:
        """Pixel shape of a frame divided by that of the first frame. Counts damaged and differing frames."""
        ratio = cast(Fraction | None, picture.opaque) or Fraction(1)
        self._concealed += picture.is_corrupt
        size = self._format.width, self._format.height
        self._changed += ratio != 1 or (picture.width, picture.height) != size
        return ratio

    @cached_property
    def _step(self) -> int:
        step = round(1 / (self._format.rate * self._format.time_base))
        return max(1, min(step, longest_step(self._format.time_base)))

    def _duration(self, picture: av.VideoFrame, pts: int, following: int | None) -> int:
        """Display duration of a frame in units of the time base: as the file states, if that is plausible."""
        if self._has_wrong_rate and following is not None:
            return following - pts
        # The duration of a frame without a timestamp is a guess. Without a duration the last frame would lie behind the
        # end of an MP4, and players would drop it.
        stated = (picture.duration if picture.pts is not None else 0) or self._step
        return min(stated, longest_step(self._format.time_base))

    @cached_property
    def _has_wrong_rate(self) -> bool:
        """Whether the file announces more frames per second than any recording has."""
        announced = self._stream.guessed_rate
        return bool(announced and announced > MAX_RATE)

    def _with_times(self, pictures: Iterator[av.VideoFrame]) -> Iterator[_Timed]:
        """Give each frame a timestamp. The timestamps increase."""
        time_base = self._format.time_base

        def restart(stated: int, follows: int) -> int:
            self.shifts.restarts.append((follows - stated) * time_base)
            when = float(self._seconds(follows))
            self.notes.append(f"its timestamps start again at {when:.1f} s; all later ones were shifted to continue")
            return follows - stated

        corrector = self._corrector = TimestampCorrector(time_base, longest_step(time_base), 0, restart)
        held: tuple[av.VideoFrame, int] | None = None
        for picture, pts in corrector.correct(self._stated_time(picture) for picture in pictures):
            if held is not None:
                yield _Timed(*held, pts)
            held = picture, pts
        self._note_times()
        if held is not None:
            yield _Timed(*held, None)

    def _stated_time(self, picture: av.VideoFrame) -> tuple[av.VideoFrame, int | None, int]:
        """A frame, its pts as the file states it (or None) and its nominal duration, for the TimestampMender."""
        if picture.pts is not None:
            self._latest_stated_end = max(self._latest_stated_end, picture.pts + self._step)
        return picture, picture.pts, self._step

    @property
    def was_corrected(self) -> bool:
        """Whether frames or timestamps read so far differ from those in the file."""
        times = self._corrector
        return bool(times.corrected or 0 < times.missing < times.count or self.shifts.restarts or self._changed)

    def _note_times(self) -> None:
        missing, mended = self._corrector.missing, self._corrector.corrected
        if missing and missing == self._corrector.count:
            self.notes.append(
                f"its pictures carry no times; they were spaced at {float(self._format.rate):g} per second"
            )
        elif missing or mended:
            number = counted(missing + mended, "picture")
            self.notes.append(f"{number} had no usable time; a time between the neighbouring pictures was used")

    def key_frames(self, every: float) -> list[int]:
        """Find keyframes at which the recording can be cut into parts of equal length.

        Args:
            every: approximate length of a part in seconds.

        Returns:
            pts of the keyframes at which the second and later parts begin; empty if the recording is too short or has
            no such keyframes.
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
        """Describe the damage and changes in `damage` and `notes`.

        Args:
            frames: number of frames read.
            end: end of the last frame in seconds; None: reading stopped before the recording's end.
        """
        self.damage += self._decoding.damage
        for count, what in (
            (self._decoding.undecodable, f"{counted(self._decoding.undecodable, 'packet')} could not be decoded"),
            (self._concealed, counted(self._concealed, "damaged picture")),
        ):
            if count:
                self.damage.append(what)
        if self._changed:
            number = counted(self._changed, "picture")
            self.notes.append(f"fitted into the size of the first picture: {number} of another size or pixel shape")
        if end is None:
            return
        start = float(self._format.start)
        if self._decoding.encrypted:
            self.damage.append(f"from {end - start:.1f} s on it is encrypted")
            return
        announced, tolerance, shared = self._announced()
        # Some containers take the wrong timestamp of a single frame, which was corrected, for their end.
        end = max(end, float(self._seconds(self._latest_stated_end))) if self._corrector.corrected else end
        if shared:
            end = max(end, self._decoding.sound_end + float(self.shifts.after(len(self.shifts.restarts)) or 0))
        # Matroska counts its duration from zero, other containers from the first frame.
        if announced and max(end, end - start) < announced - tolerance:
            self.damage.append(f"it ends at {end - start:.1f} s of {announced:.1f} s")

    def _announced(self) -> _Announced:
        exact = float(END_FRAMES / self._format.rate)
        if self._stream.duration is not None and self._container.format.name not in SHARED_DURATION:
            # FFmpeg shortens the duration of an AVI that was cut off, but not its number of frames, gaps included.
            whole = self._stream.frames if self._container.format.name in COUNTS_GAPS else 0
            units = max(self._stream.duration, whole)
            return _Announced(float(units * self._format.time_base), exact, shared=False)
        tagged = MATROSKA_DURATION.fullmatch(self._stream.metadata.get("DURATION", ""))
        if tagged:
            hours, minutes, seconds = tagged.groups()
            return _Announced(int(hours) * 3600 + int(minutes) * 60 + float(seconds), exact, shared=False)
        container = self._container.duration
        return _Announced(container / av.time_base if container else None, END_S, shared=True)

    def thumbnails(self) -> list[np.ndarray]:
        """Full-range grey thumbnails from all parts of the recording, to find the field of view. Computed once.

        Returns:
            uint8 [h, w] each.
        """
        return [sample.thumbnail for sample in self._samples]

    @cached_property
    def _samples(self) -> list[_Sample]:
        size = thumbnail_size(self._format.width, self._format.height)
        pictures = [self._first.picture]
        if self._container.duration:
            with open_container(self.path) as container:
                stream = container.streams[self._stream.index]
                assert isinstance(stream, av.VideoStream)
                for number in range(THUMBNAILS):
                    pictures += _picture_near(container, stream, (number + 0.5) / THUMBNAILS)
        return [_Sample(_thumbnail(picture, size), field_order_of(picture)) for picture in pictures]

    def close(self) -> None:
        """Close the file. May be called more than once."""
        self._closed = True
        self._container.close()
        if self._entered:
            self._entered.close()


class _Sample(NamedTuple):
    """A frame from some place in the recording.

    Attributes:
        thumbnail: full-range grey, uint8 [h, w].
        field_order: as the frame states it.
    """

    thumbnail: np.ndarray
    field_order: FieldOrder


def _picture_near(container: InputContainer, stream: av.VideoStream, share: float) -> list[av.VideoFrame]:
    """Decode the keyframe before a place in a recording.

    Args:
        container: open container.
        stream: its video track.
        share: the place as a share of the duration, 0..1.

    Returns:
        The frame in a list; an empty list if it cannot be decoded.
    """
    try:
        container.seek((container.start_time or 0) + int((container.duration or 0) * share))
        for packet in packets_of(container, [stream], []):
            pictures = cast("list[av.VideoFrame]", packet.decode())
            if pictures:
                forget_unknown_tags(pictures[0])
                return pictures[:1]
    except FFmpegError:
        pass  # a damaged or unseekable place: the other thumbnails suffice
    return []


def _key_frame_after(container: InputContainer, stream: Stream, place: int, last: int) -> int | None:
    """Find a keyframe near a place and after the previous one found.

    A seek in an indexed file ends at the keyframe before the place, in a transport stream at any packet.

    Args:
        container: open container.
        stream: its video track.
        place: pts of the place.
        last: pts of the previous keyframe found.

    Returns:
        Its pts, or None.
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
