"""What the arguments of `polypstream process` name: recordings, and sets of images."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from polypstream.core.formatting import counted
from polypstream.errors import SourceError
from polypstream.jobs.process import RESULTS, holds_results
from polypstream.sources.demo import SCHEME
from polypstream.sources.open import RECORDING_ENDINGS, address_problem
from polypstream.sources.recording import results_stem

IMAGE_ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
STANDARD_INPUT = "-"
NO_SUCH_FILE = "no such file"
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


@dataclass(slots=True)
class Inputs:
    """What some arguments name.

    Attributes:
        found: recordings and sets of images, in the order of the arguments.
        others: files in the folders that are neither.
        results: number of files in the folders, or of a pattern, that are results of polypstream. They are left out.
        problems: what is wrong with arguments that name nothing, as text for the user, by argument.
    """

    found: list[Input] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    results: int = 0
    problems: dict[str, str] = field(default_factory=dict)


def find_inputs(arguments: Sequence[str]) -> Inputs:
    """Find the recordings and images that some arguments name.

    Images of one folder are one set, which has the name of the folder. A single image that is named itself is a set of
    its own name.

    Args:
        arguments: recordings, images, folders (without their subfolders), glob patterns, numbered sequences of images
            such as `frames/%04d.png`, demo addresses, or `-` for standard input.
    """
    inputs = Inputs()
    # The key of a set of images is their folder.
    uris: dict[str | Path, list[Path]] = {}
    folders: set[Path] = set()
    for argument in arguments:
        try:
            for file in _usable(argument, inputs):
                if isinstance(file, Path) and is_image(file):
                    images = uris.setdefault(file.parent, [])
                    images += [file] if file not in images else []
                    if len(images) > 1 or file != Path(argument):
                        folders.add(file.parent)
                else:
                    uris[str(file)] = []
        except SourceError as error:
            inputs.problems[argument] = str(error)
    inputs.found = [
        _set_of(uri, images, uri in folders) if isinstance(uri, Path) else Input(uri) for uri, images in uris.items()
    ]
    return inputs


def _set_of(folder: Path, images: list[Path], is_folder: bool) -> Input:
    if is_folder:
        return Input(str(folder), tuple(images), folder.resolve().name or "images")
    return Input(str(images[0]), tuple(images), results_stem(images[0]))


def _usable(argument: str, inputs: Inputs) -> Iterator[Path | str]:
    """Paths and addresses that one argument names, without those that are left out, which are noted.

    Raises:
        SourceError: it names nothing that `process` reads.
    """
    in_folder = os.path.isdir(argument)  # noqa: PTH112 -- Path.is_dir raises for long names
    if in_folder or not os.path.lexists(argument):
        usable, others, results = 0, list[Path](), 0
        for file in _files_of(argument):
            if isinstance(file, Path) and is_result(file):
                results += 1
            elif in_folder and Path(file).suffix.lower() not in RECORDING_ENDINGS | IMAGE_ENDINGS:
                others.append(Path(file))
            else:
                usable += 1
                yield file
        if not usable:
            raise SourceError(_why_nothing(Path(argument)))
        inputs.others += others
        inputs.results += results
    else:
        yield Path(argument)


def is_image(file: str | Path) -> bool:
    """Whether the name of a file is that of an image.

    Args:
        file: name or path of the file.
    """
    return PurePath(file).suffix.lower() in IMAGE_ENDINGS


def is_result(file: Path) -> bool:
    """Whether a file is a result of polypstream, such as annotated.mp4, so that nobody wants it processed again.

    Args:
        file: path of the file.
    """
    return any(file.match(pattern) and holds_results(file.parents[pattern.count("/")]) for pattern in RESULTS)


def left_out_results(count: int) -> str:
    """Say for the user that results of polypstream were left out.

    Args:
        count: their number.
    """
    return f"left out: {counted(count, 'file')} in folders of results of polypstream"


def _why_nothing(place: Path) -> str:
    """Say why there is nothing to process in a folder, or in the files of a pattern.

    Args:
        place: the folder, or the pattern.
    """
    instead = "give the recordings or images themselves"
    if not place.is_dir():
        return f"{place}: names only results of polypstream; {instead}"
    if holds_results(place):
        return f"{place}: is a folder of results of polypstream, see {place / 'report.html'}; {instead}"
    entries = list(place.iterdir())
    if any(map(holds_results, entries)):
        return f"{place}: holds folders of results of polypstream, and no recordings or images; {instead}"
    if any(map(is_result, entries)):
        return f"{place}: holds only results of polypstream; {instead}"
    hint = "; `polypstream archive` also takes its subfolders" if any(map(Path.is_dir, entries)) else ""
    return f"{place}: holds no recordings and no images{hint}"


def _files_of(argument: str) -> Iterator[Path | str]:
    """Paths and addresses that one argument names which is not a file.

    Raises:
        SourceError: it names nothing.
    """
    path = Path(argument)
    if argument == STANDARD_INPUT or argument.startswith(SCHEME):
        yield argument
    elif problem := address_problem(argument):
        raise SourceError(problem)
    elif os.path.isdir(argument):  # noqa: PTH112 -- Path.is_dir raises for long names
        yield from _in_folder(path)
    elif NUMBER.search(path.name):
        yield from _in_sequence(path)
    elif glob.has_magic(argument):
        files = [Path(each) for each in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207 -- may be absolute
        if not any(file.is_file() for file in files):
            raise SourceError(f"{argument}: no file has such a name")
        yield from (file for file in files if file.is_file())
    else:
        raise SourceError(f"{argument}: {NO_SUCH_FILE}")


def _in_folder(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed ({error.strerror})") from error
    return [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]


def _in_sequence(pattern: Path) -> Iterator[Path]:
    name = re.escape(pattern.name)
    name = re.sub(r"%(?:0(\d+))?d", lambda match: rf"\d{{{match[1]},}}" if match[1] else r"\d+", name)
    files = [each for each in pattern.parent.glob("*") if re.fullmatch(name, each.name) and each.is_file()]
    if not files:
        raise SourceError(f"{pattern}: no file has such a name")
    yield from sorted(files, key=lambda each: [int(number) for number in re.findall(r"\d+", each.name)])
