"""What the command says on standard error, and how."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from polypstream.cli.messages import set_up_messages
from tests.conftest import call

SMALL = {"width": 64, "height": 48}


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The program's logger, put back afterwards."""
    logger = logging.getLogger("polypstream")
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], logger.level = handlers, level


def test_errors_are_json_if_asked_for(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    clip, missing = make(frames=3, **SMALL), tmp_path / "missing\nfile.mp4"
    done = call(
        "--log-json", "process", missing, clip, "--output", tmp_path / "results", "--model", red_model, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    message = json.loads(line)
    assert datetime.fromisoformat(message.pop("time")).utcoffset() is not None
    assert message == {"level": "error", "logger": "polypstream.cli.process", "message": f"{missing}: no such file"}
    assert done.stdout.startswith(f"2 of 2: {clip}: 1 polyp ")


def test_verbose_also_tells_what_the_child_does(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    done = call(
        "-v", "process", make(frames=3, **SMALL), "--output", tmp_path / "results", "--model", red_model,
        "--set", "inference.provider=cpu",
    )  # fmt: skip
    assert f"polypstream: {red_model}: runs on cpu" in done.stderr
    assert "3 frames in" in done.stderr


def test_a_message_is_one_line_and_goes_where_standard_error_is_now(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_messages()
    set_up_messages()  # not twice
    logger.getChild("jobs.anything").warning("one\ntwo %s", 3)
    logger.debug("nobody asked")
    assert capsys.readouterr().err == "polypstream: one two 3\n"
    set_up_messages(logging.DEBUG)
    logger.debug("somebody asked")
    assert capsys.readouterr().err == "polypstream: somebody asked\n"


def test_settings_are_printed_with_their_comments(tmp_path: Path, make: Callable[..., Path], red_model: Path) -> None:
    done = call("settings")
    assert done.stdout == (Path(__file__).parents[2] / "config.yaml").read_text()
    (tmp_path / "my.yaml").write_text(done.stdout)
    options = ("--config", tmp_path / "my.yaml", "--model", red_model)
    call("process", make(frames=3, **SMALL), "--output", tmp_path / "results", *options)
