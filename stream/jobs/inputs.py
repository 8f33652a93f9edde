"""What the arguments of `polypstream process` name: recordings, and sets of images."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polypstream.errors import SourceError
from polypstream.sources.demo import SCHEME
from polypstream.sources.open import RECORDING_ENDINGS, address_problem
from polypstream.sources.recording import results_stem

IMAGE_ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
STANDARD_INPUT = "-"
# A number in the file names of a sequence, as FFmpeg writes it: %d or %04d.
NUMBER = re.compile(r"%(0\d+)?d")


@dataclass(frozen=True, slots=True)
class Input:
    """A recording, or a set of images that get one folder of results.

    Attributes:
        uri: path or address of the recording, or the folder of the images.
        images: paths of the images; empty for a recording.
        name: name of a set's folder of results; None: a recording's results are named after it.
    """

    uri: str
    images: tuple[Path, ...] = ()
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What some arguments name.

    Attributes:
        found: recordings and sets of images, in the order of the arguments.
        others: number of files in the folders that are neither.
        problems: arguments that name nothing, as text for the user.
    """

    found: list[Input]
    others: int
    problems: list[str]


def find_inputs(arguments: Sequence[str]) -> Inputs:
    """Find the recordings and images that some arguments name.

    Images of one folder are one set. A single image is a set of its own name.

    Args:
        arguments: recordings, images, folders (without their subfolders), glob patterns, numbered sequences of images
            such as `frames/%04d.png`, demo addresses, or `-` for standard input.
    """
    found: dict[str | Path, list[Path]] = {}  # the key of a set of images is their folder
    others, problems = 0, []
    for argument in arguments:
        in_folder = os.path.isdir(argument)  # noqa: PTH112 -- Path.is_dir raises for long names
        try:
            for file in _files_of(argument):
                ending = file.suffix.lower() if isinstance(file, Path) else ""
                if isinstance(file, Path) and ending in IMAGE_ENDINGS:
                    images = found.setdefault(file.parent, [])
                    images += [file] if file not in images else []
                elif in_folder and ending not in RECORDING_ENDINGS:
                    others += 1
                else:
                    found[str(file)] = []
        except SourceError as error:
            problems.append(str(error))
    inputs = [_set_of(uri, images) if isinstance(uri, Path) else Input(uri) for uri, images in found.items()]
    return Inputs(inputs, others, problems)


def _set_of(folder: Path, images: list[Path]) -> Input:
    name = results_stem(images[0]) if len(images) == 1 else folder.resolve().name or "images"
    return Input(str(images[0] if len(images) == 1 else folder), tuple(images), name)


def _files_of(argument: str) -> Iterator[Path | str]:
    """Paths and addresses that one argument names.

    Raises:
        SourceError: it names nothing that `process` reads.
    """
    path = Path(argument)
    if argument == STANDARD_INPUT or argument.startswith(SCHEME):
        yield argument
    elif problem := address_problem(argument):
        raise SourceError(problem)
    elif os.path.isdir(argument):  # noqa: PTH112 -- Path.is_dir raises for long names
        yield from _in_folder(path)
    elif os.path.lexists(argument):
        yield path
    elif NUMBER.search(path.name):
        yield from _in_sequence(path)
    elif glob.has_magic(argument):
        files = [Path(each) for each in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207 -- may be absolute
        if not any(file.is_file() for file in files):
            raise SourceError(f"{argument}: no file has such a name")
        yield from (file for file in files if file.is_file())
    else:
        yield path  # opening it says what is wrong


def _in_folder(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed ({error.strerror})") from error
    files = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    if not any(file.suffix.lower() in RECORDING_ENDINGS | IMAGE_ENDINGS for file in files):
        hint = "; `polypstream archive` also takes its subfolders" if any(map(Path.is_dir, entries)) else ""
        raise SourceError(f"{folder}: holds no recordings and no images{hint}")
    yield from files


def _in_sequence(pattern: Path) -> Iterator[Path]:
    name = re.escape(pattern.name)
    name = re.sub(r"%(?:0(\d+))?d", lambda match: rf"\d{{{match[1]},}}" if match[1] else r"\d+", name)
    files = [each for each in pattern.parent.glob("*") if re.fullmatch(name, each.name) and each.is_file()]
    if not files:
        raise SourceError(f"{pattern}: no file has such a name")
    yield from sorted(files, key=lambda each: [int(number) for number in re.findall(r"\d+", each.name)])
