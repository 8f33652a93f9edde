"""Errors of the file system, in words for people."""

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
