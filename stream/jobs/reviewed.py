"""Reviewed findings: the findings of a run, as its readers have decided and corrected them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from polypstream.errors import DataError
from polypstream.jobs.results import Outline, Run, TrackSummary, load_run
from polypstream.jobs.reviews import Review, ReviewStore
from polypstream.sinks.findings import SNAPSHOTS

# Names the reviewed findings of a run as the ground truth of `score` and `study`.
REVIEWED = Path("reviewed")
AnyRun = TypeVar("AnyRun", bound=Run)


def load_reviewed(folder: str | Path) -> Run:
    """Read the results of `process` for one recording, as its readers have decided and corrected them.

    Args:
        folder: folder of the recording's results.

    Returns:
        The run with accepted and undecided tracks, without rejected ones, with corrected outlines in place of the
        network's, and with drawn tracks. Without reviews it is the run itself.

    Raises:
        DataError: there are no results, or they cannot be read.

    Example:
        >>> import polypstream as pp
        >>> run = pp.load_reviewed("results/colon")
        >>> [(track.track_id, track.outlines[0].reviewed) for track in run.tracks]
        [(1, False)]
    """
    return merge(load_run(folder), ReviewStore(Path(folder)).read())


def merge(run: AnyRun, review: Review) -> AnyRun:
    """Apply a review to a run.

    Args:
        run: the run, as `process` wrote it.
        review: what its readers stored.

    Returns:
        The run, see `load_reviewed`. `reviewed` of an outline says whether a reader has drawn it or accepted its track.

    Raises:
        DataError: the review has a frame that the run has not.
    """
    if not review.revision:
        return run
    by_track: dict[int, list[Outline]] = {track: [] for track in review.drawn}
    for (track, frame), correction in review.corrections.items():
        if frame >= len(run.frames["pts_s"]):
            raise DataError(f"{run.folder}: its review has frame {frame}, which the run has not")
        seconds = float(run.frames["pts_s"][frame])
        by_track.setdefault(track, []).append(Outline(track, frame, seconds, 1.0, correction.polygons, True))
    merged = [_merge_track(run, track, by_track.get(track.track_id, []), review) for track in run.tracks]
    merged += [_summary_of(run, track, by_track[track]) for track in sorted(review.drawn)]
    kept = [track for track in merged if track.outlines and review.choice(track.track_id) != "rejected"]
    return replace(run, tracks=kept)


def _merge_track(run: Run, track: TrackSummary, corrections: Sequence[Outline], review: Review) -> TrackSummary:
    """A track of the run with its corrections."""
    accepted = review.choice(track.track_id) == "accepted"
    frames = {outline.frame: outline._replace(reviewed=accepted) for outline in track.outlines}
    if not corrections:
        return track._replace(outlines=list(frames.values()))
    frames |= {outline.frame: outline for outline in corrections}
    merged = _summary_of(run, track.track_id, list(frames.values()))
    return merged._replace(peak_probability=track.peak_probability, mean_probability=track.mean_probability)


def _summary_of(run: Run, number: int, outlines: Sequence[Outline]) -> TrackSummary:
    """Summarise the outlines of a track. Those without polygons are left out."""
    shown = sorted((outline for outline in outlines if outline.polygons), key=lambda outline: outline.frame)
    areas = [outline.area for outline in shown]
    best = shown[int(np.argmax(areas))].seconds if shown else 0.0
    pixels = [math.prod(run.size_of(outline.frame)) for outline in shown]
    return TrackSummary(
        track_id=number,
        first_s=shown[0].seconds if shown else 0.0,
        last_s=shown[-1].seconds if shown else 0.0,
        seconds_in_view=float(sum(_durations(run)[[outline.frame for outline in shown]])),
        frames=len(shown),
        peak_probability=1.0,
        mean_probability=1.0,
        largest_area_fraction=max((area / whole for area, whole in zip(areas, pixels, strict=True)), default=0.0),
        snapshot=run.folder / SNAPSHOTS / f"track-{number}.jpg",
        snapshot_s=best,
        outlines=shown,
    )


def _durations(run: Run) -> np.ndarray:
    """How long each frame is shown, in seconds, float64 [frames]. The last one is shown as long as most."""
    steps = np.diff(run.frames["pts_s"])
    return np.append(steps, np.median(steps) if len(steps) else 0.0)


def undecided(run: Run, review: Review) -> list[int]:
    """Numbers of the tracks that no reader has accepted, rejected or corrected.

    Args:
        run: the run, as `process` wrote it.
        review: what its readers stored.
    """
    corrected = {track for track, _ in review.corrections}
    numbers = (track.track_id for track in run.tracks)
    return [track for track in numbers if review.choice(track) == "undecided" and track not in corrected]


def reviewed_frames(run: Run, review: Review) -> set[int]:
    """Numbers of the frames in which a reader has reviewed all findings, and at least one.

    A finding of a rejected track counts. A frame without findings does not: nobody may have looked at it.

    Args:
        run: the run, as `process` wrote it.
        review: what its readers stored.
    """
    done = {frame for _, frame in review.corrections}
    for track in run.tracks:
        if review.choice(track.track_id) != "undecided":
            done |= {outline.frame for outline in track.outlines}
    guessed = {
        outline.frame for track in merge(run, review).tracks for outline in track.outlines if not outline.reviewed
    }
    return done - guessed


def load_truth(folder: str | Path) -> Run:
    """Read the reviewed findings of a run as a ground truth.

    Args:
        folder: folder of the recording's results.

    Raises:
        DataError: nobody has reviewed it, or not all of its tracks.
    """
    run, review = load_run(folder), ReviewStore(Path(folder)).read()
    if not review.revision:
        raise DataError(f"{folder}: nobody has reviewed it; open it on the page Review of `polypstream serve`")
    if open_tracks := undecided(run, review):
        raise DataError(
            f"{folder}: these polyps are not reviewed yet: {', '.join(map(str, open_tracks))}; accept or reject them"
        )
    return merge(run, review)
