"""The diagrams of training and evaluation: training curves, sample images, reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from polypstream.core.files import write_output
from polypstream.core.statistics import reliability
from polypstream.jobs.image import resize_for_model
from polypstream.models.data import Pair, read_pair
from polypstream.models.evaluation import Model, predict
from polypstream.models.tiles import SAMPLE_SIDE, draw_title, write_tiles
from polypstream.stages.findings import Rules


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """Draw loss, pixel accuracy and pixel F1 of training and validation over the epochs, as a PNG.

    Args:
        history: for each epoch the row of history.csv.
        path: of the PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, (quantity, title) in zip(
        figure.subplots(1, 3), (("loss", "Loss"), ("accuracy", "Pixel accuracy"), ("f1", "Pixel F1")), strict=True
    ):
        for part in ("train", "validation"):
            axes.plot(epochs, [row[f"{part}_{quantity}"] for row in history], label=part)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    _write(figure, path)


def draw_reliability(histogram: np.ndarray, path: Path) -> None:
    """Draw a reliability diagram as a PNG: the fraction of polyp pixels over the probability (Guo et al., ICML 2017).

    Args:
        histogram: int [2, 256], pixels by truth and by grey level of the probability; see evaluation.Result.
        path: of the PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    bins = reliability(histogram)
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    axes.plot([each["probability"] for each in bins], [each["polyp"] for each in bins], marker="o", label="model")
    axes.set(xlabel="probability", ylabel="fraction of pixels that are polyp", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    _write(figure, path)


def draw_samples(model: Model, rules: Rules, pairs: Sequence[Pair], path: Path) -> None:
    """Draw a PNG with one row per image: input, heat map, probability, predicted mask, ground truth.

    Args:
        model: the model.
        rules: what counts as a finding.
        pairs: the images and their true masks.
        path: of the PNG.

    Raises:
        DataError: an image or a mask cannot be read.
        OutputError: the file cannot be written.
    """
    titles = ("input", "heat map", "probability", "predicted mask", "ground truth")
    rows = [np.hstack([draw_title(text) for text in titles])]
    for pair in pairs:
        image, truth = read_pair(pair)
        mask, probability, view = predict(model, rules, image)
        full = np.zeros(truth.shape, np.uint8)
        view.crop(full)[:] = cv2.resize(probability, (view.width, view.height), interpolation=cv2.INTER_LINEAR)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        heat = cv2.addWeighted(bgr, 0.5, cv2.applyColorMap(full, cv2.COLORMAP_TURBO), 0.5, 0)
        grey = [cv2.cvtColor(each, cv2.COLOR_GRAY2BGR) for each in (full, mask, truth)]
        rows.append(np.hstack([resize_for_model(tile, SAMPLE_SIDE) for tile in (bgr, heat, *grey)]))
    write_tiles(rows, path)


def _write(figure: Figure, path: Path) -> None:
    packed = BytesIO()
    figure.savefig(packed, format="png", dpi=110)
    write_output(path, packed.getvalue())
