"""State of the stages between two frames, and whether the runs of two adjacent parts continue alike.

The stages of a part have seen only a few seconds before it. Most often their state equals that of stages that have seen
the whole recording: smoothing fades out, and tracks that are not seen are dropped. This is not assumed. The states are
compared bit for bit. Only track numbers may differ, since the numbers given before are not known.
"""

from __future__ import annotations

import copy
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from polypstream.core.files import writing
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.errors import DataError
from polypstream.jobs.setup import Stages
from polypstream.media.pictures import planes_of
from polypstream.stages.smoothing import IDLE_AFTER_S, SmootherState
from polypstream.stages.tracking import CARRY_S, CONFIDENCE_TIMEOUT_S, Track, TrackerState


@dataclass(frozen=True, slots=True)
class Boundary:
    """State after one frame and before the next.

    Attributes:
        pts: pts of the frame before, in units of the time base.
        digest: digest of its pixels.
        smoother: state of the smoother; None: there is no smoother.
        tracker: state of the tracker.
    """

    pts: int
    digest: int
    smoother: SmootherState | None
    tracker: TrackerState


@dataclass(frozen=True, slots=True)
class TrackRenumbering:
    """Maps the track numbers of a part to those of the recording.

    Attributes:
        known: numbers of the tracks that exist at the boundary.
        count: number of tracks that the part had numbered by then. Tracks with higher numbers began later.
        shift: value that is added to these higher numbers.
    """

    known: Mapping[int, int]
    count: int = 0
    shift: int = 0

    def __call__(self, number: int) -> int:
        """The recording's number; 0, which means no track, stays 0."""
        return number + self.shift if number > self.count else self.known.get(number, 0)

    def after(self, boundary: TrackRenumbering) -> TrackRenumbering:
        """Combine with the renumbering of the next part.

        Args:
            boundary: renumbering from the next part to this part.

        Returns:
            Renumbering from the next part to the recording.
        """
        known = {number: self(before) for number, before in boundary.known.items()}
        return TrackRenumbering(known, boundary.count, boundary.shift + self.shift)


# The renumbering of the first part.
IDENTITY = TrackRenumbering({})


def digest_of(frame: Frame) -> int:
    """CRC-32 of a frame's planes. It shows whether two decoders returned the same frame.

    Args:
        frame: the frame.
    """
    digest = 0
    for plane in planes_of(frame.in_memory()):
        digest = zlib.crc32(np.ascontiguousarray(plane).data, digest)
    return digest


def state_of(stages: Stages) -> tuple[SmootherState | None, TrackerState]:
    """Copy the state of the stages.

    Args:
        stages: the stages.

    Returns:
        State of the smoother (None: there is none), and state of the tracker.
    """
    smooth = None if stages.smooth is None else copy.deepcopy(stages.smooth.state)
    return smooth, copy.deepcopy(stages.findings.tracker.state)


def restore_state(stages: Stages, boundary: Boundary) -> None:
    """Set the state of new stages, so that they continue from a boundary.

    Args:
        stages: the stages to change.
        boundary: the boundary.
    """
    stages.findings.tracker.state = copy.deepcopy(boundary.tracker)
    if stages.smooth is not None and boundary.smoother is not None:
        stages.smooth.state = copy.deepcopy(boundary.smoother)


def renumbering_at(end: Boundary, begin: Boundary) -> TrackRenumbering | None:
    """Compare the states of two runs at a boundary.

    Args:
        end: state at the end of the part before.
        begin: state at the beginning of this part.

    Returns:
        Renumbering from this part's tracks to those of the part before; None: the two runs do not continue alike.
    """
    if (end.pts, end.digest) != (begin.pts, begin.digest) or not _smoothers_alike(end.smoother, begin.smoother):
        return None
    ours, theirs = begin.tracker, end.tracker
    if ours.before != theirs.before or not np.array_equal(ours.places, theirs.places):
        return None
    if [_relevant(track, ours.before) for track in ours.tracks] != [
        _relevant(track, ours.before) for track in theirs.tracks
    ]:
        return None
    pairs = zip(ours.tracks, theirs.tracks, strict=True)
    known = {our.number: their.number for our, their in pairs if our.number}
    return TrackRenumbering(known, ours.count, theirs.count - ours.count)


def _smoothers_alike(end: SmootherState | None, begin: SmootherState | None) -> bool:
    if end is None or begin is None:
        return end is begin
    return (
        (end.before, end.view, _recent(end)) == (begin.before, begin.view, _recent(begin))
        and np.array_equal(end.grey, begin.grey)
        and np.array_equal(end.smooth, begin.smooth)
    )


def _recent(state: SmootherState) -> float | None:
    """Time at which something was last seen, if it still affects the smoother."""
    return state.seen if state.before is not None and state.before - state.seen <= IDLE_AFTER_S else None


def _relevant(track: Track, now: float) -> tuple[object, ...]:
    """Values that decide how a track continues. These include whether it has a number, but not which."""
    confident = track.last_confident if now - track.last_confident <= CONFIDENCE_TIMEOUT_S else None
    sharp = track.last_sharp if now - track.last_sharp <= CARRY_S else None
    numbered, state = bool(track.number), (track.evidence, track.confirmed, track.position_unknown, track.level)
    return track.last, numbered, confident, sharp, *state


def save_boundary(boundary: Boundary, path: Path) -> None:
    """Write a boundary to a file.

    Args:
        boundary: the boundary.
        path: the file.

    Raises:
        OutputError: it cannot be written.
    """
    tracker, smoother = boundary.tracker, boundary.smoother
    facts: dict[str, Any] = {
        "pts": boundary.pts,
        "digest": boundary.digest,
        "count": tracker.count,
        "before": tracker.before,
        "tracks": [asdict(each) for each in tracker.tracks],
    }
    arrays: dict[str, Any] = {"places": tracker.places}
    if smoother is not None:
        view = None if smoother.view is None else astuple(smoother.view)
        facts["steady"] = {"before": smoother.before, "view": view, "seen": smoother.seen}
        arrays |= {"grey": smoother.grey, "smooth": smoother.smooth}
    with writing(path):
        np.savez_compressed(path, facts=np.array(json.dumps(facts)), **arrays)


def load_boundary(path: Path) -> Boundary:
    """Read a boundary from a file.

    Args:
        path: the file.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            tracks = [Track(**each) for each in facts["tracks"]]
            tracker = TrackerState(tracks, file["places"], facts["count"], facts["before"])
            smoother = None
            if "steady" in facts:
                stored = facts["steady"]
                view = None if stored["view"] is None else FieldOfView(*stored["view"])
                smoother = SmootherState(stored["before"], view, file["grey"], file["smooth"], stored["seen"])
    except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as the boundary of two parts ({error})") from error
    return Boundary(facts["pts"], facts["digest"], smoother, tracker)
