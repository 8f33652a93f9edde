"""The figures of `polypstream study` on the demo source: recordings of many seeds, with their ground truth.

    python benchmarks/demo_study.py FOLDER [--seeds 30] [--seconds 60] [--set KEY=VALUE ...]

Renders each recording, processes it, and studies all of them; FOLDER/study/report.html shows the figures. A run that
was interrupted goes on: finished recordings are not made again. One seed takes about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

POLYPSTREAM = str(Path(sys.executable).with_name("polypstream"))


def main() -> None:
    """Render, process and study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    wanted = parser.parse_args()
    recordings, truth, results = (wanted.folder / name for name in ("recordings", "truth", "results"))
    for folder in (recordings, truth):
        folder.mkdir(parents=True, exist_ok=True)
    overrides = [text for each in wanted.set for text in ("--set", each)]
    for seed in range(1, wanted.seeds + 1):
        recording = render(recordings / f"colon{seed}.mp4", truth / f"colon{seed}.mkv", seed, wanted.seconds)
        command("process", recording, "--output", results, "--masks", "--skip-existing", *overrides)
    command("study", truth, results, "--output", wanted.folder / "study")


def render(recording: Path, truth: Path, seed: int, seconds: int) -> Path:
    """Render a recording, unless it is there. Its name appears when it is finished."""
    if not recording.exists():
        unfinished = recording.with_name(f"unfinished-{recording.name}")
        size = ("--seconds", seconds, "--seed", seed, "--size", "640x360")
        truth.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
        command("demo-video", unfinished, *size, "--truth", truth)
        unfinished.rename(recording)
    return recording


def command(*arguments: object) -> None:
    """Run polypstream, and end with its exit code if it fails."""
    done = subprocess.run([POLYPSTREAM, *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
