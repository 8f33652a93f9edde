"""Uploaded recordings: their files, and what has become of each, in a folder that outlives the server.

FOLDER/library.sqlite          a row for each recording
FOLDER/incoming/               uploads in one request, until they are whole
FOLDER/recordings/ID/upload    as it came; its own name is in the row and never a part of a path
FOLDER/recordings/ID/N/upload/ results of `process`, the Nth time that it was begun: the process of a server that was
                               killed may still be writing to an older one
"""

from __future__ import annotations

import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stream.errors import OutputError
from stream.sinks.files import writing

State = Literal["uploading", "waiting", "processing", "finished", "failed", "cancelled"]
ID_PATTERN = "^[0-9a-f]{16}$"
# A recording that the server did not survive so often is not begun again.
MOST_ATTEMPTS = 3
LONGEST_NAME = 200
DAY_S = 86400.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS recordings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    name TEXT NOT NULL,
    size INTEGER NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    found TEXT NOT NULL DEFAULT ''
)
"""
COLUMNS = "id, name, size, state, created, attempts, message, found"


@dataclass(frozen=True, slots=True)
class Entry:
    """One recording.

    Attributes:
        id: 16 hexadecimal digits.
        name: of the file as its owner calls it, for people's eyes.
        size: of the file in bytes, as announced.
        state: what has become of it.
        created: seconds since 1970.
        attempts: how often it was begun.
        message: what went wrong, or notes of a finished run.
        found: JSON of a finished run, for the pages.
    """

    id: str
    name: str
    size: int
    state: State
    created: float
    attempts: int
    message: str
    found: str


class Library:
    """The recordings in a folder. It can be asked from any thread; one server at a time may have it open.

    Args:
        folder: made if absent.

    Raises:
        OutputError: it cannot be used, or another server has it open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        with writing(folder):
            (folder / "recordings").mkdir(parents=True, exist_ok=True)
            self.incoming.mkdir(exist_ok=True)
        try:
            self._database = sqlite3.connect(
                folder / "library.sqlite", timeout=0.5, isolation_level=None, check_same_thread=False
            )
            # Held until it is closed or the process dies: two servers would process each recording twice.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("BEGIN EXCLUSIVE")
            self._database.execute(SCHEMA)
            self._database.execute("UPDATE recordings SET state = 'waiting' WHERE state = 'processing'")
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise OutputError(f"{folder}: another `polypstream serve` uses this folder; give --folder") from error
            raise OutputError(f"{folder}: cannot be used ({error})") from error
        except sqlite3.DatabaseError as error:
            raise OutputError(f"{folder / 'library.sqlite'}: is damaged ({error}); move the folder away") from error

    def close(self) -> None:
        """Let another server have it."""
        with self._lock:
            self._database.close()

    @property
    def incoming(self) -> Path:
        """For files that are not whole yet."""
        return self.folder / "incoming"

    def upload_path(self, id_: str) -> Path:
        """Where a recording's file is."""
        return self._folder_of(id_) / "upload"

    def results_path(self, entry: Entry) -> Path:
        """Where its results are, or are going to be."""
        return self._folder_of(entry.id) / str(entry.attempts) / "upload"

    def _folder_of(self, id_: str) -> Path:
        return self.folder / "recordings" / id_

    def free_bytes(self) -> int:
        """How much room there is for uploads."""
        return shutil.disk_usage(self.folder).free

    def add(self, name: str, size: int) -> Entry:
        """Expect a recording of so many bytes; its empty file is there."""
        id_ = secrets.token_hex(8)
        with writing(self.upload_path(id_)):
            self._folder_of(id_).mkdir()
            self.upload_path(id_).touch()
        shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
        with self._lock:
            self._database.execute(
                "INSERT INTO recordings (id, name, size, state, created) VALUES (?, ?, ?, 'uploading', ?)",
                (id_, shown[:LONGEST_NAME] or "recording", size, time.time()),
            )
            return self._known(id_)

    def get(self, id_: str) -> Entry | None:
        """A recording, if there is one of that id."""
        found = self._select("WHERE id = ?", id_)
        return found[0] if found else None

    def _known(self, id_: str) -> Entry:
        entry = self.get(id_)
        assert entry is not None
        return entry

    def all(self) -> list[Entry]:
        """Every recording, the newest first."""
        return self._select("ORDER BY number DESC")

    def received(self, entry: Entry) -> int:
        """Bytes of an upload that are here."""
        try:
            return self.upload_path(entry.id).stat().st_size
        except FileNotFoundError:
            return 0

    def move(self, id_: str, before: State, after: State, message: str = "", found: str = "") -> bool:
        """Change a recording's state if it still is the one before; whether it was."""
        with self._lock:
            changed = self._database.execute(
                "UPDATE recordings SET state = ?, message = ?, found = ? WHERE id = ? AND state = ?",
                (after, message, found, id_, before),
            )
            return changed.rowcount > 0

    def begin_next(self) -> Entry | None:
        """Take the recording that has waited longest; it is being processed from now on."""
        with self._lock:
            for entry in self._select("WHERE state = 'waiting' ORDER BY number LIMIT 1"):
                if entry.attempts >= MOST_ATTEMPTS:
                    said = f"it was begun {entry.attempts} times, and each time the server ended before it was done"
                    self.move(entry.id, "waiting", "failed", said)
                    return self.begin_next()
                self._database.execute(
                    "UPDATE recordings SET state = 'processing', attempts = attempts + 1 WHERE id = ?", (entry.id,)
                )
                for attempt in range(1, entry.attempts + 1):
                    shutil.rmtree(self._folder_of(entry.id) / str(attempt), ignore_errors=True)
                return self._known(entry.id)
        return None

    def place_in_line(self, entry: Entry) -> int:
        """How many waiting recordings are before it."""
        waiting = self._select("WHERE state = 'waiting' ORDER BY number")
        return next((place for place, other in enumerate(waiting) if other.id == entry.id), 0)

    def remove(self, id_: str) -> None:
        """Delete a recording with all that is its own."""
        with self._lock:
            self._database.execute("DELETE FROM recordings WHERE id = ?", (id_,))
        shutil.rmtree(self._folder_of(id_), ignore_errors=True)

    def remove_old(self, keep_days: float) -> None:
        """Delete what is older, unfinished uploads after a day, and files that no row knows."""
        now = time.time()
        for entry in self.all():
            untouched = now - self._touched(entry)
            abandoned = entry.state == "uploading" and untouched > DAY_S
            if abandoned or (entry.state != "processing" and untouched > keep_days * DAY_S):
                self.remove(entry.id)
        known = {entry.id for entry in self.all()}
        for folder in (self.folder / "recordings").iterdir():
            if folder.name not in known and now - folder.stat().st_mtime > DAY_S:
                shutil.rmtree(folder, ignore_errors=True)

    def _touched(self, entry: Entry) -> float:
        """When anything of it was last written."""
        times = [entry.created]
        for path in (self.upload_path(entry.id), self._folder_of(entry.id)):
            if path.exists():
                times.append(path.stat().st_mtime)
        return max(times)

    def _select(self, condition: str, *values: str) -> list[Entry]:
        with self._lock:
            rows = self._database.execute(f"SELECT {COLUMNS} FROM recordings {condition}", values)
            return [Entry(*row) for row in rows]


@contextmanager
def open_library(folder: Path) -> Iterator[Library]:
    """A library for the length of a block."""
    library = Library(folder)
    try:
        yield library
    finally:
        library.close()
