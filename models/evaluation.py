"""Compare a model's findings with true masks. It needs torch only if the model is a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from polypstream.core.geometry import FieldOfView
from polypstream.core.statistics import SIZES, calibration_error, interval_of_mean, reliability
from polypstream.inference.model_card import FLOAT, SHIPPED, model_file, shipped_for_cpus
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import findings_mask, prepare_image, resize_for_model
from polypstream.models.data import Pair, healthy_crops, read_pair
from polypstream.stages.findings import Rules

if TYPE_CHECKING:
    from polypstream.models.sa_unet import SAUNet

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that computes probability maps, from a checkpoint or an ONNX file.

    Attributes:
        size: side in pixels of its input.
        threshold: probability from which a pixel counts as polyp, 0..1.
        peak: probability that a finding must reach at one pixel or more, 0..1.
        gmac: billions of multiply-accumulate operations per image.
        runs_on: "torch", or the execution provider of ONNX Runtime.
        segment: computes uint8 RGB images [size, size, 3] -> uint8 probability maps [size, size], 255 meaning 1.
    """

    size: int
    threshold: float
    peak: float
    gmac: float
    runs_on: str
    segment: Callable[[list[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Counts:
    """The confusion matrix of one image, in pixels.

    Attributes:
        tp: true positives.
        fp: false positives.
        fn: false negatives.
        tn: true negatives.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> float:
        """Dice coefficient; 1 if both masks are empty."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else 1.0

    @property
    def iou(self) -> float:
        """Intersection over union; 1 if both masks are empty."""
        total = self.tp + self.fp + self.fn
        return self.tp / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """The comparison of one image's findings with its true mask.

    Attributes:
        counts: pixels, at the original size of the image.
        polyp_share: fraction of the field of view that the true mask covers.
        findings: number of findings.
        false_findings: number of findings that do not touch a polyp.
        histogram: int [2, 256], number of pixels of the probability map. The first index is the truth (1: polyp), the
            second one the probability in grey levels.
        seconds: time that the model needed.
    """

    counts: Counts
    polyp_share: float
    findings: int
    false_findings: int
    histogram: np.ndarray
    seconds: float


def load_model(name: str, provider: str = "auto") -> Model:
    """Load a model from a checkpoint or an ONNX file.

    Args:
        name: a checkpoint if the file name ends in .pt or .pth, otherwise an ONNX file or a name of shipped weights.
            "shipped" are the floating-point weights with each provider.
        provider: execution provider of an ONNX file, as for Segmenter.

    Raises:
        ModelError: the file is neither.
        ProviderError: the provider cannot be used on this machine.
    """
    path = model_file(name)
    if not is_checkpoint(path):
        on_cpu = shipped_for_cpus(FLOAT if name == SHIPPED else name)
        segmenter = Segmenter(path, provider, on_cpu=on_cpu)
        card = segmenter.card
        return Model(segmenter.size, card.threshold, card.peak, card.gmac, segmenter.provider, segmenter.segment)
    from polypstream.models.checkpoint import load_checkpoint

    network, content = load_checkpoint(path)
    return model_of(network, content["size"], content["views"], content["threshold"], content["peak"])


def is_checkpoint(path: Path) -> bool:
    """Whether a model file is a checkpoint, by its name; if not, it is an ONNX file."""
    return path.suffix in (".pt", ".pth")


def model_of(network: SAUNet, size: int, views: int, threshold: float, peak: float) -> Model:
    """Return a Model that computes with torch.

    Args:
        network: the trained model.
        size: side in pixels of its input.
        views: how often it looks at each image, 1 or 2; see PictureNet.
        threshold, peak: as in Model.
    """
    import torch

    from polypstream.models.picture_net import PictureNet, gmac_of

    net = PictureNet(network, views).eval()

    def segment(images: list[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            return list(net(torch.from_numpy(np.stack(images))).numpy())

    return Model(size, threshold, peak, gmac_of(network, size, views), "torch", segment)


def predict(model: Model, rules: Rules, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, FieldOfView]:
    """Compute the findings in one image, with the same steps as the other commands.

    Args:
        model: the model.
        rules: what counts as a finding.
        image: uint8 RGB [H, W, 3].

    Returns:
        The mask of the findings, uint8 [H, W] of 0 and 255; the probability map, uint8 [size, size]; the field of view.
    """
    view, shown = prepare_image(image, model.size)
    probability = model.segment([shown])[0]
    return findings_mask(probability, view, rules, image.shape[:2]), probability, view


def evaluate(
    model: Model, rules: Rules, pairs: Sequence[Pair], on_progress: OnProgress = lambda *_: None
) -> list[Result]:
    """Compare the model's findings with the true masks, at the original size of each image.

    Args:
        model: the model.
        rules: what counts as a finding.
        pairs: the images and their true masks.
        on_progress: called after each image with the number of processed images and of all images.

    Returns:
        One result per image, in the order of the pairs.

    Raises:
        DataError: an image or a mask cannot be read.
    """
    results = []
    for done, pair in enumerate(pairs, 1):
        results.append(evaluate_image(model, rules, *read_pair(pair))[0])
        on_progress(done, len(pairs))
    return results


def evaluate_image(model: Model, rules: Rules, image: np.ndarray, truth: np.ndarray) -> tuple[Result, np.ndarray]:
    """Compare the model's findings in one image with the true mask, at the original size of the image.

    Args:
        model: the model.
        rules: what counts as a finding.
        image: uint8 RGB [H, W, 3].
        truth: uint8 [H, W] of 0 and 255, the polyps.

    Returns:
        The result, and the mask of the findings, uint8 [H, W] of 0 and 255.
    """
    view, shown = prepare_image(image, model.size)
    started = time.perf_counter()
    probability = model.segment([shown])[0]
    seconds = time.perf_counter() - started
    mask = findings_mask(probability, view, rules, truth.shape)
    seen_truth = view.crop(truth)
    small_truth = resize_for_model(seen_truth, model.size) > 127
    histogram = np.stack([np.bincount(probability[small_truth == polyp], minlength=256) for polyp in (False, True)])
    share = cv2.countNonZero(seen_truth) / seen_truth.size
    return Result(compare(mask, truth), share, *count_findings(mask, truth), histogram, seconds), mask


def evaluate_healthy_crops(
    model: Model, rules: Rules, pairs: Sequence[Pair], on_progress: OnProgress = lambda *_: None
) -> dict[float, list[int]]:
    """Count the findings in crops without a polyp.

    Each crop is processed like a separate image; its own field of view is detected.

    Args:
        model, rules, pairs, on_progress: as for evaluate.

    Returns:
        For each side of the crops, as a fraction of the shorter side of the field of view, the number of findings in
        each crop.
    """
    found: dict[float, list[int]] = {}
    for done, pair in enumerate(pairs, 1):
        for fraction, crop in healthy_crops(*read_pair(pair)):
            mask, _, _ = predict(model, rules, crop)
            found.setdefault(fraction, []).append(count_findings(mask, np.zeros_like(mask))[0])
        on_progress(done, len(pairs))
    return found


def compare(mask: np.ndarray, truth: np.ndarray) -> Counts:
    """Compare two masks pixel by pixel.

    Args:
        mask: uint8 [H, W] of 0 and 255, the findings.
        truth: uint8 [H, W] of 0 and 255, the polyps.
    """
    tp = cv2.countNonZero(cv2.bitwise_and(mask, truth))
    found, real = cv2.countNonZero(mask), cv2.countNonZero(truth)
    return Counts(tp=tp, fp=found - tp, fn=real - tp, tn=mask.size - found - real + tp)


def count_findings(mask: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Count the findings: 8-connected components of a mask.

    Args:
        mask: uint8 [H, W] of 0 and 255, the findings.
        truth: uint8 [H, W] of 0 and 255, the polyps.

    Returns:
        The number of components, and the number of those that do not touch a polyp.
    """
    count, labels = cv2.connectedComponents(mask)
    return count - 1, count - 1 - len(np.unique(labels[(truth > 0) & (mask > 0)]))


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Compute the figures over all images, plain values only, by name.

    They are mean Dice and IoU per image with 95 % bootstrap intervals, pooled pixel figures, false findings,
    calibration and speed. The intervals are percentiles over 2000 resamples of the images (Efron and Tibshirani, 1993),
    with a fixed seed. The expected calibration error is that of the probability of each pixel of the probability map,
    in bins of equal width (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    """
    counts = [result.counts for result in results]
    tp, fp, fn, tn = (sum(getattr(each, kind) for each in counts) for kind in ("tp", "fp", "fn", "tn"))
    dice, iou = np.array([each.dice for each in counts]), np.array([each.iou for each in counts])
    figures: dict[str, Any] = {
        "images": len(counts),
        "mean_dice": float(dice.mean()),
        "mean_dice_95": interval_of_mean(dice),
        "mean_iou": float(iou.mean()),
        "mean_iou_95": interval_of_mean(iou),
        "pixel_accuracy": (tp + tn) / (tp + fp + fn + tn),
        "pixel_precision": tp / max(1, tp + fp),
        "pixel_recall": tp / max(1, tp + fn),
        "pixel_f1": 2 * tp / max(1, 2 * tp + fp + fn),
        "false_findings_per_image": float(np.mean([result.false_findings for result in results])),
    }
    for name, of_this_size in by_size(results).items():
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


def by_size(results: Sequence[Result]) -> dict[str, np.ndarray]:
    """Find the images with small, medium and large polyps: for each name bool [n]."""
    shares = np.array([result.polyp_share for result in results])
    edges = (0.0, *SIZES, np.inf)
    return {
        name: (shares > 0) & (shares >= low) & (shares < high)
        for name, low, high in zip(("small", "medium", "large"), edges[:-1], edges[1:], strict=True)
    }


def difference(results: Sequence[Result], others: Sequence[Result]) -> dict[str, Any]:
    """Compute how much higher the figures of one model are than those of another one, on the same images.

    The intervals are those of the differences of single images. They are narrower than the two intervals of the models
    suggest, because both models find the same images difficult.

    Args:
        results: of the one model.
        others: of the other model, in the same order.
    """
    dice = np.array([each.counts.dice - other.counts.dice for each, other in zip(results, others, strict=True)])
    figures: dict[str, Any] = {"mean_dice": float(dice.mean()), "mean_dice_95": interval_of_mean(dice)}
    healthy = [
        float(each.findings > 0) - float(other.findings > 0)
        for each, other in zip(results, others, strict=True)
        if each.polyp_share == 0
    ]
    if healthy:
        figures |= {"healthy_with_finding": float(np.mean(healthy))}
        figures |= {"healthy_with_finding_95": interval_of_mean(np.array(healthy))}
    return figures


def summarise_healthy(findings: Sequence[int]) -> dict[str, Any]:
    """Compute the figures of healthy images: the fraction with a finding, and the findings per image.

    Args:
        findings: number of findings in each image.
    """
    with_finding = np.array(findings) > 0
    return {
        "images": len(findings),
        "with_finding": float(with_finding.mean()),
        "with_finding_95": interval_of_mean(with_finding),
        "findings_per_image": float(np.mean(findings)),
    }


def pooled_histogram(results: Sequence[Result]) -> np.ndarray:
    """Add up the histograms of all results: int [2, 256], see Result."""
    total: np.ndarray = np.sum([result.histogram for result in results], axis=0)
    return total
