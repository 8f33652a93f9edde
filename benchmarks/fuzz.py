"""Damaged recordings of twelve kinds: `process` ends in time, says what is wrong, and what it names is readable.

    python benchmarks/fuzz.py FOLDER [--cases 10000] [--first 0] [--seed 1] [--only N]

Each case is a recording with random damage: inverted bits, a cut, exchanged, repeated, removed or zeroed ranges, or
changes in the header or the index. Sixty cases are processed by one command. A case is faulty if the command ends by a
signal or with a traceback, if the process that reads the recording dies, if the case takes more than 30 seconds, if an
error is not one that polypstream foresees, or if a result cannot be read or has other frames than it says. FOLDER gets
results.jsonl, with one line for each case, and the recordings of faulty cases in `faulty/`. A run that was interrupted
goes on. `--only N` repeats one case, with the stack of a dead process. A case takes about 0.1 seconds of one core.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from campaign import FAST, UNFORESEEN, Cases, faults_of_messages, faults_of_results, started, working_folder

from tests.conftest import Clip, make_clip, picture


def textured(clip: Clip, index: int) -> np.ndarray:
    """A picture of the tests with moving grain, so that most of a file is pictures. uint8 RGB [height, width, 3]."""
    grain = np.random.default_rng(0).integers(-15, 16, (clip.height, clip.width, 1))
    return np.clip(picture(clip, index) + np.roll(grain, index, axis=1), 0, 255).astype(np.uint8)


SMALL = Clip(width=160, height=120, frames=30, options={"g": "10"}, draw=textured)
CLIPS = {
    "mp4-h264": replace(SMALL, name="a.mp4", audio=("aac",)),
    "mp4-hevc": replace(SMALL, name="a.mp4", codec="libx265", options={"x265-params": "log-level=none:keyint=10"}),
    "mov-prores": replace(SMALL, name="a.mov", codec="prores_ks", pixel_format="yuv422p10le", audio=("pcm_s16le",)),
    "mkv-h264": replace(SMALL, name="a.mkv", audio=("aac",)),
    "mkv-ffv1": replace(SMALL, name="a.mkv", codec="ffv1", audio=("flac",)),
    "webm-vp8": replace(SMALL, name="a.webm", codec="libvpx", options={"g": "10", "deadline": "realtime"}),
    "ts-h264": replace(SMALL, name="a.ts", audio=("mp2",)),
    "mpg-mpeg2": replace(SMALL, name="a.mpg", codec="mpeg2video", audio=("mp2",)),
    "avi-mpeg4": replace(SMALL, name="a.avi", codec="mpeg4", audio=("pcm_s16le",)),
    "avi-mjpeg": replace(SMALL, name="a.avi", codec="mjpeg", pixel_format="yuvj420p"),
    "wmv-wmv2": replace(SMALL, name="a.wmv", codec="wmv2", audio=("libmp3lame",)),
    "flv-flv1": replace(SMALL, name="a.flv", codec="flv", audio=("aac",)),
}
# Most of the time of a command is its start.
BATCH = 5 * len(CLIPS)
LIMIT_S = 30.0
# Time for a command: its start, all cases at their limit, and one that the watchdog ends after a minute.
COMMAND_S = 30 + 60 + LIMIT_S * BATCH


def main() -> None:
    """Run the cases that are left, or one again."""
    cases = Cases(__doc__, 10_000, only={"type": int, "metavar": "N", "help": "run this case again, and no other"})
    if cases.wanted.only is not None:
        os.environ["PYTHONFAULTHANDLER"] = "1"
        run_batch(cases, [cases.wanted.only])
        return
    left = iter(cases.left())
    while batch := list(islice(left, BATCH)):
        run_batch(cases, batch)
    cases.summarize("kind", "damage", "state")


def run_batch(cases: Cases, numbers: Sequence[int]) -> None:
    """Process some cases with one command. If it does not end as it should, its halves, down to a single case."""
    with working_folder(cases.folder) as folder:
        made = {number: make_case(cases.chance(number), number, folder) for number in numbers}
        recordings = [path for path, _ in made.values()]
        table = folder / "table.csv"
        options = ("--output", folder / "results", "--summary", table, "--masks", "--model", cases.model(), *FAST)
        with started(folder, "process", *options, *recordings) as running:
            code = running.wait(COMMAND_S)
            faults = faults_of_messages(running.said) + running.orphans()
            if code not in (0, 1) or not table.exists():
                faults.append("it did not end" if code is None else f"exit code {code}: {running.said[-600:]}")
            if faults and len(numbers) > 1:
                run_batch(cases, numbers[: len(numbers) // 2])
                run_batch(cases, numbers[len(numbers) // 2 :])
                return
            if cases.wanted.only is not None:
                print(running.said)
        rows = table_of(table)
        for number, (path, damage) in made.items():
            about = judge(rows.get(str(path)), faults)
            if about["faults"]:
                (cases.folder / "faulty").mkdir(exist_ok=True)
                shutil.copy(path, cases.folder / "faulty")
            cases.add(number, kind=kind_of(number), damage=damage, **about)


def table_of(path: Path) -> dict[str, dict[str, str]]:
    """Lines of the table that `process --summary` wrote, by recording."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["input"]: row for row in csv.DictReader(file)}


def judge(row: dict[str, str] | None, faults: Sequence[str]) -> dict[str, object]:
    """State, frames, seconds and faults of a case.

    Args:
        row: its line in the table of the command; None: there is none.
        faults: of the command.
    """
    if row is None:
        return {"state": "none", "faults": [*faults, "it is not in the table of the command"]}
    problem, found = row["problem"], [*faults]
    if "the process that read it died" in problem or "nothing moved in it" in problem:
        found.append(problem)
    if unforeseen := re.search(UNFORESEEN, problem):
        found.append(f"an error that was not foreseen: {problem[unforeseen.start() :]}")
    if row["state"] == "failed" and re.search(r"annotated\.mp4|masks\.mkv|frames\.csv", problem):
        found.append(f"the output is blamed: {problem}")
    if row["folder"]:
        found += faults_of_results(Path(row["folder"]))
    seconds = float(row["seconds"] or 0)
    if seconds > LIMIT_S:
        found.append(f"it took {seconds:.0f} s")
    return {"state": row["state"], "frames": row["frames"], "seconds": seconds, "faults": found}


def kind_of(number: int) -> str:
    """Container and codec of a case."""
    return list(CLIPS)[number % len(CLIPS)]


def make_case(chance: Random, number: int, folder: Path) -> tuple[Path, str]:
    """Write the damaged recording of a case; its path, and the name of the damage."""
    kind, damage = kind_of(number), chance.choice(list(DAMAGE))
    path = folder / f"case{number}{Path(CLIPS[kind].name).suffix}"
    path.write_bytes(DAMAGE[damage](chance, whole(kind)))
    return path, damage


@cache
def whole(kind: str) -> bytes:
    """The recording of a kind without damage."""
    with tempfile.TemporaryDirectory() as folder:
        return make_clip(Path(folder), CLIPS[kind]).read_bytes()


# Damage. Lengths are chosen on a logarithmic scale, so that there are small and large ones.


def some(chance: Random, most: int) -> int:
    """A number from 1 to `most`, of any order of magnitude."""
    return max(1, min(most, int(most ** chance.random())))


def a_range(chance: Random, data: bytes) -> tuple[int, int]:
    """Begin and end of a part of the data."""
    length = some(chance, len(data) // 2)
    begin = chance.randrange(len(data) - length + 1)
    return begin, begin + length


def flip(chance: Random, data: bytes) -> bytes:
    """Invert bits anywhere."""
    result = bytearray(data)
    for _ in range(some(chance, 300)):
        result[chance.randrange(len(result))] ^= 1 << chance.randrange(8)
    return bytes(result)


def cut_end(chance: Random, data: bytes) -> bytes:
    """Leave out the end."""
    return data[: chance.randrange(1, len(data))]


def cut_begin(chance: Random, data: bytes) -> bytes:
    """Leave out the begin."""
    return data[chance.randrange(1, len(data)) :]


def zero(chance: Random, data: bytes) -> bytes:
    """Set a part to zeros."""
    begin, end = a_range(chance, data)
    return data[:begin] + bytes(end - begin) + data[end:]


def noise(chance: Random, data: bytes) -> bytes:
    """Replace a part by random bytes."""
    begin, end = a_range(chance, data)
    return data[:begin] + chance.randbytes(end - begin) + data[end:]


def remove(chance: Random, data: bytes) -> bytes:
    """Leave out a part."""
    begin, end = a_range(chance, data)
    return data[:begin] + data[end:]


def repeat(chance: Random, data: bytes) -> bytes:
    """Have a part twice or more often."""
    begin, end = a_range(chance, data)
    return data[:end] + data[begin:end] * some(chance, 5) + data[end:]


def exchange(chance: Random, data: bytes) -> bytes:
    """Exchange two parts of the same length."""
    length = some(chance, len(data) // 3)
    first = chance.randrange(len(data) - 2 * length + 1)
    second = chance.randrange(first + length, len(data) - length + 1)
    middle = data[first + length : second]
    return (
        data[:first] + data[second : second + length] + middle + data[first : first + length] + data[second + length :]
    )


def header(chance: Random, data: bytes) -> bytes:
    """Change bytes in the first 2 KB."""
    return _edited(chance, data, 0, min(2048, len(data)))


def index(chance: Random, data: bytes) -> bytes:
    """Change bytes in the last 4 KB, where many containers have their index."""
    return _edited(chance, data, max(0, len(data) - 4096), len(data))


def _edited(chance: Random, data: bytes, begin: int, end: int) -> bytes:
    """Overwrite some fields of 1 to 8 bytes by 0, the largest value, a random one, or its neighbour."""
    result = bytearray(data)
    for _ in range(some(chance, 20)):
        size = chance.choice((1, 2, 4, 8))
        at = chance.randrange(begin, max(begin + 1, end - size))
        value = int.from_bytes(result[at : at + size], "big")
        largest = 256 ** len(result[at : at + size]) - 1
        new = chance.choice((0, largest, chance.randint(0, largest), (value + 1) & largest, (value - 1) & largest))
        result[at : at + size] = new.to_bytes(len(result[at : at + size]), "big")
    return bytes(result)


def several(chance: Random, data: bytes) -> bytes:
    """Two to four kinds of damage one after another."""
    for _ in range(chance.randint(2, 4)):
        data = chance.choice([flip, zero, noise, remove, repeat, exchange, header, index])(chance, data)
    return data


DAMAGE: dict[str, Callable[[Random, bytes], bytes]] = {
    each.__name__: each
    for each in (flip, cut_end, cut_begin, zero, noise, remove, repeat, exchange, header, index, several)
}


if __name__ == "__main__":
    sys.exit(main())
