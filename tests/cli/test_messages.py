"""What the command says on standard error, and how."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polypstream.cli import live
from polypstream.cli.app import app
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
    assert done.stdout.startswith(f"{clip}: 1 polyp ")


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--port", "x"], "'--port': must be a whole number (got x)"),
        (["serve", "--port", "70000"], "'--port': must be at most 65535 (got 70000)"),
        (["bench", "--seconds", "0"], "'--seconds': must be at least 1 (got 0)"),
        (["masks", "a.mp4", "--format", "coco", "--every", "often"], "'--every': must be a number (got often)"),
        (["masks", "a.mp4", "--format", "x"], "'--format': 'x' is not one of 'coco', 'png', 'yolo', 'cvat', 'labelme'"),
        (["archive", "a.mp4", "-o", "b", "--workers", "0"], "'--workers': must be at least 1 (got 0)"),
    ],
)
def test_a_wrong_value_of_an_option_is_said_in_plain_words(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert f"Invalid value for {words}" in done.output


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_serve_says_where_to_open_it_and_how_to_stop_it(
    host: str, red_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(_: threading.Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live.threading.Event, "wait", stop)
    monkeypatch.setattr("polypstream.web.serve.serve", lambda *_: nullcontext("http://address/"))
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyboardInterrupt):
        live.serve_pages(host, 0, None, tmp_path, None, red_model, None, ["inference.provider=cpu"])
    (line,) = [record.getMessage() for record in caplog.records if record.name == "polypstream.cli.live"]
    elsewhere = ", on another machine with the name of this machine in place of 0.0.0.0" if host == "0.0.0.0" else ""
    assert line == (
        f"open this address in a browser{elsewhere}; uploads and results are in {tmp_path}; Ctrl-C stops the server"
    )
