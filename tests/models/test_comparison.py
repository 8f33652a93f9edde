"""`compare`: two models on the same pictures, with true masks and without."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from polypstream.models.comparison import (
    Compared,
    Comparison,
    Picture,
    pictures_of_recording,
    summarise_agreement,
    summarise_comparison,
)
from polypstream.models.evaluation import Counts, Result, load_model
from polypstream.models.tiles import SAMPLE_SIDE
from polypstream.stages.findings import Rules
from tests.conftest import Clip, call, make_clip, make_red_model
from tests.models.test_data import make_data


def result(dice: float, share: float = 0.1, findings: int = 1, seconds: float = 0.01) -> Result:
    """With this Dice, and with one false finding in a healthy picture."""
    tp = round(1000 * dice)
    counts = Counts(tp=tp, fp=1000 - tp, fn=1000 - tp, tn=0)
    return Result(counts, share, findings, findings if share == 0 else 0, np.zeros((2, 256), int), seconds)


def test_figures_by_hand() -> None:
    compared = [
        Compared(result(0.5, 0.01), result(0.7, 0.01), 0.6),
        Compared(result(0.8, 0.3), result(0.8, 0.3, seconds=0.03), 1.0),
        Compared(result(0, 0, findings=2), result(0, 0, findings=0, seconds=0.03), 0.0),
    ]
    figures = summarise_comparison(compared, with_truth=True)
    assert (figures["mean_dice"].a, figures["mean_dice"].b) == pytest.approx((1.3 / 3, 1.5 / 3))
    assert figures["mean_dice"].difference == pytest.approx(0.2 / 3)
    assert figures["dice_of_small_polyps"].images == 1
    assert figures["dice_of_small_polyps"].difference == pytest.approx(0.2)
    assert figures["dice_of_large_polyps"].difference == 0
    assert "dice_of_medium_polyps" not in figures
    healthy = figures["healthy_with_finding"]
    assert (healthy.images, healthy.a, healthy.b, healthy.difference) == (1, 1, 0, -1)
    assert figures["false_findings_per_image"].a == pytest.approx(2 / 3)
    speed = figures["milliseconds_per_image"]
    assert (speed.a, speed.b, speed.difference, speed.difference_95) == (10, 30, 20, None)

    agreement = summarise_agreement(compared)
    assert agreement["mean_dice_between_models"] == pytest.approx(1.6 / 3)
    assert [agreement[key] for key in ("both_find", "only_a_finds", "only_b_finds", "none_finds")] == [2, 1, 0, 0]
    assert set(summarise_comparison(compared, with_truth=False)) == {
        *("images_with_finding", "findings_per_image", "milliseconds_per_image")
    }


def test_the_interval_is_that_of_pairs() -> None:
    """Pictures differ much, the models by the same amount in each: the difference is certain."""
    random = np.random.default_rng(0)
    levels = random.uniform(0.1, 0.8, 50).round(3)
    compared = [Compared(result(level), result(level + 0.1), 1.0) for level in levels]
    low, high = summarise_comparison(compared, with_truth=True)["mean_dice"].difference_95 or (0, 0)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


def test_the_most_different_pictures_come_first(tmp_path: Path, red_model: Path) -> None:
    """B needs more red than A. Only the pale disc divides them."""

    def picture(name: str, red: int) -> Picture:
        image = np.full((128, 128, 3), 90, np.uint8)
        cv2.circle(image, (64, 64), 30, (red, 30, 30), -1)
        return Picture(name, image, None)

    model = load_model(str(red_model), "cpu")
    comparison = Comparison((model, Rules(0.3)), (model, Rules(0.9)))
    comparison.run([picture("clear", 250), picture("pale", 120), picture("none", 30)])
    assert [each.agreement for each in comparison.compared] == pytest.approx([1, 0, 1], abs=0.1)
    comparison.draw(tmp_path / "new" / "d.png")
    drawn = cv2.imread(str(tmp_path / "new" / "d.png"))
    assert drawn.shape[1] == 3 * SAMPLE_SIDE
    first_row = drawn[28 : 28 + SAMPLE_SIDE]
    middle = SAMPLE_SIDE // 2
    assert [int(first_row[middle, middle + column * SAMPLE_SIDE, 0]) for column in (1, 2)] == [255, 0]


def test_each_nth_frame_of_a_recording(tmp_path: Path) -> None:
    clip = make_clip(tmp_path, Clip(frames=25))
    pictures = list(pictures_of_recording(str(clip), 10))
    assert [picture.name for picture in pictures] == ["frame 0", "frame 10", "frame 20"]
    assert pictures[0].image.shape == (240, 320, 3)


@pytest.mark.slow
def test_the_command(tmp_path: Path, red_model: Path) -> None:
    stricter = make_red_model(tmp_path / "stricter.onnx", threshold="0.95", peak="0.99")
    data = make_data(tmp_path / "d", size=(320, 200))
    report, folder = tmp_path / "r.json", tmp_path / "out"
    done = call("compare", red_model, stricter, data, "--json", report, "--output", folder, "--provider", "cpu")
    figures = json.loads(report.read_text())
    dice = figures["figures"]["mean_dice"]
    assert dice["a"] > 0.9
    assert dice["difference"] == pytest.approx(dice["b"] - dice["a"])
    assert dice["difference_95"][0] <= dice["difference"] <= dice["difference_95"][1]
    assert f"{dice['a']:9.4f}{dice['b']:9.4f}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80 or str(tmp_path) in done.stdout
    assert cv2.imread(str(folder / "differences.png")).shape == (28 + 6 * SAMPLE_SIDE, 4 * SAMPLE_SIDE, 3)

    clip = make_clip(tmp_path, Clip())
    done = call("compare", red_model, red_model, clip, "--json", report, "--every", 5, "--provider", "cpu")
    agreement = json.loads(report.read_text())["agreement"]
    assert (agreement["images"], agreement["both_find"], agreement["none_finds"]) == (6, 4, 2)
    assert agreement["mean_dice_between_models"] == 1

    wrong = call("compare", red_model, red_model, clip, "--names", report, check=False)
    assert "--names: " in wrong.stderr
    wrong = call("compare", red_model, red_model, tmp_path / "no.mp4", check=False)
    assert wrong.returncode == 1
