"""Where an archive's recordings are and its results go: folders of this machine or a network's, or an object store.

Plain paths are used as they are, and results appear there by one rename. Addresses such as ``s3://bucket/folder`` go
through fsspec: recordings are copied here first, and of a folder of results `summary.json` comes last.
"""

from __future__ import annotations

import csv
import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from stream.errors import DataError, OutputError, PolypstreamError, SourceError
from stream.extras import extra
from stream.sinks.files import writing
from stream.sources.recording import results_stem

# A folder's files with these endings are its recordings.
ENDINGS = {
    ".3gp", ".asf", ".avi", ".dcm", ".dv", ".flv", ".h264", ".hevc", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv",
}  # fmt: skip
# Inside the results' folder: what workers are at, and parts that wait to be joined.
HIDDEN, AT_WORK, PARTS = ".polypstream-archive", "at-work", "parts"
LAST_FILE = "summary.json"
# In an object store, among results that are being written.
UNFINISHED = "summary.json.unfinished"


@dataclass(frozen=True, slots=True)
class Item:
    """A recording of an archive.

    Attributes:
        address: absolute path, or an fsspec address.
        name: of the folder of its results, with `/` between folders.
        size: in bytes; 0 if it is not there.
        version: changes when the recording does.
    """

    address: str
    name: str
    size: int
    version: str


def is_address(text: str) -> bool:
    """Whether fsspec is asked for."""
    return "://" in text


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it.

    Raises:
        MissingExtra: it needs a package that is not installed.
        SourceError: nobody knows such addresses.
    """
    with extra("s3" if address.startswith("s3://") else "cluster", f"{address.split('://')[0]}://"):
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(address)
        except ImportError as error:  # fsspec wraps the missing package's name into a sentence
            raise ModuleNotFoundError(name="s3fs") from error
        except ValueError as error:
            raise SourceError(f"{address}: {error}") from error
    system.invalidate_cache()
    return system, str(path)


def find_recordings(inputs: Sequence[str], output: str) -> tuple[list[Item], int]:
    """The recordings that some inputs mean, each once.

    Args:
        inputs: recordings, folders (with all below them), glob patterns, or CSV manifests, whose column `recording` has
            paths from the manifest's own folder or addresses, and whose column `name`, if any, that of the results.
        output: folder of the results, in which nothing is looked for that is not named itself.

    Returns:
        The recordings; how many other files the folders hold.

    Raises:
        SourceError: an input means nothing.
        DataError: a manifest cannot be read.
    """
    found: dict[str, Item] = {}
    others = 0
    for text in inputs:
        named = text.lower().endswith(".csv") or Path(text).is_file()
        items = [item for item in _items_of(text) if named or not _is_within(item.address, output)]
        recordings = [item for item in items if item.name]
        if not recordings:
            raise SourceError(f"{text}: holds no recording" if items else f"{text}: there is no such recording")
        others += len(items) - len(recordings)
        found |= {item.address: item for item in recordings if item.address not in found}
    return list(found.values()), others


def _items_of(text: str) -> Iterator[Item]:
    """What an input means; a file in a folder that is no recording has no name."""
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
    """All files but hidden ones."""
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            is_recording = path.suffix.lower() in ENDINGS
            if not name.startswith("."):
                yield _item(path, _name(str(path.relative_to(folder))) if is_recording else "")


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be listed ({error.strerror})")


def _in_file_system(address: str) -> Iterator[Item]:
    system, path = file_system(address)
    try:
        if system.isdir(path):
            root, files = path, system.find(path, detail=True)
        elif system.exists(path) or not glob.has_magic(path):
            root, files = str(PurePosixPath(path).parent), {path: system.info(path)} if system.exists(path) else {}
        else:
            root, files = _root_of(path), system.glob(path, detail=True)
    except Exception as error:  # each file system has errors of its own
        raise SourceError(f"{address}: cannot be listed ({error})") from error
    for each, info in sorted(files.items()):
        if info.get("type") == "file":
            inside = os.path.relpath(each, root)
            named = PurePosixPath(each).suffix.lower() in ENDINGS or each == path
            version = str(info.get("ETag") or info.get("LastModified") or info.get("mtime") or info.get("size"))
            yield Item(system.unstrip_protocol(each), _name(inside) if named else "", info["size"], version)


def _in_manifest(text: str) -> Iterator[Item]:
    folder = text.rpartition("/")[0] if is_address(text) else str(Path(text).absolute().parent)
    try:
        with _open_text(text) as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{text}: cannot be read as a manifest ({error})") from error
    if not rows or "recording" not in rows[0]:
        raise DataError(f"{text}: has no lines, or no column `recording`")
    for row in rows:
        address = row["recording"] or ""
        if not is_address(address):
            address = f"{folder}/{address}" if is_address(folder) else str(Path(folder, address))
        name = (row.get("name") or "").strip()
        if is_address(address):
            items = list(_in_file_system(address)) or [Item(address, _name(address), 0, "")]
        else:
            items = [_item(Path(address), results_stem(Path(address)))]
        for item in items:
            yield Item(item.address, _safe(name) or item.name, item.size, item.version)


def _open_text(text: str) -> IO[str]:
    if is_address(text):
        system, path = file_system(text)
        opened: IO[str] = system.open(path, "r", encoding="utf-8-sig", newline="")
        return opened
    return Path(text).open(encoding="utf-8-sig", newline="")


def _item(path: Path, name: str) -> Item:
    try:
        status = path.stat()
    except OSError:  # processing says what is wrong with it
        return Item(str(path), name, 0, "")
    return Item(str(path), name, status.st_size, f"{status.st_size} {status.st_mtime_ns}")


def _root_of(pattern: str) -> str:
    """The folder before the first part with a wildcard."""
    parts = pattern.split("/")
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")


def _name(inside: str) -> str:
    """The results' folder of a recording at a path inside an input."""
    path = PurePosixPath(inside)
    return _safe(str(path.parent / results_stem(Path(path.name))))


def _safe(name: str) -> str:
    """A name that stays inside its folder and is not hidden."""
    return "/".join(part.strip(".") or "_" for part in PurePosixPath(name).parts if part not in ("/", "."))


def _is_within(address: str, output: str) -> bool:
    """Whether something is one of the results, whatever the ways to them are called."""
    if is_address(address) or is_address(output):
        return address.startswith(output.rstrip("/") + "/")
    return Path(address).resolve().is_relative_to(Path(output).resolve())


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """A recording as a file of this machine: itself, or a copy for the time of a block.

    Raises:
        PolypstreamError: it cannot be reached now; what is in it is another matter.
    """
    if not is_address(address):
        try:
            with Path(address).open("rb"):
                pass
        except OSError as error:
            raise PolypstreamError(f"{address}: cannot be read on {platform.node()} ({error.strerror})") from error
        yield Path(address)
        return
    system, path = file_system(address)
    with tempfile.TemporaryDirectory(prefix="polypstream-") as folder:
        copy = Path(folder, PurePosixPath(path).name)
        try:
            system.get_file(path, str(copy))
        except Exception as error:  # each file system has errors of its own
            raise PolypstreamError(f"{address}: cannot be read ({error})") from error
        yield copy


class Store(Protocol):
    """Keeps files and folders under names; a folder of results is there as a whole or not at all.

    Attributes:
        root: for people.
    """

    root: str

    def has(self, name: str) -> bool:
        """Whether there is anything under a name."""

    def working(self) -> AbstractContextManager[Path]:
        """An empty folder of this machine, for the time of a block, from which `publish` is cheap."""

    def looking(self, name: str, files: Sequence[str] | None = None) -> AbstractContextManager[Path]:
        """A folder of this machine with what is under a name, or some files of it, for the time of a block."""

    def publish(self, folder: Path, name: str) -> None:
        """Move a folder of results under a name, in place of other results there.

        Raises:
            OutputError: it cannot be written, or what is there is something else.
        """

    def keep_file(self, path: Path, name: str) -> None:
        """Copy a file of this machine under a name.

        Raises:
            OutputError: it cannot be written.
        """

    def remove(self, name: str) -> None:
        """Forget what is under a name, if anything."""


def open_store(output: str) -> Store:
    """The store at a path or an fsspec address.

    Raises:
        MissingExtra, SourceError: as by `file_system`.
    """
    return ObjectStore(output) if is_address(output) else FolderStore(Path(output))


def _check_replaceable(place: str, has_results: bool) -> None:
    if not has_results:
        raise OutputError(f"{place}: is not a folder of results, and is not replaced; move it away")


class FolderStore:
    """A folder of this machine, or one that every machine of a cluster has mounted at the same path."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = str(self._root)

    def has(self, name: str) -> bool:
        return (self._root / name).exists()

    @contextmanager
    def working(self) -> Iterator[Path]:
        at_work = self._root / HIDDEN / AT_WORK
        with writing(at_work):
            at_work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=at_work, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    @contextmanager
    def looking(self, name: str, files: Sequence[str] | None = None) -> Iterator[Path]:
        yield self._root / name

    def publish(self, folder: Path, name: str) -> None:
        target = self._root / name
        with writing(target), self.working() as old:
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                _check_replaceable(str(target), (target / LAST_FILE).is_file())
                target.rename(old / "replaced")
            folder.rename(target)

    def keep_file(self, path: Path, name: str) -> None:
        target = self._root / name
        with writing(target), self.working() as folder:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)
            (folder / path.name).replace(target)

    def remove(self, name: str) -> None:
        shutil.rmtree(self._root / name, ignore_errors=True)


class ObjectStore:
    """A folder of a file system that fsspec knows."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._system, self._path = file_system(self.root)

    def _at(self, *names: str) -> str:
        return "/".join(filter(None, (self._path, *names)))

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """What goes wrong is told of a name; each file system has errors of its own."""
        try:
            yield
        except PolypstreamError:
            raise
        except Exception as error:
            raise OutputError(f"{self.root}/{name}: cannot be reached ({error})") from error

    def has(self, name: str) -> bool:
        with self._reaching(name):
            self._system.invalidate_cache()
            return bool(self._system.exists(self._at(name)))

    @contextmanager
    def working(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="polypstream-") as folder:
            yield Path(folder)

    @contextmanager
    def looking(self, name: str, files: Sequence[str] | None = None) -> Iterator[Path]:
        with self.working() as folder:
            with self._reaching(name):
                self._system.invalidate_cache()
                if files is None:
                    self._system.get(f"{self._at(name)}/", f"{folder}/", recursive=True)
                for file in files or ():
                    if self._system.exists(self._at(name, file)):
                        self._system.get_file(self._at(name, file), str(folder / file))
            yield folder

    def publish(self, folder: Path, name: str) -> None:
        if self.has(name):
            ours = self.has(f"{name}/{LAST_FILE}") or self.has(f"{name}/{UNFINISHED}")
            _check_replaceable(f"{self.root}/{name}", ours)
            self.remove(name)
        with self._reaching(name):
            self._system.pipe_file(self._at(name, UNFINISHED), b"")
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        for path in sorted(files, key=lambda path: path.name == LAST_FILE):
            self.keep_file(path, f"{name}/{path.relative_to(folder).as_posix()}")
        self.remove(f"{name}/{UNFINISHED}")

    def keep_file(self, path: Path, name: str) -> None:
        with self._reaching(name):
            self._system.put_file(str(path), self._at(name))

    def remove(self, name: str) -> None:
        with self._reaching(name):
            if self.has(name):
                self._system.rm(self._at(name), recursive=True)
