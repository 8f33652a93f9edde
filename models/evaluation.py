"""Measure a model against masks. Needs torch only if the model is a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from models.data import Pair, read_pair, shrink, view_of
from stream.errors import OutputError
from stream.segment import Segmenter
from stream.view import FieldOfView, region_above

BOOTSTRAP_SAMPLES = 2000
SAMPLE_SIDE = 224


@dataclass(frozen=True, slots=True)
class Model:
    """Anything that turns pictures into probability maps.

    Attributes:
        size: side in pixels of the pictures it takes.
        threshold: probability from which a pixel counts as polyp.
        segment: uint8 RGB [size, size, 3] pictures -> uint8 [size, size] maps, 255 meaning 1.
    """

    size: int
    threshold: float
    segment: Callable[[list[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixels of each kind in one picture."""

    hit: int
    false_alarm: int
    miss: int
    quiet: int

    @property
    def dice(self) -> float:
        """1 where both masks are empty."""
        total = 2 * self.hit + self.false_alarm + self.miss
        return 2 * self.hit / total if total else 1.0

    @property
    def iou(self) -> float:
        """1 where both masks are empty."""
        total = self.hit + self.false_alarm + self.miss
        return self.hit / total if total else 1.0


def load_model(path: Path, provider: str = "auto") -> Model:
    """A checkpoint, whose name ends in .pt or .pth, or an ONNX model.

    Raises:
        ModelError: it is neither.
    """
    if path.suffix not in (".pt", ".pth"):
        segmenter = Segmenter(path, provider)
        return Model(segmenter.size, segmenter.card.threshold, segmenter.segment)
    import torch

    from models.checkpoint import load_checkpoint
    from models.picture_net import PictureNet

    network, card = load_checkpoint(path)
    net = PictureNet(network).eval()

    def segment(pictures: list[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            return list(net(torch.from_numpy(np.stack(pictures))).numpy())

    return Model(card["size"], card["threshold"], segment)


def predict(model: Model, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, FieldOfView]:
    """What the running program would find in one picture.

    Args:
        model: the model.
        picture: uint8 RGB [H, W, 3].

    Returns:
        The mask, uint8 [H, W] of 0 and 255; the probability map at the network's size; the field of view.
    """
    view = view_of(picture)
    probability = model.segment([shrink(view.crop(picture), model.size)])[0]
    mask = np.zeros(picture.shape[:2], np.uint8)
    region = region_above(probability, view, model.threshold)
    if region is not None:
        mask[region.slices] = region.mask
    return mask, probability, view


def evaluate(model: Model, pairs: Sequence[Pair], poll: Callable[[int, int], None] = lambda *_: None) -> list[Counts]:
    """Compare the model's masks with the true ones at each picture's own size."""
    counts = []
    for done, pair in enumerate(pairs, 1):
        picture, truth = read_pair(pair)
        counts.append(compare(predict(model, picture)[0], truth))
        poll(done, len(pairs))
    return counts


def compare(mask: np.ndarray, truth: np.ndarray) -> Counts:
    """Count the pixels of two uint8 masks [H, W] of 0 and 255."""
    hit = cv2.countNonZero(cv2.bitwise_and(mask, truth))
    found, real = cv2.countNonZero(mask), cv2.countNonZero(truth)
    return Counts(hit, found - hit, real - hit, mask.size - found - real + hit)


def summarise(counts: Sequence[Counts]) -> dict[str, float | int | list[float]]:
    """Mean per-image Dice and IoU with bootstrap 95 % intervals, and pooled pixel figures.

    The intervals are percentiles over 2000 resamples of the pictures (Efron and Tibshirani, 1993), seeded.
    """
    hit, false_alarm, miss, quiet = (
        sum(getattr(each, kind) for each in counts) for kind in ("hit", "false_alarm", "miss", "quiet")
    )
    dice, iou = np.array([each.dice for each in counts]), np.array([each.iou for each in counts])
    return {
        "images": len(counts),
        "mean_dice": float(dice.mean()),
        "mean_dice_95": _interval(dice),
        "mean_iou": float(iou.mean()),
        "mean_iou_95": _interval(iou),
        "pixel_accuracy": (hit + quiet) / (hit + false_alarm + miss + quiet),
        "pixel_precision": hit / max(1, hit + false_alarm),
        "pixel_recall": hit / max(1, hit + miss),
        "pixel_f1": 2 * hit / max(1, 2 * hit + false_alarm + miss),
    }


def _interval(values: np.ndarray) -> list[float]:
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))].mean(axis=1)
    return [float(edge) for edge in np.percentile(means, [2.5, 97.5])]


def draw_samples(model: Model, pairs: Sequence[Pair], path: Path) -> None:
    """A PNG with a row per picture: input, heat map, probability, predicted mask, ground truth.

    Raises:
        OutputError: it cannot be written.
    """
    titles = ("input", "heat map", "probability", "predicted mask", "ground truth")
    rows = [np.hstack([_title(text) for text in titles])]
    for pair in pairs:
        picture, truth = read_pair(pair)
        mask, probability, view = predict(model, picture)
        full = np.zeros(truth.shape, np.uint8)
        view.crop(full)[:] = cv2.resize(probability, (view.width, view.height), interpolation=cv2.INTER_LINEAR)
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        heat = cv2.addWeighted(bgr, 0.5, cv2.applyColorMap(full, cv2.COLORMAP_TURBO), 0.5, 0)
        grey = [cv2.cvtColor(each, cv2.COLOR_GRAY2BGR) for each in (full, mask, truth)]
        rows.append(np.hstack([shrink(tile, SAMPLE_SIDE) for tile in (bgr, heat, *grey)]))
    _, packed = cv2.imencode(".png", np.vstack(rows))
    write_output(path, packed.tobytes())


def write_output(path: Path, content: bytes) -> None:
    """Write a result, making its folder.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def _title(text: str) -> np.ndarray:
    strip = np.full((28, SAMPLE_SIDE, 3), 32, np.uint8)
    cv2.putText(strip, text, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return strip
