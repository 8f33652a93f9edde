"""The commands masks and dicom. What they work with is imported when they run, so that their help appears at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polypstream.cli.options import RESULTS

AnnotationFormat = Literal["coco", "png", "yolo", "cvat", "labelme"]

app = typer.Typer(rich_markup_mode=None)


@app.command("masks")
def annotation_masks(
    recording: Annotated[str, typer.Argument(help="A processed recording")],
    name: Annotated[AnnotationFormat, typer.Option("--format", help="Format that the annotation tool reads")],
    results: Annotated[Path, typer.Option(help="The --output of `process`, or the folder of the run")] = RESULTS,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; default: annotations-FORMAT in the folder of the run")
    ] = None,
    every: Annotated[float, typer.Option(min=0, help="Seconds between annotated frames; 0: all frames")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing annotations")] = False,
) -> None:
    """Write the findings of a run for annotation tools: CVAT, Label Studio, FiftyOne, labelme, Ultralytics."""
    from polypstream.cli.progress import ProgressBar
    from polypstream.jobs.annotations import write_annotations

    with ProgressBar(recording, "frames") as progress:
        folder, pictures, found = write_annotations(recording, results, name, output, every, overwrite, progress.show)
    typer.echo(f"{recording}: {found} findings in {pictures} pictures -> {folder}")


@app.command("dicom")
def dicom_objects(
    recording: Annotated[str, typer.Argument(help="A processed recording")],
    results: Annotated[Path, typer.Option(help="The --output of `process`, or the folder of the run")] = RESULTS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing objects")] = False,
) -> None:
    """Write the best frame of each track and its mask as DICOM objects: Secondary Capture and Segmentation."""
    from polypstream.cli.progress import ProgressBar
    from polypstream.core.extras import extra

    with extra("dicom"):
        from polypstream.jobs.dicom import write_dicom
    with ProgressBar(recording, "frames") as progress:
        written = write_dicom(recording, results, overwrite, progress.show)
    for path in written:
        typer.echo(path)
    if not written:
        typer.echo(f"{recording}: nothing was found in it, so there is nothing to write")
