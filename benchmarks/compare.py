"""How fast `polypstream process` is beside what a user would write otherwise and beside a mere transcode, in one run.

    python benchmarks/compare.py [VIDEO] [--rounds 3] [--model shipped-float]

Without a video it renders a minute of demo at 1920x1080, in groups of pictures of two seconds. Every contender reads
the same file, runs the shipped weights (the loops in floating point as the file comes, and as 8-bit integers) and
counts from its start to its end as a program. Needs the ffmpeg program. supervision is left out where it is missing
(`pip install supervision`). Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from polypstream.inference.machine import describe_machine
from polypstream.inference.model_card import shipped_weights
from polypstream.inference.providers import probe

POLYPSTREAM = str(Path(sys.executable).with_name("polypstream"))
LOOPS = str(Path(__file__).with_name("loops.py"))
FLOOR, NAIVE, OURS = "ffmpeg transcode, no inference", "OpenCV loop, plain CPU provider", "polypstream process"
# Other ways to run ours, and their settings. The first one leaves findings in a fifth of the rendered demo's groups of
# pictures; no finding is as large as the second one asks for.
A_FIFTH_MARKED, NOTHING_MARKED = "findings.smallest=0.118", "findings.smallest=0.99"
VARIANTS = {
    "the same, every frame encoded": ("output.video.unmarked=encode",),
    "the same, a fifth of the groups marked": (A_FIFTH_MARKED,),
    "the same, nothing marked": (NOTHING_MARKED,),
    "the same, nothing marked, every frame encoded": (NOTHING_MARKED, "output.video.unmarked=encode"),
    "the same, nothing marked, the model looks at every third frame": (NOTHING_MARKED, "inference.every=3"),
    "the same, no video": ("output.video.codec=none",),
}


@dataclass(frozen=True)
class Timed:
    """One program's run: wall time, and resident memory of its largest process in MB at half time and at most."""

    seconds: float
    half_mb: float
    most_mb: float


def main() -> None:
    """Contenders by turns, so that a noisy moment of the machine hits all; medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="shipped")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = wanted.video or render(Path(folder) / "demo.mp4")
        programs = contenders(video, wanted.model, Path(folder))
        runs: dict[str, list[Timed]] = {name: [] for name in programs}
        for _ in range(wanted.rounds):
            for name, program in programs.items():
                runs[name].append(watch(program))
        summaries = {
            name: json.loads(next((Path(folder) / name).glob("*/summary.json")).read_text())
            for name in (OURS, *VARIANTS)
        }
    medians = {name: sorted(each, key=lambda run: run.seconds)[len(each) // 2] for name, each in runs.items()}
    report(video, summaries, medians)


def render(path: Path) -> Path:
    """A minute of demo: twenty seconds three times over, since the rendering itself is slow."""
    part = path.with_name("part.mp4")
    subprocess.run(
        [POLYPSTREAM, "demo-video", part, "--seconds", "20", "--size", "1920x1080", "--rate", "30"], check=True
    )
    encoder = ["-c:v", "libx264", "-crf", "20", "-g", "60", "-sc_threshold", "0"]
    subprocess.run(["ffmpeg", "-v", "error", "-stream_loop", "2", "-i", part, *encoder, path], check=True)
    return path


def contenders(video: Path, model: str, folder: Path) -> dict[str, list[str]]:
    """The programs' command lines."""
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-c:a", "copy"]
    out = str(folder / "loop.mp4")

    def loop(name: str, weights: str, provider: str = "cpu") -> list[str]:
        return [sys.executable, LOOPS, name, str(video), str(shipped_weights(weights)), out, provider]

    programs = {
        FLOOR: ["ffmpeg", "-v", "error", "-y", "-i", str(video), *encoder, str(folder / "transcode.mp4")],
        NAIVE: loop("opencv", "shipped-float"),
        "the same, 8-bit integers": loop("opencv", "shipped-int8"),
    }
    if importlib.util.find_spec("supervision"):
        programs["supervision's process_video, plain CPU provider"] = loop("supervision", "shipped-float")
    if probe("openvino") is None:
        programs["OpenCV loop, OpenVINO plug-in"] = loop("opencv", "shipped-float", "openvino")
    for name, settings in {OURS: (), **VARIANTS}.items():
        overrides = [text for each in (f"inference.model={model}", *settings) for text in ("--set", each)]
        output = ["--output", str(folder / name), "--overwrite"]
        programs[name] = [POLYPSTREAM, "process", str(video), *output, *overrides]
    return programs


def watch(program: list[str]) -> Timed:
    """Run a program and sample its memory."""
    started, samples = time.monotonic(), [0.0]
    running = psutil.Popen(program, stdout=subprocess.DEVNULL)
    while running.poll() is None:
        try:
            family = [running, *running.children(recursive=True)]  # ours processes a recording in a child
            samples.append(max(each.memory_info().rss for each in family) / 1e6)
        except psutil.NoSuchProcess:  # a child that has just ended
            pass
        time.sleep(0.1)
    seconds = time.monotonic() - started
    if running.wait():
        raise SystemExit(f"{' '.join(program)} failed")
    return Timed(seconds, max(samples[: len(samples) // 2 + 1]), max(samples))


def report(video: Path, summaries: dict[str, dict[str, Any]], medians: dict[str, Timed]) -> None:
    """The tables."""
    summary = summaries[OURS]
    frames, stages = summary["frames_out"], summary["seconds_per_stage"]
    for name, value in describe_machine().items():
        print(f"- {name}: {value}")
    size = "x".join(map(str, summary["picture_size"]))
    print(
        f"\n{video.name}: {frames} frames of {size}, every frame inferred; ours: {summary['provider']}, "
        f"{Path(summary['model']['file']).name}\n"
    )
    print("| | frames per second | of the transcode | of the OpenCV loop | copied |\n| --- | --- | --- | --- | --- |")
    for name, run in medians.items():
        shares = [medians[base].seconds / run.seconds for base in (FLOOR, NAIVE)]
        speeds = f"{frames / run.seconds:.1f} | {shares[0]:.2f} | {shares[1]:.2f}"
        print(f"| {name} | {speeds} | {copied(summaries.get(name, {}).get('unmarked'))} |")
    ours = medians[OURS]
    print(f"\nResident memory of ours: {ours.half_mb:.0f} MB at half time, {ours.most_mb:.0f} MB at most.\n")
    print("| stage | ms per frame |\n| --- | --- |")
    for name, seconds in stages.items():
        print(f"| {name} | {seconds / frames * 1000:.2f} |")


def copied(unmarked: dict[str, int] | None) -> str:
    """How much of the video is the recording's own; empty: there is no video of ours."""
    if unmarked is None:
        return ""
    gops, frames = unmarked["copied_gops"], unmarked["copied_frames"]
    if not gops:
        return "nothing"
    share = frames / (frames + unmarked["encoded_frames"])
    return f"{gops} of {gops + unmarked['encoded_gops']} groups, {share:.0%} of the frames"


if __name__ == "__main__":
    main()
