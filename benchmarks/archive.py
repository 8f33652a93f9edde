"""What `polypstream archive` costs over `process`, and how it grows with workers: python benchmarks/archive.py VIDEO...

By turns, in one go: `process` of all recordings, one after another; `archive` with one worker; as many `process` as
there are workers, side by side, each with its share of the recordings; `archive` with those workers. Start-up is
included everywhere.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import av

COMMAND = str(Path(sys.executable).with_name("polypstream"))
WORKERS, ROUNDS = 2, 2


def main(recordings: Sequence[str]) -> None:
    frames = sum(count_frames(recording) for recording in recordings)
    halves = [recordings[number::WORKERS] for number in range(WORKERS)]
    turns: dict[str, Callable[[Path], None]] = {
        "process, all in one call": lambda folder: side_by_side(folder, [recordings]),
        "archive, 1 worker": lambda folder: archive(folder, recordings, 1),
        f"process, {WORKERS} calls side by side": lambda folder: side_by_side(folder, halves),
        f"archive, {WORKERS} workers": lambda folder: archive(folder, recordings, WORKERS),
        f"archive, {WORKERS} workers, parts of 20 s": lambda folder: archive(folder, recordings, WORKERS, 20),
    }
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(ROUNDS):
        for name, turn in turns.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                turn(Path(folder))
                seconds[name].append(time.monotonic() - started)
            print(f"{name}: {seconds[name][-1]:.1f} s, {frames / seconds[name][-1]:.1f} frames per second", flush=True)
    for name, each in seconds.items():
        print(f"median of {name}: {median(each):.1f} s, {frames / median(each):.1f} frames per second")


def side_by_side(folder: Path, shares: Sequence[Sequence[str]]) -> None:
    """One `process` for each share of the recordings."""
    calls = [
        subprocess.Popen([COMMAND, "process", "--output", folder / str(n), *share]) for n, share in enumerate(shares)
    ]
    if any(call.wait() for call in calls):
        sys.exit("process failed")


def archive(folder: Path, recordings: Sequence[str], workers: int, part_seconds: int = 60) -> None:
    """One `archive` of all of them."""
    options = ["--workers", str(workers), "--segment-seconds", str(part_seconds), "--output", str(folder / "archive")]
    subprocess.run([COMMAND, "archive", *recordings, *options], check=True)


def count_frames(recording: str) -> int:
    """As its container says."""
    with av.open(recording) as file:
        return file.streams.video[0].frames


if __name__ == "__main__":
    main(sys.argv[1:])
