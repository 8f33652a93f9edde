"""The commands archive run and archive status."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from polypstream.cli.options import Commands, ConfigFile, ModelFile, Overrides, importing, read_settings, write_json

if TYPE_CHECKING:
    from polypstream.archive.cluster import Pool
    from polypstream.archive.ledger import Row
    from polypstream.archive.worker import Engine

log = logging.getLogger(__name__)
MEGA = 10**6

app = Commands()


class _ArchiveGroup(TyperGroup):
    """Runs `archive INPUT...` as `archive run INPUT...`, unless the first word is a subcommand. Without words: help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = args or ["--help"]
        if args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


archive_app = Commands(cls=_ArchiveGroup)
app.add_typer(
    archive_app,
    name="archive",
    short_help="Process many recordings, also on a cluster.",
    help="""Process many recordings, on one machine or on a cluster.

    `run` is the default: `polypstream archive INPUT... -o FOLDER` is the same as
    `polypstream archive run INPUT... -o FOLDER`. `polypstream archive run --help` lists its options.""",
)


@archive_app.command("run")
def archive_recordings(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Recordings, folders, patterns, or CSV files that list recordings; also s3:// addresses",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for the results and for the list of recordings; also an s3:// address",
        ),
    ],
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Ray cluster to use: auto, HOST:6379 or ray://HOST:10001; default: this machine"
        ),
    ] = None,
    segment_seconds: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Split long recordings into parts of about this many seconds; 0: never"
        ),
    ] = 60.0,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of workers; default: one per GPU, or one per 4 CPUs")
    ] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also write masks.mkv")] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing results, also those made with other settings"),
    ] = False,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Keep only the endoscope's field of view; see docs/deidentification.md")
    ] = False,
    hash_names: Annotated[
        Path | None,
        typer.Option(
            metavar="SALT_FILE",
            help="De-identify, and name recordings and results by a hash of the file name, with the salt in this file",
        ),
    ] = None,
) -> None:
    """Process all recordings of an archive.

    Call it again to process the recordings that are missing or have failed.
    """
    with importing():
        from polypstream.archive.cluster import Pool, import_ray

        import_ray()  # If it is missing, nothing else needs to be said.
        from polypstream.archive.ledger import State
        from polypstream.archive.run import archive
        from polypstream.archive.storage import is_address
        from polypstream.archive.worker import ArchiveJob
        from polypstream.cli.archive_tables import describe, lines_of_totals
        from polypstream.cli.progress import ProgressBar
        from polypstream.jobs.setup import with_deidentification
        from polypstream.sources.deidentified import read_salt
    salt = None if hash_names is None else read_salt(hash_names)
    settings = read_settings(config, set_, None if model is None else model.absolute())
    if deidentify or salt:
        settings = with_deidentification(settings)
    output = output if is_address(output) else str(Path(output).absolute())
    job = ArchiveJob(output, settings, masks, segment_seconds)
    told: set[str] = set()
    with ProgressBar(output, "MB") as progress:

        def on_finished(row: Row) -> None:
            told.add(row.item.address)
            if row.state is State.DONE:
                typer.echo(describe(row))
            else:
                log.error(describe(row))

        def on_progress(done: int, of: int) -> None:
            progress.show(done // MEGA, of // MEGA)

        def make_workers(engine: Engine | None) -> Pool:
            return Pool(job, address, workers, engine)

        try:
            rows = archive(inputs, job, make_workers, overwrite, on_finished, on_progress, salt)
        except KeyboardInterrupt:
            log.error(f"{output}: interrupted; run the same command again to continue")
            raise
    problems = [row for row in rows if row.state is not State.DONE]
    for row in problems:
        if row.item.address not in told:  # an earlier run found it
            log.error(describe(row))
    typer.echo("\n".join(lines_of_totals(rows)))
    if problems:
        raise typer.Exit(1)


@archive_app.command("status")
def archive_status(
    output: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that `archive run --output` named")],
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE.csv", help="Also write the table to this file")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="Also write the table to this file")
    ] = None,
) -> None:
    """List the recordings of an archive, also during a run.

    For each recording it prints the state, the number of polyps, and what is wrong.
    """
    with importing():
        from polypstream.archive.run import read_ledger
        from polypstream.cli.archive_tables import FIELDS, lines_of_recordings, lines_of_totals, records_of
        from polypstream.core.files import write_csv
    rows = read_ledger(output)
    for line in (*lines_of_recordings(rows), "", *lines_of_totals(rows)):
        typer.echo(line)
    if csv_file is not None:
        write_csv(csv_file, FIELDS, records_of(rows))
    if json_file is not None:
        write_json(json_file, {"recordings": records_of(rows)})
