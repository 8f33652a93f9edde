"""The command study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polypstream.cli.figures import as_lines
from polypstream.cli.options import Commands, importing

app = Commands()


@app.command()
def study(
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH",
            help="Folder with the ground truth of each recording, a file or folder with the name of its results: "
            "masks, a video of polyp numbers, COCO, CVAT for video, REAL-Colon or SUN; or `reviewed`: what readers "
            "accepted, corrected and drew on the page Review",
        ),
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders with results of `process`. Name several folders to compare several settings",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for figures and report")],
    overlap: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            metavar="IOU",
            help="Intersection over union above which a finding counts for a polyp; 0: any overlap",
        ),
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing study")] = False,
) -> None:
    """Measure what runs find and miss.

    Compares many recordings with their ground truth. Prints sensitivity, time to
    first detection and false positives with 95 % intervals, and writes a report.
    """
    with importing():
        from polypstream.cli.progress import ProgressBar
        from polypstream.study.report import write_study_report
        from polypstream.study.study import compare, prepare_output, write_tables
    prepare_output(output, overwrite)
    with ProgressBar(str(truth), "frames") as progress:
        compared = compare(truth, runs, overlap, progress.show)
        write_tables(output, compared, overlap)
        report = write_study_report(output, compared, progress.show)
    for each in compared:
        typer.echo(each.setting.name)
        for line in as_lines(each.figures, "  "):
            typer.echo(line)
    typer.echo(f"report: {report}")
