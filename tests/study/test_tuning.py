"""`polypstream tune --false-alarms-per-minute`: settings for a wish."""

from __future__ import annotations

from pathlib import Path

import pytest

from polypstream.core.config import load_settings
from polypstream.errors import DataError
from polypstream.study.study import observe_runs
from polypstream.study.tuning import tune
from tests.conftest import call
from tests.jobs.test_score import write_video
from tests.study.hand_made import make_run, marks, squares


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A recording of 8 s with two polyps, and what is marked in it.

    - The polyps cover 6.5 % of the field of view. One is marked with probability 0.93, the other one with 0.62 in its
      first half and 0.5 in its second half.
    - Three false positives: one with 0.58, of the same size; one with 0.7 and one with 0.97, of 0.15 %.
    """
    (tmp_path / "truth").mkdir()
    pictures = squares({range(50): (1, 20, 20), range(100, 150): (2, 20, 20)}, 200)
    write_video(tmp_path / "truth" / "colon.mkv", pictures)
    shown = [
        *marks(range(50), 1, 0.93),
        *marks(range(100, 125), 2, 0.62),
        *marks(range(125, 150), 2, 0.5),
        *marks(range(60, 70), 3, 0.58),
    ]
    small = {"x": 70, "width": 3, "height": 3}
    shown += [*marks(range(80, 90), 4, 0.7, **small), *marks(range(160, 170), 5, 0.97, **small)]
    make_run(tmp_path / "runs" / "colon", 200, sorted(shown))
    return tmp_path / "truth", tmp_path / "runs"


@pytest.mark.parametrize(
    ("most", "peak", "events", "sensitivity"),
    [
        # The peak 0.5 keeps all marks on polyps. The smallest size leaves out two of three false positives, at no loss.
        (10, 0.5, 1, 1),
        # One event in 8 s is 7.5 per minute. The peak 0.6 leaves out a quarter of the marks on polyps, and the event.
        (5, 0.6, 0, 0.75),
    ],
)
def test_the_wish_decides(
    most: float, peak: float, events: int, sensitivity: float, folders: tuple[Path, Path]
) -> None:
    tuned = tune(observe_runs(folders[0], [folders[1]])[1], most, lowest=0.5)
    assert (tuned.choice.peak, tuned.choice.smallest) == (pytest.approx(peak), 0.002)
    assert tuned.false_positives_per_minute == pytest.approx(events * 7.5)
    assert (tuned.polyps_found, tuned.frame_sensitivity) == (1, sensitivity)


def test_a_steady_run_shows_findings_after_they_were_sure(folders: tuple[Path, Path]) -> None:
    """The second half of a polyp is 0.04 to 1 s after its first half, which was the last to reach the peak 0.6."""
    observations = observe_runs(folders[0], [folders[1]])[1]
    tuned = tune(observations, 10, steady=True)
    assert (tuned.choice.peak, tuned.frame_sensitivity) == (pytest.approx(0.6), 1)
    assert tuned.false_positives_per_minute == 0
    assert tune(observations, 10, lowest=0.7, steady=True).polyps_found == 0.5


@pytest.mark.slow
def test_the_command_writes_a_settings_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    truth, runs = folders
    file = tmp_path / "settings.yaml"
    done = call("tune", "--false-alarms-per-minute", 5, runs, "--truth", truth, "--output", file)
    assert "false positives per minute  0.0000" in done.stdout
    findings = load_settings(file, []).findings
    assert (findings.peak, findings.smallest) == (pytest.approx(0.6), 0.002)


def test_wishes_that_cannot_be_met_are_said(folders: tuple[Path, Path], tmp_path: Path) -> None:
    truth, runs = folders
    write_video(truth / "colon.mkv", squares({range(50): (1, 60, 3)}, 200))  # a polyp that nothing marks
    with pytest.raises(DataError, match="at most 1 false positives per minute; no polyp is found"):
        tune(observe_runs(truth, [runs])[1], 1)
    write_video(truth / "colon.mkv", squares({}, 200))
    with pytest.raises(DataError, match="has no polyp"):
        tune(observe_runs(truth, [runs])[1], 1)
    make_run(tmp_path / "other" / "colon", 200, [])
    with pytest.raises(DataError, match="runs and other: are two folders of results"):
        observe_runs(truth, [runs, tmp_path / "other"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--false-alarms-per-minute", "1"], "needs --truth and --output"),
        (["--truth", "t"], "need --false-alarms-per-minute"),
        ([], "name the folders that the checkpoint was trained on"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    done = call("tune", tmp_path, *options, check=False)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
