"""Annotations of finished recordings, which are made on demand, one after another, in separate processes."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from polypstream.core.files import write_atomically
from polypstream.core.formatting import words_of
from polypstream.core.watchdog import Watchdog
from polypstream.errors import OutputError, PolypstreamError
from polypstream.jobs.annotations import Selection, write_annotations
from polypstream.jobs.reviews import REVIEWS, ReviewStore
from polypstream.web.library import Entry, Library
from polypstream.web.page import DISK_PROBLEM
from polypstream.web.zipped import folder_name, zip_chunks

AnnotationFormat = Literal["coco", "cvat", "yolo", "labelme", "png"]
# Recordings in the queue have the same niceness. Live sources and requests have priority for the CPU.
NICENESS = 5
# Files of a run that annotations are made from.
NEEDED = ("findings.json", "frames.csv", REVIEWS)


class AnnotationState(BaseModel):
    """The state of a recording's annotations in one format, since the server was started."""

    format: AnnotationFormat
    every: float
    """Seconds between annotated frames; 0: all frames are annotated."""
    only_reviewed: bool = False
    """Frames whose findings a reader has not all reviewed are left out."""
    state: Literal["waiting", "processing", "finished", "failed"] = "waiting"
    message: str = ""
    """The error, if they have failed."""
    frames_done: int = 0
    frames_expected: int | None = None


@dataclass(frozen=True, slots=True)
class _Progress:
    """Message of the child: numbers of frames done and expected."""

    done: int
    expected: int | None


class AnnotationMaker:
    """Makes ZIP archives of annotations. A recording keeps one archive per format, beside its results.

    Args:
        library: of the recordings.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._executor = ThreadPoolExecutor(1, "annotations")
        self._lock = threading.Lock()
        self._states: dict[tuple[str, AnnotationFormat], AnnotationState] = {}
        self._child: BaseProcess | None = None
        self._current: tuple[str, AnnotationFormat] | None = None
        self._closed = False

    def path(self, entry: Entry, kind: AnnotationFormat, every: float, only_reviewed: bool = False) -> Path:
        """Return the path of an archive, which may not exist yet. It is another one after each change of the review.

        Args:
            entry: the recording.
            kind: the format.
            every: seconds between annotated frames; 0: all frames.
            only_reviewed: leave out frames whose findings a reader has not all reviewed.
        """
        results = self._library.results_path(entry)
        revision = ReviewStore(results).revision()
        review = (f"-review-{revision}" if revision else "") + ("-only" if only_reviewed else "")
        return results.parent / f"{_prefix(kind)}{every:g}{review}.zip"

    def states(self, id_: str) -> list[AnnotationState]:
        """Return the states of a recording's annotations.

        Args:
            id_: of the recording.
        """
        with self._lock:
            return [state.model_copy() for (of, _), state in self._states.items() if of == id_]

    def start(self, entry: Entry, kind: AnnotationFormat, every: float, only_reviewed: bool = False) -> AnnotationState:
        """Start to make an archive, unless it is there or is being made.

        Args:
            entry: the recording, which is finished.
            kind: the format.
            every: seconds between annotated frames; 0: all frames.
            only_reviewed: leave out frames whose findings a reader has not all reviewed.

        Returns:
            Its state. If the archive of the same format is being made for another `every`, it is that one's.
        """
        key = entry.id, kind
        with self._lock:
            state = self._states.get(key)
            if state is not None and state.state in ("waiting", "processing"):
                return state.model_copy()
            state = self._states[key] = AnnotationState(format=kind, every=every, only_reviewed=only_reviewed)
            if self.path(entry, kind, every, only_reviewed).is_file():
                state.state = "finished"
            else:
                self._executor.submit(self._run, entry, state)
            return state.model_copy()

    def forget(self, id_: str) -> None:
        """Stop making the annotations of a recording that is deleted.

        Args:
            id_: of the recording.
        """
        with self._lock:
            for key in [key for key in self._states if key[0] == id_]:
                del self._states[key]
            if self._current is not None and self._current[0] == id_:
                self._kill()

    def close(self) -> None:
        """End the work. Archives that are not complete are removed."""
        with self._lock:
            self._closed = True
            self._kill()
        self._executor.shutdown(cancel_futures=True)

    def _kill(self) -> None:
        if self._child is not None and self._child.is_alive():
            self._child.kill()

    def _run(self, entry: Entry, state: AnnotationState) -> None:
        """Make an archive. Every error becomes a state."""
        key = entry.id, state.format
        with self._lock:
            if self._states.get(key) is not state:
                return
            state.state, self._current = "processing", key
        try:
            self._make(entry, state)
            state.state = "finished"
        except Exception as error:
            if not self._closed:
                logging.getLogger("uvicorn.error").warning("annotations of %s: %s", entry.name, words_of(error))
            state.message, state.state = self._message_of(error, entry), "failed"
        finally:
            self._current = None

    def _message_of(self, error: Exception, entry: Entry) -> str:
        """Return an error's message for the client, without paths of the server."""
        if isinstance(error, OutputError):
            return DISK_PROBLEM
        message = words_of(error).replace(str(self._library.original_path(entry)), entry.name)
        return message.replace(f"{self._library.folder}/", "")

    def _make(self, entry: Entry, state: AnnotationState) -> None:
        """Make an archive in a temporary folder, and move it to its place.

        Raises:
            PolypstreamError: the recording or the disk has a problem.
            OSError: the recording has been deleted, or the disk has a problem.
        """
        target = self.path(entry, state.format, state.every, state.only_reviewed)
        name = folder_name(entry.name)
        with tempfile.TemporaryDirectory(dir=self._library.incoming) as folder:
            # The folder of the run gives the images their names.
            run, output = Path(folder) / name, Path(folder) / "output"
            run.mkdir()
            for needed in (self._library.results_path(entry) / name for name in NEEDED):
                if needed.name != REVIEWS or needed.is_file():
                    shutil.copyfile(needed, run / needed.name)
            self._write(str(self._library.original_path(entry)), run, output, state)
            with write_atomically(target) as unfinished, unfinished.open("wb") as file:
                for chunk in zip_chunks(_files_in(output, f"{name}-{state.format}")):
                    self._check_wanted(state)
                    file.write(chunk)
        for older in target.parent.glob(f"{_prefix(state.format)}*.zip"):
            if older != target:
                older.unlink(missing_ok=True)

    def _write(self, recording: str, run: Path, output: Path, state: AnnotationState) -> None:
        """Write the annotations in a child process, since a decoder may crash.

        Raises:
            PolypstreamError: the child has an error, or died.
        """
        receiver, sender = get_context("spawn").Pipe(duplex=False)
        selection = Selection(state.every, only_reviewed=state.only_reviewed)
        arguments = (sender, recording, run, state.format, output, selection)
        with self._lock:
            self._check_wanted(state)
            child = self._child = get_context("spawn").Process(target=_write_in_child, args=arguments, daemon=True)
            child.start()
        sender.close()
        problem: PolypstreamError | None = PolypstreamError("the process that made the annotations died")
        with receiver, suppress(EOFError):
            while isinstance(message := receiver.recv(), _Progress):
                state.frames_done, state.frames_expected = message.done, message.expected
            problem = message
        child.join()
        if problem is not None:
            raise problem

    def _check_wanted(self, state: AnnotationState) -> None:
        """Raise an error if the server stops, or the recording has been deleted."""
        if self._closed or all(each is not state for each in list(self._states.values())):
            raise PolypstreamError("the annotations are no longer needed")


def _prefix(kind: AnnotationFormat) -> str:
    return f"annotations-{kind}-"


def _files_in(folder: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yield each file in a folder, and its name in an archive, in a folder of this name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, f"{name}/{path.relative_to(folder).as_posix()}"


def _write_in_child(
    sender: Connection, recording: str, run: Path, kind: AnnotationFormat, output: Path, selection: Selection
) -> None:
    """Write annotations, and send the progress, then the problem or None. Without a parent, sending ends the child."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the server
        os.nice(NICENESS)
    with Watchdog() as watchdog:

        def on_progress(done: int, expected: int | None) -> None:
            watchdog.note(done)
            sender.send(_Progress(done, expected))

        try:
            write_annotations([recording], [run], kind, output, selection, on_progress=on_progress)
        except PolypstreamError as error:
            sender.send(error)
        else:
            sender.send(None)
