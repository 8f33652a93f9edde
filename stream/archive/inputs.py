"""Finds the recordings that the inputs of an archive run name, each once, and assigns names to their results."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import IO

from polypstream.archive.storage import file_system, is_address
from polypstream.core.time_range import TimeRange, range_of
from polypstream.errors import DataError, PolypstreamError, SettingsError, SourceError
from polypstream.jobs.inputs import is_result
from polypstream.sources.deidentified import hashed_name
from polypstream.sources.open import RECORDING_ENDINGS
from polypstream.sources.recording import results_stem

# Begins the address of a recording whose name is hashed.
HASHED = "hashed:"
# Separates the address of a recording from the range of it that is processed, as in media fragments of the W3C.
RANGE = "#t="


@dataclass(frozen=True, slots=True)
class Item:
    """A recording of an archive.

    Attributes:
        address: absolute path, or an fsspec address, and a range of time, if any; HASHED and a hash of it if names are
            hashed.
        name: name of the folder of its results, with `/` between folders.
        size: size in bytes; 0 if the recording does not exist.
        version: changes when the recording changes.
        hidden_address: the address that `address` is the hash of. It is not stored in the ledger; empty: names are not
            hashed, or it is not known.
        times: range of the recording to process. It is part of `address`, since a recording may have several. None:
            all of it.
    """

    address: str
    name: str
    size: int
    version: str
    hidden_address: str = field(default="", compare=False)
    times: TimeRange | None = field(default=None, compare=False)

    @property
    def is_hashed(self) -> bool:
        """Whether its name is hashed."""
        return self.address.startswith(HASHED)

    @property
    def location(self) -> str:
        """Absolute path or fsspec address from which it is read."""
        address = self.hidden_address or self.address
        return address if self.times is None else address.rpartition(RANGE)[0]

    @property
    def label(self) -> str:
        """What results and the ledger call it: its address, or the hash of its name."""
        return self.name if self.is_hashed else self.address


def find_recordings(inputs: Sequence[str], output: str) -> tuple[list[Item], int, int]:
    """Find the recordings that some inputs name, each once.

    Args:
        inputs: recordings, folders (with all subfolders), glob patterns, or CSV manifests. A manifest has the column
            `recording`, with addresses or paths relative to the manifest's folder. Its column `name`, if any, gives
            names for the results, its columns `from` and `to` a range of time.
        output: folder of the results. Files in it are not inputs unless they are named directly.

    Returns:
        The recordings, the number of other files in the folders, and the number of results of polypstream in folders
        beside `output`, which are no inputs either.

    Raises:
        SourceError: an input names no recording.
        DataError: a manifest cannot be read.
    """
    found: dict[str, Item] = {}
    others = results = 0
    for text in inputs:
        named = text.lower().endswith(".csv") or Path(text).is_file()
        there = [item for item in _items_of(text) if named or not _is_within(item.address, output)]
        items = [item for item in there if named or is_address(item.address) or not is_result(Path(item.address))]
        results += len(there) - len(items)
        recordings = [item for item in items if item.name]
        if not recordings:
            raise SourceError(f"{text}: holds no recording" if there else _not_found(text))
        others += len(items) - len(recordings)
        found |= {item.address: item for item in recordings if item.address not in found}
    return list(found.values()), others, results


def _not_found(text: str) -> str:
    if glob.has_magic(text):
        return f"{text}: no file has a name of this pattern"
    return f"{text}: no such file or folder"


def hash_names(items: Sequence[Item], salt: bytes) -> list[Item]:
    """Replace everything that names the recordings by salted hashes. The same salt gives the same hashes.

    The result folder gets the hash of the file name, as in `polypstream process --hash-names`.

    Args:
        items: the recordings.
        salt: secret bytes, as `read_salt` returns them.
    """
    return [
        Item(
            HASHED + hashed_name(item.address, salt),
            hashed_name(PurePosixPath(item.location).name, salt),
            item.size,
            hashed_name(item.version, salt),
            item.address,
            item.times,
        )
        for item in items
    ]


def _items_of(text: str) -> Iterator[Item]:
    """Files that an input names. A file in a folder that is not a recording has an empty name."""
    if text.lower().endswith(".csv"):
        yield from _in_manifest(text)
    elif is_address(text):
        yield from _in_file_system(text)
    elif Path(text).is_dir():
        yield from _in_folder(Path(text).absolute())
    elif os.path.lexists(text):
        yield _item(Path(text).absolute(), results_stem(Path(text)))
    elif glob.has_magic(text):
        root = _root_of(text)
        for each in sorted(glob.glob(text, recursive=True)):  # noqa: PTH207 -- the pattern may be absolute
            if Path(each).is_file():
                yield _item(Path(each).absolute(), _name(os.path.relpath(each, root)))


def _in_folder(folder: Path) -> Iterator[Item]:
    """All files in a folder and its subfolders, except hidden ones."""
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            is_recording = path.suffix.lower() in RECORDING_ENDINGS
            if not name.startswith("."):
                yield _item(path, _name(str(path.relative_to(folder))) if is_recording else "")


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be listed ({error.strerror})")


def _in_file_system(address: str) -> Iterator[Item]:
    system, path = file_system(address)
    try:
        if system.isdir(path):
            root, files = path, system.find(path, detail=True)
        elif system.exists(path):
            root, files = str(PurePosixPath(path).parent), {path: system.info(path)}
        elif glob.has_magic(path):
            root, files = _root_of(path), system.glob(path, detail=True)
        else:
            return
    except Exception as error:  # each file system raises its own errors
        raise SourceError(f"{address}: cannot be listed ({error})") from error
    for each, info in sorted(files.items()):
        if info.get("type") == "file":
            inside = os.path.relpath(each, root)
            named = PurePosixPath(each).suffix.lower() in RECORDING_ENDINGS or each == path
            version = str(info.get("ETag") or info.get("LastModified") or info.get("mtime") or info.get("size"))
            yield Item(system.unstrip_protocol(each), _name(inside) if named else "", info["size"], version)


def _in_manifest(text: str) -> Iterator[Item]:
    folder = text.rpartition("/")[0] if is_address(text) else str(Path(text).absolute().parent)
    try:
        with _open_text(text) as file:
            rows = list(csv.DictReader(file))
    except PolypstreamError:
        raise
    except Exception as error:  # each file system raises its own errors
        raise DataError(f"{text}: cannot be read as a manifest ({error})") from error
    if not rows or "recording" not in rows[0]:
        raise DataError(f"{text}: has no lines, or no column `recording`")
    for line, row in enumerate(rows, 2):
        address = row["recording"] or ""
        if not is_address(address):
            address = f"{folder}/{address}" if is_address(folder) else str(Path(folder, address))
        name = (row.get("name") or "").strip()
        if is_address(address):
            items = list(_in_file_system(address)) or [Item(address, _name(address), 0, "")]
        else:
            items = [_item(Path(address), results_stem(Path(address)))]
        try:
            times = range_of(*((row.get(column) or "").strip() or None for column in ("from", "to")))
        except SettingsError as error:
            raise DataError(f"{text}: line {line}: {error}") from error
        for item in items:
            address = item.address + _fragment(times)
            yield Item(address, _safe(name) or item.name, item.size, item.version, times=times)


def _fragment(times: TimeRange | None) -> str:
    """What a range adds to the address of its recording, such as `#t=600,750.5`."""
    if times is None:
        return ""
    return RANGE + ",".join("" if each is None else f"{each:.6f}".rstrip("0").rstrip(".") for each in times.as_json())


def _open_text(text: str) -> IO[str]:
    if is_address(text):
        system, path = file_system(text)
        opened: IO[str] = system.open(path, "r", encoding="utf-8-sig", newline="")
        return opened
    return Path(text).open(encoding="utf-8-sig", newline="")


def _item(path: Path, name: str) -> Item:
    try:
        status = path.stat()
    except OSError:  # processing the recording reports the error
        return Item(str(path), name, 0, "")
    return Item(str(path), name, status.st_size, f"{status.st_size} {status.st_mtime_ns}")


def _root_of(pattern: str) -> str:
    """The folders of a pattern before its first wildcard."""
    parts = pattern.split("/")
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")


def _name(inside: str) -> str:
    """Name of the results' folder for a path inside an input."""
    path = PurePosixPath(inside)
    return _safe(str(path.parent / results_stem(Path(path.name))))


def _safe(name: str) -> str:
    """Make a name that stays inside its folder and is not hidden."""
    return "/".join(part.strip(".") or "_" for part in PurePosixPath(name).parts if part not in ("/", "."))


def _is_within(address: str, output: str) -> bool:
    """Whether a recording lies in the results' folder, also if it is reached through another path."""
    if is_address(address) or is_address(output):
        return address.startswith(output.rstrip("/") + "/")
    return Path(address).resolve().is_relative_to(Path(output).resolve())


def assign_names(items: Sequence[Item], known: dict[str, str]) -> list[Item]:
    """Assign names to recordings such that results never lie inside, or replace, those of another recording.

    Args:
        items: the recordings, with their preferred names.
        known: names that recordings already have, by address. They do not change.

    Returns:
        The recordings with their names.
    """
    folders = {folder for name in (*(item.name for item in items), *known.values()) for folder in _folders_of(name)}
    taken = {name.casefold() for name in known.values()}
    named = []
    for item in items:
        name = known.get(item.address) or _free_name(item, taken, folders)
        taken.add(name.casefold())
        folders.update(_folders_of(name))
        named.append(replace(item, name=name))
    return named


def _free_name(item: Item, taken: Collection[str], folders: Collection[str]) -> str:
    path = PurePosixPath(item.name)
    while any(folder in taken for folder in _folders_of(str(path))):
        path = PurePosixPath(*(f"{part}_" for part in path.parts[:-1]), path.name)
    # Two recordings that differ only in their ending get the ending, others get a number. If names are hashed, the
    # second of two files of the same name gets the hash of its address.
    whole = str(path.parent / PurePosixPath(item.address.removeprefix(HASHED)).name.strip("."))
    candidates = chain([str(path), whole], (f"{whole}-{number}" for number in count(2)))
    return next(name for name in candidates if name.casefold() not in taken and name.casefold() not in folders)


def _folders_of(name: str) -> Iterator[str]:
    """The folders in a name, in lower case, since some file systems ignore case."""
    for folder in PurePosixPath(name.casefold()).parents:
        if folder.parts:
            yield str(folder)
