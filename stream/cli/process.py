"""The command process."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polypstream.cli.options import (
    RESULTS,
    Commands,
    ConfigFile,
    ModelFile,
    Overrides,
    importing,
    read_settings,
)
from polypstream.core.formatting import counted, quoted
from polypstream.errors import OutputError, PolypstreamError, ResultsExist, SettingsError, SourceError

if TYPE_CHECKING:
    from polypstream.core.config import Settings
    from polypstream.jobs.inputs import Inputs
    from polypstream.jobs.isolated import IsolatedProcessor
    from polypstream.jobs.process import Job, ProcessResult

log = logging.getLogger(__name__)
INPUTS = (
    "Recordings, images, folders of them (without subfolders), patterns such as 'frames/%04d.png' or '*.avi', "
    "demo:?seed=1, or - for standard input"
)
# File of what was read from standard input; its results have this name.
STDIN = "stdin"
# Number of left-out files that are named.
LEFT_OUT_SHOWN = 3
# Width of the figures in the table of several recordings, and the fewest characters of a name before them.
TABLE_FIGURES, SHORTEST_NAME = 50, 10
# Endings of files, which no folder of results should have.
FILE_ENDINGS = {".avi", ".csv", ".json", ".jpg", ".mkv", ".mov", ".mp4", ".png"}

app = Commands()


@dataclass(slots=True)
class Row:
    """One line of the table of several recordings.

    Attributes:
        uri: the recording, or the set of images.
        state: done; already done (an earlier run was kept); damaged (the results cover what could be read); or failed.
        result: what was found; None: nothing is known.
        problem: why it failed.
    """

    uri: str
    state: str
    result: ProcessResult | None = None
    problem: str = ""


@app.command()
def process(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help=INPUTS)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder for the results; each input gets its own folder in it"
        ),
    ] = RESULTS,
    masks: Annotated[
        bool, typer.Option("--masks", help="Also write masks.mkv; masks of images are always written")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace finished results")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip finished results; the default for several inputs")
    ] = False,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="TIME", help="Start at this time of the recording, for instance 90.5, 12:30 or 1:02:03"
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="TIME", help="Stop before this time of the recording")] = None,
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Also write a table with one row per input")
    ] = None,
    polyps: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Also write a table with one row per polyp of all inputs")
    ] = None,
    model: ModelFile = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Keep only the endoscope's field of view; see docs/deidentification.md")
    ] = False,
    hash_names: Annotated[
        Path | None,
        typer.Option(
            metavar="SALT_FILE",
            help="De-identify, and name the results by a hash of the file name, with the salt in this file",
        ),
    ] = None,
) -> None:
    """Find and mark polyps in recordings and images.

    A recording gets a folder with annotated.mp4, frames.csv, polyps.csv,
    findings.json, snapshots, report.html, summary.json and, with --masks,
    masks.mkv. Images get masks, annotated copies, frames.csv, polyps.csv,
    findings.json and report.html.

    Settings that are often changed with --set: findings.peak, findings.smallest,
    findings.shortest, findings.steady, overlay.style, overlay.colour,
    overlay.labels, inference.provider, inference.device, output.video.crf.
    `polypstream settings` explains them all.
    """
    with importing():
        from polypstream.cli.progress import passing_line
        from polypstream.core.time_range import range_of
        from polypstream.jobs.inputs import find_inputs
        from polypstream.jobs.isolated import IsolatedProcessor
        from polypstream.jobs.process import Job
        from polypstream.jobs.setup import with_deidentification
        from polypstream.sources.deidentified import hashed_name, read_salt
    settings = read_settings(config, set_, model)
    times = range_of(from_, to)
    salt = None if hash_names is None else read_salt(hash_names)
    if deidentify or salt:
        settings = with_deidentification(settings)
    _check_output(output)
    named = find_inputs(inputs)
    _check_forgotten_output(inputs, named.problems)
    for problem in named.problems.values():
        log.error(problem)
    _say_left_out(named)
    jobs = [
        Job(
            each.uri,
            output,
            masks,
            overwrite,
            each.name or (hashed_name(Path(each.uri).name, salt) if salt else None),
            images=each.images,
            times=times,
        )
        for each in named.found
    ]
    _check_folders(jobs)
    images = next((job.uri for job in jobs if job.images), None)
    if times is not None and images is not None:
        raise SettingsError(
            f"{images}: --from and --to are for recordings, and not for images; give the recordings alone"
        )
    skip = (skip_existing or len(jobs) + len(named.problems) > 1) and not overwrite
    rows = [Row(argument, "failed", problem=problem) for argument, problem in named.problems.items()]
    if jobs:
        with closing(IsolatedProcessor(settings, fork=True)) as processor:
            with passing_line("loading the model"):
                processor.start()
            for note in processor.notes:
                log.warning(note)
            rows += _process_all(processor, jobs, skip)
    if len(rows) > 1:
        for line in table_of(rows, shutil.get_terminal_size().columns):
            typer.echo(line)
    if summary is not None:
        write_summary_table(summary, rows)
    if polyps is not None:
        write_polyp_table(polyps, rows)
    if any(row.problem for row in rows):
        raise typer.Exit(1)


def _check_forgotten_output(arguments: list[str], problems: dict[str, str]) -> None:
    """Refuse a name that seems to be the folder of results: it has no ending, and there is no such file.

    Raises:
        SourceError: there is such a name beside others.
    """
    from polypstream.jobs.inputs import NO_SUCH_FILE

    for argument, problem in problems.items():
        if problem == f"{argument}: {NO_SUCH_FILE}" and len(arguments) > 1 and not Path(argument).suffix:
            raise SourceError(f"{problem}; did you mean --output {quoted(Path(argument))}?")


def _say_left_out(named: Inputs) -> None:
    """Say which files of the folders are not processed."""
    from polypstream.jobs.inputs import left_out_results

    if named.others:
        shown = ", ".join(str(file) for file in named.others[:LEFT_OUT_SHOWN])
        more = ", ..." if len(named.others) > LEFT_OUT_SHOWN else ""
        number = counted(len(named.others), "file")
        log.info(f"left out: {number} of the folders, neither recordings nor images: {shown}{more}")
    if named.results:
        log.info(left_out_results(named.results))


def _check_output(output: Path) -> None:
    """Refuse a folder of results that looks like a file.

    Raises:
        OutputError: it does.
    """
    # os.path, since Path.is_file raises for long names.
    if os.path.isfile(output) or (output.suffix.lower() in FILE_ENDINGS and not os.path.isdir(output)):  # noqa: PTH112, PTH113
        raise OutputError(
            f"--output {output}: is a file, or looks like one. --output is a folder, in which each recording gets a "
            f"folder with annotated.mp4 and the other results; for instance --output {output.with_suffix('')}"
        )


def _check_folders(jobs: list[Job]) -> None:
    """Refuse inputs that would have the same folder of results.

    Raises:
        OutputError: two have.
    """
    from polypstream.jobs.process import claim_folder

    taken: dict[str, str] = {}
    for job in jobs:
        with suppress(SourceError):  # an address of a demo is wrong; this is said when its turn comes
            claim_folder(job.uri, _folder_of(job).name, taken)


def _process_all(processor: IsolatedProcessor, jobs: list[Job], skip: bool) -> Iterator[Row]:
    """Process the jobs one after another. Results and errors are printed as they come."""
    from polypstream.jobs.process import read_result

    for number, job in enumerate(jobs, 1):
        place = f"{number} of {len(jobs)}: " if len(jobs) > 1 else ""
        try:
            folder = _folder_of(job)
            done = None if job.overwrite else read_result(folder)
            if done is not None:
                if not skip:
                    raise ResultsExist(f"{folder}: holds results already")
                again = f"{'another --output keeps both, ' * _is_of_other_range(job, folder)}--overwrite does it again"
                typer.echo(f"{place}{job.uri}: already done{_but(job, folder, processor.settings)}; {again}")
                if done.problem:
                    log.error(done.problem)
                yield Row(job.uri, "damaged" if done.problem else "already done", done, done.problem)
                continue
            result = _process_one(processor, job, place)
            for note in result.notes:
                typer.echo(f"{job.uri}: {note}")
            typer.echo(f"{place}{job.uri}: {describe(result)}; open {quoted(result.folder / 'report.html')}")
            if result.problem:
                log.error(result.problem)
            yield Row(job.uri, "damaged" if result.problem else "done", result, result.problem)
        except ResultsExist as error:
            other = "another --output to keep both, or " * _is_of_other_range(job, folder)
            problem = f"{error}{_but(job, folder, processor.settings)}; give {other}--overwrite to replace them"
            log.error(problem)
            yield Row(job.uri, "failed", problem=problem)
        except PolypstreamError as error:
            log.error(error)
            yield Row(job.uri, "failed", problem=str(error))
        except KeyboardInterrupt:
            log.error(
                f"{job.uri}: interrupted; {_kept(folder)}. The same command processes it again from its start"
                + (", and skips what is done" if skip else "")
            )
            raise


def _folder_of(job: Job) -> Path:
    """Folder of the results of a job.

    Raises:
        SourceError: a demo's address is wrong.
    """
    from polypstream.jobs.inputs import STANDARD_INPUT
    from polypstream.sources.open import stem_of

    return job.output / (job.name or stem_of(STDIN if job.uri == STANDARD_INPUT else job.uri))


def _but(job: Job, folder: Path, settings: Settings) -> str:
    """Say in what finished results differ from those that a job would write; empty: in nothing."""
    from polypstream.jobs.process import differences, read_result

    return (
        "" if read_result(folder) is None else "".join(f", but {each}" for each in differences(folder, job, settings))
    )


def _is_of_other_range(job: Job, folder: Path) -> bool:
    """Whether finished results are of another range of the recording, so that they are worth keeping."""
    from polypstream.jobs.process import is_of_range, read_result

    return read_result(folder) is not None and not is_of_range(folder, job.times)


def _kept(folder: Path) -> str:
    """Say what an interrupted run leaves in the folder of its results."""
    from polypstream.jobs.process import has_frames, read_result

    if not has_frames(folder):
        return "nothing was finished yet, so there are no results"
    if read_result(folder) is not None:
        return f"the results of an earlier run stay in {folder}"
    return f"the results so far are in {folder}"


def _process_one(processor: IsolatedProcessor, job: Job, place: str) -> ProcessResult:
    """Process one recording, or one set of images.

    Raises:
        PolypstreamError: there are no results.
    """
    from polypstream.cli.progress import ProgressBar
    from polypstream.jobs.inputs import STANDARD_INPUT

    processor.start()  # starts a new process if the previous recording crashed it
    with ExitStack() as stack:
        if job.uri == STANDARD_INPUT:
            job = replace(job, uri=stack.enter_context(_standard_input(job.output)), title="standard input")
        unit = "images" if job.images else "frames"
        progress = stack.enter_context(ProgressBar(Path(job.uri).name, unit, place))
        outcome = processor.process(job, progress.show)
    if outcome.run is None:
        raise outcome.problem or SourceError(f"{job.uri}: cannot be processed")
    return outcome.run


@contextmanager
def _standard_input(output: Path) -> Iterator[str]:
    """Write standard input to a file beside the results: a recording is read more than once.

    Yields:
        The path of the file, which is deleted at the end.

    Raises:
        SourceError: standard input is a terminal, or empty.
        OutputError: the file cannot be written.
    """
    from polypstream.core.files import writing

    if sys.stdin.isatty():
        raise SourceError(
            "-: standard input is a terminal; write for instance: ffmpeg -i FILE -f mpegts - | polypstream process -"
        )
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".standard-input-") as folder:
        path = Path(folder, STDIN)
        log.info("standard input: is read to its end first, since a recording is read more than once")
        with writing(path), path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        if not path.stat().st_size:
            raise SourceError("-: standard input is empty")
        yield str(path)


def describe(result: ProcessResult) -> str:
    """Say what was found, and how fast.

    Args:
        result: of a recording or of a set of images.
    """
    from polypstream.core.formatting import clock, time_span

    number = counted(result.polyps, "polyp") if result.polyps else "no polyps"
    rate = f"{result.frames / max(result.seconds, 1e-9):.1f} per second"
    if result.images_with_polyps is not None:
        where = f" in {counted(result.images_with_polyps, 'image')}" if result.frames != 1 and result.polyps else ""
        return f"{number}{where}, {counted(result.frames, 'image')} in {result.seconds:.1f} s ({rate})"
    if result.first_s is not None and result.first_s == result.last_s:
        number += f" (1 frame at {clock(result.first_s)})"
    elif result.first_s is not None and result.last_s is not None:
        number += f" ({time_span(result.first_s, result.last_s)})"
    return f"{number}, {counted(result.frames, 'frame')} in {result.seconds:.1f} s ({rate})"


def table_of(rows: list[Row], width: int) -> Iterator[str]:
    """Lines of a table of several recordings.

    Args:
        rows: the recordings.
        width: of the terminal in characters. Long names are shortened so that the lines fit into it.
    """
    from polypstream.core.formatting import clock, shortened

    names = [row.uri.rsplit("/", 1)[-1] or row.uri for row in rows]
    longest = min(max(map(len, [*names, "input"])), max(width - TABLE_FIGURES, SHORTEST_NAME))
    yield f"{'input':{longest}}{'state':>13}{'polyps':>7}{'first seen':>11}{'last seen':>11}{'frames':>8}"
    for row, name in zip(rows, names, strict=True):
        result = row.result
        times = [
            "-" if result is None or when is None else clock(when)
            for when in (() if result is None else (result.first_s, result.last_s)) or (None, None)
        ]
        polyps, frames = ("-", "-") if result is None else (str(result.polyps), str(result.frames))
        yield f"{shortened(name, longest):{longest}}{row.state:>13}{polyps:>7}{times[0]:>11}{times[1]:>11}{frames:>8}"
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    found = sum(1 for row in rows if row.result is not None and row.result.polyps)
    yield f"{counted(len(rows), 'input')}: {counts}; polyps in {found}"


def write_summary_table(file: Path, rows: list[Row]) -> None:
    """Write a CSV file with one line for each input.

    Args:
        file: the file to write.
        rows: the inputs.

    Raises:
        OutputError: it cannot be written.
    """
    from polypstream.core.files import write_csv

    columns = ("input", "state", "polyps", "first_s", "last_s", "frames", "seconds", "folder", "problem")
    lines = []
    for row in rows:
        result = row.result
        figures = (
            {}
            if result is None
            else {
                "polyps": result.polyps,
                "first_s": result.first_s,
                "last_s": result.last_s,
                "frames": result.frames,
                "seconds": round(result.seconds, 3),
                "folder": result.folder,
            }
        )
        lines.append({"input": row.uri, "state": row.state, "problem": row.problem, **figures})
    write_csv(file, columns, lines)


def write_polyp_table(file: Path, rows: list[Row]) -> None:
    """Write a CSV file with the lines of polyps.csv of all inputs, each with the folder of its results.

    Args:
        file: the file to write.
        rows: the inputs.

    Raises:
        DataError: a polyps.csv cannot be read.
        OutputError: the file cannot be written.
    """
    from polypstream.core.files import write_csv
    from polypstream.sinks.findings import read_polyps

    lines = [
        {**line, "folder": row.result.folder}
        for row in rows
        if row.result is not None
        for line in read_polyps(row.result.folder)
    ]
    # Recordings and images have different columns.
    write_csv(file, dict.fromkeys(name for line in lines for name in line) or ("input", "folder"), lines)
