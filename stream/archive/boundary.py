"""What the stages remember between two pictures, and whether two runs that meet there go on alike.

A part of a recording begins with stages that saw only the few seconds before it. Most often they then remember the same
as those that came the whole way: what is smoothed fades, and tracks that are not seen are forgotten. Whether they do is
not assumed but compared, bit for bit; only the numbers of the tracks may differ, since those before are not known.
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
from polypstream.stages.tracking import CONFIDENCE_TIMEOUT_S, Track, TrackerState


@dataclass(frozen=True, slots=True)
class Boundary:
    """What is known after one picture and before the next.

    Attributes:
        pts: of the picture before.
        digest: of its pixels.
        steady: what the steadier remembers; None: there is none.
        track: what the tracker remembers.
    """

    pts: int
    digest: int
    steady: SmootherState | None
    track: TrackerState


@dataclass(frozen=True, slots=True)
class TrackRenumbering:
    """From a part's numbers of tracks to the recording's.

    Attributes:
        known: those that were there at the boundary.
        count: how many numbers the part had given by then; the others are later ones.
        shift: what is added to those.
    """

    known: Mapping[int, int]
    count: int = 0
    shift: int = 0

    def __call__(self, number: int) -> int:
        """The recording's number; 0, which stands for no track, stays."""
        return number + self.shift if number > self.count else self.known.get(number, 0)

    def after(self, boundary: TrackRenumbering) -> TrackRenumbering:
        """The renaming of the next part, whose boundary to this one renames its numbers to this one's."""
        known = {number: self(before) for number, before in boundary.known.items()}
        return TrackRenumbering(known, boundary.count, boundary.shift + self.shift)


FIRST = TrackRenumbering({})


def digest_of(frame: Frame) -> int:
    """CRC-32 of a frame's planes: to tell whether two decoders gave the same."""
    digest = 0
    for plane in planes_of(frame.picture):
        digest = zlib.crc32(np.ascontiguousarray(plane).data, digest)
    return digest


def state_of(stages: Stages) -> tuple[SmootherState | None, TrackerState]:
    """A copy of what the stages remember."""
    smooth = None if stages.smooth is None else copy.deepcopy(stages.smooth.state)
    return smooth, copy.deepcopy(stages.findings.tracker.state)


def restore_state(stages: Stages, boundary: Boundary) -> None:
    """Let fresh stages go on where others were."""
    stages.findings.tracker.state = copy.deepcopy(boundary.track)
    if stages.smooth is not None and boundary.steady is not None:
        stages.smooth.state = copy.deepcopy(boundary.steady)


def renumbering_at(true: Boundary, guess: Boundary) -> TrackRenumbering | None:
    """From the tracks' numbers of a part to those of the part before it; None: the two do not go on alike.

    Args:
        true: at the end of the part before.
        guess: at the beginning of this one.
    """
    if (true.pts, true.digest) != (guess.pts, guess.digest) or not _steady_alike(true.steady, guess.steady):
        return None
    ours, theirs = guess.track, true.track
    if ours.before != theirs.before or not np.array_equal(ours.places, theirs.places):
        return None
    if [_kept(track, ours.before) for track in ours.tracks] != [_kept(track, ours.before) for track in theirs.tracks]:
        return None
    pairs = zip(ours.tracks, theirs.tracks, strict=True)
    known = {our.number: their.number for our, their in pairs if our.number}
    return TrackRenumbering(known, ours.count, theirs.count - ours.count)


def _steady_alike(true: SmootherState | None, guess: SmootherState | None) -> bool:
    if true is None or guess is None:
        return true is guess
    return (
        (true.before, true.view, _recent(true)) == (guess.before, guess.view, _recent(guess))
        and np.array_equal(true.grey, guess.grey)
        and np.array_equal(true.smooth, guess.smooth)
    )


def _recent(state: SmootherState) -> float | None:
    """When something was last seen, if that still matters."""
    return state.seen if state.before is not None and state.before - state.seen <= IDLE_AFTER_S else None


def _kept(track: Track, now: float) -> tuple[object, ...]:
    """What decides how a track goes on: not its number, but whether it has one."""
    confident = track.last_confident if now - track.last_confident <= CONFIDENCE_TIMEOUT_S else None
    return track.last, bool(track.number), confident, track.evidence, track.confirmed, track.position_unknown


def save_boundary(boundary: Boundary, path: Path) -> None:
    """Write a boundary to a file.

    Raises:
        OutputError: it cannot be written.
    """
    track, steady = boundary.track, boundary.steady
    facts: dict[str, Any] = {
        "pts": boundary.pts,
        "digest": boundary.digest,
        "count": track.count,
        "before": track.before,
        "tracks": [asdict(each) for each in track.tracks],
    }
    arrays: dict[str, Any] = {"places": track.places}
    if steady is not None:
        view = None if steady.view is None else astuple(steady.view)
        facts["steady"] = {"before": steady.before, "view": view, "seen": steady.seen}
        arrays |= {"grey": steady.grey, "smooth": steady.smooth}
    with writing(path):
        np.savez_compressed(path, facts=np.array(json.dumps(facts)), **arrays)


def load_boundary(path: Path) -> Boundary:
    """Read a boundary from a file.

    Raises:
        DataError: there is none.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            tracks = [Track(**each) for each in facts["tracks"]]
            track = TrackerState(tracks, file["places"], facts["count"], facts["before"])
            steady = None
            if "steady" in facts:
                known = facts["steady"]
                view = None if known["view"] is None else FieldOfView(*known["view"])
                steady = SmootherState(known["before"], view, file["grey"], file["smooth"], known["seen"])
    except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as the boundary of two parts ({error})") from error
    return Boundary(facts["pts"], facts["digest"], steady, track)
