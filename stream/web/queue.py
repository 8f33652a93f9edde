"""Works through the library's waiting recordings, one after another, each in a process of its own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from stream.config import Settings
from stream.live_rooms import words_of
from stream.web.library import Entry, Library

TIDY_S = 3600.0
# After something unexpected, such as a full disk, it tries again.
AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the recording at work is.

    Attributes:
        id: of the recording.
        done: frames done.
        of: frames that it says it has; None: unknown.
        seconds_left: at this rate; None: unknown.
    """

    id: str
    done: int = 0
    of: int | None = None
    seconds_left: float | None = None


class RecordingQueue:
    """Processes what waits.

    Args:
        library: of the recordings.
        settings: of their runs.

    Attributes:
        progress: of the recording at work.
        problem: what keeps it from working, for people; or nothing.
    """

    def __init__(self, library: Library, settings: Settings) -> None:
        self._library, self._settings = library, settings
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._stopping = False
        self._worker: subprocess.Popen[str] | None = None
        self.progress: Progress | None = None
        self.problem = ""

    def look(self) -> None:
        """Something waits, perhaps."""
        self._work.set()

    def run(self) -> None:
        """Work until `close`. What goes wrong with one recording, or with the disk, must not end it for the others."""
        while True:
            self._work.clear()
            if self._stopping:
                return
            try:
                self._take_turn()
                self.problem = ""
            except Exception as error:
                self.problem = f"recordings: {words_of(error)}"
                logging.getLogger("uvicorn.error").exception("the queue of recordings")
                self._work.wait(AGAIN_S)

    def _take_turn(self) -> None:
        """Process the recording that is next; without one, tidy up and wait for one."""
        entry = self._library.begin_next()
        if entry is not None:
            self._process(entry)
            return
        self._library.remove_old(self._settings.serve.keep_days)
        self._work.wait(TIDY_S)

    def close(self) -> None:
        """End; what is being processed is begun again by the next server."""
        with self._lock:
            self._stopping = True
            if self._worker is not None:
                self._worker.kill()
        self._work.set()

    def cancel(self, id_: str) -> bool:
        """Let go of a recording that waits or is being processed; whether it did."""
        if self._library.move(id_, "waiting", "cancelled"):
            return True
        with self._lock:
            cancelled = self._library.move(id_, "processing", "cancelled")
            if cancelled and self._worker is not None:  # only one is being processed at a time
                self._worker.kill()
        return cancelled

    def _process(self, entry: Entry) -> None:
        orders = {
            "recording": str(self._library.upload_path(entry.id)),
            "output": str(self._library.results_path(entry).parent),
            "name": entry.name,
            "settings": self._settings.model_dump(mode="json"),
        }
        with self._lock:
            if self._stopping:
                self._library.put_back(entry)
                return
            current = self._library.get(entry.id)
            if current is None or current.state != "processing":
                return
            self.progress = Progress(entry.id)
            worker = self._worker = subprocess.Popen(
                [sys.executable, "-m", "stream.web.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a terminal's Ctrl-C is for the server, which ends it
            )
        said: dict[str, object] = {}
        try:
            with worker:
                said = self._follow(worker, entry, json.dumps(orders))
        finally:
            with self._lock:
                self._worker, self.progress = None, None
                if self._stopping:
                    self._library.put_back(entry)
                else:
                    self._file(entry, said, worker.returncode)

    def _follow(self, worker: subprocess.Popen[str], entry: Entry, orders: str) -> dict[str, object]:
        """Hand over the orders and keep the progress; the last thing that the worker says, which is how it ended."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        with suppress(BrokenPipeError):  # it has died already, and its exit code tells
            worker.stdin.write(orders)
            worker.stdin.close()
        said: dict[str, object] = {}
        began: float | None = None
        for line in worker.stdout:
            try:
                heard = json.loads(line)
            except ValueError:  # a library had something to say, too, or the line was cut off
                continue
            said = heard if isinstance(heard, dict) else said
            if "done" not in said:
                continue
            done, of = int(str(said["done"])), said["of"]
            began = began or (time.monotonic() if done else None)
            left = (time.monotonic() - began) / done * (int(str(of)) - done) if began and done and of else None
            self.progress = Progress(entry.id, done, None if of is None else int(str(of)), left)
        return said

    def _file(self, entry: Entry, said: dict[str, object], code: int) -> None:
        """Write down how a recording ended; what is of no use goes. A cancelled one stays so: it is not processing."""
        message = str(said.get("message", f"the process that read it died (exit code {code})"))
        if "found" in said:
            self._library.finish(entry.id, message, int(str(said["tracks"])), str(said["found"]))
        else:
            self._library.move(entry.id, "processing", "failed", message)
            self._library.remove_results(entry)
