"""The file of `live --rooms`: the rooms of a department, with what is shown, recorded and sent of each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from polypstream.core.addresses import NAME
from polypstream.core.config import Display, Section, Settings
from polypstream.core.formatting import counted
from polypstream.core.frame import Frame
from polypstream.core.pipeline import Closed, Sink
from polypstream.core.protocols import LiveSource
from polypstream.errors import SettingsError
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_outputs import aims_of, clips_of, pushes_of, recordings_of, written_by

log = logging.getLogger(__name__)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Room(Section):
    """A room: a live source and its outputs."""

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    source: Annotated[str, Field(min_length=1)]
    record: Annotated[str, Field(pattern=r"\.mp4$")] | None = None
    record_clean: Annotated[str, Field(pattern=r"\.mp4$")] | None = None
    push: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)
    display: Display | None = None


# What each entry of a room is, for messages.
EXPECTED = {
    "name": "a name of letters, digits, - and _",
    "source": "the address of a source, as for `polypstream live`",
    "record": "a file name that ends in .mp4",
    "record_clean": "a file name that ends in .mp4",
    "push": "an address, or a list of addresses",
    "display": "in-step or pass-through",
}


def read_rooms(file: Path) -> list[Room]:
    """Read the rooms of a department.

    Args:
        file: YAML file with a list of rooms; docs/live.md has an example.

    Returns:
        The rooms, as the file has them.

    Raises:
        SettingsError: the file cannot be read, or an entry is wrong. The message names both.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'it is not text'})"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # The text is not repeated, since addresses may contain passwords.
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place else ""
        raise SettingsError(f"{file}: is not valid YAML{where}") from error
    if not isinstance(content, list) or not content:
        raise SettingsError(f"{file}: is no list of rooms; begin each room with `- name:`; see docs/live.md")
    try:
        rooms = TypeAdapter(list[Room]).validate_python(content)
    except ValidationError as error:
        raise SettingsError(f"{file}: {_explain(error, content)}") from error
    _check_unique(file, rooms)
    return rooms


def _explain(error: ValidationError, content: list[Any]) -> str:
    """Describe the first problem, without the value, which may contain a password."""
    problem = error.errors()[0]
    index, *keys = problem["loc"]
    given = content[int(index)]
    entry = f"entry {int(index) + 1}"
    if not isinstance(given, dict) or not keys:
        return f"{entry}: is no room; write name: and source:"
    if isinstance(given.get("name"), str) and NAME.fullmatch(given["name"]):
        entry += f" ({given['name']})"
    key = str(keys[0])
    if key not in EXPECTED:
        return f"{entry}: {key}: there is no such entry; a room has {', '.join(EXPECTED)}"
    if problem["type"] == "missing":
        return f"{entry}: {key}: is missing; write {EXPECTED[key]}"
    return f"{entry}: {key}: write {EXPECTED[key]}"


def _check_unique(file: Path, rooms: Sequence[Room]) -> None:
    """Check that no two rooms have the same name or the same file.

    Raises:
        SettingsError: two have.
    """
    taken: dict[tuple[str, str], str] = {}
    for number, room in enumerate(rooms, 1):
        for kind, value in (("name", room.name), ("file", room.record), ("file", room.record_clean)):
            if value is None:
                continue
            if (kind, value) in taken:
                entry = f"entry {number} ({room.name})"
                raise SettingsError(f"{file}: {entry}: has the {kind} {value}, as {taken[kind, value]} has")
            taken[kind, value] = f"entry {number}"


@dataclass(frozen=True, slots=True)
class OpenRoom:
    """A room that can start.

    Attributes:
        source: its source.
        sinks: name and sink of each of its outputs.
        display: how it is shown; None: as `live.display` says.
    """

    source: LiveSource
    sinks: list[tuple[str, Sink[Frame]]]
    display: Display | None


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of rooms, by what a reload has done with them."""

    added: list[str]
    removed: list[str]
    restarted: list[str]
    unchanged: list[str]

    def __str__(self) -> str:
        """The changes, for the user."""
        named = {"added": self.added, "removed": self.removed, "restarted": self.restarted}
        parts = [f"{', '.join(names)} {what}" for what, names in named.items() if names]
        return ", ".join([*parts, f"{counted(len(self.unchanged), 'room')} unchanged"])


class Rooms:
    """The rooms of a file, which may be read again while they are shown.

    Args:
        file: YAML file with a list of rooms; see `read_rooms`.
        settings: settings of the run.
        masks: write masks.mkv beside each recording, too.
        clips: folder for clips; None: the last seconds are not kept.

    Attributes:
        rooms: the rooms, as the file had them when it was read.

    Raises:
        SettingsError: the file cannot be read, or an entry is wrong.
    """

    def __init__(self, file: Path, settings: Settings, masks: bool, clips: Path | None) -> None:
        self._file, self._settings, self._masks, self._clips = file, settings, masks, clips
        self.rooms = read_rooms(file)
        self._reloading = threading.Lock()

    @property
    def displays(self) -> dict[str, Display]:
        """How rooms are shown, by their names, for those that say so."""
        return {room.name: room.display for room in self.rooms if room.display is not None}

    def open(self) -> list[OpenRoom]:
        """Open all rooms.

        Raises:
            OutputError: a file exists already, or its folder does not.
            SettingsError: an address is not supported, or the settings ask for no video.
            SourceError: a source cannot be opened.
        """
        return [self._open(room) for room in self.rooms]

    def _open(self, room: Room) -> OpenRoom:
        """Open a room. Codes in its file names are replaced, and relative names begin at the folder of the file."""
        settings, now = self._settings, datetime.now().astimezone()
        sources = open_sources([f"{room.name}={room.source}"], settings)
        sinks: list[tuple[str, Sink[Frame]]] = []
        for name, clean in ((room.record, False), (room.record_clean, True)):
            if name is not None:
                path = self._file.parent / now.strftime(name)
                sinks += recordings_of(path, sources, settings, clean, self._masks)
        sinks += pushes_of([f"{room.name}={url}" for url in room.push], sources, settings)
        if self._clips is not None:
            sinks += clips_of(self._clips, sources, settings)
        return OpenRoom(sources[0], sinks, room.display)

    def reload(self, live: Live) -> Changes:
        """Read the file again, and change the running rooms accordingly. Rooms that did not change go on.

        An invalid file changes nothing. It takes as long as the sources that are removed need to end.

        Args:
            live: the running pipeline with the rooms.

        Raises:
            OutputError, SettingsError, SourceError: as `read_rooms` and `open`. Nothing has changed.
        """
        with self._reloading:
            rooms = read_rooms(self._file)
            before, after = ({room.name: room for room in each} for each in (self.rooms, rooms))
            changes = Changes(
                added=[name for name in after if name not in before],
                removed=[name for name in before if name not in after],
                restarted=[name for name in after if name in before and after[name] != before[name]],
                unchanged=[name for name in after if after[name] == before.get(name)],
            )
            opened = [self._open(after[name]) for name in (*changes.restarted, *changes.added)]
            try:
                _change(live, changes, opened)
            except Closed as error:
                raise SettingsError(f"{self._file}: the rooms are ending; start polypstream again") from error
            self.rooms = rooms
        log.info(f"{self._file}: read again: {changes}")
        return changes


def _change(live: Live, changes: Changes, opened: Sequence[OpenRoom]) -> None:
    """End and start rooms."""
    with live.pipeline.held():
        ended = live.remove([*changes.removed, *changes.restarted])
        for line in written_by(ended):
            log.info(line)
        for name in changes.removed:
            live.forget(name)
        for room in opened:
            live.add(room.source, room.sinks, room.display)
            for line in aims_of([sink for _, sink in room.sinks]):
                log.info(line)
