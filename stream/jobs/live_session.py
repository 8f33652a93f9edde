"""Results of a live session: beside each recording and clip the files that `process` writes for a recording."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypstream.core.config import Settings
from polypstream.core.files import writing
from polypstream.core.frame import FetchedPicture, Frame, PictureFormat
from polypstream.core.marks import Mark, Marks
from polypstream.core.notice import NOTICE
from polypstream.errors import DataError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.process import head_of_results, write_summary
from polypstream.jobs.report import write_report
from polypstream.media.pictures import black_picture
from polypstream.media.video import MaskVideo
from polypstream.sinks.findings import FindingsFile
from polypstream.sinks.recorded_file import results_folder
from polypstream.sinks.tables import FramesTable, row_of
from polypstream.stages.live import fill_unseen


class SessionResults:
    """A sink that writes the results of one video of a live session.

    They are those of `process`, so that `load_run`, `masks` and `score` read them. frames.csv is written at once, the
    other files when it is closed. Each frame is written when the next one has come, since only then is its duration
    known.

    Args:
        video: path of the video. The results are in a folder beside it that has its name.
        pictures: format of the video.
        begins: time of the source at which the video begins, in seconds.
        masks: write masks.mkv, too.
        session: what the video is a part of.

    Raises:
        OutputError: a file cannot be written.
    """

    def __init__(
        self,
        video: Path,
        pictures: PictureFormat,
        begins: float,
        masks: bool,
        session: SourceSession,
    ) -> None:
        self._folder, self._video, self._begins = results_folder(video), video, begins
        self._session, self._segmenter, self._pictures = session, session.segmenter, pictures
        with writing(self._folder):
            self._folder.mkdir()
        self._about = head_of_results(video.name, session.segmenter, session.settings)
        self._table = FramesTable(self._folder / "frames.csv")
        self._findings = FindingsFile(self._folder, self._about)
        self._masks = MaskVideo(self._folder / "masks.mkv", pictures) if masks else None
        self._waiting: tuple[Frame, Mapping[str, object]] | None = None
        # The newest frame that was not skipped.
        self._shown: Frame | None = None
        self._frames, self._ends, self._step = 0, begins, 0

    def write(self, frame: Frame) -> None:
        """Add a frame.

        Args:
            frame: its number and its time are those in the video.
        """
        self._shown = frame
        self._fill(copy.copy(frame))

    def _fill(self, frame: Frame) -> None:
        fill_unseen(frame)
        self.add(frame, row_of(frame))

    def skip(self, index: int, pts: int) -> None:
        """Add a frame of the video that was skipped: it has the findings of the frame before, if they are recent.

        Args:
            index, pts: its number and its time in the video.
        """
        if self._shown is None:
            black = black_picture(self._pictures.width, self._pictures.height)
            self._shown = Frame(0, black, pts, self._pictures.time_base, problem="it was skipped")
        skipped = copy.copy(self._shown)
        skipped.index, skipped.pts = index, pts
        skipped.markers_age += float((pts - self._shown.pts) * self._pictures.time_base)
        if skipped.markers_age > self._session.settings.live.max_staleness:
            skipped.problem = "its markers are too old"
        self._fill(skipped)

    def add(self, frame: Frame, row: Mapping[str, object]) -> None:
        """Add a frame whose line of frames.csv is known.

        Args:
            frame: the frame.
            row: the line.
        """
        if self._waiting is not None:
            self._step = frame.pts - self._waiting[0].pts
            self._release()
        self._waiting = frame, row

    def _release(self) -> None:
        if self._waiting is None:
            return
        (frame, row), self._waiting = self._waiting, None
        self._table.write_row(row)
        if self._masks is not None:
            self._masks.write(frame)
        timed = copy.copy(frame)
        timed.picture = FetchedPicture(frame.picture.width, frame.picture.height, self._step, frame.in_memory)
        self._findings.write(timed)
        self._frames, self._ends = self._frames + 1, self._begins + frame.seconds

    def close(self) -> None:
        """Finish all files, and write the summary and the report."""
        self._release()
        self._about["marks"] = [mark.as_json() for mark in self._session.marks_within(self._begins, self._ends)]
        for sink in (self._table, self._findings, self._masks):
            if sink is not None:
                sink.close()
        write_summary(self._folder, self._summary())
        with suppress(DataError):  # without a single frame there is nothing to report
            write_report(self._folder)

    def _summary(self) -> dict[str, Any]:
        return {
            **self._about,
            "video": f"../{self._video.name}",
            "complete": True,
            "problem": None,
            "damage": [],
            "notes": list(self._segmenter.notes),
            "provider": self._segmenter.provider,
            "picture_size": [self._pictures.width, self._pictures.height],
            "frames_in": self._frames,
            "frames_out": self._frames,
            **self._findings.found,
            "notice": NOTICE,
        }


@dataclass(frozen=True, slots=True)
class SourceSession:
    """The live session of a source; see Session.

    Attributes:
        source: name of the source.
        segmenter: runs the model.
        settings: settings of the run.
        marks: marks of all sources.
    """

    source: str
    segmenter: Segmenter
    settings: Settings
    marks: Marks

    def open_results(self, video: Path, pictures: PictureFormat, begins: float, masks: bool) -> SessionResults:
        """Open the results of a video; see Session."""
        return SessionResults(video, pictures, begins, masks, self)

    def marks_within(self, first: float, last: float) -> list[Mark]:
        """Return the marks of a stretch; see Session."""
        return self.marks.within(self.source, first, last)
