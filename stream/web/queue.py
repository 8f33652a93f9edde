"""The queue of uploaded recordings, which are processed one after another, each in a separate process."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from polypstream.core.config import Settings
from polypstream.core.formatting import words_of
from polypstream.errors import OutputError, PolypstreamError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.isolated import IsolatedProcessor, Outcome
from polypstream.jobs.process import Job
from polypstream.stages.findings import choose_rules
from polypstream.web.found import Found, found_in
from polypstream.web.library import Entry, Library

CLEANUP_INTERVAL_S = 3600.0
# Live sources and requests have priority for the CPU.
NICENESS = 5
# Wait before a retry after an unexpected error, such as a full disk.
RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of the recording that is being processed.

    Attributes:
        id: of the recording.
        done: number of processed frames.
        of: number of frames according to the file; None: unknown.
        seconds_left: estimated remaining time at the current rate; None: unknown.
    """

    id: str
    done: int = 0
    of: int | None = None
    seconds_left: float | None = None


class RecordingQueue:
    """Processes waiting recordings.

    Args:
        library: the recordings.
        settings: for their runs.

    Attributes:
        progress: of the recording that is being processed; None: there is none.
        problem: what keeps the queue from working, as text for the user; empty: nothing.
    """

    def __init__(self, library: Library, settings: Settings) -> None:
        self._library, self._settings = library, settings
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._stopping = False
        self._worker: IsolatedProcessor | None = None
        self.progress: Progress | None = None
        self.problem = ""

    def wake(self) -> None:
        """Let `run` check for waiting recordings now."""
        self._work.set()

    def run(self) -> None:
        """Process recordings until `close`. An error of one recording or of the disk does not end it."""
        while True:
            self._work.clear()
            if self._stopping:
                return
            try:
                self._process_next()
                self.problem = ""
            except Exception as error:
                self.problem = f"recordings: {words_of(error)}"
                logging.getLogger("uvicorn.error").exception("the queue of recordings")
                self._work.wait(RETRY_S)

    def _process_next(self) -> None:
        """Process the next recording. If there is none, delete old ones and wait."""
        entry = self._library.begin_next()
        if entry is not None:
            try:
                self._process(entry)
            finally:
                self._library.remove_if_deleted(entry.id)
            return
        self._library.remove_old(self._settings.serve.keep_days)
        self._work.wait(CLEANUP_INTERVAL_S)

    def close(self) -> None:
        """Let `run` end. The current recording is put back into the queue, for the next server."""
        with self._lock:
            self._stopping = True
            if self._worker is not None:
                self._worker.kill()
        self._work.set()

    def cancel(self, id_: str) -> bool:
        """Cancel a recording that waits or is being processed.

        Returns:
            Whether it was one.
        """
        if self._library.move(id_, "waiting", "cancelled"):
            return True
        with self._lock:
            cancelled = self._library.move(id_, "processing", "cancelled")
            if cancelled and self._worker is not None:  # the worker has this recording: it processes one at a time
                self._worker.kill()
        return cancelled

    def _process(self, entry: Entry) -> None:
        results = self._library.results_path(entry)
        try:
            images = self._library.unpack(entry)
        except OutputError:
            if self._library.get(entry.id) is None:
                return  # it was deleted meanwhile
            raise
        job = Job(
            str(self._library.original_path(entry)),
            results.parent,
            masks=True,
            name=results.name if images else None,
            title=entry.name,
            images=images,
        )
        with self._lock:
            if self._stopping:
                self._library.put_back(entry)
                return
            current = self._library.get(entry.id)
            if current is None or current.state != "processing":
                return
            self.progress = Progress(entry.id)
            worker = self._worker = IsolatedProcessor(self._settings, niceness=NICENESS)
        outcome = Outcome()
        try:
            with closing(worker):
                outcome = self._outcome_of(worker, job, entry)
        finally:
            with self._lock:
                self._worker, self.progress = None, None
                if self._stopping:
                    self._library.put_back(entry)
                else:
                    self._store(entry, job, outcome)

    def _outcome_of(self, worker: IsolatedProcessor, job: Job, entry: Entry) -> Outcome:
        began: float | None = None

        def on_progress(done: int, of: int | None) -> None:
            nonlocal began
            began = began or (time.monotonic() if done else None)
            left = (time.monotonic() - began) / done * max(0, of - done) if began and done and of else None
            self.progress = Progress(entry.id, done, of, left)

        try:
            worker.start()
            return worker.process(job, on_progress, partial(_find, self._library.results_path(entry)))
        except PolypstreamError as error:  # the model cannot be loaded
            return Outcome(problem=error)

    def _store(self, entry: Entry, job: Job, outcome: Outcome) -> None:
        """Store the outcome of a recording, and delete the results of a failed one. A cancelled one stays cancelled."""
        run, results = outcome.run, self._library.results_path(entry)
        message = str(outcome.problem or (run and (run.problem or "; ".join(run.notes))) or "")
        message = message.replace(job.uri, entry.name).replace(str(results), "its results")
        if isinstance(outcome.then, Found):
            self._library.finish(entry.id, message, outcome.then.findings, outcome.then.model_dump_json())
        else:
            self._library.move(entry.id, "processing", "failed", message)
            self._library.remove_results(entry)


def _find(results: Path, segmenter: Segmenter, settings: Settings) -> Found | None:
    """Read the findings of a run, which has those of the readable part of a recording. None: there are no results."""
    if not (results / "report.html").is_file():
        return None
    card = segmenter.card
    found = found_in(results, choose_rules(settings.findings, card.threshold, card.peak).peak)
    return found if found.images or found.highest else None  # neither: no image could be read
