"""Proof that a model file computes what it was made from. A file is written only if it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from polypstream.core.files import write_atomically
from polypstream.core.geometry import grey_level
from polypstream.errors import ModelError
from polypstream.inference.segmenter import Segmenter
from polypstream.sources.demo_colon import DemoColon, DemoSettings

VERIFIED_BATCHES = (1, 2, 5)
# The probability maps of floating-point models may differ from the original's by this many grey levels at each pixel.
MAX_DIFFERENCE = 1
# The same for models that compute in fp16.
MAX_HALF_DIFFERENCE = 2
# The masks of an int8 model must have at least this Dice with those of the original.
MIN_DICE = 0.95
# Verification uses one of this many frames of the demo source.
DEMO_STEP = 25

# Computes what a model file must compute: uint8 RGB [N, size, size, 3] -> uint8 probability maps [N, size, size].
Reference = Callable[[np.ndarray], np.ndarray]


def write_proven(
    model: onnx.ModelProto,
    output: Path,
    reference: Reference,
    original: str,
    size: int,
    threshold: float,
    calibration: Sequence[np.ndarray] = (),
    most: int = MAX_DIFFERENCE,
) -> str:
    """Write a model file, but only if its output is that of the original.

    Args:
        model: the model.
        output: the ONNX file to write. Its folder exists.
        reference: computes the original.
        original: what the original is, for the message.
        size: side in pixels of the model's input.
        threshold: probability from which a pixel counts as polyp, 0..1.
        calibration: for an int8 model uint8 images [size, size, 3], on which the masks are compared.
        most: the largest difference that is allowed, in grey levels.

    Returns:
        The result of the comparison, as text for the user.

    Raises:
        ModelError: the outputs differ. No file is written.
        OutputError: the file cannot be written.
    """
    with write_atomically(output) as unfinished:
        onnx.save(model, unfinished)
        if calibration:
            dice = mask_dice(reference, unfinished, calibration, grey_level(threshold))
            if dice is None:
                raise ModelError(
                    f"{output}: not written; {original} finds nothing in the calibration images, so int8 cannot be "
                    "compared with it; give images that show polyps"
                )
            result, differs = f"masks like those of {original}, Dice {dice:.4f}", dice < MIN_DICE
        else:
            largest = largest_difference(reference, unfinished, pictures_for_proof(size))
            result, differs = f"differs from {original} by at most {largest}/255", largest > most
        if differs:
            raise ModelError(f"{output}: not written; {result}, which is too much")
    return result


def pictures_for_proof(size: int) -> list[np.ndarray]:
    """Return frames of the demo source, and noise: uint8 RGB [size, size, 3] each."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(3)]
    colon = DemoColon(DemoSettings(width=size, height=size))
    return [*(colon.render(index)[0] for index in range(0, len(colon), DEMO_STEP)), *noise]


def largest_difference(reference: Reference, model: Path, images: Sequence[np.ndarray]) -> int:
    """Run a model file in batches of several sizes, and compare it with the original, which gets one image at a time.

    Args:
        reference: computes the original.
        model: the ONNX file.
        images: uint8 RGB [size, size, 3] each.

    Returns:
        The largest difference of the probability maps, in grey levels.
    """
    expected = np.concatenate([reference(image[None]) for image in images]).astype(int)
    segmenter = Segmenter(model, provider="cpu")
    largest = 0
    for batch in VERIFIED_BATCHES:
        for start in range(0, len(images), batch):
            found = segmenter.run(np.stack(images[start : start + batch]))
            largest = max(largest, int(np.abs(found - expected[start : start + batch]).max()))
    return largest


def mask_dice(reference: Reference, model: Path, images: Sequence[np.ndarray], level: int) -> float | None:
    """Compute the Dice of the masks of a model file and of the original, pooled over all images.

    Args:
        reference: computes the original.
        model: the ONNX file.
        images: uint8 [size, size, 3] each.
        level: grey level of the probability, 1..255, from which a pixel belongs to the mask.

    Returns:
        None if all masks are empty.
    """
    segmenter = Segmenter(model, provider="cpu")
    both = either = 0
    for image in images:
        expected, found = reference(image[None]) >= level, segmenter.run(image[None]) >= level
        both, either = both + 2 * int((expected & found).sum()), either + int(expected.sum() + found.sum())
    return both / either if either else None
