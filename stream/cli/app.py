"""The command `polypstream`: its options, and where its commands are."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from polypstream.cli.messages import set_up_messages
from polypstream.core.notice import NOTICE
from polypstream.errors import PolypstreamError

log = logging.getLogger(__name__)
# The modules of the commands, in the order of `--help`.
MODULES = {
    "process": "process",
    "live": "live",
    "serve": "live",
    "archive": "archive",
    "masks": "annotations",
    "score": "recordings",
    "study": "study",
    "dicom": "annotations",
    "demo-video": "recordings",
    "devices": "live",
    "bench": "bench",
    "settings": "settings",
    "train": "models",
    "tune": "models",
    "evaluate": "models",
    "compare": "compare",
    "export": "export",
    "wrap": "export",
    "inspect": "export",
}


class _Commands(Mapping[str, Any]):
    """Commands by name. The module of a command is imported when the command is called."""

    def __getitem__(self, name: str) -> Any:
        module = import_module(f"polypstream.cli.{MODULES[name]}")
        return typer.main.get_group(module.app).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


class _Group(TyperGroup):
    """The command line."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names. A recording is no command, but most likely meant for one."""
        if args[0] not in self.commands and os.path.exists(args[0]):  # noqa: PTH110 -- Path.exists raises for long names
            ctx.fail(f"{args[0]} is no command; did you mean `polypstream process {shlex.join(args)}`?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group,
    help=f"Find polyps in endoscope video, frame by frame. {NOTICE}",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polypstream {version('polypstream')}")
        raise typer.Exit


@app.callback()
def options(
    version_: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print more messages")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors, but no other messages")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Print messages as JSON, one object per line")] = False,
) -> None:
    """Options of all commands."""
    # Until now Ctrl-C ended the process at once (see __main__). It does so again while the command imports.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_up_messages(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO, log_json)


def run() -> None:
    """Run the command line. An error for the user is printed as one line, with exit code 1."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names may hold any bytes
    set_up_messages()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems stop a job with SIGTERM: same as Ctrl-C
    try:
        app()
    except PolypstreamError as error:
        log.error(error)
        sys.exit(1)
