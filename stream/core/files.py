"""Writing files: whole or not at all, and with errors in words for people."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from av.error import FFmpegError

from polypstream.errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong inside goes wrong with writing this file.

    Raises:
        OutputError: instead of an error of FFmpeg or the file system.
    """
    try:
        yield
    except (FFmpegError, OSError) as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(f"{path}: the disk is full; what was written so far is kept") from error
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a path beside a file; what the block writes there takes the file's place when the block ends.

    After an error the file is as it was before. The other path has the same ending, by which libraries tell formats.

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
