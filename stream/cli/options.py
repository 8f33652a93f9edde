"""What several commands share: options, the imports of a command, the settings and the model that it asks for."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand

from polypstream.core.extras import load_opencv
from polypstream.errors import INTERRUPTED

if TYPE_CHECKING:
    from polypstream.core.config import Settings
    from polypstream.inference.segmenter import Segmenter

log = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
ModelFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="ONNX model  [default: shipped weights]", show_default=False)
]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file with settings; `polypstream settings` prints all of them")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, for instance overlay.opacity=0.5"),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this JSON file")
]
# What stands before a setting on the command line.
SET = "--set "
# The folder of results where none is given.
RESULTS = Path("results")
LIVE_HELP = (
    "/dev/video0, dshow:NAME, avfoundation:0, rtsp://, srt://, udp://, rtmp://, http(s)://, "
    "replay:FILE, loop:FILE or demo:"
)


class _Command(TyperCommand):
    """A command whose help does not show the Python types of its arguments."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for param in self.params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = lambda ctx: ""  # type: ignore[method-assign]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line. Errors are in plain words, not in those of the library."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = _plain_words(error)
            raise


def _plain_words(error: typer.BadParameter) -> str:
    """Say what a wrong value of an option must be."""
    from pydantic import ValidationError

    if not isinstance(error.__cause__, ValidationError):
        return error.message
    from polypstream.core.validation import expected_value

    problem = error.__cause__.errors()[0]
    expected = expected_value(problem)
    return f"must be {expected} (got {problem['input']})" if expected else problem["msg"].removeprefix("Value error, ")


class Commands(typer.Typer):
    """A group of commands. Their help is plain text: it loads fast, and fits every terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Add a command, as `typer.Typer.command` does."""
        return super().command(name, cls=_Command, **options)


@contextmanager
def importing() -> Iterator[None]:
    """Load OpenCV, then import in this block what else a command needs. So `--help` imports nothing, and is quick.

    Until the block ends, Ctrl-C ends the process at once: extension modules replace KeyboardInterrupt by errors of
    their own, and no work has begun.

    Raises:
        MissingExtra: OpenCV, or a library of the system that it needs, is not installed.
    """
    previous = signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        load_opencv()
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def read_settings(config: Path | None, overrides: list[str] | None, model: Path | None) -> Settings:
    """Read the settings that the options --config, --set and --model ask for.

    Raises:
        SettingsError: a setting is unknown, of the wrong type or out of range.
    """
    from polypstream.core.config import settings_of
    from polypstream.jobs.setup import with_model

    return with_model(settings_of(config, overrides or [], SET), model)


def open_segmenter(settings: Settings) -> Segmenter:
    """Open the model of the settings, and log its notes, for instance why no GPU is used."""
    from polypstream.jobs.setup import make_segmenter

    segmenter = make_segmenter(settings)
    for note in segmenter.notes:
        log.warning(note)
    return segmenter


def write_json(file: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a command as JSON.

    Args:
        file: the file to write.
        figures: plain values and dataclasses.

    Raises:
        OutputError: the file cannot be written.
    """
    from polypstream.core.files import writing

    with writing(file):
        file.write_text(json.dumps(figures, indent=2, default=asdict) + "\n")
