"""Calibrate a network and choose how sure it must be of a finding, on the pictures held out in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from polypstream.core.geometry import FieldOfView
from polypstream.errors import DataError
from polypstream.jobs.image import findings_mask, prepare_image, resize_for_model
from polypstream.models.checkpoint import VALIDATION_NAMES, load_checkpoint, pack, save_atomically
from polypstream.models.data import Pair, healthy_crops, named_pairs, read_pair
from polypstream.models.evaluation import OnProgress, compare
from polypstream.models.picture_net import PictureNet
from polypstream.models.sa_unet import check_size
from polypstream.stages.findings import Rules, find_region

PEAKS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
# At most this share of healthy pictures may have a finding, unless that costs more than so much mean Dice.
FALSE_ALARMS, DICE_GIVEN = 0.03, 0.02
# Temperatures that are tried, and the logits that pixels are counted at.
TEMPERATURES = np.geomspace(0.25, 16, 301)
LOGITS = np.linspace(-40, 40, 4001)


@dataclass(frozen=True, slots=True)
class Point:
    """What a peak gives on the pictures held out."""

    peak: float
    mean_dice: float
    false_alarms: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of one picture, and what is true.

    Attributes:
        logits: float32 [size, size] of the field of view.
        small_truth: bool [size, size], the polyps there.
        view: the field of view.
        truth: uint8 [H, W] of 0 and 255, the polyps of the whole picture.
    """

    logits: np.ndarray
    small_truth: np.ndarray
    view: FieldOfView
    truth: np.ndarray

    def map(self, temperature: float) -> np.ndarray:
        """The probability map, uint8 [size, size], at a temperature."""
        return np.rint(255 / (1 + np.exp(-self.logits / temperature))).astype(np.uint8)


def choose_operating_point(
    checkpoint: Path,
    data: Sequence[Path],
    size: int | None,
    views: int | None,
    smallest: float,
    report: Callable[[str], None],
    on_progress: OnProgress = lambda *_: None,
) -> Point:
    """Calibrate, measure each peak on the pictures held out and on healthy crops of them, and keep the best.

    The checkpoint is rewritten with the calibrated weights, the size, the views and the peak.

    Args:
        checkpoint: of `polypstream train`.
        data: folders that it was trained on.
        size: side in pixels at which the model will run; None: as the checkpoint says.
        views: of each picture that it will look at, 1 or 2; None: as the checkpoint says.
        smallest: share of the field of view that a finding must cover.
        report: is given one line for people for the temperature and each peak.
        on_progress: told the pictures done and all pictures.

    Raises:
        DataError: the folders lack the pictures held out.
        SettingsError: the network cannot take pictures of this size.
        ModelError: the checkpoint is none.
    """
    network, card = load_checkpoint(checkpoint)
    size, views = int(size or card["size"]), int(views or card["views"])
    check_size(network.architecture, size)
    net = PictureNet(network, views)
    pairs = _held_out(data, card["training"].get(VALIDATION_NAMES, []))
    pictures, crops = [], []
    for done, pair in enumerate(pairs, 1):
        picture, truth = read_pair(pair)
        pictures.append(_look(net, size, picture, truth))
        for _, crop in healthy_crops(picture, truth):
            crops.append(_look(net, size, crop, np.zeros(crop.shape[:2], np.uint8)))
        on_progress(done, len(pairs))
    temperature = find_temperature([(seen.logits, seen.small_truth) for seen in pictures + crops])
    report(f"temperature {temperature:.2f}")
    network.divide_logits(temperature)
    with_maps, healthy = ([(seen.map(temperature), seen) for seen in part] for part in (pictures, crops))
    healthy += [each for each in with_maps if not each[1].truth.any()]
    points = [_measure(Rules(card["threshold"], peak, smallest), with_maps, healthy) for peak in PEAKS]
    for point in points:
        report(f"peak {point.peak:.3f}  mean Dice {point.mean_dice:.4f}  healthy with finding {point.false_alarms:.4f}")
    chosen = choose(points)
    save_atomically(pack(network, size, views, card["threshold"], chosen.peak, card["training"]), checkpoint)
    return chosen


def find_temperature(seen: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The number to divide logits by so that the true masks are likeliest (Guo et al., ICML 2017).

    Args:
        seen: maps of logits, float32, and their true masks, bool, of one shape each.
    """
    counts = np.zeros((2, len(LOGITS)))
    for logits, truth in seen:
        bins = np.clip(np.rint((logits - LOGITS[0]) / (LOGITS[1] - LOGITS[0])), 0, len(LOGITS) - 1).astype(int)
        for polyp in (0, 1):
            counts[polyp] += np.bincount(bins[truth == polyp], minlength=len(LOGITS))
    surprise = [
        counts[0] @ np.logaddexp(0, LOGITS / each) + counts[1] @ np.logaddexp(0, -LOGITS / each)
        for each in TEMPERATURES
    ]
    return float(TEMPERATURES[int(np.argmin(surprise))])


def choose(points: Sequence[Point]) -> Point:
    """The lowest peak that is quiet enough, among those that cost little; else the quietest of those."""
    best = max(point.mean_dice for point in points)
    cheap = [point for point in points if point.mean_dice >= best - DICE_GIVEN]
    quiet = [point for point in cheap if point.false_alarms <= FALSE_ALARMS]
    return quiet[0] if quiet else min(cheap, key=lambda point: point.false_alarms)


def _look(net: PictureNet, size: int, picture: np.ndarray, truth: np.ndarray) -> Prediction:
    view, shown = prepare_image(picture, size)
    with torch.inference_mode():
        logits = net.logits(torch.from_numpy(shown)[None])[0].numpy()
    return Prediction(logits, resize_for_model(view.crop(truth), size) > 127, view, truth)


def _measure(
    rules: Rules, pictures: Sequence[tuple[np.ndarray, Prediction]], healthy: Sequence[tuple[np.ndarray, Prediction]]
) -> Point:
    dices = [
        compare(findings_mask(map_, seen.view, rules, seen.truth.shape), seen.truth).dice for map_, seen in pictures
    ]
    alarms = [bool(find_region(map_, seen.view, rules)[1]) for map_, seen in healthy]
    return Point(rules.peak, float(np.mean(dices)), float(np.mean(alarms)) if alarms else 0.0)


def _held_out(data: Sequence[Path], names: Sequence[str]) -> list[Pair]:
    by_name = dict(named_pairs(data, every=True))  # `train --names` may have taken others than a train.txt lists
    missing = [name for name in names if name not in by_name]
    if missing or not names:
        problem = f"lacks {missing[0]}, which was held out in training" if missing else "none was held out in training"
        raise DataError(f"{', '.join(map(str, data))}: {problem}")
    return [by_name[name] for name in names]
