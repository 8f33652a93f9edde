"""The command `polypstream`: one function per command, without logic of their own."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from polypstream.archive.cluster import Pool
from polypstream.archive.ledger import Row, State
from polypstream.archive.run import archive, read_ledger
from polypstream.archive.storage import is_address
from polypstream.archive.worker import ArchiveJob, Engine
from polypstream.cli import export as export_commands
from polypstream.cli import models as models_commands
from polypstream.cli.archive_tables import describe as describe_row
from polypstream.cli.archive_tables import print_archive
from polypstream.cli.bench_tables import print_bench
from polypstream.cli.messages import set_up_messages
from polypstream.cli.progress import ProgressBar, StatusLines
from polypstream.core.config import Settings, config_file, load_settings
from polypstream.core.extras import extra
from polypstream.core.files import writing
from polypstream.core.frame import Frame
from polypstream.core.pipeline import POLL_S, Sink
from polypstream.errors import OutputError, PolypstreamError, SourceError
from polypstream.inference.model_card import NOTICE
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.annotations import write_annotations
from polypstream.jobs.bench import bench
from polypstream.jobs.isolated import IsolatedProcessor
from polypstream.jobs.live import Live, describe, keys_of, open_sources, pushes_of, recordings_of
from polypstream.jobs.process import Job, ProcessResult, claim_folder
from polypstream.jobs.report import write_report
from polypstream.jobs.score import score
from polypstream.jobs.setup import make_segmenter, with_deidentification, with_model
from polypstream.sinks.bell import Bell
from polypstream.sinks.browser import Browser
from polypstream.sinks.window import REFRESH_RATE, Windows
from polypstream.sources.deidentified import hashed_name, read_salt
from polypstream.sources.demo import checked, parse_size, render_demo
from polypstream.sources.demo_colon import DemoSettings
from polypstream.sources.devices import list_devices
from polypstream.sources.open import open_source
from polypstream.web.live import LivePage
from polypstream.web.serve import serve as serve_application
from polypstream.web.server import parse_listen, web

log = logging.getLogger(__name__)
LIVE_HELP = (
    "/dev/video0, dshow:NAME, avfoundation:0, rtsp://, srt://, udp://, rtmp://, http(s)://, replay:FILE or demo:"
)
# Options of all commands that run a model.
ModelFile = Annotated[Path | None, typer.Option(help="ONNX model; default: the shipped weights")]
ConfigFile = Annotated[Path | None, typer.Option(help="File with settings, see config.yaml")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting")]
AnnotationFormat = Literal["coco", "png", "yolo", "cvat", "labelme"]
RESULTS = Path("results")
SERVED = Path("polypstream-served")
MEGA = 10**6
BENCH_VIDEO = "demo:?seconds=10&size=1920x1080&rate=30"

app = typer.Typer(
    help=f"Find polyps in endoscope video, frame by frame. {NOTICE}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polypstream {version('polypstream')}")
        raise typer.Exit


@app.callback()
def options(
    version_: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print more messages")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="On standard error print errors only")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Print messages as JSON, one object per line")] = False,
) -> None:
    """Options of all commands."""
    set_up_messages(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO, log_json)


app.command()(models_commands.train)
app.command()(models_commands.tune)
app.command()(models_commands.evaluate)
app.command("export")(export_commands.export_model)
app.command()(export_commands.inspect)


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


@app.command("score")
def score_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder with the results of `process --masks`")],
    truth: Annotated[Path, typer.Option(help="Video of polyp numbers (demo-video --truth), or folder with masks")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file")] = None,
) -> None:
    """Compare a run with the truth: Dice, polyps, time to detection, false alarms, flicker. Its report is updated."""
    figures = score(run, truth)
    for name, value in figures.items():
        text = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        typer.echo(name.replace("_", " ").ljust(28) + text)
    if json_file is not None:
        with writing(json_file):
            json_file.write_text(json.dumps(figures, indent=2) + "\n")
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
    with extra("dicom"):
        from polypstream.jobs.dicom import write_dicom
    with ProgressBar(recording, "frames") as progress:
        written = write_dicom(recording, results, overwrite, progress.show)
    for path in written:
        typer.echo(path)
    if not written:
        typer.echo(f"{recording}: nothing was found in it, so there is nothing to write")


@app.command("live")
def live_sources(
    sources: Annotated[list[str], typer.Argument(metavar="[NAME=]SOURCE...", help=LIVE_HELP)],
    window: Annotated[
        bool,
        typer.Option("--window", help="Show it in a window; keys: o overlay, h style, s snapshot, r record, q quit"),
    ] = False,
    record: Annotated[Path | None, typer.Option(metavar="FILE.mp4", help="Record the annotated video")] = None,
    push: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]URL", help="Send the annotated video to rtsp, srt, udp, tcp or rtmp"),
    ] = None,
    serve: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Show it on a web page at this address")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="POLYPSTREAM_TOKEN", help="Token for the web page; default: a new one if needed"),
    ] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Mark polyps in live video until Ctrl-C."""
    settings = with_model(load_settings(config, set_ or []), model)
    opened = open_sources(sources, settings)
    recordings = recordings_of(record, opened, settings) if record else []
    windows = Windows(settings.live.window) if window else None
    browser = Browser() if serve is not None else None
    shown: list[tuple[str, Sink[Frame]]] = [
        (name, sink)
        for name, sink in (("web", browser), ("window", windows), ("bell", Bell() if settings.live.sound else None))
        if sink
    ]
    if not (recordings or push or shown):
        log.warning("nothing shows, records or sends the pictures; give --window, --serve, --record or --push")
    segmenter = _open_segmenter(settings)
    live = Live(opened, segmenter, settings, [*recordings, *pushes_of(push or [], opened, settings), *shown])
    if windows is not None:
        windows.keys = keys_of(live, [recording for _, recording in recordings], windows)
        windows.recordings = {recording.source: recording for _, recording in recordings}
    try:
        with ExitStack() as stack:
            if serve is not None and browser is not None:
                host, port = parse_listen(serve)
                typer.echo(stack.enter_context(web([LivePage(live, browser)], host, port, token)))
            lines = stack.enter_context(StatusLines())
            live.run(partial(_update, live, windows, lines), POLL_S if windows is None else 1 / REFRESH_RATE)
    finally:
        for status in live.status():
            typer.echo(describe(status))
        for problem in live.failed_sinks():
            log.error(problem)
    if live.failed_sinks():
        raise typer.Exit(1)


def _update(live: Live, windows: Windows | None, lines: StatusLines) -> None:
    """Update windows and status lines. The main thread calls this while other threads process the video."""
    if windows is not None:
        windows.pump()
    lines.show(lambda: [*(describe(status) for status in live.status()), *live.sink_problems()])


@app.command("serve")
def serve_pages(
    host: Annotated[str, typer.Option(help="Address to listen on; other machines need a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: the system chooses one")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="POLYPSTREAM_TOKEN", help="Token for all requests; default: a new one if needed"),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder for uploads and their results")] = SERVED,
    live: Annotated[list[str] | None, typer.Option(metavar="[NAME=]SOURCE", help=LIVE_HELP)] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Serve a web application for images, recordings and live sources, and an HTTP API, until Ctrl-C."""
    settings = with_model(load_settings(config, set_ or []), model)
    segmenter = _open_segmenter(settings)
    with serve_application(folder, live or [], segmenter, settings, host, port, token) as address:
        typer.echo(address)
        threading.Event().wait()


@app.command()
def settings() -> None:
    """Print config.yaml: all settings with their defaults and explanations."""
    typer.echo(config_file().read_text(encoding="utf-8"), nl=False)


@app.command()
def devices() -> None:
    """List the capture devices of this machine and the formats that they offer."""
    found = list_devices()
    if not found:
        typer.echo("no capture device; a card must appear as V4L2 (Linux), DirectShow or AVFoundation device")
    for device in found:
        typer.echo(f"{device.address}  {device.description}")
        for offered in device.formats:
            typer.echo(f"    {offered}")


@app.command("bench")
def bench_machine(
    video: Annotated[str, typer.Argument(help="A recording, or a demo source")] = BENCH_VIDEO,
    seconds: Annotated[float, typer.Option(min=1, help="Longest time per measurement")] = 20.0,
    sources: Annotated[
        int, typer.Option("--rooms", min=1, help="Also measure live video with this many sources at the same time")
    ] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file")] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Measure the speed of this machine with recordings, live video and each provider."""
    settings = with_model(load_settings(config, set_ or []), model)
    segmenter = _open_segmenter(settings)
    with ProgressBar(video, "frames") as progress:
        open_source(video, progress.show).close()  # renders a demo now, so that this is not measured

    def serve_page(live: Live, browser: Browser) -> AbstractContextManager[str]:
        return web([LivePage(live, browser)], "127.0.0.1", 0, None)

    found = bench(partial(open_source, video), segmenter, settings, seconds, serve_page, sources)
    print_bench(found, Console())
    if json_file is not None:
        with writing(json_file):
            json_file.write_text(json.dumps(found, indent=2, default=asdict) + "\n")


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


def _open_segmenter(settings: Settings) -> Segmenter:
    """Open the model of the settings, and log its notes, for instance why no GPU is used."""
    segmenter = make_segmenter(settings)
    for note in segmenter.notes:
        log.warning(note)
    return segmenter


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
