"""Finds the runs of a study: the settings that are compared, and their recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polypstream.errors import DataError


@dataclass(frozen=True, slots=True)
class Setting:
    """Runs with the same settings.

    Attributes:
        name: name for the user.
        runs: folders of the runs, by name of the recording.
    """

    name: str
    runs: dict[str, Path]


def find_settings(folders: Sequence[Path]) -> list[Setting]:
    """Find the runs in some folders.

    Args:
        folders: folders that were given to `process --output`, or folders of runs in them. Runs in the same folder
            belong to one setting, which has the name of that folder.

    Returns:
        The settings, in the order in which they are named first.

    Raises:
        DataError: a folder holds no run, or the settings have not the same recordings.
    """
    found: dict[Path, dict[str, Path]] = {}
    for folder in folders:
        runs = [folder] if _is_run(folder) else sorted(filter(_is_run, folder.iterdir() if folder.is_dir() else ()))
        if not runs:
            raise DataError(f"{folder}: holds no finished run of `polypstream process` (no findings.json)")
        for run in runs:
            found.setdefault(run.resolve().parent, {})[run.resolve().name] = run
    settings = [Setting(name, found[parent]) for parent, name in _short_names(list(found)).items()]
    for setting in settings[1:]:
        differing = sorted(setting.runs.keys() ^ settings[0].runs.keys())
        if differing:
            without = setting if differing[0] in settings[0].runs else settings[0]
            raise DataError(
                f"{without.name}: holds no run of {differing[0]}; settings are compared on the same recordings"
            )
    return settings


def _is_run(folder: Path) -> bool:
    return (folder / "findings.json").is_file()


def _short_names(parents: Sequence[Path]) -> dict[Path, str]:
    """The last parts of the paths, as many as make them different."""
    count = 1
    while True:
        names = {parent: "/".join(parent.parts[-count:]) for parent in parents}
        if len(set(names.values())) == len(parents):
            return names
        count += 1
