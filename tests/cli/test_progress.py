"""The progress bar and the passing line in a terminal of 80 columns."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

ERASED = "<erased>"
PROGRAM = """
import time
from polypstream.cli.progress import ProgressBar
with ProgressBar("a-very-long-name-of-a-recording-2024-01-01.mp4", "frames", "12 of 123: ") as bar:
    for done in range(100_000, 100_021):
        bar.show(done, {expected})
        time.sleep(0.1)
"""


def shown_in_terminal(program: str) -> list[str]:
    """What a program shows in a terminal, line by line, without control codes. ERASED marks a line that is erased."""
    program = "import os; os.environ.update(COLUMNS='80', TERM='xterm')\n" + program
    # The terminal is made in a process of its own, since pty.spawn forks.
    script = f"import pty, sys; sys.exit(pty.spawn([sys.executable, '-c', {program!r}]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, stdin=subprocess.DEVNULL, text=True)
    text = done.stdout.replace("\x1b[2K", ERASED)
    return [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", text)]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (180_000, r"12 of 123: a.*\.\.\..*\.mp4 .*100020 of 180000 frames [\d.]+ per second 2 h \d\d min left"),
        (None, r"100020 frames"),
    ],
)
def test_it_says_everything_in_words(expected: int | None, words: str) -> None:
    lines = shown_in_terminal(PROGRAM.format(expected=expected))
    assert any(re.search(words, line) for line in lines), lines[-3:]
    assert not any("...fr" in line for line in lines)
    assert max(len(line.removeprefix(ERASED)) for line in lines) <= 80


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_passing_line_is_erased() -> None:
    program = (
        "from polypstream.cli.progress import passing_line\nwith passing_line('loading the model'): pass\nprint('done')"
    )
    assert shown_in_terminal(program)[:2] == ["loading the model", f"{ERASED}done"]
