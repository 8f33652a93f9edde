"""Recording of a live source into a series of MP4 files."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

from polypstream.core.config import Output
from polypstream.core.formatting import clock
from polypstream.core.frame import Frame
from polypstream.core.live_pictures import PicturePacket
from polypstream.core.protocols import LiveSource
from polypstream.errors import OutputError
from polypstream.sinks.recorded_file import CopiedFile, EncodedFile, Session, results_folder

# Sound and packets of the last seconds are kept for recordings, which may be behind.
KEEP_SOUND_S, KEEP_PICTURES_S = 30.0, 10.0
log = logging.getLogger(__name__)


class RollingRecording:
    """A sink that records to FILE.mp4, FILE-2.mp4, …

    A new file begins after a set time, at a set size, and when the format of the source or of its sound changes.
    Timestamps in a file are the frames' own, relative to its first frame. Without a signal, the placeholder frames are
    recorded. The sound of the source is synchronous with its frames. Each file has a folder of results beside it, with
    its name.

    Without markers, the packets of an H.264 source are copied. Such a file begins with a key picture. It has every
    frame of the source, and nothing while there is no signal.

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
        if clean:
            source.pictures.keep(KEEP_PICTURES_S)
        self.session: Session | None = None
        self.files: list[Path] = []
        self.on = True
        # Seconds recorded so far, and the time of the last frame.
        self._recorded = self._last = 0.0
        self._file: EncodedFile | CopiedFile | None = None
        # Number of the first packet that is in no file, and why pictures are encoded that could be copied.
        self._next_packet, self._why_encoded = 0, ""
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
        encoded = f" (encoded, because {self._why_encoded})" if self._why_encoded else ""
        return f"{'recording' if self.on else 'paused'} {clock(self._recorded)} in {self.files[-1]}{encoded}"

    def write(self, frame: Frame) -> None:
        """Record a frame of the source."""
        if frame.source != self._source.name or self._source.format is None:
            return
        if not self.on or (frame.has_signal and self._must_roll(frame)):
            self.close()
        if not self.on:
            return
        if self._file is None:
            self._open(frame)
        if self._file is not None:
            self._recorded += max(0.0, frame.seconds - self._last)
            self._last = frame.seconds
            self._file.write(frame)

    def _must_roll(self, frame: Frame) -> bool:
        if self._file is None:
            return False
        file, roll = self._file, self._settings.roll
        due = not file.fits(frame) or frame.seconds - file.begins >= roll.seconds or file.bytes >= roll.megabytes * 1e6
        if not isinstance(file, CopiedFile):
            return due or self._first_packet(frame) is not None
        if self._source.pictures.problem:
            return True
        key = file.next_key
        if key is not None and (due or file.has_ended):
            file.end_before(key)
            return True
        return False

    def _first_packet(self, frame: Frame) -> PicturePacket | None:
        """The packet with which a file can begin, if packets can be copied."""
        if not self.clean or self._source.pictures.problem:
            return None
        key = self._source.pictures.newest_key(frame.pts)
        return key if key is not None and key.number >= self._next_packet else None

    def _open(self, frame: Frame) -> None:
        first = self._first_packet(frame)
        if first is None and self.clean and not self._source.pictures.problem:
            return  # the next key picture is waited for
        path, video = self._next_path(), self._settings.video
        if first is not None:
            self._file = CopiedFile(path, self._source, first, frame, video, self.session, self._masks)
        else:
            self._file = EncodedFile(path, self._source, frame, video, self.session, self._masks, self.clean)
        self._last = self._file.begins
        self._tell(first is not None)
        self.files.append(path)

    def _tell(self, copies: bool) -> None:
        """Log once what is not copied."""
        assert self._file is not None
        for note in self._file.notes if not self.files else ():
            log.info(f"{self.source}: {note}")
        why = self._source.pictures.problem if self.clean and not copies else ""
        if why and why != self._why_encoded:
            log.info(f"{self.source}: the recording without markers is encoded, because {why}")
        self._why_encoded = why

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
        file, self._file = self._file, None
        if file is not None:
            file.close()
        if isinstance(file, CopiedFile):
            self._next_packet = file.next_packet
