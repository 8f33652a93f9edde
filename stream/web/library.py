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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polypstream.core.files import writing
from polypstream.errors import OutputError

State = Literal["uploading", "waiting", "processing", "finished", "failed", "cancelled"]
ID_PATTERN = "^[0-9a-f]{16}$"
# A recording that the server did not survive so often is not begun again.
MAX_CRASHES = 3
LONGEST_NAME = 200
DAY_S = 86400.0
# Of the table, to be counted up when it changes.
VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS recordings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    name TEXT NOT NULL,
    size INTEGER NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    tracks INTEGER NOT NULL DEFAULT 0,
    found TEXT NOT NULL DEFAULT ''
)
"""
COLUMNS = "id, name, size, state, created, attempts, crashes, message, tracks"


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
        crashes: how often the server did not survive it, this time included while it is being processed.
        message: what went wrong, or notes of a finished run.
        tracks: how many were found, once it is finished.
    """

    id: str
    name: str
    size: int
    state: State
    created: float
    attempts: int
    crashes: int
    message: str
    tracks: int


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
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                self._database.close()
                raise OutputError(f"{folder}: is of another version of polypstream; give another --folder")
            self._database.execute(SCHEMA)
            self._database.execute(f"PRAGMA user_version = {VERSION}")
            self._database.execute("COMMIT")
            for left in self.incoming.iterdir():  # by a server that was killed
                shutil.rmtree(left, ignore_errors=True)
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
            values = (id_, shown[:LONGEST_NAME] or "recording", size, time.time())
            self._write(
                "INSERT INTO recordings (id, name, size, state, created) VALUES (?, ?, ?, 'uploading', ?)", *values
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

    def some(self, first: int, count: int) -> list[Entry]:
        """So many of them, from the first on, counted from 0."""
        return self._select("ORDER BY number DESC LIMIT ? OFFSET ?", count, first)

    def received(self, entry: Entry) -> int:
        """Bytes of an upload that are here."""
        if entry.state != "uploading":
            return entry.size
        try:
            return self.upload_path(entry.id).stat().st_size
        except FileNotFoundError:
            return 0

    def move(self, id_: str, before: State, after: State, message: str = "") -> bool:
        """Change a recording's state if it still is the one before; whether it was."""
        with self._lock:
            values = (after, message, id_, before)
            return self._write("UPDATE recordings SET state = ?, message = ? WHERE id = ? AND state = ?", *values) > 0

    def finish(self, id_: str, message: str, tracks: int, found: str) -> None:
        """A recording that was being processed is finished."""
        with self._lock:
            self._write(
                "UPDATE recordings SET state = 'finished', message = ?, tracks = ?, found = ? "
                "WHERE id = ? AND state = 'processing'",
                *(message, tracks, found, id_),
            )

    def begin_again(self, id_: str) -> bool:
        """Let a recording wait that failed or was cancelled; whether it did."""
        with self._lock:
            again = "UPDATE recordings SET state = 'waiting', crashes = 0, message = '' WHERE id = ? "
            return self._write(again + "AND state IN ('failed', 'cancelled')", id_) > 0

    def begin_next(self) -> Entry | None:
        """Take the recording that has waited longest; it is being processed from now on, and no other is."""
        with self._lock:
            # Left by a server that was killed, or by an error.
            self._write("UPDATE recordings SET state = 'waiting' WHERE state = 'processing'")
            for entry in self._select("WHERE state = 'waiting' ORDER BY number LIMIT 1"):
                if entry.crashes >= MAX_CRASHES:
                    said = f"it was begun {entry.crashes} times, and each time the server ended before it was done"
                    self.move(entry.id, "waiting", "failed", said)
                    return self.begin_next()
                self._write(
                    "UPDATE recordings SET state = 'processing', attempts = attempts + 1, crashes = crashes + 1 "
                    "WHERE id = ?",
                    entry.id,
                )
                begun = self._known(entry.id)
                break
            else:
                return None
        for attempt in range(1, begun.attempts):
            shutil.rmtree(self._folder_of(begun.id) / str(attempt), ignore_errors=True)
        return begun

    def put_back(self, entry: Entry) -> None:
        """The server ends by itself: the recording at work waits again, and has not been the end of anything."""
        with self._lock:
            if self.move(entry.id, "processing", "waiting"):
                self._write("UPDATE recordings SET crashes = crashes - 1 WHERE id = ?", entry.id)

    def line(self) -> dict[str, int]:
        """For each recording that waits, by its id, how many are before it."""
        return {entry.id: place for place, entry in enumerate(self._select("WHERE state = 'waiting' ORDER BY number"))}

    def remove_results(self, entry: Entry) -> None:
        """Delete what a run left that came to nothing."""
        shutil.rmtree(self.results_path(entry).parent, ignore_errors=True)

    def remove(self, id_: str) -> None:
        """Delete a recording with all that is its own."""
        with self._lock:
            self._write("DELETE FROM recordings WHERE id = ?", id_)
        shutil.rmtree(self._folder_of(id_), ignore_errors=True)

    def remove_old(self, keep_days: float) -> None:
        """Delete what is older, unfinished uploads after a day, and files that no row knows."""
        now = time.time()
        for entry in self.all():
            untouched = now - self._touched(entry)
            abandoned = entry.state == "uploading" and untouched > DAY_S
            if abandoned or (entry.state not in ("waiting", "processing") and untouched > keep_days * DAY_S):
                self.remove(entry.id)
        known = {entry.id for entry in self.all()}
        for folder in (self.folder / "recordings").iterdir():
            with suppress(FileNotFoundError):
                if folder.name not in known and now - folder.stat().st_mtime > DAY_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def _touched(self, entry: Entry) -> float:
        """When anything of it was last written."""
        times = [entry.created]
        for path in (self.upload_path(entry.id), self._folder_of(entry.id)):
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
        return max(times)

    def found(self, id_: str) -> str:
        """JSON of a finished run, for its page; or nothing."""
        with self._lock:
            row = self._database.execute("SELECT found FROM recordings WHERE id = ?", (id_,)).fetchone()
        return str(row[0]) if row else ""

    def _select(self, condition: str, *values: object) -> list[Entry]:
        with self._lock:
            rows = self._database.execute(f"SELECT {COLUMNS} FROM recordings {condition}", values)
            return [Entry(*row) for row in rows]

    def _write(self, statement: str, *values: object) -> int:
        """The number of rows that changed.

        Raises:
            OutputError: the disk is full, or alike.
        """
        try:
            return self._database.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise OutputError(f"{self.folder / 'library.sqlite'}: cannot be written ({error})") from error


@contextmanager
def open_library(folder: Path) -> Iterator[Library]:
    """A library for the length of a block."""
    library = Library(folder)
    try:
        yield library
    finally:
        library.close()
