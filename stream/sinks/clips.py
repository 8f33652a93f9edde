"""Clips of live video that are saved after the fact: the last seconds are kept in memory as packets."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import count, takewhile
from pathlib import Path

import av

from polypstream.core.config import LiveSettings, VideoSettings
from polypstream.core.files import writing
from polypstream.core.formatting import clock, words_of
from polypstream.core.frame import FetchedPicture, Frame, PictureFormat
from polypstream.core.live_pictures import MOST_BYTES, PicturePacket
from polypstream.core.live_sound import TIME_BASE
from polypstream.core.protocols import LiveSource
from polypstream.errors import OutputError
from polypstream.media.container import open_container
from polypstream.media.live_audio import LiveAudioSource
from polypstream.media.recent_video import RecentVideo
from polypstream.media.video import write_packets
from polypstream.sinks.recorded_file import Session, results_folder
from polypstream.sinks.tables import row_of
from polypstream.stages.live import fill_unseen

# Sound and findings are kept for longer than pictures, since a group of pictures more may be kept.
MORE_S = 30.0
# A quick preset and a moderate quality, since what is encoded is mostly never looked at.
PRESET, CRF = "ultrafast", 24.0
NO_FINDINGS = {
    "polyp_count": 0,
    "polyp_area_fraction": "0.000000",
    "max_probability": "0.0000",
    "tracks": "",
    "carried": 0,
}
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

    def skipped(self, pts: int, most_age: float) -> _Note:
        """Return what is kept of a frame that was skipped: the findings of this one before it, if they are recent.

        Args:
            pts: pts of the frame.
            most_age: how old findings may be, in seconds.
        """
        frame, row = copy.copy(self.frame), self.row | {"segmented": 0}
        frame.pts = pts
        if not 0 <= frame.seconds - self.frame.seconds <= most_age:
            frame.clear_findings()
            row |= NO_FINDINGS
        return _Note(frame, row)

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

    A clip has the pictures without markers, and the sound. It begins with a key frame, and has a folder of results
    beside it. Pictures without a signal are left out. If the format of the pictures changes, what was kept before is
    dropped. The packets of an H.264 source are kept as they are. Other pictures are encoded.

    Args:
        folder: folder for the clips; it is created with the first one.
        source: source that is kept.
        settings: `keep_seconds` and `max_staleness` are used.
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
        self._most_age = settings.max_staleness
        self._settings = video.model_copy(update={"preset": PRESET, "crf": max(CRF, video.crf)})
        source.sound.keep(settings.keep_seconds + MORE_S)
        source.pictures.keep(settings.keep_seconds)
        self.session: Session | None = None
        self.problem = ""
        self.clips: list[Path] = []
        self._notes: dict[int, _Note] = {}
        self._format: PictureFormat | None = None
        # Encodes what cannot be copied.
        self._encoded: RecentVideo | None = None
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
            self._keep(frame, frame.clean)
        if self._wanted.is_set():
            self._wanted.clear()
            self._save_and_tell()

    def _keep(self, frame: Frame, picture: av.VideoFrame) -> None:
        assert self._source.format is not None
        size = picture.width, picture.height
        pictures = replace(self._source.format, width=size[0], height=size[1], pixel_format=picture.format.name)
        if pictures != self._format:
            self._notes.clear()
            self._format, self._encoded = pictures, None
        why = self._source.pictures.problem
        if not why:
            self._encoded = None
        elif self._encoded is None:
            log.info(f"{self.source}: what is kept for clips is encoded, because {why}")
            self._encoded = RecentVideo(pictures, self._settings, self._seconds, MOST_BYTES)
        if self._encoded is not None:
            self._encoded.add(picture)
        self._notes[frame.pts] = _note_of(frame)
        oldest = frame.pts - (self._seconds + MORE_S) / frame.time_base
        for pts in list(takewhile(lambda each: each < oldest, self._notes)):
            del self._notes[pts]

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
            pictures, packets, notes = self._format, self._kept(), dict(self._notes)
        if pictures is None or not packets or not notes:
            raise OutputError("there is no picture to save yet")
        try:
            path = self._save(pictures, packets, notes)
        except OutputError as error:
            self.problem = str(error)
            raise
        self.problem = ""
        self.clips.append(path)
        return path

    def _kept(self) -> list[PicturePacket]:
        """The packets of the last seconds. Those of frames of an earlier format are left out."""
        if self._format is None:
            return []
        store = self._source.pictures if self._encoded is None else self._encoded.packets
        return store.last(self._seconds, self._format.time_base)

    def _save(self, pictures: PictureFormat, packets: Sequence[PicturePacket], notes: Mapping[int, _Note]) -> Path:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        path, origin = self._free_path(), packets[0].pts
        shown = sorted(packet.pts for packet in packets)
        begins, ends = (float(pts * pictures.time_base) for pts in (origin, shown[-1]))
        marks = self.session.marks_within(begins, ends) if self.session else []
        sound_format = self._source.sound.format_since(round(begins / TIME_BASE))
        sound = LiveAudioSource(self._source.sound, sound_format) if sound_format else None
        write_packets(path, pictures, packets, sound, marks)
        if self.session is not None:
            results = self.session.open_results(path, pictures, begins, False)
            before = next(iter(notes.values()))
            for index, pts in enumerate(shown):
                note = notes.get(pts)
                before = note or before
                kept = note or before.skipped(pts, self._most_age)
                results.add(*kept.in_clip(index, origin, path))
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
        self._encoded = None
