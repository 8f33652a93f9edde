"""The progress bar in a terminal of 80 columns."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

PROGRAM = """
import time
from polypstream.cli.progress import ProgressBar
with ProgressBar("12 of 123: a-very-long-name-of-a-recording-2024-01-01.mp4", "frames") as bar:
    for done in range(100_000, 100_021):
        bar.show(done, {expected})
        time.sleep(0.1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (180_000, r"12 of.*\.mp4 .* 100020 of 180000 frames [\d.]+ per second 2 h \d\d min left"),
        (None, r"100020 frames"),
    ],
)
def test_it_says_everything_in_words(expected: int | None, words: str) -> None:
    program = "import os; os.environ.update(COLUMNS='80', TERM='xterm')\n" + PROGRAM.format(expected=expected)
    # The terminal is made in a process of its own, since pty.spawn forks.
    script = f"import pty, sys; sys.exit(pty.spawn([sys.executable, '-c', {program!r}]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, stdin=subprocess.DEVNULL, text=True)
    lines = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", done.stdout)]
    assert any(re.search(words, line) for line in lines), lines[-3:]
    assert "…fr" not in done.stdout
    assert max(map(len, lines)) <= 80
