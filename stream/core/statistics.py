"""Statistics that several evaluations share: sizes of polyps, bootstrap intervals, calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BOOTSTRAP_SAMPLES = 2000
# Polyps are small if they cover less than the first fraction of the field of view, and large from the second one on.
SIZES = (0.05, 0.2)
RELIABILITY_BINS = 15


def reliability(histogram: np.ndarray) -> list[dict[str, float]]:
    """Compute a reliability diagram: bins of equal width of the probability, without the empty ones.

    Args:
        histogram: int [2, 256], number of pixels by truth (1: polyp) and by probability in grey levels.

    Returns:
        For each bin the mean `probability`, the fraction of its pixels that are `polyp`, and the number of `pixels`.
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
    """Compute the expected calibration error.

    It is the mean difference between the probability and the fraction of polyp pixels, weighted by pixels.

    Args:
        bins: of `reliability`.
    """
    pixels = sum(each["pixels"] for each in bins)
    return sum(each["pixels"] * abs(each["probability"] - each["polyp"]) for each in bins) / pixels


def interval_of_mean(values: np.ndarray) -> list[float]:
    """Compute the 95 % bootstrap interval of a mean, with a fixed seed.

    Args:
        values: independent values, [n].
    """
    random = np.random.default_rng(0)
    return interval(values[random.integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))].mean(axis=1))


def interval(samples: np.ndarray) -> list[float]:
    """Compute a 95 % percentile interval (Efron and Tibshirani, 1993).

    Args:
        samples: the figure in each resample, [n].

    Returns:
        Both ends.
    """
    return [float(edge) for edge in np.percentile(samples, [2.5, 97.5])]
