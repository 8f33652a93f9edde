"""Curves over the peak and over the hold-off time: FROC, AFROC, false positives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polypstream.study.observation import Observation
from polypstream.study.outcomes import Choice, Outcome, outcome_of

# The same peaks and times for all runs, so that their curves can be compared point by point.
PEAKS = tuple(step / 100 for step in range(101))
HOLD_OFFS_S = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


class FrocPoint(NamedTuple):
    """A point of the FROC and AFROC curves.

    Attributes:
        peak: probability that a mark must reach, 0..1.
        targets_found: share of the targets (one polyp in one frame) that are found, 0..1.
        false_marks_per_frame: marks that find no target, per frame.
        false_frames: share of the frames without a polyp that have a mark, 0..1.
        polyps_found: share of the polyps that are found, 0..1.
        false_positives_per_minute: false-positive events per minute.
    """

    peak: float
    targets_found: float
    false_marks_per_frame: float
    false_frames: float
    polyps_found: float
    false_positives_per_minute: float


class HoldOffPoint(NamedTuple):
    """A point of the curves over the hold-off time.

    Attributes:
        seconds: time for which alerts are withheld.
        false_positives_per_minute, false_positives_per_procedure: false-positive events.
        polyps_found: share of the polyps that are found, 0..1.
        seconds_to_first_detection: median of the polyps found; None: there are none.
    """

    seconds: float
    false_positives_per_minute: float
    false_positives_per_procedure: float
    polyps_found: float
    seconds_to_first_detection: float | None


def froc(observations: Sequence[Observation], overlap: float = 0.0) -> list[FrocPoint]:
    """Compute FROC and AFROC.

    In each frame the marks are taken from the most to the least probable one. Each mark finds the target that it
    overlaps most, if that was not found before. Otherwise it is false.

    Args:
        observations: the recordings.
        overlap: as in Choice.

    Returns:
        A point for each peak, from the highest one below all marks on; it is what the runs show.
    """
    claims = [_claims(observation, overlap) for observation in observations]
    lowest = min((observation.mark_probability.min(initial=1.0) for observation in observations), default=1.0)
    first = max(peak for peak in PEAKS if peak <= lowest)
    return [_froc_point(observations, claims, peak, overlap) for peak in PEAKS if peak >= first]


def _froc_point(
    observations: Sequence[Observation], claims: Sequence[np.ndarray], peak: float, overlap: float
) -> FrocPoint:
    shown = [observation.mark_probability >= peak for observation in observations]
    targets, frames = (sum(len(getattr(each, name)) for each in observations) for name in ("target_frame", "seconds"))
    claimed = sum(int((claim & marks).sum()) for claim, marks in zip(claims, shown, strict=True))
    marks = sum(int(each.sum()) for each in shown)
    outcomes = [outcome_of(observation, Choice(peak, overlap=overlap)) for observation in observations]
    without = sum(outcome.without_polyp for outcome in outcomes)
    quiet = sum(outcome.quiet for outcome in outcomes)
    return FrocPoint(
        peak,
        claimed / max(targets, 1),
        (marks - claimed) / frames,
        (without - quiet) / max(without, 1),
        _polyps_found(outcomes),
        _false_positives(outcomes) / sum(outcome.minutes for outcome in outcomes),
    )


def _claims(observation: Observation, overlap: float) -> np.ndarray:
    """Which marks find a target of their own, bool [marks]. The answer for a mark does not depend on the peak."""
    claims = np.zeros(len(observation.mark_frame), bool)
    taken = np.zeros(len(observation.target_frame), bool)
    pairs = np.flatnonzero(observation.pair_iou > overlap)
    marks = observation.pair_mark[pairs]
    order = np.lexsort((-observation.pair_iou[pairs], marks, -observation.mark_probability[marks]))
    for pair in pairs[order]:
        mark, target = observation.pair_mark[pair], observation.pair_target[pair]
        if not claims[mark] and not taken[target]:
            claims[mark] = taken[target] = True
    return claims


def hold_off_curve(observations: Sequence[Observation], overlap: float = 0.0) -> list[HoldOffPoint]:
    """Compute what remains if alerts are withheld for a time.

    Args:
        observations: the recordings.
        overlap: as in Choice.

    Returns:
        A point for each time.
    """
    points = []
    for seconds in HOLD_OFFS_S:
        outcomes = [outcome_of(each, Choice(hold_off=seconds, overlap=overlap)) for each in observations]
        delays = [polyp.delay_s for outcome in outcomes for polyp in outcome.polyps if polyp.delay_s is not None]
        points.append(
            HoldOffPoint(
                seconds,
                _false_positives(outcomes) / sum(outcome.minutes for outcome in outcomes),
                _false_positives(outcomes) / len(outcomes),
                _polyps_found(outcomes),
                float(np.median(delays)) if delays else None,
            )
        )
    return points


def _false_positives(outcomes: Sequence[Outcome]) -> int:
    return sum(len(outcome.false_positives) for outcome in outcomes)


def _polyps_found(outcomes: Sequence[Outcome]) -> float:
    polyps = [polyp for outcome in outcomes for polyp in outcome.polyps]
    return sum(polyp.delay_s is not None for polyp in polyps) / max(len(polyps), 1)
