"""The commands process, score and demo-video."""

from __future__ import annotations

import logging
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from polypstream.cli.options import ConfigFile, JsonFile, ModelFile, Overrides, write_json
from polypstream.cli.progress import ProgressBar
from polypstream.core.config import load_settings
from polypstream.errors import OutputError, PolypstreamError, SourceError
from polypstream.jobs.isolated import IsolatedProcessor
from polypstream.jobs.process import Job, ProcessResult, claim_folder
from polypstream.jobs.report import write_report
from polypstream.jobs.score import score
from polypstream.jobs.setup import with_deidentification, with_model
from polypstream.sources.deidentified import hashed_name, read_salt
from polypstream.sources.demo import checked, parse_size, render_demo
from polypstream.sources.demo_colon import DemoSettings

log = logging.getLogger(__name__)

app = typer.Typer()


@app.command()
def process(
    recordings: Annotated[list[str], typer.Argument(metavar="RECORDING...", help="Video files, or demo:?seed=1")],
    output: Annotated[Path, typer.Option(help="Folder for the results; each recording gets a folder in it")],
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also write masks.mkv")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results")] = False,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Keep only the endoscope's field of view; see docs/deidentification.md")
    ] = False,
    hash_names: Annotated[
        Path | None,
        typer.Option(metavar="SALT_FILE", help="De-identify, and name results by a salted hash of the file name"),
    ] = None,
) -> None:
    """Annotate recordings. Each gets a folder with annotated.mp4, frames.csv, findings.json, snapshots, report.html,
    summary.json and, with --masks, masks.mkv."""
    settings = with_model(load_settings(config, set_ or []), model)
    salt = None if hash_names is None else read_salt(hash_names)
    if deidentify or salt:
        settings = with_deidentification(settings)
    failed = False
    taken: dict[str, str] = {}
    with closing(IsolatedProcessor(settings, fork=True)) as processor:
        processor.start()
        for note in processor.notes:
            log.warning(note)
        for recording in recordings:
            name = hashed_name(Path(recording).name, salt) if salt else None
            try:
                claim_folder(recording, name, taken)
                run = _process_one(processor, Job(recording, output, masks, overwrite, name))
            except PolypstreamError as error:
                log.error(error)
                failed = True
                continue
            except KeyboardInterrupt:
                log.error(f"{recording}: interrupted; the results so far are kept")
                raise
            for note in run.notes:
                typer.echo(f"{recording}: {note}")
            typer.echo(f"{recording}: {run.frames} frames at {run.frames / run.seconds:.1f} per second -> {run.folder}")
    if failed:
        raise typer.Exit(1)


def _process_one(processor: IsolatedProcessor, job: Job) -> ProcessResult:
    """Process one recording.

    Raises:
        PolypstreamError: the recording could not be processed completely.
    """
    processor.start()  # starts a new process if the previous recording crashed it
    with ProgressBar(job.uri, "frames") as progress:
        outcome = processor.process(job, progress.show)
    if outcome.run is None:
        raise outcome.problem or SourceError(f"{job.uri}: cannot be processed")
    if outcome.run.problem:
        raise SourceError(outcome.run.problem)
    return outcome.run


@app.command("score")
def score_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder with the results of `process --masks`")],
    truth: Annotated[Path, typer.Option(help="Video of polyp numbers (demo-video --truth), or folder with masks")],
    json_file: JsonFile = None,
) -> None:
    """Compare a run with the truth: Dice, polyps, time to detection, false alarms, flicker. Its report is updated."""
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
    seconds: Annotated[float, typer.Option(help="Duration in seconds")] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of the colon and the camera path")] = 1,
    size: Annotated[str, typer.Option(help="Width x height in pixels")] = "1280x720",
    rate: Annotated[str, typer.Option(help="Frames per second, for instance 25 or 30000/1001")] = "25",
    truth: Annotated[
        Path | None,
        typer.Option(help="Also write a grey FFV1 video with the number of the polyp at each pixel, 0: none"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files")] = False,
) -> None:
    """Render a procedural colonoscopy with known polyps."""
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
