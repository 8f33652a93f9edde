"""One file of a recording, with its results: its frames are encoded, or the packets of the source are copied."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from polypstream.core.config import VideoSettings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.live_pictures import PicturePacket
from polypstream.core.live_sound import TIME_BASE, SoundFormat
from polypstream.core.marks import Mark
from polypstream.core.pipeline import Sink
from polypstream.core.protocols import LiveSource
from polypstream.media.live_audio import LiveAudioSource
from polypstream.media.live_copy import LiveCopy
from polypstream.media.pictures import Conformer
from polypstream.media.video import AnnotatedVideo

# Sound that paused for longer, in seconds, when a file begins is in the next file.
PAUSE_S = 1.0
# Longest waits in seconds: for the first sound, if the source has announced sound, and for sound beside the last frame.
FIRST_SOUND_S, LAST_SOUND_S = 1.0, 0.5
log = logging.getLogger(__name__)


class Results(Sink[Frame], Protocol):
    """A sink that writes the results of one video. The number and the time of a frame are those in the video."""

    def add(self, frame: Frame, row: Mapping[str, object]) -> None:
        """Add a frame whose line of frames.csv is known."""

    def skip(self, index: int, pts: int) -> None:
        """Add a frame of the video that was skipped: it has the findings of the frame before, if they are recent.

        Args:
            index, pts: its number and its time in the video.
        """


class Session(Protocol):
    """The live session of a source, of which recordings and clips are parts."""

    def open_results(self, video: Path, pictures: PictureFormat, begins: float, masks: bool) -> Results:
        """Open the results of a video.

        Args:
            video: its path.
            pictures: its format.
            begins: time of the source at which it begins, in seconds.
            masks: write masks.mkv, too.
        """

    def marks_within(self, first: float, last: float) -> list[Mark]:
        """Return the marks of a stretch. Their times count from its beginning.

        Args:
            first, last: times of the source in seconds.
        """


def results_folder(video: Path) -> Path:
    """Return the folder of the results of a recording or a clip: beside it, with its name.

    Args:
        video: path of the video.
    """
    return video.with_suffix("")


def format_of(source: LiveSource, frame: Frame) -> PictureFormat:
    """Return the format of a frame, which may be older than a change of the source's format.

    Args:
        source: its source, which has sent pictures.
        frame: the frame.
    """
    assert source.format is not None
    if not frame.has_signal:
        return source.format
    picture = frame.in_memory()
    return replace(source.format, width=picture.width, height=picture.height, pixel_format=picture.format.name)


class RecordedFile:
    """A video with the sound of its source, its marks and its results.

    Args:
        path: path of the video.
        source: source of the frames.
        pictures: format of the frames.
        begins: pts at which it begins.
        settings: settings of the encoder.
        session: what it is a part of; None: it has neither results nor chapters.
        masks: write masks.mkv among the results, too.
        copying: copies the pictures; None: frames are encoded.

    Attributes:
        path: path of the video.
        begins: time of the source at which it begins, in seconds.
    """

    def __init__(
        self,
        path: Path,
        source: LiveSource,
        pictures: PictureFormat,
        begins: int,
        settings: VideoSettings,
        session: Session | None,
        masks: bool,
        copying: LiveCopy | None = None,
    ) -> None:
        self.path, self._source, self._format, self._origin, self._session = path, source, pictures, begins, session
        self.begins = self._last = float(begins * pictures.time_base)
        self._sound = self._sound_beside(self.begins)
        sound = LiveAudioSource(source.sound, self._sound) if self._sound else None
        self._video = AnnotatedVideo(path, pictures, sound, settings, begins, copying=copying)
        self._results = session.open_results(path, pictures, self.begins, masks) if session is not None else None

    def _sound_beside(self, seconds: float) -> SoundFormat | None:
        """Format of the sound, unless it has paused: if the program is killed, late sound would be too early."""
        earliest = round((seconds - PAUSE_S) / TIME_BASE)
        self._source.sound.wait_until(earliest, FIRST_SOUND_S)
        return self._source.sound.format_since(earliest)

    @property
    def notes(self) -> Sequence[str]:
        """What is not copied unchanged, for the user."""
        return self._video.notes

    @property
    def bytes(self) -> int:
        """Size of the pictures written so far."""
        return self._video.bytes

    def fits(self, frame: Frame) -> bool:
        """Whether the format of a frame and of the newest sound is that of the file.

        Args:
            frame: the frame.
        """
        now, kept = format_of(self._source, frame), self._format
        sound = self._source.sound.format_since(round(self.begins / TIME_BASE))
        return sound in (None, self._sound) and (now.width, now.height, now.pixel_format, frame.orientation) == (
            *(kept.width, kept.height, kept.pixel_format),
            kept.orientation,
        )

    def close(self) -> None:
        """Finish the video and its results."""
        try:
            self._source.sound.wait_until(round(self._last / TIME_BASE), LAST_SOUND_S)
            if self._session is not None:
                marks = self._session.marks_within(self.begins, self._last)
                self._video.set_chapters(marks, self._last - self.begins)
            self._video.close()
            for damage in self._video.damage:
                log.warning(f"{self._source.name}: {damage}")
        finally:
            self._close_results()

    def _close_results(self) -> None:
        if self._results is not None:
            self._results.close()


class EncodedFile(RecordedFile):
    """A file whose frames are encoded, with or without markers.

    Args:
        path, source, settings, session, masks: as for RecordedFile.
        first: its first frame.
        clean: record the pictures without markers and texts.
    """

    def __init__(
        self,
        path: Path,
        source: LiveSource,
        first: Frame,
        settings: VideoSettings,
        session: Session | None,
        masks: bool,
        clean: bool,
    ) -> None:
        pictures = format_of(source, first)
        self._conform, self._clean = Conformer(pictures), clean
        super().__init__(path, source, pictures, first.pts, settings, session, masks)

    def write(self, frame: Frame) -> None:
        """Encode a frame."""
        index, recorded, self._last = self._video.frames, self._recorded_frame(frame), frame.seconds
        self._video.write(recorded)
        if self._results is not None:
            shown = copy.copy(frame if frame.has_signal else recorded)
            shown.index, shown.pts = index, frame.pts - self._origin
            self._results.write(shown)

    def _recorded_frame(self, frame: Frame) -> Frame:
        """Return a frame whose picture is the recorded one: with or without markers, and of the size of the file."""
        recorded = copy.copy(frame)
        picture = frame.clean if self._clean and frame.clean is not None else frame.in_memory()
        recorded.picture = picture if frame.has_signal else self._conform(picture)
        return recorded


class CopiedFile(RecordedFile):
    """A file with the packets of the source. It has every frame of the source, also those that were skipped.

    Args:
        path, source, settings, session, masks: as for RecordedFile.
        first: the packet with which it begins.
        frame: a frame of the format of its frames.
    """

    def __init__(
        self,
        path: Path,
        source: LiveSource,
        first: PicturePacket,
        frame: Frame,
        settings: VideoSettings,
        session: Session | None,
        masks: bool,
    ) -> None:
        pictures = format_of(source, frame)
        self._copy, self._index = LiveCopy(source.pictures, first, pictures), 0
        # Frames whose packets are not in the file yet, by their pts.
        self._shown: dict[int, Frame] = {}
        super().__init__(path, source, pictures, first.pts, settings, session, masks, self._copy)

    @property
    def next_key(self) -> PicturePacket | None:
        """The first key picture that is not in the file yet, with which the next file can begin."""
        return self._source.pictures.key_since(self._copy.next)

    @property
    def next_packet(self) -> int:
        """Number of the first packet that is not in the file yet."""
        return self._copy.next

    @property
    def has_ended(self) -> bool:
        """Whether the packets that have come do not belong to the file."""
        return self._copy.has_ended

    def write(self, frame: Frame) -> None:
        """Copy the packets that have come, and add the results of a frame. Without a signal nothing is copied."""
        if not frame.has_signal:
            return
        self._last = max(self._last, frame.seconds)
        if frame.pts >= self._origin:
            self._shown[frame.pts] = frame
        self._video.write(frame)
        self._add_results(frame.pts)

    def _add_results(self, until: float) -> None:
        """Add the results of the frames up to a pts."""
        for pts in self._copy.frames_until(until):
            frame = self._shown.pop(pts, None)
            if self._results is not None and frame is not None:
                shown = copy.copy(frame)
                shown.index, shown.pts = self._index, pts - self._origin
                self._results.write(shown)
            elif self._results is not None:
                self._results.skip(self._index, pts - self._origin)
            self._index += 1
            self._shown = {each: shown for each, shown in self._shown.items() if each > pts}

    def end_before(self, packet: PicturePacket) -> None:
        """Let the file end before a packet."""
        self._copy.limit = packet.number

    def _close_results(self) -> None:
        self._add_results(float("inf"))  # of the last packets, which came when the video was closed
        super()._close_results()
