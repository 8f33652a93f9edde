"""Clips of live video that are saved after the fact: the last seconds are kept in memory as packets."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path

import av

from polypstream.core.config import LiveSettings, VideoSettings
from polypstream.core.files import writing
from polypstream.core.formatting import clock, words_of
from polypstream.core.frame import FetchedPicture, Frame
from polypstream.core.protocols import LiveSource
from polypstream.errors import OutputError
from polypstream.media.container import open_container
from polypstream.media.recent_video import Kept, RecentVideo
from polypstream.media.video import write_packets
from polypstream.sinks.rolling import Session, results_folder
from polypstream.sinks.tables import row_of
from polypstream.stages.live import fill_unseen

# Limit of the memory for each source in bytes.
MOST_BYTES = 500_000_000
# A quick preset and a moderate quality, since what is encoded is mostly never looked at.
PRESET, CRF = "ultrafast", 24.0
# Half a frame at the highest rate.
SAME_TIME_S = 0.001
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Note:
    """What is kept of a frame beside its packet.

    Attributes:
        frame: with its findings, but without its picture and its maps.
        row: its line of frames.csv, with its number and time in the source.
    """

    frame: Frame
    row: dict[str, object]

    def in_clip(self, index: int, origin: int, clip: Path) -> tuple[Frame, dict[str, object]]:
        """Return frame and line as they are in a clip.

        Args:
            index: number of the frame in the clip.
            origin: pts at which the clip begins, in the source.
            clip: path of the clip.
        """
        frame = copy.copy(self.frame)
        frame.index, frame.pts = index, self.frame.pts - origin
        width, height = self.frame.picture.width, self.frame.picture.height
        frame.picture = FetchedPicture(width, height, 0, partial(_picture_at, clip, frame.seconds))
        return frame, self.row | {"frame": index, "pts_s": f"{frame.seconds:.6f}"}


def _note_of(frame: Frame) -> _Note:
    filled = copy.copy(frame)
    fill_unseen(filled)
    light = Frame(
        frame.index,
        FetchedPicture(frame.picture.width, frame.picture.height, 0, _no_picture),
        frame.pts,
        frame.time_base,
        source=frame.source,
        orientation=frame.orientation,
        outlines=filled.outlines,
        tracks=filled.tracks,
        peaks=filled.peaks,
        carried=filled.carried,
        areas=[filled.area_of(place) for place in range(len(filled.outlines))],
    )
    return _Note(light, row_of(filled))


def _no_picture() -> av.VideoFrame:
    raise AssertionError("the picture of a kept frame is in its packet")


def _picture_at(clip: Path, seconds: float) -> av.VideoFrame:
    """Decode the picture of a clip at a time in seconds."""
    with open_container(clip) as container:
        container.seek(round(seconds * 1e6))
        for picture in container.decode(video=0):
            if picture.time is not None and picture.time > seconds - SAME_TIME_S:
                return picture
    raise OutputError(f"{clip}: its picture at {clock(seconds)} cannot be read")


class ClipSaver:
    """A sink that keeps the last seconds of a source in memory, and saves them as a clip when it is asked to.

    A clip is the picture without markers. It begins with a key frame, and has a folder of results beside it. Pictures
    without a signal are left out. If the format of the pictures changes, what was kept before is dropped.

    Args:
        folder: folder for the clips; it is created with the first one.
        source: source that is kept.
        settings: `keep_seconds` is used.
        video: the encoder; its preset is not used, and its quality is at most that of CRF.

    Attributes:
        clean: it needs the pictures without markers.
        session: what each clip is a part of; None: clips have neither results nor chapters.
        queue_size: number of frames that can wait while a clip is saved; more are dropped.
        problem: why the last clip could not be saved, for the user; empty if it was.
        clips: paths of the clips saved so far.
    """

    queue_size = 60
    clean = True

    def __init__(self, folder: Path, source: LiveSource, settings: LiveSettings, video: VideoSettings) -> None:
        self._folder, self._source, self._seconds = folder, source, settings.keep_seconds
        self._settings = video.model_copy(update={"preset": PRESET, "crf": max(CRF, video.crf)})
        self.session: Session | None = None
        self.problem = ""
        self.clips: list[Path] = []
        self._recent: RecentVideo[_Note] | None = None
        # `write` keeps frames in the thread of the sink, and clips are saved from any thread.
        self._lock = threading.Lock()
        self._wanted = threading.Event()

    @property
    def source(self) -> str:
        """Name of the source."""
        return self._source.name

    @property
    def doing(self) -> str:
        """Which clip was saved last, for the user."""
        return f"clip saved in {self.clips[-1]}" if self.clips else ""

    def write(self, frame: Frame) -> None:
        """Keep a frame of the source, and save the clip that was asked for."""
        if frame.source != self._source.name or not frame.has_signal or frame.clean is None:
            return
        with self._lock:
            recent = self._recent_for(frame.clean, frame)
            recent.add(frame.clean, _note_of(frame))
        if self._wanted.is_set():
            self._wanted.clear()
            self._save_and_tell()

    def _recent_for(self, picture: av.VideoFrame, frame: Frame) -> RecentVideo[_Note]:
        assert self._source.format is not None
        wanted = replace(
            self._source.format, width=picture.width, height=picture.height, pixel_format=picture.format.name
        )
        if self._recent is None or self._recent.format != wanted:
            self._recent = RecentVideo(wanted, self._settings, self._seconds, MOST_BYTES)
        return self._recent

    def ask(self) -> None:
        """Let the thread of the sink save a clip, and log the result. The caller does not wait."""
        self._wanted.set()

    def _save_and_tell(self) -> None:
        try:
            path = self.save()
        except Exception as error:  # a library may raise anything; the source is kept on
            log.error(f"{self.source}: {words_of(error)}")
        else:
            log.info(f"{self.source}: the clip was saved in {path}")

    def save(self) -> Path:
        """Save what is kept.

        Returns:
            Path of the clip.

        Raises:
            OutputError: nothing is kept yet, or a file cannot be written.
        """
        with self._lock:
            recent = self._recent
            kept = recent.kept() if recent is not None else []
        if recent is None or not kept:
            raise OutputError("there is no picture to save yet")
        try:
            path = self._save(recent, kept)
        except OutputError as error:
            self.problem = str(error)
            raise
        self.problem = ""
        self.clips.append(path)
        return path

    def _save(self, recent: RecentVideo[_Note], kept: Sequence[Kept[_Note]]) -> Path:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        path = self._free_path()
        first, last = kept[0].note.frame, kept[-1].note.frame
        marks = self.session.marks_within(first.seconds, last.seconds) if self.session else []
        pictures = [each.picture for each in kept]
        write_packets(path, recent.format, recent.encoder, recent.options, pictures, marks)
        if self.session is not None:
            results = self.session.open_results(path, recent.format, first.seconds, False)
            for index, each in enumerate(kept):
                results.add(*each.note.in_clip(index, first.pts, path))
            results.close()
        return path

    def _free_path(self) -> Path:
        """Return a path that is not used yet: the name of the source, and date and time."""
        name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in self.source)
        stem = f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        paths = (self._folder / f"{each}.mp4" for each in names)
        return next(path for path in paths if not (path.exists() or results_folder(path).exists()))

    def close(self) -> None:
        """Save the clip that was asked for last. What is kept is dropped."""
        if self._wanted.is_set():
            self._save_and_tell()
        self._recent = None
