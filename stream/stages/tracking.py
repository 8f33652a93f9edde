"""Findings over time: which blob now is which polyp before, and whether to believe it yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from polypstream.core.frame import Motion

# Times lie between those of whole frames at 24, 25, 30, 50 and 60 a second, or rounding would decide.
# A finding is shown once the network has been sure of it for so long, times when it was not taken off. What covers
# less than SMALL of the map must last longer, by up to SMALL_S: almost all false alarms are small and short. One that
# was there from a scene's first picture is shown at once, since nothing speaks against it.
PERSISTENCE_S = 0.055
SMALL, SMALL_S = 0.04, 0.4
# What is small and was missing for longer must last anew before it is shown again.
MISSING_S = 0.055
# One that the network has not been sure of for so long is shown no longer, however faintly it goes on.
UNSURE_S = 1.0
# One that is not seen is shown for so long where it was, moving with the wall, and is known again for so long.
HELD_S, REMEMBERED_S = 0.055, 2.0
# A blob this near to where a track was, as a share of the map's side, may be the same polyp.
NEAR = 0.06
MAX_TRACKS = 255
# More than this need not be remembered: it is enough for any finding.
MAX_EVIDENCE_S = PERSISTENCE_S + SMALL_S


@dataclass(slots=True)
class Track:
    """One polyp over time, as far as it is known.

    Attributes:
        number: from 1, in the order in which they are first shown; 0: it never was.
        last: when it was last seen, in seconds.
        sure: when the network was last sure of it.
        evidence: for how many seconds it has been, those when it was not taken off; MAX_EVIDENCE_S at most.
        believed: it is shown.
        astray: the picture leapt since it was last seen, so that its place is not known.
    """

    last: float
    number: int = 0
    sure: float = float("-inf")
    evidence: float = 0.0
    believed: bool = False
    astray: bool = False


@dataclass(frozen=True, slots=True)
class Blob:
    """A connected part of a probability map.

    Attributes:
        label: its number in the map of labels, from 1 on.
        share: of the map that it covers, 0..1.
        sure: the network is sure of it now.
    """

    label: int
    share: float
    sure: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of the tracks.

    Attributes:
        slots: uint8 [h, w], at each place of the map the slot of the track that is shown there, or 0.
        numbers: int [256], for each slot the number of its track.
    """

    slots: np.ndarray
    numbers: np.ndarray


@dataclass(slots=True)
class TrackerState:
    """What a tracker knows when a picture is done: all that decides how it goes on.

    Attributes:
        tracks: those that are not forgotten; the slot of each is its place here, from 1. First those that were seen,
            in the order of their blobs, then the others: so the order depends on nothing that is forgotten.
        places: uint8 [h, w], at each place of the map the slot of the track that is there, or 0.
        count: of the tracks that were ever shown.
        before: time of the picture in seconds.
    """

    tracks: list[Track] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    count: int = 0
    before: float = float("-inf")


class Tracker:
    """Follows the blobs of one source from picture to picture.

    Args:
        patient: wait before a finding is shown, and hold on to one that is not seen for a moment; otherwise every
            blob that the network is sure of is shown, and only gets a number.

    Attributes:
        state: between two pictures; another tracker that is given it goes on in the same way.
    """

    def __init__(self, patient: bool) -> None:
        self._patient = patient
        self.state = TrackerState()

    def update(self, seconds: float, motion: Motion | None, labels: np.ndarray, blobs: Sequence[Blob]) -> Shown | None:
        """Find out who is who, and who is shown.

        Args:
            seconds: the time of the picture.
            motion: since the one before; None: nothing is known of it.
            labels: uint8 [h, w], the blobs' labels and 0.
            blobs: of the picture.

        Returns:
            What is shown; None: nothing is.
        """
        state = self.state
        fresh = self._move(seconds, motion, labels.shape)
        if not blobs and not state.tracks:
            state.before = seconds
            return None
        slots = self._match(labels, blobs, seconds)
        parts: dict[int, list[Blob]] = {}
        for slot, blob in zip(slots, blobs, strict=True):
            parts.setdefault(slot, []).append(blob)
        for slot, of_it in parts.items():
            self._believe(state.tracks[slot - 1], of_it, seconds, fresh)
        state.before = seconds
        self._arrange(labels, slots, list(parts))
        numbers = self._numbers(seconds)
        if not numbers.any():
            return None
        shown = cv2.LUT(state.places, _table((slot, slot) for slot in map(int, np.flatnonzero(numbers))))
        faint = self._faint(parts.values())
        if faint:
            shown = cv2.copyTo(shown, cv2.bitwise_not(cv2.LUT(labels, _table((blob.label, 255) for blob in faint))))
        return Shown(shown, numbers) if cv2.countNonZero(shown) else None

    def _move(self, seconds: float, motion: Motion | None, shape: tuple[int, ...]) -> bool:
        """Take every track to where it is now, and forget the old ones.

        Returns:
            Whether there is no past to be patient with: a scene's first picture, or a leap to another place.
        """
        state, fresh = self.state, motion is None
        if state.places.shape != shape:
            state.places, state.tracks = np.zeros(shape, np.uint8), []
        if not state.tracks:
            return fresh
        if motion is not None:
            state.places = motion.warp(state.places, cv2.INTER_NEAREST)
        present = _histogram(state.places)
        kept = [
            slot for slot, track in enumerate(state.tracks, 1) if present[slot] and seconds - track.last <= REMEMBERED_S
        ]
        if len(kept) < len(state.tracks):
            state.places = cv2.LUT(state.places, _table(zip(kept, range(1, len(kept) + 1), strict=True)))
            state.tracks = [state.tracks[slot - 1] for slot in kept]
        for track in state.tracks:
            track.astray |= fresh
        return fresh

    def _match(self, labels: np.ndarray, blobs: Sequence[Blob], seconds: float) -> list[int]:
        """The slot of each blob's track: the one that it covers most of, or is nearest to, or a new one."""
        state, slots = self.state, list[int]()
        reach = max(3, round(NEAR * max(labels.shape)))
        near: np.ndarray | None = None
        for blob in blobs:
            where = cv2.compare(labels, blob.label, cv2.CMP_EQ)
            slot = self._commonest(state.places, where)
            if not slot and state.tracks:
                near = cv2.dilate(state.places, np.ones((2 * reach + 1,) * 2, np.uint8)) if near is None else near
                slot = self._commonest(near, where)
            slots.append(slot or self._begin(seconds))
        return slots

    def _arrange(self, labels: np.ndarray, slots: list[int], seen: list[int]) -> None:
        """Give every track its slot and place; what is not seen keeps its place where nothing else is."""
        state = self.state
        order = [*seen, *(slot for slot in range(1, len(state.tracks) + 1) if slot not in seen)]
        renamed = {slot: place for place, slot in enumerate(order, 1)}
        state.tracks = [state.tracks[slot - 1] for slot in order]
        now = cv2.LUT(labels, _table((label, renamed[slot]) for label, slot in enumerate(slots, 1)))
        before = cv2.LUT(state.places, _table((slot, renamed[slot]) for slot in order[len(seen) :]))
        state.places = now + cv2.copyTo(before, cv2.compare(now, 0, cv2.CMP_EQ))

    def _commonest(self, slots: np.ndarray, where: np.ndarray) -> int:
        """The slot of a track that most of a mask's places have, or 0."""
        counts = _histogram(slots, where)[1 : len(self.state.tracks) + 1]
        return 1 + int(counts.argmax()) if counts.any() else 0

    def _begin(self, seconds: float) -> int:
        """The slot of a new track; where there are too many, that of the last one."""
        tracks = self.state.tracks
        del tracks[MAX_TRACKS - 1 :]
        tracks.append(Track(seconds))
        return len(tracks)

    def _believe(self, track: Track, blobs: Sequence[Blob], seconds: float, fresh: bool) -> None:
        sure, share, passed = any(b.sure for b in blobs), sum(b.share for b in blobs), seconds - track.last
        # Pictures came that did not show it; at a low rate much time may pass without any.
        before = self.state.before
        if before - track.last > MISSING_S and share < SMALL:
            track.believed, track.evidence = False, 0.0
        elif not sure:
            track.evidence = max(0.0, track.evidence - passed)
        elif track.sure == track.last == before:
            track.evidence = min(track.evidence + passed, MAX_EVIDENCE_S)
        if sure:
            track.sure = seconds
            needed = PERSISTENCE_S + SMALL_S * max(0.0, 1 - share / SMALL)
            track.believed |= fresh or not self._patient or track.evidence >= needed
        elif seconds - track.sure > UNSURE_S:
            track.believed = False
        track.last, track.astray = seconds, False
        if track.believed and not track.number:
            self.state.count += 1
            track.number = self.state.count

    def _faint(self, parts: Iterable[list[Blob]]) -> list[Blob]:
        """The blobs, given by tracks, that are not shown: what is shown may go on faintly, but in one piece only."""
        pieces = 1 if self._patient else 0
        by_size = (sorted(of_it, key=lambda blob: blob.share, reverse=True) for of_it in parts)
        return [blob for of_it in by_size for blob in of_it[pieces:] if not blob.sure]

    def _numbers(self, seconds: float) -> np.ndarray:
        """For each slot the number of its track, if it is shown, or 0."""
        held = HELD_S if self._patient else 0.0
        numbers = np.zeros(MAX_TRACKS + 1, np.int64)
        for slot, track in enumerate(self.state.tracks, 1):
            if track.believed and not track.astray and seconds - track.last <= held:
                numbers[slot] = track.number
        return numbers


def _histogram(slots: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """How many places each slot has, inside a mask if one is given."""
    counts: np.ndarray = cv2.calcHist([slots], [0], where, [MAX_TRACKS + 1], [0, MAX_TRACKS + 1]).ravel()
    return counts


def _table(pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """uint8 [256] that turns each first number into the second, and all others into 0."""
    table = np.zeros(MAX_TRACKS + 1, np.uint8)
    for number, value in pairs:
        table[number] = value
    return table
