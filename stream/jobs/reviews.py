"""reviews.sqlite: what readers decided about the tracks of a run, and the outlines that they drew.

The file lies in the folder of the results. The tracks in `findings.json` stay as the run wrote them; `reviewed.py`
merges both. The decisions are in the head of `findings.json`, too. Each change is stored at once, with the name of its
reader and its time. A reader replaces a change of another one only with `replace`. Several processes may use the file.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from polypstream.errors import DataError, OutputError, ReviewConflict
from polypstream.sinks.findings import write_reviews

REVIEWS = "reviews.sqlite"
Choice = Literal["accepted", "rejected", "undecided"]
# Longest name of a reader, in characters.
LONGEST_READER = 80
# Version of the tables. Increase it with each change of them.
VERSION = 1
# Seconds to wait for another process that writes.
TIMEOUT_S = 10.0
SCHEMA = """
CREATE TABLE decisions (track INTEGER PRIMARY KEY, choice TEXT NOT NULL, reader TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE drawn (track INTEGER PRIMARY KEY);
CREATE TABLE outlines (
    track INTEGER NOT NULL,
    frame INTEGER NOT NULL,
    polygons TEXT NOT NULL,
    reader TEXT NOT NULL,
    time REAL NOT NULL,
    carried_from INTEGER,
    PRIMARY KEY (track, frame)
);
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
"""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a reader decided about a track.

    Attributes:
        choice: the decision; `undecided` withdraws an earlier one.
        reader: name of the reader.
        time: when, in seconds since 1970.
    """

    choice: Choice
    reader: str
    time: float


@dataclass(frozen=True, slots=True)
class Correction:
    """The outline of a track in one frame, from a reader.

    Attributes:
        polygons: int32 [n, 2] each, x and y in pixels of the stored frame; empty: the frame does not show the polyp.
        reader: name of the reader.
        time: when, in seconds since 1970.
        carried_from: number of the frame in which the reader drew it, if the motion of the image carried it from there;
            None: it was drawn in this frame.
    """

    polygons: list[np.ndarray]
    reader: str
    time: float
    carried_from: int | None = None


@dataclass(frozen=True)
class Review:
    """All that readers have stored about a run.

    Attributes:
        revision: number of changes so far.
        decisions: the latest decision about each track, by its number.
        corrections: outlines by number of the track and number of the frame.
        drawn: numbers of the tracks that a reader added.
    """

    revision: int = 0
    decisions: Mapping[int, Decision] = field(default_factory=dict)
    corrections: Mapping[tuple[int, int], Correction] = field(default_factory=dict)
    drawn: frozenset[int] = frozenset()

    def choice(self, track: int) -> Choice:
        """The decision about a track.

        Args:
            track: number of the track.
        """
        decision = self.decisions.get(track)
        return decision.choice if decision else "undecided"


class ReviewStore:
    """The reviews of one run. Each method reads or writes the file at once. All methods are thread-safe.

    Args:
        folder: folder of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / REVIEWS

    def read(self) -> Review:
        """Read everything. Without a file, nothing was reviewed.

        Raises:
            DataError: the file cannot be read.
        """
        if not self._path.is_file():
            return Review()
        with self._reading() as database:
            decisions = database.execute("SELECT track, choice, reader, time FROM decisions")
            outlines = database.execute("SELECT track, frame, polygons, reader, time, carried_from FROM outlines")
            return Review(
                _revision_of(database),
                {track: Decision(*values) for track, *values in decisions},
                {(track, frame): Correction(_polygons_in(text), *values) for track, frame, text, *values in outlines},
                frozenset(track for (track,) in database.execute("SELECT track FROM drawn")),
            )

    def revision(self) -> int:
        """Number of changes so far.

        Raises:
            DataError: the file cannot be read.
        """
        if not self._path.is_file():
            return 0
        with self._reading() as database:
            return _revision_of(database)

    def decide(self, track: int, choice: Choice, reader: str, replace: bool = False) -> None:
        """Accept or reject a track.

        Args:
            track: number of the track.
            choice: the decision; `undecided` withdraws an earlier one.
            reader: name of the reader.
            replace: replace another decision of another reader.

        Raises:
            ReviewConflict: another reader has decided differently.
            DataError: the reader has no name, or the decision is unknown.
            OutputError: the file cannot be written.
        """
        if choice not in get_args(Choice):
            raise DataError(f"{choice}: is no decision; choose one of {', '.join(get_args(Choice))}")
        reader = checked_reader(reader)
        with self._writing() as database:
            before = database.execute("SELECT choice, reader, time FROM decisions WHERE track = ?", (track,)).fetchone()
            if before and before[0] != choice and before[1] != reader and not replace:
                raise ReviewConflict(f"{before[1]} has marked polyp {track} as {before[0]} {_when(before[2])}")
            values = (track, choice, reader, time.time())
            database.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?)", values)
            self._write_decisions(database)

    def correct(
        self, track: int, frame: int, polygons: Sequence[np.ndarray], reader: str, replace: bool = False
    ) -> None:
        """Store the outline of a track in one frame. What was carried from an earlier one in this frame is removed.

        Args:
            track: number of the track.
            frame: number of the frame, from 0.
            polygons: int32 [n, 2] each, x and y in pixels of the stored frame; empty: the frame does not show it.
            reader: name of the reader.
            replace: replace the outline of another reader.

        Raises:
            ReviewConflict: another reader has stored an outline of this track in this frame.
            DataError: the reader has no name, or a polygon is not valid.
            OutputError: the file cannot be written.
        """
        reader, text = checked_reader(reader), _text_of(polygons)
        with self._writing() as database:
            if not replace:
                _refuse_other(database, track, frame, reader)
            database.execute("DELETE FROM outlines WHERE track = ? AND carried_from = ?", (track, frame))
            _put(database, track, frame, text, reader)

    def draw(self, frame: int, polygons: Sequence[np.ndarray], reader: str, first_track: int) -> int:
        """Add a polyp that the run has missed. Its reader has accepted it.

        Args:
            frame: number of the frame, from 0.
            polygons: its outline in this frame, as for `correct`.
            reader: name of the reader.
            first_track: lowest number that the run itself has not used for a track.

        Returns:
            Number of the new track.

        Raises:
            DataError: the reader has no name, or there is no valid polygon.
            OutputError: the file cannot be written.
        """
        reader, text = checked_reader(reader), _text_of(polygons)
        if not polygons:
            raise DataError("a new polyp needs an outline")
        with self._writing() as database:
            (last,) = database.execute("SELECT max(track) FROM drawn").fetchone()
            track = max(first_track, (last or 0) + 1)
            database.execute("INSERT INTO drawn VALUES (?)", (track,))
            values = (track, "accepted", reader, time.time())
            database.execute("INSERT INTO decisions VALUES (?, ?, ?, ?)", values)
            _put(database, track, frame, text, reader)
            self._write_decisions(database)
            return track

    def carry(
        self, track: int, origin: int, drawn_at: float, outlines: Mapping[int, Sequence[np.ndarray]], reader: str
    ) -> list[int]:
        """Store outlines that the motion of the image carried from a frame to those around it.

        They replace only what the same reader had carried before. A frame with any other outline keeps it.

        Args:
            track: number of the track.
            origin: number of the frame in which a reader drew the outline.
            drawn_at: when, see `Correction.time`.
            outlines: polygons by number of the frame, as for `correct`.
            reader: name of the reader.

        Returns:
            Numbers of the frames in which an outline was stored, in order.

        Raises:
            ReviewConflict: the outline in this frame has changed since, so what was carried is outdated.
            DataError: the reader has no name, or a polygon is not valid.
            OutputError: the file cannot be written.
        """
        reader = checked_reader(reader)
        texts = {frame: _text_of(polygons) for frame, polygons in sorted(outlines.items())}
        with self._writing() as database:
            condition = "WHERE track = ? AND frame = ? AND time = ? AND carried_from IS NULL"
            if not database.execute(f"SELECT 1 FROM outlines {condition}", (track, origin, drawn_at)).fetchone():
                raise ReviewConflict(f"the outline of polyp {track} in frame {origin} has changed meanwhile")
            database.execute(
                "DELETE FROM outlines WHERE track = ? AND reader = ? AND carried_from = ?", (track, reader, origin)
            )
            condition = "WHERE track = ? AND (carried_from IS NULL OR reader <> ?)"
            kept = {frame for (frame,) in database.execute(f"SELECT frame FROM outlines {condition}", (track, reader))}
            stored = [frame for frame in texts if frame not in kept]
            for frame in stored:
                _put(database, track, frame, texts[frame], reader, origin)
            return stored

    def leave(self, track: int, origin: int, reader: str) -> None:
        """Remove what was carried from a frame, and what is being carried from it at this moment.

        Args:
            track: number of the track.
            origin: number of the frame in which the reader drew the outline, which stays.
            reader: name of the reader.

        Raises:
            DataError: the reader has no name.
            OutputError: the file cannot be written.
        """
        reader = checked_reader(reader)
        with self._writing() as database:
            database.execute(
                "DELETE FROM outlines WHERE track = ? AND reader = ? AND carried_from = ?", (track, reader, origin)
            )
            # `carry` of the outline as it was before does not store anything any more.
            condition = "WHERE track = ? AND frame = ? AND reader = ?"
            database.execute(f"UPDATE outlines SET time = ? {condition}", (time.time(), track, origin, reader))

    def withdraw(self, track: int, frame: int, reader: str, replace: bool = False) -> None:
        """Remove the outline of a track in one frame, and those carried from it. The network's one counts again.

        Args:
            track: number of the track.
            frame: number of the frame, from 0.
            reader: name of the reader.
            replace: remove the outline of another reader.

        Raises:
            ReviewConflict: another reader has stored it.
            DataError: the reader has no name.
            OutputError: the file cannot be written.
        """
        reader = checked_reader(reader)
        with self._writing() as database:
            if not replace:
                _refuse_other(database, track, frame, reader)
            database.execute(
                "DELETE FROM outlines WHERE track = ? AND (frame = ? OR carried_from = ?)", (track, frame, frame)
            )

    def _write_decisions(self, database: sqlite3.Connection) -> None:
        """Write into findings.json what readers accepted and rejected."""
        condition = "WHERE choice <> 'undecided' ORDER BY track"
        rows = database.execute(f"SELECT track, choice, reader, time FROM decisions {condition}")
        write_reviews(
            self._path.parent,
            [
                {
                    "track": track,
                    "decision": choice,
                    "reader": reader,
                    "time": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds"),
                }
                for track, choice, reader, seconds in rows
            ],
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Open the file, and read it in one transaction.

        Raises:
            DataError: it cannot be read.
        """
        try:
            with closing(sqlite3.connect(self._path, timeout=TIMEOUT_S, isolation_level=None)) as database:
                database.execute("BEGIN")
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version != VERSION:
                    raise DataError(f"{self._path}: belongs to another version of polypstream")
                yield database
        except sqlite3.Error as error:
            raise DataError(f"{self._path}: cannot be read ({error})") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one change, which is stored completely or not at all.

        Raises:
            DataError: it belongs to another version.
            OutputError: it cannot be written.
        """
        try:
            with closing(sqlite3.connect(self._path, timeout=TIMEOUT_S, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in filter(str.strip, SCHEMA.split(";")):
                        database.execute(statement)
                    database.execute(f"PRAGMA user_version = {VERSION}")
                elif version != VERSION:
                    raise DataError(f"{self._path}: belongs to another version of polypstream")
                yield database
                database.execute("UPDATE revision SET number = number + 1")
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise OutputError(f"{self._path}: cannot be written ({error})") from error


def checked_reader(reader: str) -> str:
    """A reader's name without spaces around it.

    Args:
        reader: the name.

    Raises:
        DataError: it is empty or too long.
    """
    name = reader.strip()
    if not 0 < len(name) <= LONGEST_READER or not name.isprintable():
        raise DataError(f"give the name of the reader, of at most {LONGEST_READER} letters")
    return name


def _refuse_other(database: sqlite3.Connection, track: int, frame: int, reader: str) -> None:
    """Raise a ReviewConflict if another reader has stored an outline of a track in a frame."""
    condition = "WHERE track = ? AND frame = ? AND reader <> ?"
    found = database.execute(f"SELECT reader, time FROM outlines {condition}", (track, frame, reader)).fetchone()
    if found:
        raise ReviewConflict(f"{found[0]} has drawn polyp {track} in frame {frame} {_when(found[1])}")


def _put(
    database: sqlite3.Connection, track: int, frame: int, text: str, reader: str, origin: int | None = None
) -> None:
    values = (track, frame, text, reader, time.time(), origin)
    database.execute("INSERT OR REPLACE INTO outlines VALUES (?, ?, ?, ?, ?, ?)", values)


def _revision_of(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT number FROM revision").fetchone()[0])


def _when(seconds: float) -> str:
    return f"on {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d at %H:%M} UTC"


def _text_of(polygons: Sequence[np.ndarray]) -> str:
    """Polygons as JSON.

    Raises:
        DataError: one has no area.
    """
    for polygon in polygons:
        if polygon.ndim != 2 or polygon.shape[1] != 2 or cv2.contourArea(polygon.astype(np.float32)) <= 0:
            raise DataError("an outline must be a polygon with an area")
    return json.dumps([np.rint(polygon).astype(int).ravel().tolist() for polygon in polygons])


def _polygons_in(text: str) -> list[np.ndarray]:
    return [np.array(flat, np.int32).reshape(-1, 2) for flat in json.loads(text)]
