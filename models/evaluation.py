"""Measure a model against masks. Needs torch only if the model is a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from polypstream.core.geometry import FieldOfView
from polypstream.errors import OutputError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import findings_mask, prepare_image, resize_for_model
from polypstream.models.data import Pair, healthy_crops, read_pair
from polypstream.stages.findings import Rules

if TYPE_CHECKING:
    from polypstream.models.sa_unet import SAUNet

BOOTSTRAP_SAMPLES = 2000
# A picture's polyps are small below the first share of the field of view, large from the second on.
SIZES = (0.05, 0.2)
RELIABILITY_BINS = 15

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Model:
    """Anything that turns pictures into probability maps.

    Attributes:
        size: side in pixels of the pictures it takes.
        threshold: probability from which a pixel counts as polyp.
        peak: probability that a finding must reach somewhere.
        gmac: billions of multiplications and additions a picture.
        runs_on: what computes it.
        segment: uint8 RGB [size, size, 3] pictures -> uint8 [size, size] maps, 255 meaning 1.
    """

    size: int
    threshold: float
    peak: float
    gmac: float
    runs_on: str
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


@dataclass(frozen=True, slots=True)
class Result:
    """One picture's comparison with the truth.

    Attributes:
        counts: pixels, at the picture's own size.
        polyp_share: share of the field of view that is polyp in truth.
        findings: blobs found.
        false_findings: those that touch no polyp.
        histogram: int [2, 256], pixels of the network's map by truth (0: no polyp) and by grey level of probability.
        seconds: that the model took.
    """

    counts: Counts
    polyp_share: float
    findings: int
    false_findings: int
    histogram: np.ndarray
    seconds: float


def load_model(path: Path, provider: str = "auto") -> Model:
    """A checkpoint, whose name ends in .pt or .pth, or an ONNX model.

    Raises:
        ModelError: it is neither.
    """
    if path.suffix not in (".pt", ".pth"):
        segmenter = Segmenter(path, provider)
        card = segmenter.card
        return Model(segmenter.size, card.threshold, card.peak, card.gmac, segmenter.provider, segmenter.segment)
    from polypstream.models.checkpoint import load_checkpoint

    network, content = load_checkpoint(path)
    return model_of(network, content["size"], content["views"], content["threshold"], content["peak"])


def model_of(network: SAUNet, size: int, views: int, threshold: float, peak: float) -> Model:
    """A network in torch that looks at so many views of pictures of this side, in pixels."""
    import torch

    from polypstream.models.picture_net import PictureNet, gmac_of

    net = PictureNet(network, views).eval()

    def segment(pictures: list[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            return list(net(torch.from_numpy(np.stack(pictures))).numpy())

    return Model(size, threshold, peak, gmac_of(network, size, views), "torch", segment)


def predict(model: Model, rules: Rules, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, FieldOfView]:
    """What the running program would find in one picture.

    Args:
        model: the model.
        rules: what counts as a finding.
        picture: uint8 RGB [H, W, 3].

    Returns:
        The mask, uint8 [H, W] of 0 and 255; the probability map at the network's size; the field of view.
    """
    view, shown = prepare_image(picture, model.size)
    probability = model.segment([shown])[0]
    return findings_mask(probability, view, rules, picture.shape[:2]), probability, view


def evaluate(
    model: Model, rules: Rules, pairs: Sequence[Pair], on_progress: OnProgress = lambda *_: None
) -> list[Result]:
    """Compare the model's masks with the true ones at each picture's own size."""
    results = []
    for done, pair in enumerate(pairs, 1):
        picture, truth = read_pair(pair)
        view, shown = prepare_image(picture, model.size)
        started = time.perf_counter()
        probability = model.segment([shown])[0]
        seconds = time.perf_counter() - started
        mask = findings_mask(probability, view, rules, truth.shape)
        seen_truth = view.crop(truth)
        small_truth = resize_for_model(seen_truth, model.size) > 127
        histogram = np.stack([np.bincount(probability[small_truth == polyp], minlength=256) for polyp in (False, True)])
        share = cv2.countNonZero(seen_truth) / seen_truth.size
        results.append(Result(compare(mask, truth), share, *count_findings(mask, truth), histogram, seconds))
        on_progress(done, len(pairs))
    return results


def look_at_healthy_crops(
    model: Model, rules: Rules, pairs: Sequence[Pair], on_progress: OnProgress = lambda *_: None
) -> dict[float, list[int]]:
    """Findings in polyp-free parts of pictures, one list for each share of the view's short side.

    A part is looked at as a picture of its own, its field of view found as in any other.
    """
    found: dict[float, list[int]] = {}
    for done, pair in enumerate(pairs, 1):
        for share, crop in healthy_crops(*read_pair(pair)):
            mask, _, _ = predict(model, rules, crop)
            found.setdefault(share, []).append(count_findings(mask, np.zeros_like(mask))[0])
        on_progress(done, len(pairs))
    return found


def compare(mask: np.ndarray, truth: np.ndarray) -> Counts:
    """Count the pixels of two uint8 masks [H, W] of 0 and 255."""
    hit = cv2.countNonZero(cv2.bitwise_and(mask, truth))
    found, real = cv2.countNonZero(mask), cv2.countNonZero(truth)
    return Counts(hit, found - hit, real - hit, mask.size - found - real + hit)


def count_findings(mask: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """8-connected blobs of a mask, and those among them that touch no polyp."""
    count, labels = cv2.connectedComponents(mask)
    return count - 1, count - 1 - len(np.unique(labels[(truth > 0) & (mask > 0)]))


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Mean per-image Dice and IoU with bootstrap 95 % intervals, pooled pixel figures, false alarms, calibration.

    The intervals are percentiles over 2000 resamples of the pictures (Efron and Tibshirani, 1993), seeded. The
    expected calibration error is that of the polyp's probability, per pixel of the network's map, in bins of equal
    width (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    """
    counts = [result.counts for result in results]
    hit, false_alarm, miss, quiet = (
        sum(getattr(each, kind) for each in counts) for kind in ("hit", "false_alarm", "miss", "quiet")
    )
    dice, iou = np.array([each.dice for each in counts]), np.array([each.iou for each in counts])
    figures: dict[str, Any] = {
        "images": len(counts),
        "mean_dice": float(dice.mean()),
        "mean_dice_95": _interval(dice),
        "mean_iou": float(iou.mean()),
        "mean_iou_95": _interval(iou),
        "pixel_accuracy": (hit + quiet) / (hit + false_alarm + miss + quiet),
        "pixel_precision": hit / max(1, hit + false_alarm),
        "pixel_recall": hit / max(1, hit + miss),
        "pixel_f1": 2 * hit / max(1, 2 * hit + false_alarm + miss),
        "false_findings_per_image": float(np.mean([result.false_findings for result in results])),
    }
    shares = np.array([result.polyp_share for result in results])
    edges = (0.0, *SIZES, np.inf)
    for name, low, high in zip(("small", "medium", "large"), edges[:-1], edges[1:], strict=True):
        of_this_size = (shares > 0) & (shares >= low) & (shares < high)
        if of_this_size.any():
            mean = float(dice[of_this_size].mean())
            figures[f"{name}_polyps"] = {"images": int(of_this_size.sum()), "mean_dice": mean}
    healthy = [result.findings for result in results if result.polyp_share == 0]
    if healthy:
        figures["healthy_images"] = summarise_healthy(healthy)
    bins = reliability(pooled_histogram(results))
    figures["calibration_error"] = calibration_error(bins)
    figures["reliability"] = bins
    figures["milliseconds_per_image"] = 1000 * float(np.median([result.seconds for result in results]))
    return figures


def summarise_healthy(findings: Sequence[int]) -> dict[str, Any]:
    """The share of healthy pictures with any finding, and findings per picture."""
    alarms = np.array(findings) > 0
    return {
        "images": len(findings),
        "with_finding": float(alarms.mean()),
        "with_finding_95": _interval(alarms),
        "findings_per_image": float(np.mean(findings)),
    }


def pooled_histogram(results: Sequence[Result]) -> np.ndarray:
    """The sum of all results' histograms."""
    total: np.ndarray = np.sum([result.histogram for result in results], axis=0)
    return total


def reliability(histogram: np.ndarray) -> list[dict[str, float]]:
    """Bins of equal width of probability, without the empty ones: mean probability, share of polyp, pixels.

    Args:
        histogram: int [2, 256], see Result.
    """
    grey = np.arange(256)
    number = np.minimum(grey * RELIABILITY_BINS // 255, RELIABILITY_BINS - 1)
    bins = []
    for index in range(RELIABILITY_BINS):
        pixels = histogram[:, number == index].sum(axis=0)
        if pixels.sum():
            bins.append(
                {
                    "probability": float((pixels * grey[number == index]).sum() / pixels.sum() / 255),
                    "polyp": float(histogram[1, number == index].sum() / pixels.sum()),
                    "pixels": int(pixels.sum()),
                }
            )
    return bins


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Mean distance between probability and truth, weighed by pixels."""
    pixels = sum(each["pixels"] for each in bins)
    return sum(each["pixels"] * abs(each["probability"] - each["polyp"]) for each in bins) / pixels


def _interval(values: np.ndarray) -> list[float]:
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))].mean(axis=1)
    return [float(edge) for edge in np.percentile(means, [2.5, 97.5])]


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
