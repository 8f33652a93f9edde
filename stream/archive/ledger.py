"""The ledger of an archive: the state of each recording, in an SQLite file beside the results."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from polypstream.archive.inputs import Item
from polypstream.errors import DataError, OutputError

LEDGER = "archive.sqlite"
BUSY_TIMEOUT_S = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS recordings (
    address TEXT PRIMARY KEY, name TEXT NOT NULL, size INTEGER NOT NULL, version TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, frames INTEGER NOT NULL, parts INTEGER NOT NULL,
    worker_seconds REAL NOT NULL, changed TEXT NOT NULL, tracks INTEGER);
CREATE TABLE IF NOT EXISTS runs (settings TEXT NOT NULL);
"""
WRITE = (
    "INSERT INTO recordings (address, name, size, version, state, reason, frames, parts, worker_seconds, changed, "
    "tracks) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (address) DO UPDATE SET "
    "name = excluded.name, size = excluded.size, version = excluded.version, state = excluded.state, "
    "reason = excluded.reason, frames = excluded.frames, parts = excluded.parts, "
    "worker_seconds = excluded.worker_seconds, changed = excluded.changed, tracks = excluded.tracks"
)


class State(StrEnum):
    """State of a recording."""

    WAITING = "waiting"
    BEGUN = "begun"
    DONE = "done"
    BROKEN = "broken"
    """The recording cannot be read, or not completely. Another attempt would fail too."""
    FAILED = "failed"
    """Something else failed. The next run tries again."""
    BLOCKED = "blocked"
    """The folder for its results already holds something that does not belong to this archive."""


@dataclass(frozen=True, slots=True)
class Row:
    """A recording in the ledger.

    Attributes:
        item: the recording.
        state: its state.
        reason: why it is broken, failed or blocked, or other information.
        frames: number of frames written.
        parts: number of parts in which it was processed; 1: as a whole; 0: not yet processed.
        worker_seconds: time that workers spent on it, in seconds.
        tracks: number of polyps found, each followed over time; None: there are no results, or an earlier version of
            polypstream made them and did not count.
    """

    item: Item
    state: State = State.WAITING
    reason: str = ""
    frames: int = 0
    parts: int = 0
    worker_seconds: float = 0.0
    tracks: int | None = None


class Ledger:
    """The ledger in a file. Each change is written at once.

    Args:
        path: the file; it is created if it does not exist.

    Raises:
        DataError: the file is something else, or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            self._file.executescript(SCHEMA)
            columns = {row[1] for row in self._file.execute("PRAGMA table_info(recordings)")}
            # Ledgers of earlier versions have no such column. It is added when something is written.
            self._has_tracks = "tracks" in columns
        except sqlite3.Error as error:
            raise DataError(f"{path}: cannot be used as the ledger of an archive ({error})") from error

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._file
        except sqlite3.Error as error:
            raise OutputError(f"{self._path}: the ledger cannot be read or written ({error})") from error

    def made_with(self) -> dict[str, Any] | None:
        """The facts that the results were made with (`ArchiveJob.facts` and the engine); None: there are no results."""
        with self._using() as file:
            row = file.execute("SELECT settings FROM runs").fetchone()
        found: dict[str, Any] | None = json.loads(row[0]) if row else None
        return found

    def set_made_with(self, facts: dict[str, Any]) -> None:
        """Store the facts that the results are made with.

        Args:
            facts: values that can be converted to JSON.
        """
        with self._using() as file:
            file.execute("BEGIN")
            file.execute("DELETE FROM runs")
            file.execute("INSERT INTO runs VALUES (?)", [json.dumps(facts)])
            file.execute("COMMIT")

    def clear(self) -> None:
        """Remove all rows and facts."""
        with self._using() as file:
            file.executescript("DELETE FROM runs; DELETE FROM recordings;")

    def rows(self) -> dict[str, Row]:
        """All recordings by address, in the order in which they were added."""
        columns = "address, name, size, version, state, reason, frames, parts, worker_seconds, "
        columns += "tracks" if self._has_tracks else "NULL"
        with self._using() as file:
            found = file.execute(f"SELECT {columns} FROM recordings ORDER BY rowid").fetchall()
        rows = (tuple(map(_from_column, row)) for row in found)
        return {row[0]: Row(Item(*row[:4]), State(row[4]), *row[5:]) for row in rows}

    def write(self, rows: Iterable[Row]) -> None:
        """Add or update recordings.

        Args:
            rows: the recordings.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._using() as file:
            file.execute("BEGIN")
            if not self._has_tracks:
                file.execute("ALTER TABLE recordings ADD COLUMN tracks INTEGER")
                self._has_tracks = True
            for row in rows:
                item = row.item
                texts = (item.address, item.name, item.size, item.version, str(row.state), row.reason)
                numbers = (row.frames, row.parts, round(row.worker_seconds, 3), now, row.tracks)
                file.execute(WRITE, tuple(map(_to_column, (*texts, *numbers))))
            file.execute("COMMIT")

    def close(self) -> None:
        """Close the file. May be called more than once."""
        self._file.close()


def _to_column(value: Any) -> Any:
    """Convert a value for the database. File names may have any bytes: those that are not text stay bytes."""
    if isinstance(value, str) and not value.isascii():
        content = value.encode("utf-8", "surrogateescape")
        return content if content.decode("utf-8", "replace") != value else value
    return value


def _from_column(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
