"""What a choice of peak, hold-off and smallest size makes of a recording: polyps found and false positives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from polypstream.jobs.score import APART_S, IN_VIEW_S, ROUNDING_S, between_hits, changes, lasts_longer
from polypstream.study.observation import Observation


class Choice(NamedTuple):
    """Which marks count.

    Attributes:
        peak: probability that a mark must reach, 0..1.
        hold_off: seconds for which an alert is withheld. An alert is the marks of a track with gaps of up to 0.5 s.
        smallest: share of the field of view that a mark must cover, 0..1.
        overlap: intersection over union of a mark and a polyp above which the polyp is found, 0..1. 0: they share a
            pixel or more.
        memory: seconds for which the marks of a track count after one of them reached the peak. A steady run shows
            findings for so long.
    """

    peak: float = 0.0
    hold_off: float = 0.0
    smallest: float = 0.0
    overlap: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What the marks that count hit.

    Attributes:
        shown: which marks count, bool [marks].
        false: which of them overlap no polyp, bool [marks].
        target_track: the track that covers most of each target, int [targets]; 0: it is not found.
    """

    shown: np.ndarray
    false: np.ndarray
    target_track: np.ndarray


class FalsePositive(NamedTuple):
    """A false-positive event: marks of a track that overlap no polyp, with gaps of up to 0.5 s.

    Attributes:
        track: number of the track.
        first_s: time of its first frame in seconds.
        seconds: from its first to the end of its last frame.
        probability: highest probability, 0..1.
        best_mark: the mark with this probability, as a place in the Observation.
        marks_polyp: the same track also marks a polyp at another time.
    """

    track: int
    first_s: float
    seconds: float
    probability: float
    best_mark: int
    marks_polyp: bool


class PolypOutcome(NamedTuple):
    """A polyp of the ground truth.

    Attributes:
        name: name of the polyp.
        first_s: time at which it appears, in seconds.
        seconds_in_view: total time in view.
        share: median share of the field of view that it covers, 0..1.
        share_found: share of its frames in which it is found, 0..1.
        delay_s: seconds from its appearance to the first frame in which it is found; None: it is missed.
        largest_target: the frame in which it is largest, as a place among the targets of the Observation.
    """

    name: str
    first_s: float
    seconds_in_view: float
    share: float
    share_found: float
    delay_s: float | None
    largest_target: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A recording with the marks that count.

    Attributes:
        name: name of the recording.
        minutes: its length.
        frames: number of frames.
        with_polyp, found: number of frames with a polyp, and of those in which a mark overlaps one.
        without_polyp, quiet: number of frames without a polyp, and of those without a mark.
        polyps: polyps in view for at least 1 s.
        too_short: number of the other polyps.
        false_positives: the false-positive events, by their time.
        flicker: changes between found and not found, as `score` counts them.
        id_switches: changes of the track that covers a polyp.
        levels: int [2, 256], number of marks by truth (1: they overlap a polyp) and by probability in grey levels.
        dice, iou, dice_with_polyp: means over all frames, and over those with a polyp; None: only boxes are known, or
            there are no such frames. They are of all that the run found.
    """

    name: str
    minutes: float
    frames: int
    with_polyp: int
    found: int
    without_polyp: int
    quiet: int
    polyps: list[PolypOutcome]
    too_short: int
    false_positives: list[FalsePositive]
    flicker: int
    id_switches: int
    levels: np.ndarray
    dice: float | None
    iou: float | None
    dice_with_polyp: float | None


def decide(observation: Observation, choice: Choice) -> Decision:
    """Choose the marks that count, and find out what they hit.

    Args:
        observation: the recording.
        choice: which marks count.
    """
    shown = _sure(observation, choice)
    shown &= observation.mark_share >= choice.smallest
    if choice.hold_off > 0:
        shown[shown] = _ages(observation, shown) >= choice.hold_off - ROUNDING_S
    hit = shown[observation.pair_mark] & (observation.pair_iou > choice.overlap)
    false = shown.copy()
    false[observation.pair_mark[hit]] = False
    tracks = np.zeros(len(observation.target_frame), np.int64)
    order = np.argsort(observation.pair_overlap[hit], kind="stable")  # so that the largest overlap is written last
    tracks[observation.pair_target[hit][order]] = observation.mark_track[observation.pair_mark[hit][order]]
    return Decision(shown, false, tracks)


def _sure(observation: Observation, choice: Choice) -> np.ndarray:
    """Which marks reach the peak, or follow one of the same track that did, bool [marks]."""
    sure = observation.mark_probability >= choice.peak
    if choice.memory > 0:
        seconds, before = observation.seconds[observation.mark_frame], sure.copy()
        for track in np.unique(observation.mark_track):
            rows = np.flatnonzero(observation.mark_track == track)
            last = np.maximum.accumulate(np.where(before[rows], seconds[rows], -np.inf))
            sure[rows] = seconds[rows] - last <= choice.memory + ROUNDING_S
    return sure


def _ages(observation: Observation, chosen: np.ndarray) -> np.ndarray:
    """For each chosen mark, the seconds since its alert began."""
    seconds, tracks = observation.seconds[observation.mark_frame[chosen]], observation.mark_track[chosen]
    ages = np.zeros(len(seconds))
    for track in np.unique(tracks):
        rows = np.flatnonzero(tracks == track)
        for part in _stretches(seconds[rows]):
            ages[rows[part]] = seconds[rows[part]] - seconds[rows[part.start]]
    return ages


def _stretches(seconds: np.ndarray) -> list[slice]:
    """Parts of rising times that are more than half a second apart."""
    ends = np.flatnonzero(np.diff(seconds) > APART_S + ROUNDING_S) + 1
    return [slice(first, end) for first, end in zip([0, *ends], [*ends, len(seconds)], strict=True)]


def outcome_of(observation: Observation, choice: Choice) -> Outcome:
    """Compute what a choice of marks makes of a recording.

    Args:
        observation: the recording.
        choice: which marks count.
    """
    decision, frames = decide(observation, choice), len(observation.seconds)
    has_polyp, found, marked = (np.zeros(frames, bool) for _ in range(3))
    has_polyp[observation.target_frame] = True
    found[observation.target_frame[decision.target_track > 0]] = True
    marked[observation.mark_frame[decision.shown]] = True
    in_view = [_frames_of(observation, decision, polyp) for polyp in range(len(observation.polyps))]
    counted = [
        (polyp, *each) for polyp, each in enumerate(in_view) if lasts_longer(len(each[0]), observation.step, IN_VIEW_S)
    ]
    alarms = np.zeros(frames, bool)
    alarms[observation.mark_frame[decision.false]] = True
    levels = np.round(255 * observation.mark_probability[decision.shown]).astype(np.int64)
    true = ~decision.false[decision.shown]
    return Outcome(
        name=observation.name,
        minutes=observation.minutes,
        frames=frames,
        with_polyp=int(has_polyp.sum()),
        found=int(found.sum()),
        without_polyp=int((~has_polyp).sum()),
        quiet=int((~has_polyp & ~marked).sum()),
        polyps=[_polyp_outcome(observation, polyp, seen, tracks) for polyp, seen, tracks in counted],
        too_short=len(in_view) - len(counted),
        false_positives=_false_positives(observation, decision),
        flicker=sum(changes(between_hits((tracks > 0).tolist())) for _, _, tracks in counted)
        + changes([False, *alarms.tolist(), False]),
        id_switches=sum(changes(tracks[tracks > 0].tolist()) for _, _, tracks in counted),
        levels=np.stack([np.bincount(levels[true == truth], minlength=256) for truth in (False, True)]),
        dice=_mean(observation.dice),
        iou=_mean(observation.iou),
        dice_with_polyp=_mean(None if observation.dice is None else observation.dice[has_polyp]),
    )


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None or not len(values) else float(values.mean())


def _frames_of(observation: Observation, decision: Decision, polyp: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames in which a polyp is in view, and the track on it in each of them, or 0."""
    targets = observation.target_polyp == polyp
    frames, place = np.unique(observation.target_frame[targets], return_inverse=True)
    tracks = np.zeros(len(frames), np.int64)
    np.maximum.at(tracks, place, decision.target_track[targets])
    return frames, tracks


def _polyp_outcome(observation: Observation, polyp: int, frames: np.ndarray, tracks: np.ndarray) -> PolypOutcome:
    targets = np.flatnonzero(observation.target_polyp == polyp)
    shares, seconds, hit = observation.target_share[targets], observation.seconds[frames], tracks > 0
    return PolypOutcome(
        observation.polyps[polyp],
        float(seconds[0]),
        len(frames) * observation.step,
        float(np.median(shares)),
        float(hit.mean()),
        float(seconds[hit.argmax()] - seconds[0]) if hit.any() else None,
        int(targets[shares.argmax()]),
    )


def _false_positives(observation: Observation, decision: Decision) -> list[FalsePositive]:
    events, on_polyps = [], set(decision.target_track.tolist())
    false = np.flatnonzero(decision.false)
    for track in np.unique(observation.mark_track[false]):
        rows = false[observation.mark_track[false] == track]
        seconds = observation.seconds[observation.mark_frame[rows]]
        for part in _stretches(seconds):
            best = rows[part][observation.mark_probability[rows[part]].argmax()]
            events.append(
                FalsePositive(
                    int(track),
                    float(seconds[part][0]),
                    float(seconds[part][-1] - seconds[part][0]) + observation.step,
                    float(observation.mark_probability[best]),
                    int(best),
                    int(track) in on_polyps,
                )
            )
    return sorted(events, key=lambda event: event.first_s)
