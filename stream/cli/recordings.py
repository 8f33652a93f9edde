"""The commands score, masks, dicom and demo-video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import typer

from polypstream.cli.options import RESULTS, Commands, JsonFile, importing, write_json
from polypstream.core.extras import extra
from polypstream.errors import OutputError

AnnotationFormat = Literal["coco", "png", "yolo", "cvat", "labelme"]

app = Commands()


@app.command("score")
def score_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder with the results of `process --masks`")],
    truth: Annotated[
        Path, typer.Option(metavar="FILE", help="Video of polyp numbers (demo-video --truth), or folder with masks")
    ],
    json_file: JsonFile = None,
) -> None:
    """Compare a run with the truth.

    Prints Dice, polyps, time to detection, false alarms and flicker, and adds
    them to the report of the run.
    """
    with importing():
        from polypstream.jobs.report import write_report
        from polypstream.jobs.score import score
    figures = score(run, truth)
    for name, value in figures.items():
        text = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        typer.echo(name.replace("_", " ").ljust(28) + text)
    if json_file is not None:
        write_json(json_file, figures)
    if (run / "summary.json").is_file():
        write_report(run, figures)


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
    with importing():
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
    with importing(), extra("dicom"):
        from polypstream.cli.progress import ProgressBar
        from polypstream.jobs.dicom import write_dicom
    with ProgressBar(recording, "frames") as progress:
        written = write_dicom(recording, results, overwrite, progress.show)
    for path in written:
        typer.echo(path)
    if not written:
        typer.echo(f"{recording}: nothing was found in it, so there is nothing to write")


@app.command("demo-video")
def demo_video(
    output: Annotated[Path, typer.Argument(metavar="OUT.mp4", help="The MP4 file to write")],
    seconds: Annotated[float, typer.Option(metavar="SECONDS", help="Duration in seconds")] = 10.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the colon and the camera path")] = 1,
    size: Annotated[str, typer.Option(metavar="WxH", help="Width x height in pixels")] = "1280x720",
    rate: Annotated[str, typer.Option(metavar="FPS", help="Frames per second, for instance 25 or 30000/1001")] = "25",
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a grey FFV1 video with the number of the polyp at each pixel, 0: none"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files")] = False,
) -> None:
    """Render a procedural colonoscopy with known polyps."""
    with importing():
        from polypstream.cli.progress import ProgressBar
        from polypstream.sources.demo import checked, parse_size, render_demo
        from polypstream.sources.demo_colon import DemoSettings
    try:
        width, height = parse_size(size)
        settings = DemoSettings(seconds, seed, width, height, Fraction(rate))
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(
            f"--size {size} or --rate {rate} is not valid; write for instance 1280x720 and 25"
        ) from None
    checked(settings, "demo-video")
    if truth == output:
        raise typer.BadParameter("--truth and OUT.mp4 must be different files")
    for path in (output, truth):
        if path is not None and path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; use --overwrite to replace it")
    with ProgressBar(str(output), "frames") as progress:
        render_demo(settings, output, truth, progress.show)
    typer.echo(f"{output}" + (f", truth in {truth}" if truth else ""))
