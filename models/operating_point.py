"""Choose how sure the model must be of a finding, on the pictures held out in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.checkpoint import VALIDATION_NAMES, load_checkpoint, pack, save_atomically
from models.data import Pair, healthy_crops, named_pairs, read_pair
from models.evaluation import Poll, compare, look, mask_of, model_of
from models.sa_unet import check_size
from stream.errors import DataError
from stream.find import Rules, find_region
from stream.view import FieldOfView

PEAKS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.93, 0.96, 0.98, 0.985, 0.99, 0.995)
# At most this share of healthy pictures may have a finding, unless that costs more than so much mean Dice.
FALSE_ALARMS, DICE_GIVEN = 0.03, 0.02


@dataclass(frozen=True, slots=True)
class Point:
    """What a peak gives on the pictures held out."""

    peak: float
    mean_dice: float
    false_alarms: float


def choose_operating_point(
    checkpoint: Path,
    data: Sequence[Path],
    size: int | None,
    smallest: float,
    report: Callable[[str], None],
    poll: Poll = lambda *_: None,
) -> Point:
    """Measure each peak on the pictures held out and on healthy crops of them, and keep the best in the checkpoint.

    Args:
        checkpoint: of `polypstream train`; it is rewritten with the size and the peak.
        data: folders that it was trained on.
        size: side in pixels at which the model will run; None: as the checkpoint says.
        smallest: share of the field of view that a finding must cover.
        report: is given one line for people for each peak.
        poll: told the pictures done and all pictures.

    Raises:
        DataError: the folders lack the pictures held out.
        SettingsError: the network cannot take pictures of this size.
        ModelError: the checkpoint is none.
    """
    network, card = load_checkpoint(checkpoint)
    size = int(size or card["size"])
    check_size(network.architecture, size)
    pairs = _held_out(data, card["training"].get(VALIDATION_NAMES, []))
    model = model_of(network, size, card["threshold"], card["peak"])
    pictures, healthy = [], []
    for done, pair in enumerate(pairs, 1):
        picture, truth = read_pair(pair)
        seen = look(model, picture)
        pictures.append((*seen, truth))
        if not truth.any():
            healthy.append(seen)
        healthy += [look(model, crop) for _, crop in healthy_crops(picture, truth)]
        poll(done, len(pairs))
    points = [_measure(Rules(model.threshold, peak, smallest), pictures, healthy) for peak in PEAKS]
    for point in points:
        report(f"peak {point.peak:.3f}  mean Dice {point.mean_dice:.4f}  healthy with finding {point.false_alarms:.4f}")
    chosen = choose(points)
    save_atomically(pack(network, size, model.threshold, chosen.peak, card["training"]), checkpoint)
    return chosen


def choose(points: Sequence[Point]) -> Point:
    """The lowest peak that is quiet enough, among those that cost little; else the quietest of those."""
    best = max(point.mean_dice for point in points)
    cheap = [point for point in points if point.mean_dice >= best - DICE_GIVEN]
    quiet = [point for point in cheap if point.false_alarms <= FALSE_ALARMS]
    return quiet[0] if quiet else min(cheap, key=lambda point: point.false_alarms)


def _measure(
    rules: Rules,
    pictures: Sequence[tuple[np.ndarray, FieldOfView, np.ndarray]],
    healthy: Sequence[tuple[np.ndarray, FieldOfView]],
) -> Point:
    dices = [compare(mask_of(seen, view, rules, truth.shape), truth).dice for seen, view, truth in pictures]
    alarms = [find_region(seen, view, rules) is not None for seen, view in healthy]
    return Point(rules.peak, float(np.mean(dices)), float(np.mean(alarms)) if alarms else 0.0)


def _held_out(data: Sequence[Path], names: Sequence[str]) -> list[Pair]:
    by_name = dict(named_pairs(data))
    missing = [name for name in names if name not in by_name]
    if missing or not names:
        problem = f"lacks {missing[0]}, which was held out in training" if missing else "none was held out in training"
        raise DataError(f"{', '.join(map(str, data))}: {problem}")
    return [by_name[name] for name in names]
