"""Recording of a live source into a series of MP4 files."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

from polypstream.core.config import Output
from polypstream.core.formatting import clock
from polypstream.core.frame import Frame
from polypstream.core.protocols import LiveSource
from polypstream.errors import OutputError
from polypstream.media.pictures import Conformer
from polypstream.media.video import AnnotatedVideo


class RollingRecording:
    """A sink that records to FILE.mp4, FILE-2.mp4, …

    A new file begins after a set time, at a set size, and when the format of the source changes. Timestamps in a file
    are the frames' own, relative to its first frame. Without a signal, the placeholder frames are recorded.

    Args:
        path: path of the first file.
        source: source whose frames are recorded; frames of other sources are ignored.
        settings: settings of the encoder, and when to begin a new file.

    Attributes:
        on: whether it records; may be set at any time, from any thread.
        queue_size: number of frames that can wait while a file is finished; more are dropped and counted.
        files: paths of the files written so far.
        problem: always empty, since an error ends the recording.

    Raises:
        OutputError: the first file exists.
    """

    queue_size = 60
    problem = ""

    def __init__(self, path: Path, source: LiveSource, settings: Output) -> None:
        self._path, self._source, self._settings = path, source, settings
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
        return f"is recorded in {self._path}"

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
        self._video.write(frame if frame.has_signal else replace(frame, picture=self._conform(frame.in_memory())))

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
        self._video = AnnotatedVideo(path, self._format, None, self._settings.video, frame.pts)
        self.files.append(path)

    def _next_path(self) -> Path:
        if not self.files:
            if self._path.exists():
                raise OutputError(f"{self._path}: exists already; give another --record")
            return self._path
        # Files of another run must not be overwritten, and must not end this recording.
        numbered = (self._path.with_stem(f"{self._path.stem}-{number}") for number in count(len(self.files) + 1))
        return next(path for path in numbered if not path.exists())

    def close(self) -> None:
        """Finish the current file."""
        if self._video is not None:
            self._video.close()
            self._video = None
