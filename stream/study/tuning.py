"""Chooses settings for a wish: as many polyps as possible with at most some false positives per minute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from polypstream.core.files import write_atomically
from polypstream.errors import DataError
from polypstream.jobs.results import Run
from polypstream.stages.tracking import CONFIDENCE_TIMEOUT_S
from polypstream.study.observation import Observation
from polypstream.study.outcomes import Choice, Outcome, outcome_of

PEAKS = (*(step / 20 for step in range(1, 18)), *(step / 100 for step in range(90, 100)), 0.995)
SMALLEST = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


class Tuned(NamedTuple):
    """What settings make of some recordings.

    Attributes:
        choice: the settings.
        polyps_found: share of the polyps that are found, 0..1.
        frame_sensitivity: share of the frames with a polyp in which it is found, 0..1.
        false_positives_per_minute: false-positive events per minute.
    """

    choice: Choice
    polyps_found: float
    frame_sensitivity: float
    false_positives_per_minute: float


def known_peak(run: Run) -> float:
    """Peak of a run. What a lower peak would show is not known.

    Args:
        run: the run.
    """
    peak = run.settings.findings.peak
    return float(run.about.get("model", {}).get("peak", 0)) if peak == "model" else float(peak)


def tune(observations: Sequence[Observation], most: float, lowest: float = 0.0, steady: bool = False) -> Tuned:
    """Choose the peak and the smallest size of findings.

    Of all that keep to the wish, those are chosen that find most polyps; then those that find them in most frames; then
    those with the fewest false positives.

    Args:
        observations: recordings, from runs with a low peak and without a smallest size.
        most: false-positive events per minute that are allowed.
        lowest: lowest peak to try, 0..1.
        steady: the runs are steady, so that a finding is shown for a while after it reached the peak.

    Raises:
        DataError: there is no polyp, or no choice keeps to the wish.
    """
    if not any(observation.polyps for observation in observations):
        raise DataError("the ground truth has no polyp; settings are chosen so that polyps are found")
    tried = list(_tried(observations, lowest, CONFIDENCE_TIMEOUT_S if steady else 0.0))
    allowed = [each for each in tried if each.false_positives_per_minute <= most]
    if not any(each.polyps_found for each in allowed):
        rates = [each.false_positives_per_minute for each in tried if each.polyps_found]
        reason = f"with a polyp found there are at least {min(rates):.2f}" if rates else "no polyp is found"
        raise DataError(f"no peak and smallest size give at most {most:g} false positives per minute; {reason}")
    return max(allowed, key=_merit)


def _merit(tuned: Tuned) -> tuple[float, ...]:
    """What is better comes later. Of settings that are alike, those nearest to the runs are chosen."""
    choice = tuned.choice
    return (
        *(tuned.polyps_found, tuned.frame_sensitivity, -tuned.false_positives_per_minute),
        *(-choice.peak, -choice.smallest),
    )


def _tried(observations: Sequence[Observation], lowest: float, memory: float) -> Iterator[Tuned]:
    for peak in sorted({lowest, *PEAKS} - {0.0}):
        if peak < lowest:
            continue
        for smallest in SMALLEST:
            choice = Choice(peak, smallest=smallest, memory=memory)
            yield _tuned(choice, [outcome_of(observation, choice) for observation in observations])


def _tuned(choice: Choice, outcomes: Sequence[Outcome]) -> Tuned:
    polyps = [polyp for outcome in outcomes for polyp in outcome.polyps]
    return Tuned(
        choice,
        sum(polyp.delay_s is not None for polyp in polyps) / max(len(polyps), 1),
        sum(outcome.found for outcome in outcomes) / max(sum(outcome.with_polyp for outcome in outcomes), 1),
        sum(len(outcome.false_positives) for outcome in outcomes) / sum(outcome.minutes for outcome in outcomes),
    )


def write_settings(path: Path, tuned: Tuned, most: float) -> None:
    """Write the settings as a file for `--config`.

    Args:
        path: the file.
        tuned: what was chosen.
        most: false-positive events per minute that were allowed.

    Raises:
        OutputError: it cannot be written.
    """
    text = (
        f"# Chosen by `polypstream tune` for at most {most:g} false positives per minute.\n"
        f"# Estimate: {tuned.false_positives_per_minute:.2f} per minute; "
        f"{tuned.polyps_found:.0%} of the polyps are found.\n"
        f"findings:\n  peak: {tuned.choice.peak:g}\n  smallest: {tuned.choice.smallest:g}\n"
    )
    with write_atomically(path) as unfinished:
        unfinished.write_text(text)
