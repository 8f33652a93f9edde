"""Where an archive's recordings are and its results go: folders of this machine or a network's, or an object store.

Plain paths are used as they are, and results appear there by one rename. Addresses such as ``s3://bucket/folder`` go
through fsspec: recordings are copied here first, and of a folder of results `summary.json` comes last.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from polypstream.core.extras import extra
from polypstream.core.files import writing
from polypstream.errors import OutputError, PolypstreamError, SourceError

# Inside the results' folder: what workers are at, and parts that wait to be joined.
HIDDEN, AT_WORK, PARTS = ".polypstream-archive", "at-work", "parts"
LAST_FILE = "summary.json"
# Held by the driver that works on the results: two would do everything twice.
LOCK, LOCK_S = "lock", 0.5
# In an object store, among results that are being written.
UNFINISHED = "summary.json.unfinished"


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

    def alone(self) -> AbstractContextManager[None]:
        """For the time of a block no other driver works here; what a killed one was at is removed first.

        Raises:
            OutputError: another one does.
        """

    def opened(self, name: str) -> AbstractContextManager[tuple[Path, Callable[[float], None]]]:
        """A file under a name, made if absent, as one of this machine that may be written, for the time of a block.

        Returns:
            Its path; what lets the store have the file as it is now, if it last had it so many seconds ago.

        Raises:
            OutputError: it cannot be read or written.
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

    @contextmanager
    def alone(self) -> Iterator[None]:
        hidden = self._root / HIDDEN
        with writing(hidden):
            hidden.mkdir(parents=True, exist_ok=True)
        with extra("cluster"):
            from filelock import FileLock, Timeout
        try:
            lock = FileLock(hidden / LOCK).acquire(timeout=LOCK_S)
        except Timeout as error:
            raise OutputError(f"{self.root}: another `polypstream archive` is at work on it") from error
        except OSError as error:
            raise OutputError(f"{self.root}: cannot be locked ({error.strerror})") from error
        with lock:
            self.remove(f"{HIDDEN}/{AT_WORK}")
            yield

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[Path, Callable[[float], None]]]:
        yield self._root / name, lambda _: None

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
            self._put(path, f"{name}/{path.relative_to(folder).as_posix()}")
        self.remove(f"{name}/{UNFINISHED}")

    def _put(self, path: Path, name: str) -> None:
        with self._reaching(name):
            self._system.put_file(str(path), self._at(name))

    @contextmanager
    def alone(self) -> Iterator[None]:
        yield  # an object store has no locks

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[Path, Callable[[float], None]]]:
        with self.looking("", [name]) as folder:
            copied = time.monotonic()

            def keep(after: float) -> None:
                nonlocal copied
                if time.monotonic() - copied >= after:
                    self._put(folder / name, name)
                    copied = time.monotonic()

            try:
                yield folder / name, keep
            finally:
                keep(0.0)

    def remove(self, name: str) -> None:
        with self._reaching(name):
            if self.has(name):
                self._system.rm(self._at(name), recursive=True)
