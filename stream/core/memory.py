"""The memory that glibc keeps in a process that runs for hours. With another C library, nothing here does anything.

A program whose threads open and close video for hours frees all that it allocates. But blocks that live long come to
lie between blocks that do not, and glibc keeps the free pages between them: its heap grows (docs/reliability.md has
figures).

Sources: mallopt(3) and malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import functools

# Numbers of mallopt's parameters in <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Bytes from which a block has pages of its own, which go back to the system when it is freed. By default glibc raises
# this up to 32 MB, so that pictures lie in the heap.
OWN_PAGES = 256 * 1024
# Free bytes at the end of a heap that glibc keeps. With the default of 128 KiB, each picture would ask for pages again.
FREE_AT_END = 32 * 1024 * 1024
# Heaps of all threads. By default there are eight for each core.
HEAPS = 2


def keep_heap_small() -> None:
    """Let large blocks have pages of their own, and all threads share a few heaps. To be called before threads start.

    Example:
        >>> keep_heap_small()
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, OWN_PAGES)
        libc.mallopt(M_TRIM_THRESHOLD, FREE_AT_END)
        libc.mallopt(M_ARENA_MAX, HEAPS)


def give_back_free_memory() -> None:
    """Give the free pages of all heaps back to the system. Takes some milliseconds, without Python's global lock.

    Example:
        >>> give_back_free_memory()
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no CDLL(None)
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
