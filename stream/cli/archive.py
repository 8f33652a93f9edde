"""The commands archive and archive status."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from polypstream.archive.cluster import Pool
from polypstream.archive.ledger import Row, State
from polypstream.archive.run import archive, read_ledger
from polypstream.archive.storage import is_address
from polypstream.archive.worker import ArchiveJob, Engine
from polypstream.cli.archive_tables import describe as describe_row
from polypstream.cli.archive_tables import print_archive
from polypstream.cli.options import ConfigFile, ModelFile, Overrides
from polypstream.cli.progress import ProgressBar
from polypstream.core.config import load_settings
from polypstream.jobs.setup import with_deidentification, with_model

log = logging.getLogger(__name__)
MEGA = 10**6

app = typer.Typer()


class _ArchiveGroup(TyperGroup):
    """Runs `archive INPUT...` as `archive run INPUT...`, unless the first word is a subcommand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


archive_app = typer.Typer(cls=_ArchiveGroup, pretty_exceptions_enable=False)
app.add_typer(archive_app, name="archive", help="Annotate archives of recordings, on one machine or on a cluster.")


@archive_app.command("run")
def archive_recordings(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Recordings, folders, glob patterns or CSV manifests; also s3://"),
    ],
    output: Annotated[str, typer.Option(help="Folder for the results and the ledger; also s3://")],
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster: auto, HOST:6379 or ray://HOST:10001; default: this machine")
    ] = None,
    segment_seconds: Annotated[
        float, typer.Option(min=0, help="Split long recordings into parts of about this many seconds; 0: never")
    ] = 60.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers; default: one per GPU, or one per 4 CPUs")
    ] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also write masks.mkv")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results of other settings, and other files of the same name")
    ] = False,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Keep only the endoscope's field of view; see docs/deidentification.md")
    ] = False,
) -> None:
    """Annotate an archive. A further run processes what is missing or failed. `archive status DIR` prints its state."""
    settings = with_model(load_settings(config, set_ or []), None if model is None else model.absolute())
    output = output if is_address(output) else str(Path(output).absolute())
    job = ArchiveJob(output, with_deidentification(settings) if deidentify else settings, masks, segment_seconds)
    with ProgressBar(output, "MB") as progress:

        def on_progress(done: int, of: int) -> None:
            progress.show(done // MEGA, of // MEGA)

        def make_workers(engine: Engine | None) -> Pool:
            return Pool(job, address, workers, engine)

        try:
            rows = archive(inputs, job, make_workers, overwrite, _print_row, on_progress)
        except KeyboardInterrupt:
            log.error(f"{output}: interrupted; the same command continues it")
            raise
    print_archive(rows, Console())
    if any(row.state is not State.DONE for row in rows):
        raise typer.Exit(1)


def _print_row(row: Row) -> None:
    if row.state is State.DONE:
        typer.echo(describe_row(row))
    else:
        log.error(describe_row(row))


@archive_app.command("status")
def archive_status(
    output: Annotated[str, typer.Argument(metavar="DIR", help="The --output of an archive")],
) -> None:
    """Print the state of each recording of an archive."""
    print_archive(read_ledger(output), Console())
