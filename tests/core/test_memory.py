"""The heap of a process that runs for hours stays small."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import psutil
import pytest

from polypstream.core.memory import OWN_PAGES, give_back_free_memory

SIZE = 60_000  # bytes of a block: glibc takes it from its heap, and not from the system
pytestmark = [
    pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]
# Large blocks, with a small one after each of them that stays. Prints the bytes that are kept of the large ones.
FREE_LARGE_BLOCKS = f"""
import numpy as np, psutil
from polypstream.core.memory import keep_heap_small
{{first}}
warm_up = np.ones({8 * OWN_PAGES}, np.uint8)
del warm_up  # glibc raises its threshold
before = psutil.Process().memory_info().rss
large, small = [], []
for _ in range(100):
    large.append(np.ones({2 * OWN_PAGES}, np.uint8))
    small.append(np.ones(5000, np.uint8))
del large
print(psutil.Process().memory_info().rss - before)
"""


def kept_of_large_blocks(first: str) -> int:
    """Run FREE_LARGE_BLOCKS in a process of its own."""
    command = [sys.executable, "-c", FREE_LARGE_BLOCKS.format(first=first)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_large_blocks_go_back_to_the_system_between_small_ones() -> None:
    everything = 100 * 2 * OWN_PAGES
    assert kept_of_large_blocks("") > 0.9 * everything
    assert kept_of_large_blocks("keep_heap_small()") < 0.1 * everything


def test_memory_between_blocks_in_use_is_given_back() -> None:
    blocks = [np.ones(SIZE, np.uint8) for _ in range(2000)]
    kept = blocks[::10]
    before = psutil.Process().memory_info().rss
    del blocks
    give_back_free_memory()
    assert before - psutil.Process().memory_info().rss > 0.5 * 1800 * SIZE
    assert all(block.min() == 1 for block in kept)
