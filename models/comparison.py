"""Compare two models on the same pictures, with true masks or without."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from polypstream.core.statistics import interval_of_mean
from polypstream.jobs.image import resize_for_model
from polypstream.jobs.predictions import RgbConverter
from polypstream.models.data import Pair, read_pair
from polypstream.models.evaluation import Model, Result, by_size, compare, evaluate_image
from polypstream.models.tiles import SAMPLE_SIDE, draw_title, write_tiles
from polypstream.sources.open import open_source
from polypstream.stages.findings import Rules

# Number of pictures that are drawn.
DRAWN = 12


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that both models see.

    Attributes:
        name: name of the image, or number of the frame.
        image: uint8 RGB [H, W, 3].
        truth: uint8 [H, W] of 0 and 255, the polyps; None: unknown.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Compared:
    """The results of both models for one picture.

    Attributes:
        a, b: the comparison of each model's findings with the true mask, or with an empty one if it is unknown.
        agreement: Dice of the findings of both models, 0..1; 1 if there are none.
    """

    a: Result
    b: Result
    agreement: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both models. `difference` is b - a, with its 95 % interval if it is a mean over pictures."""

    images: int
    a: float
    b: float
    difference: float
    difference_95: list[float] | None = None


def pictures_of(pairs: Sequence[Pair]) -> Iterator[Picture]:
    """Read the images of a data set and their true masks.

    Raises:
        DataError: an image or a mask cannot be read.
    """
    for pair in pairs:
        image, truth = read_pair(pair)
        yield Picture(pair.name, image, truth)


def pictures_of_recording(uri: str, every: int) -> Iterator[Picture]:
    """Read each Nth frame of a recording.

    Args:
        uri: path of a recording, or a demo's address.
        every: N.

    Raises:
        SourceError: it cannot be read.
    """
    source, to_rgb = open_source(uri), RgbConverter()
    try:
        for number, frame in enumerate(source.frames()):
            if number % every == 0:
                yield Picture(f"frame {number}", to_rgb(frame.in_memory()), None)
    finally:
        source.close()


class Comparison:
    """Runs two models on pictures, and remembers those in which they differ most.

    Args:
        a, b: each model and what counts as a finding of it.

    Attributes:
        compared: the results of each picture.
    """

    def __init__(self, a: tuple[Model, Rules], b: tuple[Model, Rules]) -> None:
        self._models = (a, b)
        self.compared: list[Compared] = []
        self._most_different: list[tuple[float, int, np.ndarray]] = []

    def run(self, pictures: Iterable[Picture], on_picture: Callable[[int], None] = lambda _: None) -> None:
        """Run both models on each picture.

        Args:
            pictures: the pictures.
            on_picture: called after each picture with the number of processed ones.
        """
        for number, picture in enumerate(pictures, 1):
            unknown = np.zeros(picture.image.shape[:2], np.uint8)
            truth = unknown if picture.truth is None else picture.truth
            found = [evaluate_image(model, rules, picture.image, truth) for model, rules in self._models]
            (a, mask_a), (b, mask_b) = found
            self.compared.append(Compared(a, b, compare(mask_a, mask_b).dice))
            row = _row(picture, [mask_a, mask_b])
            heapq.heappush(self._most_different, (1 - self.compared[-1].agreement, -number, row))
            if len(self._most_different) > DRAWN:
                heapq.heappop(self._most_different)
            on_picture(number)

    def draw(self, path: Path) -> None:
        """Draw a PNG of the pictures in which the findings differ most, one row each.

        Raises:
            OutputError: the file cannot be written.
        """
        titles = ("input", "findings of A", "findings of B", "ground truth")
        rows = [row for _, _, row in sorted(self._most_different, key=lambda each: each[:2], reverse=True)]
        columns = rows[0].shape[1] // SAMPLE_SIDE
        write_tiles([np.hstack([draw_title(text) for text in titles[:columns]]), *rows], path)


def _row(picture: Picture, masks: Sequence[np.ndarray]) -> np.ndarray:
    """The picture with its name, its masks and, if it is known, the true one."""
    shown = resize_for_model(cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR), SAMPLE_SIDE)
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(shown, picture.name, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, width, cv2.LINE_AA)
    masks = [*masks, *([] if picture.truth is None else [picture.truth])]
    grey = [resize_for_model(cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR), SAMPLE_SIDE) for mask in masks]
    return np.hstack([shown, *grey])


def summarise_comparison(compared: Sequence[Compared], with_truth: bool) -> dict[str, Figure]:
    """Compute the figures of both models.

    The interval of a difference is that of the paired bootstrap: pictures are resampled, each with the results of both
    models, 2000 times with a fixed seed.

    Args:
        compared: the results of each picture.
        with_truth: true masks are known.

    Returns:
        The figures by name. Without true masks they are the share of pictures with a finding, the findings per picture,
        and the speed.
    """
    sides = ([each.a for each in compared], [each.b for each in compared])
    every = np.ones(len(compared), bool)

    def figure(value: Callable[[Result], float], chosen: np.ndarray) -> Figure:
        a, b = (np.array([value(result) for result in side], float)[chosen] for side in sides)
        return Figure(
            int(chosen.sum()), float(a.mean()), float(b.mean()), float((b - a).mean()), interval_of_mean(b - a)
        )

    figures: dict[str, Figure] = {}
    if with_truth:
        figures["mean_dice"] = figure(lambda result: result.counts.dice, every)
        figures["mean_iou"] = figure(lambda result: result.counts.iou, every)
        for name, of_this_size in by_size(sides[0]).items():
            if of_this_size.any():
                figures[f"dice_of_{name}_polyps"] = figure(lambda result: result.counts.dice, of_this_size)
        healthy = np.array([result.polyp_share == 0 for result in sides[0]])
        if healthy.any():
            figures["healthy_with_finding"] = figure(lambda result: result.findings > 0, healthy)
        figures["false_findings_per_image"] = figure(lambda result: result.false_findings, every)
    else:
        figures["images_with_finding"] = figure(lambda result: result.findings > 0, every)
        figures["findings_per_image"] = figure(lambda result: result.findings, every)
    a, b = (1000 * float(np.median([result.seconds for result in side])) for side in sides)
    figures["milliseconds_per_image"] = Figure(len(compared), a, b, b - a)
    return figures


def summarise_agreement(compared: Sequence[Compared]) -> dict[str, Any]:
    """Compute how far the findings of two models agree: the mean Dice between them, and who finds something."""
    agreement = np.array([each.agreement for each in compared])
    a, b = (
        np.array([result.findings > 0 for result in side]) for side in zip(*((c.a, c.b) for c in compared), strict=True)
    )
    return {
        "images": len(compared),
        "mean_dice_between_models": float(agreement.mean()),
        "mean_dice_between_models_95": interval_of_mean(agreement),
        "both_find": int((a & b).sum()),
        "only_a_finds": int((a & ~b).sum()),
        "only_b_finds": int((b & ~a).sum()),
        "none_finds": int((~a & ~b).sum()),
    }
