"""Recording of a live source into a series of MP4 files."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Protocol

from polypstream.core.config import Output
from polypstream.core.formatting import clock
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.live_sound import TIME_BASE, SoundFormat
from polypstream.core.marks import Mark
from polypstream.core.pipeline import Sink
from polypstream.core.protocols import LiveSource
from polypstream.errors import OutputError
from polypstream.media.live_audio import LiveAudioSource
from polypstream.media.pictures import Conformer
from polypstream.media.video import AnnotatedVideo

# Sound of the last seconds is kept for recordings, which may be behind.
KEEP_SOUND_S = 10.0
# Sound that paused for longer, in seconds, when a file begins is in the next file.
PAUSE_S = 1.0
# Longest waits in seconds: for the first sound, if the source has announced sound, and for sound beside the last frame.
FIRST_SOUND_S, LAST_SOUND_S = 1.0, 0.5
log = logging.getLogger(__name__)


class Results(Sink[Frame], Protocol):
    """A sink that writes the results of one video. The number and the time of a frame are those in the video."""

    def add(self, frame: Frame, row: Mapping[str, object]) -> None:
        """Add a frame whose line of frames.csv is known."""


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


class RollingRecording:
    """A sink that records to FILE.mp4, FILE-2.mp4, …

    A new file begins after a set time, at a set size, and when the format of the source or of its sound changes.
    Timestamps in a file are the frames' own, relative to its first frame. Without a signal, the placeholder frames are
    recorded. The sound of the source is synchronous with its frames. Each file has a folder of results beside it, with
    its name.

    Args:
        path: path of the first file.
        source: source whose frames are recorded; frames of other sources are ignored.
        settings: settings of the encoder, and when to begin a new file.
        option: the option of the command line that asked for it, for messages.
        clean: record the pictures without markers and texts.
        masks: write masks.mkv among the results, too.

    Attributes:
        session: what each file is a part of; None: files have neither results nor chapters.
        on: whether it records; may be set at any time, from any thread.
        queue_size: number of frames that can wait while a file is finished; more are dropped and counted.
        files: paths of the files written so far.
        problem: always empty, since an error ends the recording.

    Raises:
        OutputError: the first file or its folder of results exists.
    """

    queue_size = 60
    problem = ""

    def __init__(
        self,
        path: Path,
        source: LiveSource,
        settings: Output,
        option: str = "--record",
        clean: bool = False,
        masks: bool = False,
    ) -> None:
        self._path, self._source, self._settings = path, source, settings
        self._option, self.clean, self._masks = option, clean, masks
        source.sound.keep(KEEP_SOUND_S)
        self._sound: SoundFormat | None = None
        self.session: Session | None = None
        self._results: Results | None = None
        self.files: list[Path] = []
        self.on = True
        # Seconds recorded so far, and the time of the last frame.
        self._recorded = self._last = 0.0
        self._conform: Conformer
        self._video: AnnotatedVideo | None = None
        self._next_path()

    @property
    def source(self) -> str:
        """Name of the source."""
        return self._source.name

    @property
    def caption(self) -> str:
        """Text for the corner of the window. It is not recorded."""
        return f"REC {clock(self._recorded, 0)}" if self.on else f"recording paused at {clock(self._recorded, 0)}"

    @property
    def aim(self) -> str:
        """Where the source is recorded, for the user."""
        return f"is recorded{' without markers' if self.clean else ''} in {self._path}"

    @property
    def written(self) -> str:
        """What was recorded, for the user."""
        if not self.files:
            return "nothing was recorded"
        return f"recorded {clock(self._recorded)} in {', '.join(map(str, self.files))}"

    @property
    def doing(self) -> str:
        """Whether it records, for how long so far, and where, for the user."""
        if not self.files:
            return "waiting for the first picture"
        return f"{'recording' if self.on else 'paused'} {clock(self._recorded)} in {self.files[-1]}"

    def write(self, frame: Frame) -> None:
        """Encode a frame of the source."""
        if frame.source != self._source.name or self._source.format is None:
            return
        if not self.on or (frame.has_signal and self._must_roll(frame)):
            self.close()
        if not self.on:
            return
        if self._video is None:
            self._open(frame)
        assert self._video is not None
        self._recorded += max(0.0, frame.seconds - self._last)
        self._last = frame.seconds
        index, recorded = self._video.frames, self._recorded_frame(frame)
        self._video.write(recorded)
        if self._results is not None:
            shown = copy.copy(frame if frame.has_signal else recorded)
            shown.index, shown.pts = index, frame.pts - self._origin
            self._results.write(shown)

    def _recorded_frame(self, frame: Frame) -> Frame:
        """Return a frame whose picture is the recorded one: with or without markers, and of the size of the file."""
        recorded = copy.copy(frame)
        picture = frame.clean if self.clean and frame.clean is not None else frame.in_memory()
        recorded.picture = picture if frame.has_signal else self._conform(picture)
        return recorded

    def _must_roll(self, frame: Frame) -> bool:
        if self._video is None:
            return False
        picture = frame.in_memory()
        now = (picture.width, picture.height, picture.format.name, frame.orientation)
        current, roll = self._format, self._settings.roll
        return (
            now != (current.width, current.height, current.pixel_format, current.orientation)
            or frame.seconds - self._started >= roll.seconds
            or self._video.bytes >= roll.megabytes * 1e6
            or self._source.sound.format_since(round(self._started / TIME_BASE)) not in (None, self._sound)
        )

    def _open(self, frame: Frame) -> None:
        assert self._source.format is not None
        self._format, self._started, self._last = self._source.format, frame.seconds, frame.seconds
        if frame.has_signal:  # the frame may be older than the change of the source's format
            picture = frame.in_memory()
            self._format = replace(
                self._format, width=picture.width, height=picture.height, pixel_format=picture.format.name
            )
        self._conform = Conformer(self._format)
        path = self._next_path()
        # If the program is killed, sound that begins later than the pictures would be too early.
        earliest = round((frame.seconds - PAUSE_S) / TIME_BASE)
        self._source.sound.wait_until(earliest, FIRST_SOUND_S)
        self._sound = self._source.sound.format_since(earliest)
        sound = LiveAudioSource(self._source.sound, self._sound) if self._sound else None
        self._video = AnnotatedVideo(path, self._format, sound, self._settings.video, frame.pts)
        for note in self._video.notes if not self.files else ():
            log.info(f"{self.source}: {note}")
        self.files.append(path)
        self._origin = frame.pts
        if self.session is not None:
            self._results = self.session.open_results(path, self._format, frame.seconds, self._masks)

    def _next_path(self) -> Path:
        if not self.files:
            for existing in (self._path, results_folder(self._path)):
                if existing.exists():
                    raise OutputError(f"{existing}: exists already; give another {self._option}")
            return self._path
        # Files of another run must not be overwritten, and must not end this recording.
        numbered = (self._path.with_stem(f"{self._path.stem}-{number}") for number in count(len(self.files) + 1))
        return next(path for path in numbered if not (path.exists() or results_folder(path).exists()))

    def close(self) -> None:
        """Finish the current file and its results."""
        video, self._video = self._video, None
        results, self._results = self._results, None
        try:
            if video is not None:
                self._source.sound.wait_until(round(self._last / TIME_BASE), LAST_SOUND_S)
                if self.session is not None:
                    marks = self.session.marks_within(self._started, self._last)
                    video.set_chapters(marks, self._last - self._started)
                video.close()
                for damage in video.damage:
                    log.warning(f"{self.source}: {damage}")
        finally:
            if results is not None:
                results.close()
