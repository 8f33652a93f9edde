"""Memory that is free, but not given back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def give_back_free_memory() -> None:
    """Give back what glibc keeps of freed memory; other C libraries do so by themselves, and there nothing happens.

    glibc keeps free pages that lie between pages in use. In a process whose threads open and close video for hours,
    they become more and more (docs/reliability.md has figures). Takes some milliseconds, without Python's global lock.

    Source: malloc_trim(3), which since glibc 2.8 gives back free pages of all arenas.

    Example:
        >>> give_back_free_memory()
    """
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no glibc; Windows has no CDLL(None)
        return lambda _: 0
    return trim
