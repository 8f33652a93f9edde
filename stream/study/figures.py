"""The figures of a study, with 95 % intervals, from the outcomes of its recordings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polypstream.core.statistics import BOOTSTRAP_SAMPLES, SIZES, calibration_error, interval, reliability
from polypstream.jobs.score import ROUNDING_S
from polypstream.study.outcomes import Outcome, PolypOutcome

# Seconds from the appearance of a polyp within which it is found early.
EARLY_S = (0.5, 1, 3)
# Shares of the frames of a polyp in which it must be found, for the figures of persistence.
PERSISTENCE = (0.25, 0.5)
# Probability below and above a 95 % interval.
OUTSIDE = 0.025
# Samples of a figure that differ by no more are the same but for rounding.
SAME = 1e-12


@dataclass(frozen=True, slots=True)
class Resamples:
    """How often each recording and each polyp is drawn in each resample.

    Recordings are drawn first. From each drawn recording, as many polyps are drawn as it has. So the intervals take
    into account that polyps and frames of one recording are alike.

    Attributes:
        recordings: int [samples, recordings].
        polyps: int [samples, polyps], the polyps of the first recording first.
    """

    recordings: np.ndarray
    polyps: np.ndarray

    @classmethod
    def of(cls, polyps: Sequence[int], samples: int = BOOTSTRAP_SAMPLES) -> Resamples:
        """Draw resamples, with a fixed seed.

        Args:
            polyps: number of polyps in each recording.
            samples: number of resamples.
        """
        random, count = np.random.default_rng(0), len(polyps)
        recordings = random.multinomial(count, np.full(count, 1 / count), samples)
        drawn = [
            random.multinomial(recordings[:, place] * number, np.full(number, 1 / number))
            for place, number in enumerate(polyps)
            if number
        ]
        return cls(recordings, np.hstack(drawn) if drawn else np.zeros((samples, 0), np.int64))


def compute_figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Compute the figures of some recordings; docs/study.md explains them.

    Args:
        outcomes: the recordings.

    Returns:
        Plain values by name, in groups. An interval follows its figure, with `_95` at the end of the name. It is left
        out where all resamples are alike. None: there is nothing to compute a figure from.
    """
    resamples = Resamples.of([len(outcome.polyps) for outcome in outcomes])
    polyps = [polyp for outcome in outcomes for polyp in outcome.polyps]
    return {
        "recordings": len(outcomes),
        "minutes": sum(outcome.minutes for outcome in outcomes),
        "polyps": len(polyps),
        "polyps_in_view_under_1_s": sum(outcome.too_short for outcome in outcomes),
        **dict(_polyp_figures(polyps, resamples.polyps)),
        **dict(_frame_figures(outcomes, resamples.recordings)),
    }


def _polyp_figures(polyps: Sequence[PolypOutcome], weights: np.ndarray) -> Iterator[tuple[str, Any]]:
    found = np.array([polyp.delay_s is not None for polyp in polyps], bool)
    delays = np.array([np.inf if polyp.delay_s is None else polyp.delay_s for polyp in polyps], np.float64)
    shares = np.array([polyp.share for polyp in polyps], np.float64)
    lasting = np.array([polyp.share_found for polyp in polyps], np.float64)
    yield from _share("polyp_sensitivity", found, weights)
    yield "polyp_sensitivity_by_size", dict(_by_size(found, shares, weights))
    early = [_share(f"within_{seconds:g}_s", delays < seconds - ROUNDING_S, weights) for seconds in EARLY_S]
    yield "early_recall", {key: value for figure in early for key, value in figure}
    quartiles = (("median", 0.5), ("lower_quartile", 0.25), ("upper_quartile", 0.75))
    times = [_quantile(name, delays[found], weights[:, found], share) for name, share in quartiles]
    yield "seconds_to_first_detection", {key: value for figure in times for key, value in figure}
    persistent = [_mean("mean_share_of_frames", lasting, weights)]
    persistent += [
        _share(f"found_in_{share:.0%}".replace("%", "_percent"), lasting >= share, weights) for share in PERSISTENCE
    ]
    yield "persistence", {key: value for figure in persistent for key, value in figure}


def _by_size(found: np.ndarray, shares: np.ndarray, weights: np.ndarray) -> Iterator[tuple[str, Any]]:
    edges = (0.0, *SIZES, np.inf)
    for name, low, high in zip(("small", "medium", "large"), edges[:-1], edges[1:], strict=True):
        chosen = (shares >= low) & (shares < high)
        yield f"{name}_polyps", int(chosen.sum())
        yield from _share(name, found[chosen], weights[:, chosen])


def _frame_figures(outcomes: Sequence[Outcome], weights: np.ndarray) -> Iterator[tuple[str, Any]]:
    def total(name: str) -> np.ndarray:
        return np.array([getattr(outcome, name) for outcome in outcomes], np.float64)

    minutes, events = total("minutes"), np.array([len(outcome.false_positives) for outcome in outcomes], np.float64)
    yield from _ratio("frame_sensitivity", total("found"), total("with_polyp"), weights)
    yield from _ratio("frame_specificity", total("quiet"), total("without_polyp"), weights)
    false = (
        *_rate("per_minute", events, minutes, weights),
        *_rate("per_procedure", events, np.ones(len(events)), weights),
    )
    yield "false_positives", dict(false)
    yield from _rate("flicker_per_minute", total("flicker"), minutes, weights)
    yield from _rate("id_switches_per_minute", total("id_switches"), minutes, weights)
    if all(outcome.dice is not None for outcome in outcomes):
        frames, with_polyp = total("frames"), total("with_polyp")
        yield from _ratio("mean_dice", total("dice") * frames, frames, weights)
        yield from _ratio("mean_iou", total("iou") * frames, frames, weights)
        yield from _ratio(
            "mean_dice_with_polyp", np.nan_to_num(total("dice_with_polyp")) * with_polyp, with_polyp, weights
        )
    levels: np.ndarray = np.sum([outcome.levels for outcome in outcomes], axis=0)
    yield "calibration_error", calibration_error(reliability(levels)) if levels.any() else None


def _share(name: str, values: np.ndarray, weights: np.ndarray) -> Iterator[tuple[str, Any]]:
    """A share of polyps. If it is 0 or 1, the interval is the exact one of Clopper and Pearson (1934).

    Args:
        name: name of the figure.
        values: whether each polyp counts, bool [n].
        weights: as for `_ratio`.
    """
    yield from _mean(name, values, weights)
    possible = OUTSIDE ** (1 / max(len(values), 1))
    if len(values) and values.all():
        yield f"{name}_95", [possible, 1.0]
    elif len(values) and not values.any():
        yield f"{name}_95", [0.0, 1 - possible]


def _rate(name: str, events: np.ndarray, below: np.ndarray, weights: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Events per minute or per recording. If there are none, the interval is the exact one of Poisson's distribution.

    Args:
        name: name of the figure.
        events: number of events of each recording, float [n].
        below: minutes or recordings, float [n].
        weights: as for `_ratio`.
    """
    yield from _ratio(name, events, below, weights)
    if not events.any():
        yield f"{name}_95", [0.0, -math.log(OUTSIDE) / float(below.sum())]


def _mean(name: str, values: np.ndarray, weights: np.ndarray) -> Iterator[tuple[str, Any]]:
    return _ratio(name, values.astype(np.float64), np.ones(len(values)), weights)


def _ratio(name: str, above: np.ndarray, below: np.ndarray, weights: np.ndarray) -> Iterator[tuple[str, Any]]:
    """A ratio of sums, and its interval.

    Args:
        name: name of the figure.
        above, below: a term of each sum for each recording or polyp, float [n].
        weights: how often each of them is drawn, int [samples, n].
    """
    yield name, float(above.sum() / below.sum()) if below.sum() else None
    sums = weights @ below
    drawn = sums > 0
    yield from _interval(name, (weights[drawn] @ above) / sums[drawn])


def _interval(name: str, samples: np.ndarray) -> Iterator[tuple[str, Any]]:
    """The interval of a figure. Samples that are all the same say nothing of its uncertainty."""
    if len(samples) and np.ptp(samples) > SAME:
        yield f"{name}_95", interval(samples)


def _quantile(name: str, values: np.ndarray, weights: np.ndarray, share: float) -> Iterator[tuple[str, Any]]:
    """A quantile, and its interval; arguments as for `_ratio`."""
    yield name, float(np.quantile(values, share)) if len(values) else None
    if len(values):
        samples = [np.quantile(np.repeat(values, times), share) for times in weights if times.any()]
        yield from _interval(name, np.array(samples))


def flattened(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, list[float] | None]]:
    """List figures without groups.

    Args:
        figures: as `compute_figures` returns them.
        prefix: what the names begin with.

    Yields:
        Name, value and interval of each figure.
    """
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        elif not name.endswith("_95"):
            yield prefix + name, value, figures.get(f"{name}_95")
