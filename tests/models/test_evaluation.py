"""The figures of `evaluate`, against torchmetrics and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score, BinaryPrecision, BinaryRecall

from polypstream.core.config import Settings
from polypstream.core.statistics import calibration_error, reliability
from polypstream.models.data import find_pairs
from polypstream.models.evaluation import (
    Result,
    compare,
    count_findings,
    difference,
    evaluate,
    load_model,
    summarise,
    summarise_healthy,
)
from polypstream.stages.findings import choose_rules
from tests.conftest import call, make_red_model
from tests.models.test_data import make_data

KEYS = ["images", "mean_dice", "mean_iou", "pixel_accuracy", "pixel_precision", "pixel_recall", "pixel_f1"]


def result_of(mask: np.ndarray, truth: np.ndarray) -> Result:
    """The result of a picture whose probability is 0 or 1, as its mask is."""
    levels = np.stack([np.bincount(mask[(truth > 0) == polyp], minlength=256) for polyp in (False, True)])
    return Result(compare(mask, truth), (truth > 0).mean(), *count_findings(mask, truth), levels, 0.01)


def test_pooled_figures_equal_torchmetrics() -> None:
    random = np.random.default_rng(1)
    masks = [(random.random((20, 30)) > share).astype(np.uint8) * 255 for share in (0.2, 0.5, 0.9)]
    truths = [(random.random((20, 30)) > share).astype(np.uint8) * 255 for share in (0.3, 0.6, 0.8)]
    figures = summarise([result_of(mask, truth) for mask, truth in zip(masks, truths, strict=True)])
    found, real = (torch.from_numpy(np.stack(part) > 0).int() for part in (masks, truths))
    for name, metric in {
        "pixel_accuracy": BinaryAccuracy(),
        "pixel_precision": BinaryPrecision(),
        "pixel_recall": BinaryRecall(),
        "pixel_f1": BinaryF1Score(),
    }.items():
        assert figures[name] == pytest.approx(metric(found, real).item(), abs=1e-6)


def test_dice_and_iou_are_means_over_pictures() -> None:
    full, half, nothing = np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    half[:2] = 255
    figures = summarise([result_of(full, half), result_of(nothing, nothing), result_of(half, nothing)])
    assert figures["images"] == 3
    assert figures["mean_dice"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures["mean_iou"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_intervals_hold_the_mean_and_narrow_with_more_pictures() -> None:
    random = np.random.default_rng(2)

    def width(count: int) -> float:
        counts = [
            result_of((random.random((9, 9)) > 0.4).astype(np.uint8) * 255, np.full((9, 9), 255, np.uint8))
            for _ in range(count)
        ]
        figures = summarise(counts)
        low, high = figures["mean_dice_95"]
        assert low < figures["mean_dice"] < high
        return high - low

    assert width(400) < width(20) / 2


def test_a_model_that_sees_red_scores_on_red_discs(tmp_path: Path, red_model: Path) -> None:
    data = make_data(tmp_path / "d", size=(320, 200))
    report, samples = tmp_path / "r.json", tmp_path / "s.png"
    done = call("evaluate", red_model, data, "--json", report, "--samples", samples, "--provider", "cpu")
    figures = json.loads(report.read_text())
    assert set(KEYS) <= set(figures)
    assert figures["images"] == 6
    assert figures["mean_dice"] > 0.9
    assert f"{figures['mean_dice']:.4f}" in done.stdout
    assert cv2.imread(str(samples)).shape[1] == 5 * 224


def test_two_models_stand_side_by_side(tmp_path: Path, red_model: Path) -> None:
    data, report = make_data(tmp_path / "d"), tmp_path / "r.json"
    coarse = make_red_model(tmp_path / "coarse.onnx", 16)
    done = call("evaluate", red_model, data, "--against", coarse, "--json", report, "--provider", "cpu")
    figures = json.loads(report.read_text())
    better = figures["mean_dice"] - figures["against"]["mean_dice"]
    assert better > 0.02
    assert figures["difference"]["mean_dice"] == pytest.approx(better)
    lines = done.stdout.splitlines()
    assert [Path(title).name for title in lines[0].split()] == ["red.onnx", "coarse.onnx"]
    (row,) = (line for line in lines if line.startswith("mean dice"))
    assert row.split()[2:] == [f"{each['mean_dice']:.4f}" for each in (figures, figures["against"])]
    assert max(map(len, lines)) <= 80


def test_the_difference_of_two_models_is_paired() -> None:
    full, half, nothing = np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    half[:2] = 255
    truths = [half, full, nothing, nothing]
    results = [result_of(mask, truth) for mask, truth in zip([half, full, nothing, nothing], truths, strict=True)]
    others = [result_of(mask, truth) for mask, truth in zip([full, half, half, nothing], truths, strict=True)]
    figures = difference(results, others)
    assert figures["mean_dice"] == pytest.approx((1 / 3 + 1 / 3 + 1 + 0) / 4)
    assert figures["healthy_with_finding"] == -0.5
    assert difference(results, results)["mean_dice_95"] == [0, 0]


def test_names_choose_the_pictures(tmp_path: Path, red_model: Path) -> None:
    data = make_data(tmp_path / "d")
    names = tmp_path / "names.txt"
    names.write_text("p1\np4\n")
    report = tmp_path / "r.json"
    call("evaluate", red_model, data, "--names", names, "--json", report)
    assert json.loads(report.read_text())["images"] == 2


def test_false_alarms_and_sizes_are_counted() -> None:
    def picture(*discs: tuple[int, int, int]) -> np.ndarray:
        mask = np.zeros((100, 100), np.uint8)
        for x, y, radius in discs:
            cv2.circle(mask, (x, y), radius, 255, -1)
        return mask

    small, large = (20, 20, 8), (60, 60, 30)
    results = [
        result_of(picture(small, (80, 80, 5)), picture(small)),  # found, and one finding beside it
        result_of(picture(), picture(large)),  # missed
        result_of(picture((30, 30, 5), (70, 70, 5)), picture()),  # healthy, two findings
        result_of(picture(), picture()),  # healthy, quiet
    ]
    figures = summarise(results)
    assert figures["false_findings_per_image"] == pytest.approx(3 / 4)
    assert figures["small_polyps"]["images"] == 1
    assert figures["small_polyps"]["mean_dice"] > 0.8
    assert figures["large_polyps"] == {"images": 1, "mean_dice": 0}
    assert "medium_polyps" not in figures
    healthy = figures["healthy_images"]
    assert (healthy["images"], healthy["with_finding"], healthy["findings_per_image"]) == (2, 0.5, 1.0)
    assert healthy == summarise_healthy([2, 0])


def test_calibration_by_hand_and_of_a_fair_model() -> None:
    levels = np.zeros((2, 256), np.int64)
    levels[0, 51], levels[1, 51] = 30, 70  # says 0.2, is 0.7
    assert reliability(levels) == [{"probability": pytest.approx(0.2), "polyp": 0.7, "pixels": 100}]
    levels[0, 255] = 100  # says 1, is 0
    assert calibration_error(reliability(levels)) == pytest.approx((0.5 + 1.0) / 2)
    grey = np.random.default_rng(3).integers(0, 256, 200_000)
    polyp = np.random.default_rng(4).random(200_000) < grey / 255
    fair = np.stack([np.bincount(grey[~polyp], minlength=256), np.bincount(grey[polyp], minlength=256)])
    assert calibration_error(reliability(fair)) < 0.01


@pytest.mark.slow
def test_healthy_pictures_crops_and_calibration_are_reported(tmp_path: Path, red_model: Path) -> None:
    data = make_data(tmp_path / "d", size=(320, 200))
    for part in ("images", "masks"):
        shape = (200, 320, 3) if part == "images" else (200, 320)
        cv2.imwrite(str(data / part / "healthy.png"), np.full(shape, 90 if part == "images" else 0, np.uint8))
    report, curve = tmp_path / "r.json", tmp_path / "c.png"
    done = call("evaluate", red_model, data, "--json", report, "--reliability", curve, "--healthy-crops")
    figures = json.loads(report.read_text())
    assert figures["healthy_images"]["with_finding"] == 0
    assert figures["all_healthy_crops"]["images"] > 7
    assert figures["all_healthy_crops"]["with_finding"] == 0
    assert figures["calibration_error"] < 0.05
    assert figures["gmac"] == 0.001
    assert figures["milliseconds_per_image"] > 0
    assert "healthy images" in done.stdout
    assert cv2.imread(str(curve)).std() > 10
    done = call("evaluate", red_model, data, "--set", "inference.threads=1", check=False)
    assert "only the settings of `findings`" in done.stderr
    # Under a rule that nothing can meet there are no findings, and every polyp is missed.
    call("evaluate", red_model, data, "--json", report, "--set", "findings.smallest=0.9")
    assert json.loads(report.read_text())["mean_dice"] == pytest.approx(1 / 7)


def test_the_shipped_weights_do_what_they_say(real_data: Path) -> None:
    """On a dozen of the 120 test pictures; the full figure stands in the model's metadata."""

    kvasir = real_data / "kvasir-seg"
    pairs = find_pairs(kvasir, kvasir / "test.txt")[::10]
    model = load_model("shipped")
    rules = choose_rules(Settings().findings, model.threshold, model.peak)
    assert summarise(evaluate(model, rules, pairs))["mean_dice"] > 0.75
