"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import psutil
import pytest

from polypstream.core.memory import give_back_free_memory

SIZE = 60_000  # bytes of a block: glibc takes it from its heap, and not from the system


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_memory_between_blocks_in_use_is_given_back() -> None:
    blocks = [np.ones(SIZE, np.uint8) for _ in range(2000)]
    kept = blocks[::10]
    before = psutil.Process().memory_info().rss
    del blocks
    give_back_free_memory()
    assert before - psutil.Process().memory_info().rss > 0.5 * 1800 * SIZE
    assert all(block.min() == 1 for block in kept)
