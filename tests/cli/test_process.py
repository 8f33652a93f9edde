"""`polypstream process` as it is typed: what it takes, says and refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from polypstream.cli.process import Row, table_of
from polypstream.jobs.process import ProcessResult
from tests.conftest import Clip, call, command, make_clip, summary_of
from tests.web.serving import until

pytestmark = pytest.mark.slow

SMALL = {"width": 160, "height": 120}


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two recordings, of which one shows no polyp, and a damaged one. It is in the current folder."""
    folder = tmp_path / "ward"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    make_clip(folder, Clip(name="a.mp4", frames=30, **SMALL))
    make_clip(folder, Clip(name="b.avi", codec="mjpeg", pixel_format="yuvj420p", frames=1, **SMALL))
    (folder / "c.mp4").write_bytes(b"no recording")
    return folder


def model(red_model: Path) -> tuple[str, ...]:
    return ("--model", str(red_model), "--set", "inference.provider=cpu")


def test_one_recording_says_what_was_found_and_what_to_open(recordings: Path, red_model: Path) -> None:
    done = call("process", "ward/a.mp4", *model(red_model))  # into results
    summary = summary_of(Path("results/a"))
    assert summary["polyps"] == 1
    assert done.stdout.startswith("ward/a.mp4: 1 polyp (0:00:00.0 to 0:00:00.8), 30 frames in ")
    assert done.stdout.rstrip().endswith("open results/a/report.html")
    nothing = call("process", "ward/a.mp4", "-o", "none of these", *model(red_model), "--set", "findings.smallest=0.9")
    assert nothing.stdout.startswith("ward/a.mp4: no polyps, 30 frames in ")
    assert nothing.stdout.rstrip().endswith("open 'none of these/a/report.html'")


def test_of_several_finished_ones_are_skipped_and_all_are_listed(recordings: Path, red_model: Path) -> None:
    call("process", "ward/a.mp4", *model(red_model))
    before = Path("results/a/findings.json").stat().st_mtime_ns
    done = call("process", "ward", "--summary", "runs.csv", *model(red_model), check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "1 of 3: ward/a.mp4: already done; --overwrite does it again"
    assert lines[1].startswith("2 of 3: ward/b.avi: 1 polyp (1 frame at 0:00:00.0), 1 frame in ")
    assert lines[-1] == "3 inputs: 1 already done, 1 done, 1 failed; polyps in 2"
    assert max(map(len, lines[2:])) <= 80
    result = Row("ward/a-very-long-name.mp4", "already done", ProcessResult("", Path(), frames=1_000_000))
    for width in (60, 80):
        assert max(map(len, table_of([result] * 2, width))) <= width
    assert Path("results/a/findings.json").stat().st_mtime_ns == before
    assert done.stderr.count("ward/c.mp4: ") == 1
    rows = list(csv.DictReader(Path("runs.csv").read_text().splitlines()))
    assert [(row["input"], row["state"], row["polyps"], row["frames"]) for row in rows] == [
        ("ward/a.mp4", "already done", "1", "30"),
        ("ward/b.avi", "done", "1", "1"),
        ("ward/c.mp4", "failed", "", ""),
    ]
    assert rows[2]["problem"].startswith("ward/c.mp4: not a recording")
    assert float(rows[0]["last_s"]) == pytest.approx(0.76, abs=0.05)
    masks = call("process", "ward", "--masks", *model(red_model), check=False).stdout
    assert "1 of 3: ward/a.mp4: already done, but without masks.mkv; --overwrite" in masks
    again = call("process", "ward", "--overwrite", *model(red_model), check=False)
    assert again.stdout.splitlines()[-1] == "3 inputs: 2 done, 1 failed; polyps in 2"
    assert Path("results/a/findings.json").stat().st_mtime_ns > before


def test_one_finished_recording_is_refused_unless_told_to_skip_it(recordings: Path, red_model: Path) -> None:
    call("process", "ward/a.mp4", *model(red_model))
    done = call("process", "ward/a.mp4", *model(red_model), check=False)
    assert done.returncode == 1
    assert "results/a: holds results already; give --overwrite" in done.stderr
    assert "already done" in call("process", "ward/a.mp4", "--skip-existing", *model(red_model)).stdout


def test_an_interrupted_recording_is_done_again(recordings: Path, red_model: Path) -> None:
    call("process", "ward/a.mp4", *model(red_model))
    path = Path("results/a/summary.json")
    path.write_text(json.dumps(summary_of(path.parent) | {"problem": "interrupted", "complete": False}))
    assert "1 polyp" in call("process", "ward/a.mp4", *model(red_model)).stdout
    path.unlink()  # killed, just now or a while ago
    done = call("process", "ward/a.mp4", *model(red_model), check=False)
    assert "was written less than a minute ago" in done.stderr
    for each in path.parent.glob("**/*"):
        os.utime(each, (0, 0))
    assert "1 polyp" in call("process", "ward/a.mp4", *model(red_model)).stdout
    assert summary_of(path.parent)["complete"]


def test_images_and_recordings_go_together(recordings: Path, red_model: Path) -> None:
    for name in ("f0001.png", "f0002.png"):
        subprocess.run(
            ["ffmpeg", "-loglevel", "error", "-i", "ward/a.mp4", "-frames:v", "1", f"ward/{name}"], check=True
        )
    (recordings / "c.mp4").unlink()
    done = call("process", "ward", *model(red_model))
    assert "3 of 3: ward: 2 polyps in 2 images, 2 images in " in done.stdout
    assert Path("results/ward/masks/f0002.png").is_file()
    call("process", "ward", *model(red_model), "--polyps", "all.csv")
    with Path("all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["input"], row["folder"], row["track"] or row["image"]) for row in rows] == [
        ("ward/a.mp4", "results/a", "1"),
        ("ward/b.avi", "results/b", "1"),
        ("ward", "results/ward", "f0001.png"),
        ("ward", "results/ward", "f0002.png"),
    ]
    Path("results/b/polyps.csv").unlink()
    lost = call("process", "ward", *model(red_model), "--polyps", "all.csv", check=False)
    assert "results/b/polyps.csv: cannot be read (No such file or directory); `process --overwrite`" in lost.stderr
    one = call("process", "ward/f0001.png", *model(red_model))
    assert one.stdout.startswith("ward/f0001.png: 1 polyp, 1 image in ")


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_standard_input_is_read(recordings: Path, red_model: Path, container: str) -> None:
    ffmpeg = ["ffmpeg", "-loglevel", "error", "-i", "ward/a.mp4", "-c", "copy", "-f", container, "-"]
    with subprocess.Popen(ffmpeg, stdout=subprocess.PIPE) as sender:
        done = subprocess.run([*command(), "process", "-", *model(red_model)], stdin=sender.stdout, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"30 frames" in done.stdout
    assert summary_of(Path("results/stdin"))["input"] == "standard input"
    assert [path.name for path in Path("results").iterdir()] == ["stdin"], "the copy of standard input is left"


def test_empty_standard_input_is_said(recordings: Path, red_model: Path) -> None:
    words = [*command(), "process", "-", *model(red_model)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "polypstream: -: standard input is empty"


def test_an_output_that_looks_like_a_file_is_asked_about(recordings: Path) -> None:
    done = call("process", "ward/a.mp4", "--output", "out.mp4", check=False)
    assert done.returncode == 1
    assert "--output out.mp4: is a file, or looks like one" in done.stderr
    assert not Path("out.mp4").exists()


def test_quiet_says_errors_only(recordings: Path, red_model: Path) -> None:
    for name in ("1.txt", "2.txt", "3.txt", "4.txt"):
        (recordings / name).touch()
    usual = call("process", "ward", *model(red_model), check=False)
    quiet = call("-q", "process", "ward", *model(red_model), check=False)
    assert (
        "left out: 4 files of the folders, neither recordings nor images: ward/1.txt, ward/2.txt, ward/3.txt, ...\n"
        in usual.stderr
    )
    assert "neither" not in quiet.stderr
    assert "ward/c.mp4: " in quiet.stderr


def test_finished_results_of_other_wishes_are_said(recordings: Path, red_model: Path) -> None:
    first = ("process", "ward/a.mp4", "--skip-existing", *model(red_model))
    call(*first)
    assert "already done; --overwrite" in call(*first).stdout
    assert "already done; --overwrite" in call(*first, "--set", "inference.threads=1").stdout
    style = call(*first, "--set", "overlay.style=box", "--from", "0.2").stdout
    assert (
        "already done, but of the whole recording, but with another overlay.style; another --output keeps both, "
        "--overwrite does it again" in style
    )
    both = call(*first, "--set", "overlay.style=box", "--set", "findings.steady=false").stdout
    assert "already done, but with other values of findings.steady, overlay.style; --overwrite" in both


def test_finished_results_of_other_wishes_are_said_of_one_recording_too(recordings: Path, red_model: Path) -> None:
    first = ("process", "ward/a.mp4", *model(red_model))
    call(*first)
    said = call(*first, "--masks", "--set", "overlay.style=box", check=False).stderr
    assert (
        "results/a: holds results already, but without masks.mkv, but with another overlay.style; give --overwrite "
        "to replace them" in said
    )
    said = call(*first, "--from", "0.2", check=False).stderr
    assert (
        "results/a: holds results already, but of the whole recording; give another --output to keep both, or "
        "--overwrite to replace them" in said
    )


def test_a_forgotten_output_is_asked_about_before_the_start(recordings: Path, red_model: Path) -> None:
    done = call("process", "ward/a.mp4", "results", *model(red_model), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "polypstream: results: no such file; did you mean --output results?\n"
    assert not Path("results").exists()


def test_what_names_nothing_is_said_first_and_is_in_the_table(recordings: Path, red_model: Path) -> None:
    arguments = ("process", "ward/a.mp4", "gone.mp4", "--summary", "runs.csv", *model(red_model))
    together = subprocess.run(
        [*command(), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert together.returncode == 1
    assert together.stdout.startswith("polypstream: gone.mp4: no such file\n")
    assert together.stdout.splitlines()[-1] == "2 inputs: 1 failed, 1 done; polyps in 1"
    rows = list(csv.DictReader(Path("runs.csv").read_text().splitlines()))
    assert [(row["input"], row["state"]) for row in rows] == [("gone.mp4", "failed"), ("ward/a.mp4", "done")]


def test_results_are_not_processed(recordings: Path, red_model: Path) -> None:
    call("process", "ward/a.mp4", *model(red_model))
    done = call("process", "results/a", *model(red_model), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "results/a: is a folder of results of polypstream, see results/a/report.html; give the" in done.stderr
    done = call("process", "**/a*.mp4", "--overwrite", *model(red_model))
    assert "left out: 1 file in folders of results of polypstream" in done.stderr
    assert done.stdout.startswith("ward/a.mp4: 1 polyp ")


def test_one_image_of_a_folder_has_its_results_in_that_of_the_folder(recordings: Path, red_model: Path) -> None:
    """So they stay in the same place when another image comes, and a thumbnail may have the name of its recording."""
    (recordings / "c.mp4").unlink()
    image = ["ffmpeg", "-loglevel", "error", "-i", "ward/a.mp4", "-frames:v", "1"]
    subprocess.run([*image, "ward/a.png"], check=True)
    call("process", "ward", *model(red_model))
    assert sorted(path.name for path in Path("results").iterdir()) == ["a", "b", "ward"]
    subprocess.run([*image, "ward/c.png"], check=True)
    done = call("process", "ward", *model(red_model))
    assert "2 of 3: ward: already done, but of 1 image instead of 2; --overwrite does it again" in done.stdout
    assert sorted(path.name for path in Path("results").iterdir()) == ["a", "b", "ward"]


def test_a_damaged_recording_stays_damaged_and_has_its_results(recordings: Path, red_model: Path) -> None:
    whole = make_clip(recordings, Clip(name="d.avi", codec="mjpeg", pixel_format="yuvj420p", frames=30, **SMALL))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for _ in range(2):
        done = call("process", "ward/d.avi", "--skip-existing", *model(red_model), check=False)
        assert done.returncode == 1
        assert "ward/d.avi: damaged: " in done.stderr
    first = call("process", "ward/d.avi", "--overwrite", *model(red_model), check=False).stdout
    assert first.startswith("ward/d.avi: 1 polyp (")
    assert first.rstrip().endswith("open results/d/report.html")


def test_the_report_and_masks_of_an_interrupted_run_say_so(recordings: Path, red_model: Path) -> None:
    long = make_clip(recordings, Clip(name="e.mp4", frames=2000, **SMALL))
    running = subprocess.Popen([*command(), "process", str(long), *model(red_model)], stderr=subprocess.PIPE, text=True)
    until(lambda: len(rows_of("results/e/frames.csv")) > 50)
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == 130
    assert (
        "interrupted; the results so far are in results/e. The same command processes it again from its start" in said
    )
    assert "<dt>incomplete</dt><dd>interrupted; " in Path("results/e/report.html").read_text()
    done = call("masks", long, "--results", "results", "--format", "coco")
    assert "results/e: the run is not complete (interrupted)" in done.stderr


def test_interrupted_before_the_first_frame_there_are_no_results(recordings: Path, red_model: Path) -> None:
    words = [*command(), "process", "-", *model(red_model)]
    running = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: any(Path().glob("results/.standard-input-*/stdin")))
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == 130
    assert "-: interrupted; nothing was finished yet, so there are no results. The same command" in said


def test_interrupted_before_it_replaces_results_they_stay(recordings: Path, red_model: Path) -> None:
    with Path("ward/a.mp4").open("rb") as file:
        subprocess.run([*command(), "process", "-", *model(red_model)], stdin=file, check=True)
    words = [*command(), "process", "-", "--overwrite", *model(red_model)]
    running = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: any(Path().glob("results/.standard-input-*/stdin")))
    running.send_signal(signal.SIGINT)
    assert "-: interrupted; the results of an earlier run stay in results/stdin." in running.communicate()[1]


def test_masks_of_a_folder_of_results_from_another_folder(
    recordings: Path, red_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the recording in the results is relative to the folder in which `process` ran."""
    call("process", "ward/a.mp4", *model(red_model))
    monkeypatch.chdir(recordings)
    call("masks", tmp_path / "results" / "a", "--format", "coco")
    assert any((tmp_path / "results" / "a").glob("annotations-coco/**/*.jpg"))


def rows_of(table: str) -> list[str]:
    return Path(table).read_text().splitlines() if Path(table).is_file() else []
