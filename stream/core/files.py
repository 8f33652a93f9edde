"""Writing files atomically, and errors of the file system as messages for the user."""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from av.error import FFmpegError

from polypstream.errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert errors of FFmpeg and of the file system in the block to OutputError.

    Args:
        path: the file that the block writes, for the message.

    Raises:
        OutputError: the block raised an error of FFmpeg or of the file system.
    """
    try:
        yield
    except (FFmpegError, OSError) as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(f"{path}: the disk is full; what was written so far is kept") from error
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file, and move it to the file's path when the block ends.

    After an error the file is unchanged. The temporary path has the same suffix, because libraries use it to choose the
    format.

    Args:
        path: the file to write or replace.

    Yields:
        The temporary path.

    Raises:
        OutputError: the file cannot be written.
    """
    unfinished = path.with_name(f"{path.stem}.unfinished{path.suffix}")
    with writing(path):
        try:
            yield unfinished
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def write_output(path: Path, content: bytes) -> None:
    """Write a file, completely or not at all. Its folder is created if it does not exist.

    Args:
        path: the file to write or replace.
        content: of the file.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as unfinished:
        unfinished.write_bytes(content)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file in UTF-8, completely or not at all.

    Args:
        path: the file to write or replace.
        columns: names of the columns, the first line of the file.
        rows: values by the name of their column. A missing value, and None, is an empty cell.

    Raises:
        OutputError: it cannot be written.
    """
    # Names of files may have bytes that are not UTF-8. They are escaped, since few readers accept them.
    with (
        write_atomically(path) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        table = csv.DictWriter(file, list(columns), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
