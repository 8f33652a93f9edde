"""Storage of an archive's recordings and results: folders of this machine or of a network, or an object store.

Plain paths are used directly, and a folder of results appears by one rename. Addresses such as ``s3://bucket/folder``
are accessed through fsspec: recordings are first copied to this machine, and `summary.json` is written last.
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

# In the results' folder: the folder for archive data; in it, unfinished results, and parts that are not joined yet.
HIDDEN, WORKING, PARTS = ".polypstream-archive", "at-work", "parts"
LAST_FILE = "summary.json"
# File that the driver locks, and the longest wait for it in seconds. Two drivers would do all work twice.
LOCK, LOCK_TIMEOUT_S = "lock", 0.5
# In an object store this file marks results that are being written.
UNFINISHED = "summary.json.unfinished"


def is_address(text: str) -> bool:
    """Whether a text is an fsspec address, not a path.

    Args:
        text: path or address.
    """
    return "://" in text


def file_system(address: str) -> tuple[Any, str]:
    """Open the file system of an fsspec address.

    Args:
        address: the address.

    Returns:
        fsspec's file system, and the path in it.

    Raises:
        MissingExtra: a package that the address needs is not installed.
        SourceError: the scheme of the address is unknown.
    """
    with extra("s3" if address.startswith("s3://") else "cluster", f"{address.split('://')[0]}://"):
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(address)
        except ImportError as error:  # fsspec hides the missing package's name in a sentence
            raise ModuleNotFoundError(name="s3fs") from error
        except ValueError as error:
            raise SourceError(f"{address}: {error}") from error
    system.invalidate_cache()
    return system, str(path)


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """Context manager that provides a recording as a local file: itself, or a temporary copy.

    Args:
        address: path or address of the recording.

    Yields:
        Path of the file.

    Raises:
        PolypstreamError: the recording cannot be read now. The cause is not its content.
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
        except Exception as error:  # each file system raises its own errors
            raise PolypstreamError(f"{address}: cannot be read ({error})") from error
        yield copy


class Store(Protocol):
    """Stores files and folders by name. A folder of results exists completely or not at all.

    Attributes:
        root: path or address of the store, for the user.
    """

    root: str

    def has(self, name: str) -> bool:
        """Whether a file or folder of this name exists.

        Args:
            name: the name.
        """

    def working_folder(self) -> AbstractContextManager[Path]:
        """Context manager that provides an empty local folder. Publishing from it is cheap."""

    def local_folder(self, name: str, files: Sequence[str] | None = None) -> AbstractContextManager[Path]:
        """Context manager that provides the content of a stored folder as a local folder, which must not be changed.

        Args:
            name: name of the folder.
            files: files that are needed; None: all.
        """

    def publish(self, folder: Path, name: str) -> None:
        """Move a folder of results into the store. Results of the same name are replaced.

        Args:
            folder: the local folder.
            name: its name in the store.

        Raises:
            OutputError: it cannot be written, or something else has this name.
        """

    def locked(self) -> AbstractContextManager[None]:
        """Context manager that excludes other drivers from this store. It first removes what a killed driver left.

        Raises:
            OutputError: another driver works on it.
        """

    def local_file(self, name: str) -> AbstractContextManager[tuple[Path, Callable[[float], None]]]:
        """Context manager that provides a stored file as a local file that may be written. It is created if absent.

        Args:
            name: name of the file.

        Yields:
            Path of the file, and a function save(after). It copies the file into the store if the last copy is at
            least `after` seconds old.

        Raises:
            OutputError: it cannot be read or written.
        """

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it exists.

        Args:
            name: the name.
        """


def open_store(output: str) -> Store:
    """Open the store of a results' folder.

    Args:
        output: path or fsspec address.

    Raises:
        MissingExtra, SourceError: as by `file_system`.
    """
    return ObjectStore(output) if is_address(output) else FolderStore(Path(output))


def _check_replaceable(place: str, has_results: bool) -> None:
    if not has_results:
        raise OutputError(f"{place}: is not a folder of results, so it is not replaced; move it to another place")


class FolderStore:
    """A Store in a folder of this machine, or in one that all machines of a cluster mount at the same path.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = str(self._root)

    def has(self, name: str) -> bool:
        """See Store."""
        return (self._root / name).exists()

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """See Store."""
        unfinished = self._root / HIDDEN / WORKING
        with writing(unfinished):
            unfinished.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=unfinished, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    @contextmanager
    def local_folder(self, name: str, files: Sequence[str] | None = None) -> Iterator[Path]:
        """See Store. The folder itself is provided, not a copy."""
        yield self._root / name

    def publish(self, folder: Path, name: str) -> None:
        """See Store."""
        target = self._root / name
        with writing(target), self.working_folder() as old:
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                _check_replaceable(str(target), (target / LAST_FILE).is_file())
                target.rename(old / "replaced")
            folder.rename(target)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See Store."""
        hidden = self._root / HIDDEN
        with writing(hidden):
            hidden.mkdir(parents=True, exist_ok=True)
        with extra("cluster"):
            from filelock import FileLock, Timeout
        try:
            lock = FileLock(hidden / LOCK).acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout as error:
            raise OutputError(
                f"{self.root}: another `polypstream archive` is running on this folder; wait until it has ended"
            ) from error
        except OSError as error:
            raise OutputError(f"{self.root}: cannot be locked ({error.strerror})") from error
        with lock:
            self.remove(f"{HIDDEN}/{WORKING}")
            yield

    @contextmanager
    def local_file(self, name: str) -> Iterator[tuple[Path, Callable[[float], None]]]:
        """See Store. The file itself is provided, so there is nothing to copy."""
        yield self._root / name, lambda _: None

    def remove(self, name: str) -> None:
        """See Store."""
        shutil.rmtree(self._root / name, ignore_errors=True)


class ObjectStore:
    """A Store in a folder of a file system that fsspec supports.

    Args:
        root: its fsspec address.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._system, self._path = file_system(self.root)

    def _at(self, *names: str) -> str:
        return "/".join(filter(None, (self._path, *names)))

    @contextmanager
    def _accessing(self, name: str) -> Iterator[None]:
        """Report errors for a name. Each file system raises its own errors."""
        try:
            yield
        except PolypstreamError:
            raise
        except Exception as error:
            raise OutputError(f"{self.root}/{name}: cannot be reached ({error})") from error

    def has(self, name: str) -> bool:
        """See Store."""
        with self._accessing(name):
            self._system.invalidate_cache()
            return bool(self._system.exists(self._at(name)))

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """See Store."""
        with tempfile.TemporaryDirectory(prefix="polypstream-") as folder:
            yield Path(folder)

    @contextmanager
    def local_folder(self, name: str, files: Sequence[str] | None = None) -> Iterator[Path]:
        """See Store."""
        with self.working_folder() as folder:
            with self._accessing(name):
                self._system.invalidate_cache()
                if files is None:
                    self._system.get(f"{self._at(name)}/", f"{folder}/", recursive=True)
                for file in files or ():
                    if self._system.exists(self._at(name, file)):
                        self._system.get_file(self._at(name, file), str(folder / file))
            yield folder

    def publish(self, folder: Path, name: str) -> None:
        """See Store."""
        if self.has(name):
            has_results = self.has(f"{name}/{LAST_FILE}") or self.has(f"{name}/{UNFINISHED}")
            _check_replaceable(f"{self.root}/{name}", has_results)
            self.remove(name)
        with self._accessing(name):
            self._system.pipe_file(self._at(name, UNFINISHED), b"")
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        for path in sorted(files, key=lambda path: path.name == LAST_FILE):
            self._put(path, f"{name}/{path.relative_to(folder).as_posix()}")
        self.remove(f"{name}/{UNFINISHED}")

    def _put(self, path: Path, name: str) -> None:
        with self._accessing(name):
            self._system.put_file(str(path), self._at(name))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See Store. Does nothing, since object stores have no locks."""
        yield

    @contextmanager
    def local_file(self, name: str) -> Iterator[tuple[Path, Callable[[float], None]]]:
        """See Store."""
        with self.local_folder("", [name]) as folder:
            last_copy = time.monotonic()

            def save(after: float) -> None:
                nonlocal last_copy
                if time.monotonic() - last_copy >= after:
                    self._put(folder / name, name)
                    last_copy = time.monotonic()

            try:
                yield folder / name, save
            finally:
                save(0.0)

    def remove(self, name: str) -> None:
        """See Store."""
        with self._accessing(name):
            if self.has(name):
                self._system.rm(self._at(name), recursive=True)
