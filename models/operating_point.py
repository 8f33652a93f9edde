"""Calibrate a model and choose the peak that a finding must reach, on the validation split of its training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from polypstream.core.files import write_atomically
from polypstream.core.geometry import FieldOfView
from polypstream.errors import DataError, SettingsError
from polypstream.jobs.image import findings_mask, prepare_image, resize_for_model
from polypstream.models.checkpoint import VALIDATION_NAMES, load_checkpoint, pack, save_atomically
from polypstream.models.data import Pair, healthy_crops, named_pairs, read_pair
from polypstream.models.evaluation import Model, OnProgress, compare, load_model
from polypstream.models.picture_net import PictureNet, mean_of_views
from polypstream.models.sa_unet import check_size
from polypstream.stages.findings import Rules, find_region

PEAKS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
# At most this fraction of healthy images may have a finding, unless that costs more than this much mean Dice. A missed
# polyp among 150 images costs more.
MAX_FALSE_ALARMS, MAX_DICE_LOSS = 0.03, 0.005
# The temperatures that are tried, and the bin centres of the histogram of logits.
TEMPERATURES = np.geomspace(0.25, 16, 301)
LOGITS = np.linspace(-40, 40, 4001)


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """How the tuned model will run.

    Attributes:
        size: side in pixels of the model's input. None: as in the checkpoint.
        views: how often the model looks at each image, 1 or 2; see PictureNet. None: as in the checkpoint.
        smallest: fraction of the field of view that a finding must cover, 0..1; see Rules.
    """

    size: int | None = None
    views: int | None = None
    smallest: float = 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """The result of one peak on the validation split.

    Attributes:
        peak: probability that a finding must reach at one pixel or more, 0..1.
        mean_dice: over the images of the validation split.
        false_alarms: fraction of the healthy images and crops with a finding.
    """

    peak: float
    mean_dice: float
    false_alarms: float


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """The model's output for one image, and the true mask.

    Attributes:
        logits: float32 [views, size, size] of the field of view.
        small_truth: bool [size, size], the polyps in the field of view.
        view: the field of view.
        truth: uint8 [H, W] of 0 and 255, the polyps of the whole image.
    """

    logits: Tensor
    small_truth: np.ndarray
    view: FieldOfView
    truth: np.ndarray

    def map(self, temperature: float) -> np.ndarray:
        """Compute the probability map at a temperature: uint8 [size, size], 255 meaning 1."""
        logits = mean_of_views(self.logits[:, None] / temperature)[0].numpy()
        return np.rint(255 / (1 + np.exp(-logits))).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class MappedImage:
    """A probability map of one image, and the true mask.

    Attributes:
        probability: uint8 [size, size] of the field of view, 255 meaning 1.
        view: the field of view.
        truth: uint8 [H, W] of 0 and 255, the polyps of the whole image.
    """

    probability: np.ndarray
    view: FieldOfView
    truth: np.ndarray


def choose_operating_point(
    checkpoint: Path,
    data: Sequence[Path],
    settings: TuningSettings,
    report: Callable[[str], None],
    on_progress: OnProgress = lambda *_: None,
) -> Point:
    """Calibrate a model, evaluate each peak on the validation split and its healthy crops, and choose the best one.

    The checkpoint is rewritten with the calibrated weights, the size, the views and the peak.

    Args:
        checkpoint: of `polypstream train`.
        data: the folders that it was trained on.
        settings: how the model will run.
        report: called with one line of text for the temperature and for each peak.
        on_progress: called after each image with the number of processed images and of all images.

    Raises:
        DataError: the folders lack images of the validation split.
        SettingsError: the model cannot take images of this size.
        ModelError: the file is not a checkpoint.
        OutputError: the checkpoint cannot be written.
    """
    network, card = load_checkpoint(checkpoint)
    size, views = int(settings.size or card["size"]), int(settings.views or card["views"])
    check_size(network.architecture, size)
    net = PictureNet(network, views)
    pairs = _validation_pairs(data, card["training"].get(VALIDATION_NAMES, []))
    images, crops = [], []
    for done, pair in enumerate(pairs, 1):
        image, truth = read_pair(pair)
        images.append(_score(net, size, image, truth))
        for _, crop in healthy_crops(image, truth):
            crops.append(_score(net, size, crop, np.zeros(crop.shape[:2], np.uint8)))
        on_progress(done, len(pairs))
    temperature = find_temperature([(scored.logits.mean(0).numpy(), scored.small_truth) for scored in images + crops])
    report(f"temperature {temperature:.2f}")
    network.divide_logits(temperature)
    maps, healthy = (
        [MappedImage(scored.map(temperature), scored.view, scored.truth) for scored in part] for part in (images, crops)
    )
    chosen = _best(maps, healthy, card["threshold"], settings.smallest, report)
    save_atomically(pack(network, size, views, card["threshold"], chosen.peak, card["training"]), checkpoint)
    return chosen


def choose_peak_of_file(
    file: Path,
    data: Sequence[Path],
    settings: TuningSettings,
    report: Callable[[str], None],
    on_progress: OnProgress = lambda *_: None,
) -> Point:
    """Evaluate each peak of an ONNX model on images and their healthy crops, and write the best one into its metadata.

    The probabilities are left as they are.

    Args:
        file: the model.
        data: folders with images/ and masks/. All images are used; none should be one of the training.
        settings: how the model will run. Its size and views are those of the file.
        report, on_progress: as for choose_operating_point.

    Raises:
        DataError: an image or a mask cannot be read.
        SettingsError: `settings` has a size or a number of views.
        ModelError: the file is not a polypstream model.
        OutputError: the file cannot be written.
    """
    if settings.size or settings.views:
        raise SettingsError(f"--size and --views: those of {file} cannot be changed; they can for a checkpoint")
    model = load_model(str(file))
    pairs = [pair for _, pair in named_pairs(data, every=True)]
    maps, healthy = [], []
    for done, pair in enumerate(pairs, 1):
        image, truth = read_pair(pair)
        maps.append(_map(model, image, truth))
        for _, crop in healthy_crops(image, truth):
            healthy.append(_map(model, crop, np.zeros(crop.shape[:2], np.uint8)))
        on_progress(done, len(pairs))
    chosen = _best(maps, healthy, model.threshold, settings.smallest, report)
    content = onnx.load(file)
    card = {each.key: each.value for each in content.metadata_props}
    onnx.helper.set_model_props(content, card | {"peak": str(chosen.peak)})
    with write_atomically(file) as unfinished:
        onnx.save(content, unfinished)
    return chosen


def _best(
    maps: Sequence[MappedImage],
    crops: Sequence[MappedImage],
    threshold: float,
    smallest: float,
    report: Callable[[str], None],
) -> Point:
    """Evaluate each peak on images, and on those of them and of their crops that are healthy; choose the best one."""
    healthy = [*crops, *(image for image in maps if not image.truth.any())]
    points = [_evaluate(Rules(threshold, peak, smallest), maps, healthy) for peak in PEAKS]
    for point in points:
        report(f"peak {point.peak:.3f}  mean Dice {point.mean_dice:.4f}  healthy with finding {point.false_alarms:.4f}")
    return choose(points)


def find_temperature(scored: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Find the temperature that minimises the negative log-likelihood of the true masks (Guo et al., ICML 2017).

    Args:
        scored: maps of logits, float32, each with its true mask, bool, of the same shape.

    Returns:
        The number by which logits are to be divided.
    """
    counts = np.zeros((2, len(LOGITS)))
    for logits, truth in scored:
        bins = np.clip(np.rint((logits - LOGITS[0]) / (LOGITS[1] - LOGITS[0])), 0, len(LOGITS) - 1).astype(int)
        for polyp in (0, 1):
            counts[polyp] += np.bincount(bins[truth == polyp], minlength=len(LOGITS))
    nll = [
        counts[0] @ np.logaddexp(0, LOGITS / each) + counts[1] @ np.logaddexp(0, -LOGITS / each)
        for each in TEMPERATURES
    ]
    return float(TEMPERATURES[int(np.argmin(nll))])


def choose(points: Sequence[Point]) -> Point:
    """Choose a peak.

    Only peaks whose mean Dice is at most MAX_DICE_LOSS below the best one are considered. The first of them with at
    most MAX_FALSE_ALARMS is chosen. If there is none, the one with the fewest false alarms is chosen.

    Args:
        points: in the order of their peaks, the lowest first.
    """
    best = max(point.mean_dice for point in points)
    candidates = [point for point in points if point.mean_dice >= best - MAX_DICE_LOSS]
    acceptable = [point for point in candidates if point.false_alarms <= MAX_FALSE_ALARMS]
    return acceptable[0] if acceptable else min(candidates, key=lambda point: point.false_alarms)


def _score(net: PictureNet, size: int, image: np.ndarray, truth: np.ndarray) -> ScoredImage:
    view, shown = prepare_image(image, size)
    with torch.inference_mode():
        logits = net.logits(torch.from_numpy(shown)[None])[:, 0]
    return ScoredImage(logits, resize_for_model(view.crop(truth), size) > 127, view, truth)


def _map(model: Model, image: np.ndarray, truth: np.ndarray) -> MappedImage:
    view, shown = prepare_image(image, model.size)
    return MappedImage(model.segment([shown])[0], view, truth)


def _evaluate(rules: Rules, images: Sequence[MappedImage], healthy: Sequence[MappedImage]) -> Point:
    dices = [
        compare(findings_mask(each.probability, each.view, rules, each.truth.shape), each.truth).dice for each in images
    ]
    alarms = [bool(find_region(each.probability, each.view, rules)[1]) for each in healthy]
    return Point(rules.peak, float(np.mean(dices)), float(np.mean(alarms)) if alarms else 0.0)


def _validation_pairs(data: Sequence[Path], names: Sequence[str]) -> list[Pair]:
    by_name = dict(named_pairs(data, every=True))  # `train --names` may have used images that no train.txt lists
    missing = [name for name in names if name not in by_name]
    if missing or not names:
        problem = f"lacks {missing[0]}, which was held out in training" if missing else "no image was held out"
        raise DataError(f"{', '.join(map(str, data))}: {problem}")
    return [by_name[name] for name in names]
