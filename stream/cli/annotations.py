"""The commands masks and dicom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polypstream.cli.options import RESULTS, Commands, importing
from polypstream.core.extras import extra

AnnotationFormat = Literal["coco", "png", "yolo", "cvat", "labelme"]

app = Commands()


@app.command("masks")
def annotation_masks(
    recordings: Annotated[list[str], typer.Argument(metavar="RECORDING", help="Processed recordings")],
    name: Annotated[
        AnnotationFormat,
        typer.Option(
            "--format",
            case_sensitive=False,
            metavar="coco|png|yolo|cvat|labelme",
            help="Format that the annotation tool reads",
        ),
    ],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="The --output of `process`, or the folder of the run. Give it once for all recordings, or once for "
            f"each. Default: {RESULTS}",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder to write; default: annotations-FORMAT in the folder of the run, or in --results if there are "
            "several recordings",
        ),
    ] = None,
    every: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Seconds between annotated frames; 0: all frames")
    ] = 0.0,
    only_findings: Annotated[
        bool, typer.Option("--only-findings", help="Leave out frames that show no finding")
    ] = False,
    validation: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="FRACTION",
            help="Fraction of the recordings for the validation split (yolo, coco); default: 0.2 for yolo with several "
            "recordings, 0 otherwise",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing annotations")] = False,
) -> None:
    """Write the findings of runs for annotation tools.

    The tools are CVAT, Label Studio, FiftyOne, labelme and Ultralytics. Several
    recordings become one data set.
    """
    with importing():
        from polypstream.cli.progress import ProgressBar
        from polypstream.jobs.annotations import Selection, write_annotations

    selection = Selection(every, only_findings)
    with ProgressBar(recordings[0] if len(recordings) == 1 else f"{len(recordings)} recordings", "frames") as progress:
        folder, entries = write_annotations(
            recordings, results or [RESULTS], name, output, selection, validation, overwrite, progress.show
        )
    for recording, entry in zip(recordings, entries, strict=True):
        split = f", split {entry.split}" if entry.split else ""
        typer.echo(f"{recording}: {entry.findings} findings in {entry.pictures} pictures{split} -> {folder}")


@app.command("dicom")
def dicom_objects(
    recording: Annotated[str, typer.Argument(metavar="RECORDING", help="A processed recording")],
    results: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The --output of `process`, or the folder of the run")
    ] = RESULTS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing objects")] = False,
) -> None:
    """Write the polyps of a run as DICOM objects.

    The best frame of each becomes a Secondary Capture, and its mask a Segmentation.
    """
    with importing(), extra("dicom"):
        from polypstream.cli.progress import ProgressBar
        from polypstream.jobs.dicom import write_dicom
    with ProgressBar(recording, "frames") as progress:
        written = write_dicom(recording, results, overwrite, progress.show)
    for path in written:
        typer.echo(path)
    if not written:
        typer.echo(f"{recording}: nothing was found in it, so there is nothing to write")
