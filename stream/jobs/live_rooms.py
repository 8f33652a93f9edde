"""The file of `live --rooms`: the rooms of a department, with what is shown, recorded and sent of each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from polypstream.core.addresses import NAME
from polypstream.core.config import Display, Section, Settings
from polypstream.core.protocols import LiveSource
from polypstream.errors import SettingsError
from polypstream.jobs.live import pushes_of, recordings_of
from polypstream.sinks.push import Push
from polypstream.sinks.rolling import RollingRecording


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
        The rooms. Codes of the date and time in file names, such as %Y, are replaced, and relative names begin at the
        folder of the file.

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
    return [_with_paths(room, file.parent) for room in rooms]


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


def _with_paths(room: Room, folder: Path) -> Room:
    now = datetime.now().astimezone()
    names = {key: getattr(room, key) for key in ("record", "record_clean")}
    return room.model_copy(
        update={key: None if name is None else str(folder / now.strftime(name)) for key, name in names.items()}
    )


def room_recordings(
    rooms: Sequence[Room], sources: Sequence[LiveSource], settings: Settings, masks: bool
) -> list[tuple[str, RollingRecording]]:
    """Make the recording sinks of rooms.

    Args:
        rooms: the rooms.
        sources: the sources, with those of the rooms.
        settings: settings of the run.
        masks: write masks.mkv beside each recording, too.

    Raises:
        OutputError: a file exists already, or its folder does not.
        SettingsError: the settings ask for no video.
    """
    sinks: list[tuple[str, RollingRecording]] = []
    named = {source.name: source for source in sources}
    for room in rooms:
        for name, clean in ((room.record, False), (room.record_clean, True)):
            if name is not None:
                sinks += recordings_of(Path(name), [named[room.name]], settings, clean, masks)
    return sinks


def room_pushes(rooms: Sequence[Room], sources: Sequence[LiveSource], settings: Settings) -> list[tuple[str, Push]]:
    """Make the sinks that send the video of rooms.

    Args:
        rooms: the rooms.
        sources: their sources.
        settings: settings of the run.

    Raises:
        SettingsError: an address is not supported, or the settings ask for no video.
    """
    return pushes_of([f"{room.name}={url}" for room in rooms for url in room.push], sources, settings)


def displays_of(rooms: Sequence[Room]) -> dict[str, Display]:
    """Return how rooms are shown, by their names, for those that say so.

    Args:
        rooms: the rooms.
    """
    return {room.name: room.display for room in rooms if room.display is not None}
