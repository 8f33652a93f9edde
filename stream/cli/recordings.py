"""The commands score and demo-video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from polypstream.cli.options import Commands, JsonFile, importing, write_json
from polypstream.errors import OutputError

app = Commands()


@app.command("score")
def score_run(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder with the results of a recording, from `process --masks`")
    ],
    truth: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The ground truth: a video of polyp numbers, as `demo-video --truth` writes it, or a folder with one "
            "mask per frame; or `reviewed`: what readers accepted, corrected and drew on the page Review",
        ),
    ],
    json_file: JsonFile = None,
) -> None:
    """Compare results with the ground truth.

    Prints Dice, number of polyps, time to first detection, false alarms and
    flicker, and adds them to report.html in the folder.
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


@app.command("demo-video")
def demo_video(
    output: Annotated[Path, typer.Argument(metavar="OUT.mp4", help="The MP4 file to write")],
    seconds: Annotated[float, typer.Option(metavar="SECONDS", help="Length of the video in seconds")] = 10.0,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Number that decides what the colon looks like and how the camera moves")
    ] = 1,
    size: Annotated[str, typer.Option(metavar="WxH", help="Width x height in pixels")] = "1280x720",
    rate: Annotated[str, typer.Option(metavar="FPS", help="Frames per second, for instance 25 or 30000/1001")] = "25",
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the ground truth: a grey FFV1 video with the number of the polyp at each pixel, or 0",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files")] = False,
) -> None:
    """Make a computer-generated colonoscopy video with known polyps."""
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
    typer.echo(f"{output}" + (f", ground truth in {truth}" if truth else ""))
