"""What the arguments of `polypstream masks` name: finished runs, and the recordings or images that they are of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polypstream.core.formatting import quoted
from polypstream.errors import DataError, PolypstreamError, SettingsError, SourceError
from polypstream.jobs.inputs import STANDARD_INPUT, Input, find_inputs
from polypstream.jobs.results import run_folder
from polypstream.sinks.findings import IMAGES_SCHEMA, SCHEMA, read_findings
from polypstream.sources.demo import SCHEME
from polypstream.sources.open import stem_of


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run, and what it is of.

    Attributes:
        uri: path of the recording, or a demo's address; of images, their folder.
        folder: folder of the run.
        images: paths of the images, some of which may not be in the run; empty: it is a recording.
    """

    uri: str
    folder: Path
    images: tuple[Path, ...] = ()


def find_finished(
    arguments: Sequence[str], results: Sequence[Path], on_problem: Callable[[PolypstreamError], None]
) -> list[Finished]:
    """Find the runs that some arguments name.

    Args:
        arguments: what `process` takes, except standard input; and folders of runs, or folders that hold some.
        results: where the runs of the former are: the folder that was given to `process --output`, or the folder of the
            run. One for all of them, or one for each.
        on_problem: called with a SourceError for each argument that names nothing, and with a DataError for each run
            whose recording is not there, and for each recording without a run.

    Returns:
        The runs: first those whose folders are named, then the others in the order of the arguments.

    Raises:
        SourceError: an argument is standard input.
        SettingsError: there are neither one folder of results nor as many as recordings.
    """
    found: list[Finished] = []
    others: list[str] = []
    for argument in arguments:
        folders = list(_runs_in(Path(argument)))
        for folder in folders:
            try:
                found.append(_read_finished(folder))
            except DataError as error:
                on_problem(error)
        others += [] if folders else [argument]
    if STANDARD_INPUT in others:
        raise SourceError("-: standard input cannot be read again; save the recording to a file, and name the file")
    inputs = find_inputs(others)
    for problem in inputs.problems.values():
        on_problem(SourceError(problem))
    if inputs.found and len(results) not in (1, len(inputs.found)):
        raise SettingsError(
            f"--results: there are {len(results)} folders for {len(inputs.found)} recordings; give one folder for all "
            "recordings, or one for each recording in the same order"
        )
    places = results if len(results) > 1 else [results[0]] * len(inputs.found)
    for each, place in zip(inputs.found, places, strict=True):
        try:
            found.append(_find(each, place))
        except DataError as error:
            on_problem(error)
    return found


def _runs_in(folder: Path) -> Iterator[Path]:
    """Yield a folder that is one of a run, or the folders of runs in it."""
    if not os.path.isdir(folder):  # noqa: PTH112 -- Path.is_dir raises for long names
        return
    candidates = [folder] if (folder / "findings.json").is_file() else sorted(folder.iterdir())
    yield from (each for each in candidates if (each / "findings.json").is_file())


def _find(each: Input, results: Path) -> Finished:
    return Finished(each.uri, run_folder(each.name or stem_of(each.uri), results), each.images)


def _found_again(path: str, folder: Path) -> Path:
    """Find what a run is of. A relative path counts from where `process` ran, which is mostly above the results.

    Raises:
        DataError: it is not there.
    """
    for start in (Path(), *folder.resolve().parents):
        if (start / path).exists():
            return start / path
    raise DataError(
        f"{folder}: was made from {path}, which is not there. Say where it is now: "
        f"polypstream masks RECORDING --results {quoted(folder)}"
    )


def _read_finished(folder: Path) -> Finished:
    """Find out from a run what it is of.

    Raises:
        DataError: it cannot be read, or what it is of is not there.
    """
    content = read_findings(folder, (SCHEMA, IMAGES_SCHEMA))
    uri = str(content["input"])
    if not uri.startswith(SCHEME):
        uri = str(_found_again(uri, folder))
    if content["schema"] == SCHEMA:
        return Finished(uri, folder)
    place = Path(uri) if Path(uri).is_dir() else Path(uri).parent
    return Finished(uri, folder, tuple(place / each["image"] for each in content["images"]))
