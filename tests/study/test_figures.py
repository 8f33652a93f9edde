"""`polypstream study`: figures of two recordings that were worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from polypstream.errors import DataError
from polypstream.jobs.score import score
from polypstream.study.study import Compared, compare
from tests.conftest import call
from tests.jobs.test_score import write_video
from tests.study.hand_made import make_run, marks, squares


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The ground truth and the runs of two recordings of 100 frames, which last 4 s each at 25 frames per second.

    First recording: a polyp of 20x20 pixels, 6.5 % of the field of view (medium), in the frames 25 to 74.
    - Track 1 marks it in the frames 35 to 54 and 60 to 74, which are 35 frames, with probability 0.9.
    - Track 2 is false in the frames 5 to 7, with probability 0.6.
    Second recording: a polyp of 10x10 pixels, 1.6 % (small), in the frames 0 to 49, which is missed; then a medium one
    in the frames 50 to 99.
    - Track 3 marks the latter in the frames 50 to 69, and track 4 in the frames 70 to 99, with probability 0.8.
    - Track 5 is false in the frames 0 to 9 and 15 to 24, with probability 0.7.
    """
    truth = tmp_path / "truth"
    truth.mkdir()
    write_video(truth / "first.mkv", squares({range(25, 75): (1, 20, 20)}, 100))
    write_video(truth / "second.mkv", squares({range(50): (1, 20, 10), range(50, 100): (2, 20, 20)}, 100))
    right = [*marks(range(35, 55), 1, 0.9), *marks(range(60, 75), 1, 0.9)]
    make_run(tmp_path / "runs" / "first", 100, [*right, *marks(range(5, 8), 2, 0.6, x=60)])
    right = [*marks(range(50, 70), 3, 0.8), *marks(range(70, 100), 4, 0.8)]
    wrong = marks([*range(10), *range(15, 25)], 5, 0.7, x=60)
    make_run(tmp_path / "runs" / "second", 100, [*right, *wrong])
    return truth, tmp_path / "runs"


@pytest.fixture
def compared(folders: tuple[Path, Path]) -> Compared:
    return compare(folders[0], [folders[1]])[0]


def test_figures_are_those_worked_out_by_hand(compared: Compared) -> None:
    figures = compared.figures
    assert (figures["recordings"], figures["polyps"], figures["polyps_in_view_under_1_s"]) == (2, 3, 0)
    assert figures["minutes"] == pytest.approx(8 / 60)
    # Two of three polyps are found: none of one small polyp, and two of two medium ones.
    assert figures["polyp_sensitivity"] == pytest.approx(2 / 3)
    sizes = figures["polyp_sensitivity_by_size"]
    assert (sizes["small_polyps"], sizes["small"], sizes["medium_polyps"], sizes["medium"]) == (1, 0, 2, 1)
    assert (sizes["large_polyps"], sizes["large"]) == (0, None)
    # They are found (35 - 25) / 25 = 0.4 s after they appear, and at once. Quartiles of 0 and 0.4: 0.1, 0.2, 0.3.
    delays = figures["seconds_to_first_detection"]
    assert [delays[name] for name in ("lower_quartile", "median", "upper_quartile")] == pytest.approx([0.1, 0.2, 0.3])
    assert figures["early_recall"]["within_0.5_s"] == pytest.approx(2 / 3)
    # In 35 of 50, 0 of 50 and 50 of 50 frames.
    assert figures["persistence"]["mean_share_of_frames"] == pytest.approx((0.7 + 0 + 1) / 3)
    assert figures["persistence"]["found_in_50_percent"] == pytest.approx(2 / 3)
    # Frames with a polyp: 50 and 100, of which 35 and 50 are found. Without: 50, of which 3 are marked.
    assert figures["frame_sensitivity"] == pytest.approx(85 / 150)
    assert figures["frame_specificity"] == pytest.approx(47 / 50)
    # Two events, since the gap of track 5 is shorter than half a second, in 8 s and two recordings.
    assert figures["false_positives"]["per_minute"] == pytest.approx(2 / (8 / 60))
    assert figures["false_positives"]["per_procedure"] == 1
    # First: 2 changes at the gap of track 1, 2 at the false marks. Second: 4 at the false marks. Eight in 8 s.
    assert figures["flicker_per_minute"] == pytest.approx(60)
    assert figures["id_switches_per_minute"] == pytest.approx(1 / (8 / 60))  # from track 3 to 4
    # 1 in 35 + 47 frames of the first recording and 50 of the second, where the squares are the same or nothing is.
    assert figures["mean_dice"] == figures["mean_iou"] == pytest.approx((35 + 47 + 50) / 200)
    assert figures["mean_dice_with_polyp"] == pytest.approx((35 + 50) / 150)
    # 35 marks say 0.9 and 50 say 0.8, all true; 3 say 0.6 and 20 say 0.7, all false. Probabilities are levels of 255.
    error = (35 * 0.1 + 50 * 0.2 + 3 * 0.6 + 20 * 0.7) / 108
    assert figures["calibration_error"] == pytest.approx(error, abs=0.002)


def test_false_positives_have_their_times(compared: Compared) -> None:
    (first,), (second,) = (outcome.false_positives for outcome in compared.outcomes)
    assert (first.track, second.track) == (2, 5)
    assert (first.first_s, second.first_s) == pytest.approx((0.2, 0))
    assert (first.seconds, second.seconds) == pytest.approx((3 / 25, 1))  # to the end of the last frame
    assert (first.probability, second.probability) == (0.6, 0.7)
    assert not first.marks_polyp


def test_the_curves_are_those_worked_out_by_hand(compared: Compared) -> None:
    points = {point.peak: point for point in compared.froc}
    assert min(points) == 0.6  # nothing below it is known
    # All 85 + 23 marks; then without those of 0.6; then without those of 0.7 and 0.8.
    assert points[0.6][1:4] == pytest.approx((85 / 150, 23 / 200, 3 / 50))
    assert points[0.65][1:4] == pytest.approx((85 / 150, 20 / 200, 0))
    assert points[0.85][1:4] == pytest.approx((35 / 150, 0, 0))
    assert points[0.85].polyps_found == pytest.approx(1 / 3)
    assert points[0.65].false_positives_per_minute == pytest.approx(7.5)
    held = {point.seconds: point for point in compared.hold_off}
    # Track 2 lasts 0.08 s from its first to its last frame, and track 5 0.96 s.
    events = [held[seconds].false_positives_per_procedure for seconds in (0, 0.08, 0.12, 0.75, 1.0)]
    assert events == [1, 1, 0.5, 0.5, 0]
    # Track 1 begins in frame 35 and track 3 in frame 50. Each is shown 5 frames later: 0.6 s and 0.2 s.
    assert held[0.2].seconds_to_first_detection == pytest.approx(0.4)
    assert held[0.2].polyps_found == pytest.approx(2 / 3)


def test_intervals_hold_the_figure_and_are_the_same_each_time(compared: Compared, folders: tuple[Path, Path]) -> None:
    low, high = compared.figures["polyp_sensitivity_95"]
    assert 0 <= low < 2 / 3 < high <= 1
    assert "per_minute_95" not in compared.figures["false_positives"]  # each recording has one event in the same time
    assert "frame_specificity_95" not in compared.figures  # one recording has frames without a polyp
    assert compare(folders[0], [folders[1]])[0].figures == compared.figures


@pytest.mark.slow
def test_the_command_writes_tables(folders: tuple[Path, Path], tmp_path: Path) -> None:
    truth, runs = folders
    done = call("study", truth, runs, "--output", tmp_path / "study")
    assert "polyp sensitivity         0.6667" in done.stdout
    figures = json.loads((tmp_path / "study" / "figures.json").read_text())
    assert figures["settings"][0]["recordings"]["second"]["polyp_sensitivity"] == 0.5
    with (tmp_path / "study" / "figures.csv").open() as file:
        rows = {(row["recording"], row["figure"]): row for row in csv.DictReader(file)}
    assert float(rows["all", "false_positives.per_minute"]["value"]) == pytest.approx(15)
    with (tmp_path / "study" / "polyps.csv").open() as file:
        assert [row["seconds_to_first_detection"] for row in csv.DictReader(file)] == ["0.4", "", "0.0"]
    with (tmp_path / "study" / "false-positives.csv").open() as file:
        assert [row["seconds"] for row in csv.DictReader(file)] == ["0.12", "1.0"]
    again = call("study", truth, runs, "--output", tmp_path / "study", check=False)
    assert again.returncode == 1
    assert "holds a study already; give --overwrite" in again.stderr
    call("study", truth, runs, "--output", tmp_path / "study", "--overwrite")


def test_settings_are_compared_side_by_side(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Runs of one folder belong together, whether the folder is named or its runs are."""
    truth, runs = folders
    for name in ("first", "second"):
        make_run(tmp_path / "quiet" / name, 100, [])
    quiet, usual = compare(truth, [tmp_path / "quiet", runs / "second", runs / "first"])
    assert (quiet.setting.name, usual.setting.name) == ("quiet", "runs")
    assert (quiet.figures["polyp_sensitivity"], quiet.figures["frame_specificity"]) == (0, 1)
    # Of 3 polyps none is found: a sensitivity p has (1 - p)^3 = 0.025 at p = 0.708.
    assert quiet.figures["polyp_sensitivity_95"] == pytest.approx([0, 0.7076], abs=1e-4)
    # No event in 8 s: a rate of r per minute has exp(-8/60 r) = 0.025 at r = 27.7.
    assert quiet.figures["false_positives"]["per_minute_95"] == pytest.approx([0, 27.67], abs=0.01)
    assert quiet.figures["calibration_error"] is None
    assert usual.figures["polyp_sensitivity"] == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="quiet: holds no run of second"):
        compare(truth, [runs, tmp_path / "quiet" / "first"])


def test_what_is_missing_is_said(folders: tuple[Path, Path], tmp_path: Path) -> None:
    truth, runs = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no finished run"):
        compare(truth, [tmp_path / "empty"])
    (truth / "second.mkv").rename(truth / "other.mkv")
    with pytest.raises(DataError, match=r"truth: holds no ground truth of second; add .* second\.mkv"):
        compare(truth, [runs])
    (truth / "other.mkv").rename(truth / "second.mkv")
    (truth / "second").mkdir()
    with pytest.raises(DataError, match="which one is the ground truth of second"):
        compare(truth, [runs])


def test_the_ground_truth_of_a_single_recording_may_be_named(folders: tuple[Path, Path]) -> None:
    truth, runs = folders
    assert compare(truth / "first.mkv", [runs / "first"])[0].figures["polyp_sensitivity"] == 1


def test_figures_of_frames_are_those_of_score(folders: tuple[Path, Path]) -> None:
    truth, runs = folders
    shown = squares({range(35, 55): (255, 20, 20), range(60, 75): (255, 20, 20), range(5, 8): (255, 60, 20)}, 100)
    write_video(runs / "first" / "masks.mkv", shown)
    scores = score(runs / "first", truth / "first.mkv")
    figures = compare(truth, [runs / "first"])[0].figures
    same = ("mean_dice", "mean_iou", "frame_sensitivity", "frame_specificity", "flicker_per_minute", "polyps")
    assert {name: figures[name] for name in same} == pytest.approx({name: scores[name] for name in same})
    assert figures["id_switches_per_minute"] == scores["id_switches_per_minute"]
    assert figures["seconds_to_first_detection"]["median"] == pytest.approx(scores["seconds_to_first_detection"])
    assert figures["false_positives"]["per_minute"] == pytest.approx(scores["false_alarms_per_minute"])


def test_recordings_without_polyps_have_figures(folders: tuple[Path, Path]) -> None:
    truth, runs = folders
    write_video(truth / "first.mkv", squares({}, 100))
    figures = compare(truth, [runs / "first"])[0].figures
    assert (figures["polyps"], figures["polyp_sensitivity"], figures["frame_sensitivity"]) == (0, None, None)
    assert figures["frame_specificity"] == pytest.approx((100 - 35 - 3) / 100)
    assert figures["seconds_to_first_detection"] == {"median": None, "lower_quartile": None, "upper_quartile": None}


def test_what_is_wrong_is_said_in_one_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    truth, runs = folders
    (truth / "first.mkv").unlink()
    (truth / "first.json").write_text("{")
    done = call("study", truth, runs, "--output", tmp_path / "study", check=False)
    assert done.returncode == 1
    assert "first.json: cannot be read as COCO annotations" in done.stderr
    (runs / "first" / "frames.csv").unlink()
    done = call("study", truth, runs, "--output", tmp_path / "study", check=False)
    assert "frames.csv: cannot be read as a table of frames" in done.stderr
