"""The commands masks and dicom."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from polypstream.cli.options import RESULTS, Commands, importing
from polypstream.core.extras import extra
from polypstream.core.formatting import counted
from polypstream.errors import PolypstreamError

AnnotationFormat = Literal["coco", "png", "yolo", "cvat", "labelme"]

app = Commands()
log = logging.getLogger(__name__)


@app.command("masks")
def annotation_masks(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="What was processed: recordings, images, folders of them, or patterns; or folders with results of "
            "`process`",
        ),
    ],
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
            help="Where the results of the inputs are: the folder that `process --output` named, or that of one "
            f"recording. Give it once for all inputs, or once for each. Default: {RESULTS}",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder to write; default: annotations-FORMAT in the folder with the results",
        ),
    ] = None,
    every: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Seconds between annotated frames of a recording; 0: all frames"),
    ] = 0.0,
    only_findings: Annotated[
        bool, typer.Option("--only-findings", help="Leave out frames and images without findings")
    ] = False,
    only_reviewed: Annotated[
        bool,
        typer.Option(
            "--only-reviewed", help="Leave out frames whose findings no reader has accepted, rejected or corrected"
        ),
    ] = False,
    choose: Annotated[
        Literal["uncertain"] | None,
        typer.Option(
            metavar="uncertain",
            help="Which frames of a recording are annotated: `uncertain`, those from whose correction a network learns "
            "most. Default: as --every says",
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option("--count", min=1, metavar="N", help="Number of frames of each recording, with --choose")
    ] = 200,
    validation: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="FRACTION",
            help="Fraction of the inputs for the validation split (yolo, coco), between 0 and 1; default: 0.2 for yolo "
            "with several inputs, otherwise 0",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing annotations")] = False,
) -> None:
    """Write findings of `process` for annotation tools.

    The tools are CVAT, Label Studio, FiftyOne, labelme and Ultralytics. Several
    inputs become one data set.
    """
    with importing():
        from polypstream.cli.progress import ProgressBar
        from polypstream.jobs.annotations import Selection, write_annotations

    if choose and every:
        raise typer.BadParameter("--choose and --every both choose frames; give one of them")
    selection = Selection(every, only_findings, only_reviewed, frames if choose else 0)
    left_out: list[PolypstreamError] = []
    with ProgressBar(inputs[0] if len(inputs) == 1 else f"{len(inputs)} inputs", "frames") as progress:
        folder, entries = write_annotations(
            inputs, results or [RESULTS], name, output, selection, validation, overwrite, progress.show, left_out.append
        )
    for entry in entries:
        split = f", split {entry.split}" if entry.split else ""
        reviewed = f" ({entry.reviewed} reviewed)" if entry.reviewed else ""
        findings = f"{counted(entry.findings, 'finding')}{reviewed}"
        typer.echo(f"{entry.name}: {findings} in {counted(entry.pictures, 'image')}{split}")
    typer.echo(f"The annotations are in {folder}")
    for problem in left_out:
        log.error(problem)
    if left_out:
        log.error(f"{counted(len(left_out), 'input')} left out")
        raise typer.Exit(1)


@app.command("dicom")
def dicom_objects(
    recording: Annotated[str, typer.Argument(metavar="RECORDING", help="A processed recording")],
    results: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Where its results are: the folder that `process --output` named, or that of the recording in it",
        ),
    ] = RESULTS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing objects")] = False,
) -> None:
    """Write the polyps of a processed recording as DICOM objects.

    The best frame of each polyp becomes a Secondary Capture, and its mask a
    Segmentation.
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
