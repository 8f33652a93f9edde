"""What the reliability scripts share: cases that a run can go on with, commands that end, and checks of results.

fuzz.py, kill.py, full_disk.py and soak.py use it. It is no program. The scripts need a checkout: they make their media
and their model with the helpers of the tests.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import IO, Any

import av
import psutil
from av.error import FFmpegError, InvalidDataError
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.conftest import Clip, make_clip, make_red_model

POLYPSTREAM = str(Path(sys.executable).with_name("polypstream"))
# A small model on the plain CPU provider, and a fast encoder: the program around them is tested.
FAST = ("--set", "inference.provider=cpu", "--set", "inference.threads=1", "--set", "output.video.preset=ultrafast")
# A process whose parent was killed must end by itself in this time.
ORPHAN_S = 20.0
MINUTE_S = 61.0
# What a recording says that met an error which polypstream does not foresee.
UNFORESEEN = r"cannot be processed \((?!.*Errno)|a fault of polypstream"


class Cases:
    """The cases of a campaign. The result of each is one line of JSON in FOLDER/results.jsonl.

    Args:
        description: docstring of the script, with its command.
        cases: how many cases are run by default.
        kinds: names of the kinds of cases, which take turns; empty: the script has its own.
        options: further options of the script, as for argparse.

    Attributes:
        folder: folder of the campaign.
        wanted: the arguments of the script.
        kinds: the kinds that are run.
    """

    def __init__(self, description: str, cases: int, kinds: Collection[str] = (), **options: dict[str, Any]) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("folder", type=Path, help="for the results; a later run with the same folder goes on")
        parser.add_argument("--cases", type=int, default=cases, help="how many")
        parser.add_argument("--first", type=int, default=0, help="number of the first case")
        parser.add_argument("--seed", type=int, default=1)
        if kinds:
            parser.add_argument("--kinds", default=",".join(kinds), help=f"some of {', '.join(kinds)}")
        for name, about in options.items():
            parser.add_argument(f"--{name}", **about)
        self.wanted = parser.parse_args()
        self.kinds = self.wanted.kinds.split(",") if kinds else []
        if unknown := set(self.kinds) - set(kinds):
            parser.error(f"--kinds: {', '.join(unknown)}: there are {', '.join(kinds)}")
        if "archive" in self.kinds and importlib.util.find_spec("ray") is None:
            print("archive is left out: Ray is not installed (pip install -e '.[cluster]')")
            self.kinds.remove("archive")
        self.folder: Path = self.wanted.folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(self.folder / "results.jsonl")
        # A service manager or a time limit must not leave processes behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def model(self) -> Path:
        """The model that finds the red disc of the media of the tests."""
        return self._made("red.onnx", lambda folder: make_red_model(folder / "red.onnx"))

    def recording(self, clip: Clip) -> Path:
        """A recording of the tests."""
        return self._made(clip.name, lambda folder: make_clip(folder, clip))

    def _made(self, name: str, make: Callable[[Path], Path]) -> Path:
        """A file of the campaign, which is made once and completely."""
        path = self.folder / name
        if not path.exists():
            with working_folder(self.folder) as folder:
                make(folder).rename(path)
        return path

    def left(self) -> list[int]:
        """Numbers of the cases that have no result yet."""
        done = {line["case"] for line in self.results.lines() if line["seed"] == self.wanted.seed}
        numbers = range(self.wanted.first, self.wanted.first + self.wanted.cases)
        return [number for number in numbers if number not in done]

    def chance(self, number: int) -> Random:
        """The random numbers of a case: always the same ones."""
        return Random(f"{self.wanted.seed} {number}")

    def add(self, number: int, **values: object) -> None:
        """Store the result of a case, and print its faults."""
        self.results.add({"seed": self.wanted.seed, "case": number, **values})
        if values["faults"]:
            print(f"case {number}: {json.dumps(values)}", flush=True)

    def run_each(self, one: Callable[[str, Random, Path], dict[str, object]]) -> None:
        """Run the cases that are left, one after another, and print the counts.

        Args:
            one: runs a case; called with its kind, its random numbers and an empty folder. It returns what is stored,
                with the key `faults`: a list of texts.
        """
        for number in self.left():
            kind = self.kinds[number % len(self.kinds)]
            with working_folder(self.folder) as folder:
                self.add(number, kind=kind, **one(kind, self.chance(number), folder))
        self.summarize("kind", "ending")

    def summarize(self, *keys: str) -> None:
        """Print how many cases there are with each value of some keys, and end with 1 if there were faults."""
        lines = [line for line in self.results.lines() if line["seed"] == self.wanted.seed]
        for key in keys:
            counts = Counter(str(line[key]) for line in lines)
            print(f"{key}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
        faulty = [line["case"] for line in lines if line["faults"]]
        print(f"{len(lines)} cases, {len(faulty)} with faults{': ' if faulty else ''}{', '.join(map(str, faulty))}")
        sys.exit(bool(faulty))


class Results:
    """A file with one JSON object per line, which grows. A last line that an interruption cut off is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        path.write_bytes(content[: content.rfind(b"\n") + 1])

    def lines(self) -> list[dict[str, Any]]:
        """All lines."""
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def add(self, line: dict[str, object]) -> None:
        """Append a line."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@contextmanager
def working_folder(below: Path) -> Iterator[Path]:
    """A folder for the duration of a block."""
    with tempfile.TemporaryDirectory(dir=below, prefix="work-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@dataclass
class Running:
    """A command at work.

    Attributes:
        process: the command.
        said: what it has written to standard output and standard error so far.
        family: all processes that it was seen to have.
    """

    process: subprocess.Popen[bytes]
    _out: IO[bytes]
    family: list[psutil.Process] = field(default_factory=list)

    @property
    def said(self) -> str:
        self._out.flush()
        return Path(self._out.name).read_text(errors="replace")

    def look(self) -> list[psutil.Process]:
        """Note the processes that it has started, and return those that were not known."""
        with suppress(psutil.NoSuchProcess):
            new = [
                each for each in psutil.Process(self.process.pid).children(recursive=True) if each not in self.family
            ]
            self.family += new
            return new
        return []

    def wait(self, seconds: float) -> int | None:
        """Wait for its end, and return its exit code; None: it did not end in time."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self.look()
            time.sleep(0.02)
        return self.process.poll()

    def kill(self, also: list[psutil.Process] | None = None) -> None:
        """SIGKILL to the command, and to other processes of it."""
        self.look()
        for each in also or []:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.kill()
        self.process.wait()

    def orphans(self, seconds: float = ORPHAN_S) -> list[str]:
        """Processes of a command that has ended which do not end in time, as text."""
        _, alive = psutil.wait_procs(self.family, seconds)
        return [f"goes on after the command has ended: {_name_of(each)}" for each in alive]


def _name_of(process: psutil.Process) -> str:
    """The begin of the command line of a process."""
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.NoSuchProcess:
        return f"process {process.pid}, which ends now"


@contextmanager
def started(folder: Path, *arguments: object, program: str = POLYPSTREAM) -> Iterator[Running]:
    """A command that runs during a block. Nothing of it is left afterwards.

    Args:
        folder: its current folder, and the place of what it says.
        arguments: of the command.
        program: the command.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix="said-") as out:
        process = subprocess.Popen(
            [program, *map(str, arguments)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running = Running(process, out)
        try:
            yield running
        finally:
            running.kill()
            left = [each for each in running.family if each.is_running()]
            for each in left:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(left, 10)


def faults_of_messages(said: str) -> list[str]:
    """What a command must never say."""
    wrong = ("Traceback (most recent call last)", "Fatal Python error", "terminate called")
    return [f"it said {each!r}: …{said[said.find(each) :][-600:]}" for each in wrong if each in said]


def faults_of_results(folder: Path, complete: bool = False) -> list[str]:
    """What is wrong with the results of a run that has ended: what they say must be there, and readable.

    Args:
        folder: folder of the results.
        complete: the whole recording must have been processed.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
        frames = summary["frames_out"]
        faults = []
        if complete and not summary["complete"]:
            faults.append(f"{folder.name} is not complete: {summary['problem'] or summary['damage']}")
        tracks = json.loads((folder / "findings.json").read_text())["tracks"]
        counts = {"frames.csv": len(rows_of(folder / "frames.csv"))}
        for name in ("annotated.mp4", "masks.mkv"):
            if name != "masks.mkv" or (folder / name).exists():
                counts[name] = len(times_of(folder / name))
        faults += [f"{name} has {found} frames and not {frames}" for name, found in counts.items() if found != frames]
        listed = {"polyps.csv": len(rows_of(folder / "polyps.csv")), "findings.json": len(tracks)}
        polyps = summary["polyps"]
        faults += [f"{name} has {found} polyps and not {polyps}" for name, found in listed.items() if found != polyps]
        for picture in (folder / "snapshots").glob("*.jpg"):
            Image.open(picture).load()
        if "</html>" not in (folder / "report.html").read_text():
            faults.append("report.html is cut off")
    except (OSError, ValueError, KeyError, FFmpegError) as error:
        return [f"{folder.name}: {type(error).__name__}: {error}"]
    return faults


def rows_of(table: Path) -> list[dict[str, str]]:
    """Whole lines of frames.csv or polyps.csv, by the names of the columns."""
    text = table.read_text() if table.exists() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def times_of(path: Path) -> list[float]:
    """Seconds of every frame of a video, which must decode without an error.

    Raises:
        FFmpegError: it cannot be decoded.
    """
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return [float(frame.pts * stream.time_base) for frame in file.decode(stream)]


def unfinished_times_of(path: Path) -> list[float]:
    """Seconds of every frame of a video that was not closed. Its last picture may be cut off.

    Raises:
        FFmpegError: an earlier one cannot be decoded.
    """
    times: list[float] = []
    problem: InvalidDataError | None = None
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        packets = file.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return times
                frames = packet.decode()
            except InvalidDataError as error:
                problem = problem or error
                continue
            if frames and packet.dts is not None and problem:
                raise problem
            times += [float(frame.pts * stream.time_base) for frame in frames]


def faults_of_unfinished(video: Path, table: Path, lost_s: float) -> list[str]:
    """What is wrong with a video that was not closed: it must play to its end, which must not be too early.

    Args:
        video: the video.
        table: frames.csv with the frames that were processed.
        lost_s: seconds that may be missing.
    """
    rows = rows_of(table)
    reached = float(rows[-1]["pts_s"]) if rows else 0.0
    try:
        played = unfinished_times_of(video)[-1] if video.exists() and video.stat().st_size else 0.0
    except (FFmpegError, IndexError) as error:
        if reached <= lost_s:
            return []  # no fragment had to be there
        return [f"{video.name}: {type(error).__name__}: {error}; {reached:.1f} s had been processed"]
    if played < reached - lost_s:
        return [f"{video.name} plays to {played:.1f} s; {reached:.1f} s had been processed"]
    return []


def until(true: Callable[[], object], seconds: float) -> bool:
    """Wait until something is true; whether it became so in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def address_of(running: Running, seconds: float = 60) -> str:
    """The address that a server prints when it has started.

    Raises:
        RuntimeError: it has printed none in time.
    """
    until(lambda: "http://" in running.said or running.process.poll() is not None, seconds)
    found = re.search(r"http://\S+", running.said)
    if found is None:
        raise RuntimeError(f"the server did not start: {running.said}")
    return found.group().partition("?")[0].rstrip("/")


def served_results(folder: Path, id_: str) -> Path:
    """Results of the last attempt at a recording that a server was sent.

    Args:
        folder: of the server.
        id_: of the recording.
    """
    attempts = (folder / "recordings" / id_).glob("*/upload")
    return max(attempts, key=lambda path: int(path.parent.name))


def make_older(results: Path) -> None:
    """Make the results of a killed run older than the minute in which a run that goes on would have written to them."""
    for path in results.glob("**/*"):
        os.utime(path, (time.time() - MINUTE_S,) * 2)


def faults_of_repeated(folder: Path, command: Sequence[object], seconds: float) -> list[str]:
    """What is wrong with a command that is given again: it must succeed.

    Args:
        folder: its current folder.
        command: its arguments.
        seconds: in which it must end.
    """
    with started(folder, *command) as running:
        code = running.wait(seconds)
        faults = faults_of_messages(running.said)
        return faults if code == 0 else [*faults, f"repeated: exit code {code}: {running.said[-600:]}"]
