"""How fast `polypstream process` is beside an ffmpeg transcode of the same file, in one run, and its memory.

    python benchmarks/process.py [VIDEO]

Without a video it renders a demo at 1920x1080. Needs the ffmpeg program and psutil. Prints a Markdown table.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

POLYPSTREAM = str(Path(sys.executable).with_name("polypstream"))
ROUNDS = 3


def main() -> None:
    """Alternate both, so that a noisy moment of the machine hits both, and report medians."""
    with tempfile.TemporaryDirectory() as folder:
        video = Path(sys.argv[1]) if len(sys.argv) > 1 else render(Path(folder) / "demo.mp4")
        transcodes, runs = [], []
        for number in range(ROUNDS):
            transcodes.append(transcode(video, Path(folder) / "transcode.mp4"))
            runs.append(process(video, Path(folder) / str(number)))
        report(video, sorted(transcodes)[ROUNDS // 2], sorted(runs, key=lambda run: run["seconds"])[ROUNDS // 2])


def render(path: Path) -> Path:
    """Half a minute of demo: ten seconds three times over, since the rendering itself is slow."""
    part = path.with_name("part.mp4")
    subprocess.run(
        [POLYPSTREAM, "demo-video", part, "--seconds", "10", "--size", "1920x1080", "--rate", "30"], check=True
    )
    looped = ["ffmpeg", "-v", "error", "-stream_loop", "2", "-i", part, "-c", "copy", path]
    subprocess.run(looped, check=True)
    return path


def transcode(video: Path, output: Path) -> float:
    """Seconds for the floor: decode and encode, no inference."""
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-c:a", "copy"]
    started = time.monotonic()
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", video, *encoder, output], check=True)
    return time.monotonic() - started


def process(video: Path, output: Path) -> dict[str, object]:
    """Run the command; its wall seconds with start-up, highest resident memory in MB, and its own summary."""
    started, peak = time.monotonic(), 0
    running = subprocess.Popen([POLYPSTREAM, "process", str(video), "--output", str(output)], stdout=subprocess.DEVNULL)
    watched = psutil.Process(running.pid)
    half = []
    while running.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        half.append(peak)
        time.sleep(0.2)
    seconds = time.monotonic() - started
    summary = json.loads(next(output.glob("*/summary.json")).read_text())
    shutil.rmtree(output)
    return {"seconds": seconds, "peak_mb": peak / 1e6, "half_mb": half[len(half) // 2] / 1e6, "summary": summary}


def report(video: Path, transcode_s: float, run: dict[str, object]) -> None:
    """The table."""
    summary = run["summary"]
    assert isinstance(summary, dict)
    frames = summary["frames_out"]
    print(f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores; {video.name}: {frames} frames of")
    print(f"{'x'.join(map(str, summary['picture_size']))}, provider {summary['provider']}\n")
    print("| | frames per second |\n| --- | --- |")
    print(f"| ffmpeg transcode, no inference | {frames / transcode_s:.1f} |")
    print(f"| polypstream process, start-up included | {frames / float(str(run['seconds'])):.1f} |")
    print(f"| ratio | {transcode_s / float(str(run['seconds'])):.2f} |\n")
    print(f"Resident memory: {run['half_mb']:.0f} MB at half time, {run['peak_mb']:.0f} MB at most.\n")
    print("| room | ms per frame |\n| --- | --- |")
    for name, seconds in summary["seconds_per_room"].items():
        print(f"| {name} | {seconds / frames * 1000:.2f} |")


if __name__ == "__main__":
    main()
