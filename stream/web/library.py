"""Uploaded recordings, their files and their states, in a folder that remains when the server stops.

FOLDER/library.sqlite          one row per recording
FOLDER/incoming/               incomplete uploads in a single request, and incomplete annotations
FOLDER/recordings/ID/upload    the uploaded file. Its original name is in the row only, never in a path
FOLDER/recordings/ID/images.json  of a set of images: their names and sizes. The upload has them one after another
FOLDER/recordings/ID/N/upload/ results of the Nth attempt to process it. The process of a killed server may still write
                               to the folder of an older attempt
FOLDER/recordings/ID/N/images/ of a set of images: the images
FOLDER/recordings/ID/N/*.zip   annotations that were made from these results
"""

from __future__ import annotations

import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polypstream.core.files import writing
from polypstream.errors import OutputError
from polypstream.jobs.reviews import REVIEWS
from polypstream.web.stills import UploadedImage, read_list, unpack, write_list

State = Literal["uploading", "waiting", "processing", "finished", "failed", "cancelled"]
ID_PATTERN = "^[0-9a-f]{16}$"
# A recording is not processed again after the server has ended unexpectedly this many times while processing it.
MAX_CRASHES = 3
LONGEST_NAME = 200
DAY_S = 86400.0
# Version of the table. Increase it with each change of the table.
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
        name: original name of the file, for display only.
        size: announced size of the file in bytes.
        state: of its upload or processing.
        created: time of creation, in seconds since 1970.
        attempts: how often its processing was started.
        crashes: how often the server ended unexpectedly while it was processed. A current attempt counts, too.
        message: an error, or notes of a finished run.
        tracks: number of tracks, if it is finished.
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
    """The recordings in a folder. All methods are thread-safe. Only one server at a time can open a folder.

    Args:
        folder: is created if it does not exist.

    Raises:
        OutputError: the folder cannot be used, or another server has opened it.
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
            # The lock lasts until the database is closed. Two servers would process each recording twice.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("BEGIN EXCLUSIVE")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                self._database.close()
                raise OutputError(
                    f"{folder}: belongs to another version of polypstream; choose another folder with --folder"
                )
            self._database.execute(SCHEMA)
            self._database.execute(f"PRAGMA user_version = {VERSION}")
            self._database.execute("COMMIT")
            for left in self.incoming.iterdir():  # files of a server that was killed
                shutil.rmtree(left, ignore_errors=True)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise OutputError(
                    f"{folder}: another `polypstream serve` uses this folder; choose another one with --folder"
                ) from error
            raise OutputError(f"{folder}: cannot be used ({error})") from error
        except sqlite3.DatabaseError as error:
            raise OutputError(f"{folder / 'library.sqlite'}: is damaged ({error}); move the folder away") from error

    def close(self) -> None:
        """Close the folder, so that another server can open it."""
        with self._lock:
            self._database.close()

    @property
    def incoming(self) -> Path:
        """The folder of incomplete files."""
        return self.folder / "incoming"

    def upload_path(self, id_: str) -> Path:
        """Return the path of a recording's file."""
        return self._folder_of(id_) / "upload"

    def results_path(self, entry: Entry) -> Path:
        """Return the path of a recording's results, which may not exist yet."""
        return self._folder_of(entry.id) / str(entry.attempts) / "upload"

    def images(self, id_: str) -> Sequence[UploadedImage]:
        """Return the images of a set of images; none if it is a recording."""
        return read_list(self._folder_of(id_) / "images.json")

    def original_path(self, entry: Entry) -> Path:
        """Return what the results of a finished recording were made from: its file, or the folder of the images."""
        if self.images(entry.id):
            return self.results_path(entry).parent / "images"
        return self.upload_path(entry.id)

    def unpack(self, entry: Entry) -> tuple[Path, ...]:
        """Write the images of a set of images to files, for the current attempt to process it.

        Returns:
            Their paths; none if it is a recording.

        Raises:
            OutputError: they cannot be written.
        """
        images = self.images(entry.id)
        return tuple(unpack(self.upload_path(entry.id), images, self.original_path(entry))) if images else ()

    def _folder_of(self, id_: str) -> Path:
        return self.folder / "recordings" / id_

    def free_bytes(self) -> int:
        """Return the free space of the disk."""
        return shutil.disk_usage(self.folder).free

    def add(self, name: str, size: int, images: Sequence[UploadedImage] = ()) -> Entry:
        """Add a recording that will be uploaded, and create its empty file.

        Args:
            name: original name of the file.
            size: in bytes.
            images: the images that follow one another in the file; none: it is a recording.

        Raises:
            OutputError: the file cannot be created.
        """
        id_ = secrets.token_hex(8)
        with writing(self.upload_path(id_)):
            self._folder_of(id_).mkdir()
            self.upload_path(id_).touch()
        if images:
            write_list(self._folder_of(id_) / "images.json", images)
        shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
        with self._lock:
            values = (id_, shown[:LONGEST_NAME] or "recording", size, time.time())
            self._write(
                "INSERT INTO recordings (id, name, size, state, created) VALUES (?, ?, ?, 'uploading', ?)", *values
            )
            return self._known(id_)

    def get(self, id_: str) -> Entry | None:
        """Return a recording; None if there is none with this id."""
        found = self._select("WHERE id = ?", id_)
        return found[0] if found else None

    def _known(self, id_: str) -> Entry:
        entry = self.get(id_)
        assert entry is not None
        return entry

    def all(self) -> list[Entry]:
        """Return all recordings, the newest first."""
        return self._select("ORDER BY number DESC")

    def some(self, first: int, count: int) -> list[Entry]:
        """Return `count` recordings from index `first` on, the newest first."""
        return self._select("ORDER BY number DESC LIMIT ? OFFSET ?", count, first)

    def received(self, entry: Entry) -> int:
        """Return the number of bytes of an upload that have been received."""
        if entry.state != "uploading":
            return entry.size
        try:
            return self.upload_path(entry.id).stat().st_size
        except FileNotFoundError:
            return 0

    def move(self, id_: str, before: State, after: State, message: str = "") -> bool:
        """Change a recording's state if it still is `before`.

        Returns:
            Whether the state was changed.
        """
        with self._lock:
            values = (after, message, id_, before)
            return self._write("UPDATE recordings SET state = ?, message = ? WHERE id = ? AND state = ?", *values) > 0

    def finish(self, id_: str, message: str, tracks: int, found: str) -> None:
        """Store the result of a recording that was being processed.

        Args:
            id_: of the recording.
            message: notes of the run.
            tracks: number of tracks.
            found: JSON of the findings, for its page.
        """
        with self._lock:
            self._write(
                "UPDATE recordings SET state = 'finished', message = ?, tracks = ?, found = ? "
                "WHERE id = ? AND state = 'processing'",
                *(message, tracks, found, id_),
            )

    def begin_again(self, id_: str) -> bool:
        """Put a recording that failed or was cancelled back into the queue.

        Returns:
            Whether it was one.
        """
        with self._lock:
            again = "UPDATE recordings SET state = 'waiting', crashes = 0, message = '' WHERE id = ? "
            return self._write(again + "AND state IN ('failed', 'cancelled')", id_) > 0

    def begin_next(self) -> Entry | None:
        """Take the first recording of the queue, and mark it as the only one that is being processed.

        Returns:
            The recording; None if the queue is empty.
        """
        with self._lock:
            # A killed server or an error may have left a recording in this state.
            self._write("UPDATE recordings SET state = 'waiting' WHERE state = 'processing'")
            for entry in self._select("WHERE state = 'waiting' ORDER BY number LIMIT 1"):
                if entry.crashes >= MAX_CRASHES:
                    said = f"it was started {entry.crashes} times, and the server ended each time before it was done"
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
        """Put the recording that is being processed back into the queue. This does not count as a crash."""
        with self._lock:
            if self.move(entry.id, "processing", "waiting"):
                self._write("UPDATE recordings SET crashes = crashes - 1 WHERE id = ?", entry.id)

    def queue_positions(self) -> dict[str, int]:
        """Return the number of recordings before each recording in the queue, by id."""
        return {entry.id: place for place, entry in enumerate(self._select("WHERE state = 'waiting' ORDER BY number"))}

    def remove_results(self, entry: Entry) -> None:
        """Delete the results of a failed run."""
        shutil.rmtree(self.results_path(entry).parent, ignore_errors=True)

    def remove(self, id_: str) -> None:
        """Delete a recording with all its files."""
        with self._lock:
            self._write("DELETE FROM recordings WHERE id = ?", id_)
        shutil.rmtree(self._folder_of(id_), ignore_errors=True)

    def remove_if_deleted(self, id_: str) -> None:
        """Delete what was written to a recording's folder after its deletion."""
        if self.get(id_) is None:
            shutil.rmtree(self._folder_of(id_), ignore_errors=True)

    def remove_old(self, keep_days: float) -> None:
        """Delete old recordings, incomplete uploads after a day, and files without a row in the table.

        Args:
            keep_days: age in days from which a recording is deleted, unless it waits or is being processed.
        """
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
        """Return the time of the last change, in seconds since 1970."""
        times = [entry.created]
        for path in (self.upload_path(entry.id), self._folder_of(entry.id), self.results_path(entry) / REVIEWS):
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
        return max(times)

    def found(self, id_: str) -> str:
        """Return the JSON of a finished recording's findings; empty if there is none."""
        with self._lock:
            row = self._database.execute("SELECT found FROM recordings WHERE id = ?", (id_,)).fetchone()
        return str(row[0]) if row else ""

    def _select(self, condition: str, *values: object) -> list[Entry]:
        with self._lock:
            rows = self._database.execute(f"SELECT {COLUMNS} FROM recordings {condition}", values)
            return [Entry(*row) for row in rows]

    def _write(self, statement: str, *values: object) -> int:
        """Execute a statement that changes the table.

        Returns:
            The number of changed rows.

        Raises:
            OutputError: the table cannot be written, for instance since the disk is full.
        """
        try:
            return self._database.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise OutputError(f"{self.folder / 'library.sqlite'}: cannot be written ({error})") from error


@contextmanager
def open_library(folder: Path) -> Iterator[Library]:
    """Open a library for the duration of a with block."""
    library = Library(folder)
    try:
        yield library
    finally:
        library.close()
