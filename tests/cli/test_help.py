"""Help: quick, plain, and without what it does not need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from polypstream.cli.app import MODULES
from tests.conftest import call, command

# Each takes longer to import than the rest of the help.
HEAVY = ("cv2", "numpy", "av", "onnxruntime", "fastapi", "jinja2", "rich", "torch", "ray")


@pytest.mark.parametrize("name", MODULES)
def test_help_is_plain_and_fits_80_columns(name: str) -> None:
    shown = call(name, "-h", COLUMNS="80").stdout
    assert shown == call(name, "--help", COLUMNS="80").stdout
    assert shown.startswith("Usage: polypstream")
    assert max(map(len, shown.splitlines())) <= 80
    for ugly in ("<bool>", "<str>", "<path>", "<int", "<float", "list[", "╭", "Literal"):
        assert ugly not in shown
    words = " ".join(shown.split())  # without line breaks
    for unclear in ("procedural", "spoiling", "with the truth", "and truth", "findings of runs", "The --output of"):
        assert unclear not in words


def test_the_list_of_commands_has_whole_sentences() -> None:
    shown = call("--help", COLUMNS="80").stdout
    commands = shown.partition("Commands:")[2].split("\n")[1:]
    assert [line.split()[0] for line in commands if line] == list(MODULES)
    assert all(line.endswith(".") and not line.endswith("...") for line in commands if line)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["-V"], *([name, "--help"] for name in MODULES)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from polypstream.__main__ import main\n"
        f"sys.argv = ['polypstream', *{arguments!r}]\n"
        "try: main()\n"
        f"finally: print('imported', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "imported []" in done.stdout, done.stdout[-200:] + done.stderr


@pytest.mark.parametrize(
    ("words", "completed"), [("polypstream proc", "process"), ("polypstream process --ov", "--overwrite")]
)
def test_the_shell_completes_commands_and_options(words: str, completed: str) -> None:
    """As the script of --install-completion asks for it."""
    place = str(len(words.split()) - 1)
    environment = {"_POLYPSTREAM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    done = subprocess.run(command(), capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout.split() == [completed]
