"""The figures of `evaluate`, against torchmetrics and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score, BinaryPrecision, BinaryRecall

from models.data import find_pairs
from models.evaluation import compare, evaluate, load_model, summarise
from tests.conftest import call
from tests.models.test_data import make_data

KEYS = ["images", "mean_dice", "mean_iou", "pixel_accuracy", "pixel_precision", "pixel_recall", "pixel_f1"]


def test_pooled_figures_equal_torchmetrics() -> None:
    random = np.random.default_rng(1)
    masks = [(random.random((20, 30)) > share).astype(np.uint8) * 255 for share in (0.2, 0.5, 0.9)]
    truths = [(random.random((20, 30)) > share).astype(np.uint8) * 255 for share in (0.3, 0.6, 0.8)]
    figures = summarise([compare(mask, truth) for mask, truth in zip(masks, truths, strict=True)])
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
    counts = [compare(full, half), compare(nothing, nothing), compare(half, nothing)]
    figures = summarise(counts)
    assert figures["images"] == 3
    assert figures["mean_dice"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures["mean_iou"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_intervals_hold_the_mean_and_narrow_with_more_pictures() -> None:
    random = np.random.default_rng(2)

    def width(count: int) -> float:
        counts = [
            compare((random.random((9, 9)) > 0.4).astype(np.uint8) * 255, np.full((9, 9), 255, np.uint8))
            for _ in range(count)
        ]
        figures = summarise(counts)
        low, high = figures["mean_dice_95"]  # type: ignore[misc]
        assert low < figures["mean_dice"] < high  # type: ignore[operator]
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


def test_names_choose_the_pictures(tmp_path: Path, red_model: Path) -> None:
    data = make_data(tmp_path / "d")
    names = tmp_path / "names.txt"
    names.write_text("p1\np4\n")
    report = tmp_path / "r.json"
    call("evaluate", red_model, data, "--names", names, "--json", report)
    assert json.loads(report.read_text())["images"] == 2


def test_the_shipped_weights_do_what_they_say(real_data: Path) -> None:
    """On a dozen of the 120 test pictures; the full figure stands in the model's metadata."""
    from stream.model import shipped_weights

    kvasir = real_data / "kvasir-seg"
    pairs = find_pairs(kvasir, kvasir / "test.txt")[::10]
    assert summarise(evaluate(load_model(shipped_weights()), pairs))["mean_dice"] > 0.75  # type: ignore[operator]
