"""Tracking of findings over time: association of blobs with tracks, and confirmation of tracks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from polypstream.core.frame import Motion

# All durations lie between multiples of the frame periods at 24, 25, 30, 50 and 60 frames per second. Otherwise
# rounding errors would decide.

# A track is confirmed after the model has been confident for CONFIRM_S. Time without confidence is subtracted. A track
# that covers less than SMALL_SHARE of the map needs up to SMALL_EXTRA_S more. The reason is that almost all false
# positives are small and short. A track in the first frame of a scene is confirmed immediately, because nothing
# contradicts it.
CONFIRM_S = 0.055
SMALL_SHARE, SMALL_EXTRA_S = 0.04, 0.4
# A small track that was not detected for longer must be confirmed again.
RECONFIRM_AFTER_S = 0.055
# A track loses its confirmation after this time without confidence, even if faint detections continue.
CONFIDENCE_TIMEOUT_S = 1.0
# A visible track that blurred frames do not show is carried along the motion. It ends this time after the last sharp
# frame in which the model was confident. In a recording that is blurred throughout, nothing is carried.
CARRY_S = 1.0
# A track that is not detected stays visible for HOLD_S and moves with the mucosa. It can be found again for MAX_LOST_S.
HOLD_S, MAX_LOST_S = 0.055, 2.0
# A blob may belong to a track at this distance, as a share of the map's side length.
MATCH_DISTANCE = 0.06
MAX_TRACKS = 255
# Evidence is limited to this value, which is enough to confirm any track.
MAX_EVIDENCE_S = CONFIRM_S + SMALL_EXTRA_S


@dataclass(slots=True)
class Track:
    """One polyp over time.

    Attributes:
        last: timestamp of the last frame in which it was detected, or carried through blur, in seconds.
        number: number from 1, in the order of confirmation; 0 if it was never confirmed.
        last_confident: timestamp of the last frame in which the model was confident, in seconds.
        evidence: seconds with a confident model, minus the seconds without; limited to what confirms any track.
        confirmed: the track may be shown.
        position_unknown: a new scene has started since the last detection.
        level: highest probability in the last frame in which it was detected, 0..255 meaning 0..1.
        last_sharp: timestamp of the last frame that was not blurred and in which the model was confident, in seconds.
    """

    last: float
    number: int = 0
    last_confident: float = float("-inf")
    evidence: float = 0.0
    confirmed: bool = False
    position_unknown: bool = False
    level: int = 0
    last_sharp: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Blob:
    """A connected part of a probability map.

    Attributes:
        label: its value in the label map, from 1.
        share: share of the map that it covers, 0..1.
        confident: its probability reaches the high threshold.
        level: its highest probability, of the model or smoothed, 0..255 meaning 0..1.
    """

    label: int
    share: float
    confident: bool
    level: int = 0


@dataclass(frozen=True, slots=True)
class VisibleTracks:
    """The tracks that are shown in a frame.

    Attributes:
        slots: uint8 [h, w]. For each pixel of the map, the slot of the track that is shown there, or 0.
        numbers: int [256]. For each slot, the number of its track, or 0 if the track is not shown.
        levels: for each slot, the `level` of its track; 0 for slot 0.
        carried: slots of the tracks that this frame did not show. They come from an earlier frame, along the motion.
    """

    slots: np.ndarray
    numbers: np.ndarray
    levels: list[int]
    carried: range


@dataclass(slots=True)
class TrackerState:
    """The state of a Tracker after a frame. It determines all later results.

    Attributes:
        tracks: the tracks that are kept. The slot of a track is its position in this list, from 1. Tracks that were
            detected come first, in the order of their blobs. So the order does not depend on tracks that are dropped.
        places: uint8 [h, w]. For each pixel of the map, the slot of the track that is there, or 0.
        count: number of tracks that were confirmed so far.
        before: timestamp of the frame in seconds. Frames that the model did not see do not count.
    """

    tracks: list[Track] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    count: int = 0
    before: float = float("-inf")


class Tracker:
    """Tracks the blobs of one source from frame to frame.

    Args:
        steady: confirm a track before it is shown, and hold it for a moment when it is not detected. Otherwise every
            confident blob is shown, and tracks only supply the numbers.
        shortest: seconds for which the model must be confident before a new track is confirmed.

    Attributes:
        state: the state after the latest frame. Another tracker that is given this state continues in the same way.
    """

    def __init__(self, steady: bool, shortest: float = 0.0) -> None:
        self._steady, self._shortest = steady, shortest
        self._visible: VisibleTracks | None = None
        self.state = TrackerState()

    def move(self, seconds: float, motion: Motion) -> VisibleTracks | None:
        """Move the tracks to a frame that the model did not see. It is no evidence for or against a track.

        Args:
            seconds: timestamp of the frame in seconds.
            motion: motion since the previous frame.

        Returns:
            The visible tracks: those of the previous frame; None if there are none.
        """
        self._predict(seconds, motion, self.state.places.shape)
        if self._visible is not None:
            slots = motion.warp(self._visible.slots, cv2.INTER_NEAREST)
            carried = range(1, len(self._visible.levels))
            self._visible = replace(self._visible, slots=slots, carried=carried) if cv2.countNonZero(slots) else None
        return self._visible

    def update(
        self,
        seconds: float,
        motion: Motion | None,
        labels: np.ndarray,
        blobs: Sequence[Blob],
        blurred: bool = False,
    ) -> VisibleTracks | None:
        """Associate the blobs of a frame with tracks, and select the visible tracks.

        Args:
            seconds: timestamp of the frame in seconds.
            motion: motion since the previous frame; None if it is unknown.
            labels: uint8 [h, w], the label of each blob, and 0 elsewhere.
            blobs: the blobs of the frame.
            blurred: the frame is blurred. That it does not show a track is no evidence against the track.

        Returns:
            The visible tracks; None if there are none.
        """
        self._visible = self._associate_and_select(seconds, motion, labels, blobs, blurred)
        return self._visible

    def _associate_and_select(
        self, seconds: float, motion: Motion | None, labels: np.ndarray, blobs: Sequence[Blob], blurred: bool
    ) -> VisibleTracks | None:
        state = self.state
        new_scene = self._predict(seconds, motion, labels.shape)
        if not blobs and not state.tracks:
            state.before = seconds
            return None
        slots = self._associate(labels, blobs, seconds)
        parts: dict[int, list[Blob]] = {}
        for slot, blob in zip(slots, blobs, strict=True):
            parts.setdefault(slot, []).append(blob)
        for slot, track_blobs in parts.items():
            self._update_track(state.tracks[slot - 1], track_blobs, seconds, new_scene, blurred)
        self._update_slots(labels, slots, list(parts))
        undetected = range(len(parts) + 1, len(state.tracks) + 1)
        if blurred and self._steady and not new_scene:
            self._carry(undetected, seconds)
        state.before = seconds
        numbers = self._visible_numbers(seconds)
        if not numbers.any():
            return None
        visible = cv2.LUT(state.places, _table((slot, slot) for slot in map(int, np.flatnonzero(numbers))))
        hidden = self._hidden_blobs(parts.values())
        if hidden:
            hidden_pixels = cv2.LUT(labels, _table((blob.label, 255) for blob in hidden))
            visible = cv2.copyTo(visible, cv2.bitwise_not(hidden_pixels))
        for slot in undetected:
            if numbers[slot]:
                _keep_largest_piece(visible, slot)
        levels = [0, *(track.level for track in state.tracks)]
        return VisibleTracks(visible, numbers, levels, undetected) if cv2.countNonZero(visible) else None

    def _predict(self, seconds: float, motion: Motion | None, shape: tuple[int, ...]) -> bool:
        """Move every track to its position in this frame, and drop the old ones.

        Returns:
            Whether a new scene starts, so that there is no earlier evidence.
        """
        state, new_scene = self.state, motion is None
        if state.places.shape != shape:
            state.places, state.tracks = np.zeros(shape, np.uint8), []
        if not state.tracks:
            return new_scene
        if motion is not None:
            state.places = motion.warp(state.places, cv2.INTER_NEAREST)
        present = _histogram(state.places)
        kept = [
            slot for slot, track in enumerate(state.tracks, 1) if present[slot] and seconds - track.last <= MAX_LOST_S
        ]
        if len(kept) < len(state.tracks):
            state.places = cv2.LUT(state.places, _table(zip(kept, range(1, len(kept) + 1), strict=True)))
            state.tracks = [state.tracks[slot - 1] for slot in kept]
        for track in state.tracks:
            track.position_unknown |= new_scene
        return new_scene

    def _associate(self, labels: np.ndarray, blobs: Sequence[Blob], seconds: float) -> list[int]:
        """Return the slot of each blob's track: the one with the largest overlap, else the nearest, else a new one."""
        state, slots = self.state, list[int]()
        distance = max(3, round(MATCH_DISTANCE * max(labels.shape)))
        near: np.ndarray | None = None
        for blob in blobs:
            where = cv2.compare(labels, blob.label, cv2.CMP_EQ)
            slot = self._most_frequent(state.places, where)
            if not slot and state.tracks:
                near = cv2.dilate(state.places, np.ones((2 * distance + 1,) * 2, np.uint8)) if near is None else near
                slot = self._most_frequent(near, where)
            slots.append(slot or self._new_track(seconds))
        return slots

    def _update_slots(self, labels: np.ndarray, slots: list[int], detected: list[int]) -> None:
        """Assign slots and pixels to the tracks. An undetected track keeps its pixels where no other track is."""
        state = self.state
        order = [*detected, *(slot for slot in range(1, len(state.tracks) + 1) if slot not in detected)]
        new_slots = {slot: place for place, slot in enumerate(order, 1)}
        state.tracks = [state.tracks[slot - 1] for slot in order]
        now = cv2.LUT(labels, _table((label, new_slots[slot]) for label, slot in enumerate(slots, 1)))
        before = cv2.LUT(state.places, _table((slot, new_slots[slot]) for slot in order[len(detected) :]))
        state.places = now + cv2.copyTo(before, cv2.compare(now, 0, cv2.CMP_EQ))

    def _most_frequent(self, slots: np.ndarray, where: np.ndarray) -> int:
        """Return the slot that most pixels of a mask have, or 0."""
        counts = _histogram(slots, where)[1 : len(self.state.tracks) + 1]
        return 1 + int(counts.argmax()) if counts.any() else 0

    def _new_track(self, seconds: float) -> int:
        """Add a track, and return its slot. If there are too many tracks, it replaces the last one."""
        tracks = self.state.tracks
        del tracks[MAX_TRACKS - 1 :]
        tracks.append(Track(seconds))
        return len(tracks)

    def _update_track(
        self, track: Track, blobs: Sequence[Blob], seconds: float, new_scene: bool, blurred: bool
    ) -> None:
        """Update the evidence of a detected track, and confirm it or revoke its confirmation."""
        confident, share, elapsed = any(b.confident for b in blobs), sum(b.share for b in blobs), seconds - track.last
        # The time counts only if there were frames without the track. At a low frame rate there may be none.
        before = self.state.before
        if before - track.last > RECONFIRM_AFTER_S and share < SMALL_SHARE:
            track.confirmed, track.evidence = False, 0.0
        elif not confident:
            track.evidence = max(0.0, track.evidence - elapsed)
        elif track.last_confident == track.last == before:
            track.evidence = min(track.evidence + elapsed, max(MAX_EVIDENCE_S, self._shortest))
        if confident:
            track.last_confident = seconds
            track.last_sharp = track.last_sharp if blurred else seconds
            shortest = 0.0 if track.number else self._shortest
            needed = max(shortest, CONFIRM_S + SMALL_EXTRA_S * max(0.0, 1 - share / SMALL_SHARE))
            track.confirmed |= (new_scene and not shortest) or not self._steady or track.evidence >= needed
        elif seconds - track.last_confident > CONFIDENCE_TIMEOUT_S:
            track.confirmed = False
        track.last, track.position_unknown = seconds, False
        track.level = max(blob.level for blob in blobs)
        if track.confirmed and not track.number:
            self.state.count += 1
            track.number = self.state.count

    def _carry(self, undetected: range, seconds: float) -> None:
        """Keep tracks that were visible, as if this frame had shown them."""
        for slot in undetected:
            track = self.state.tracks[slot - 1]
            was_visible = track.confirmed and self.state.before - track.last <= HOLD_S
            if was_visible and seconds - track.last_sharp <= CARRY_S:
                track.last = seconds

    def _hidden_blobs(self, parts: Iterable[list[Blob]]) -> list[Blob]:
        """Return the blobs that are not shown, given those of each track. One faint blob may continue a track."""
        pieces = 1 if self._steady else 0
        by_size = (sorted(blobs, key=lambda blob: blob.share, reverse=True) for blobs in parts)
        return [blob for blobs in by_size for blob in blobs[pieces:] if not blob.confident]

    def _visible_numbers(self, seconds: float) -> np.ndarray:
        """For each slot, return the number of its track if the track is visible, else 0."""
        held = HOLD_S if self._steady else 0.0
        numbers = np.zeros(MAX_TRACKS + 1, np.int64)
        for slot, track in enumerate(self.state.tracks, 1):
            if track.confirmed and not track.position_unknown and seconds - track.last <= held:
                numbers[slot] = track.number
        return numbers


def _keep_largest_piece(slots: np.ndarray, slot: int) -> None:
    """Remove all pieces of a slot but the largest one, because motion tears small pieces off."""
    count, pieces, boxes, _ = cv2.connectedComponentsWithStats(cv2.compare(slots, slot, cv2.CMP_EQ))
    if count > 2:
        largest = 1 + int(boxes[1:, cv2.CC_STAT_AREA].argmax())
        slots[(pieces > 0) & (pieces != largest)] = 0


def _histogram(slots: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Count the pixels of each slot, inside a mask if one is given."""
    counts: np.ndarray = cv2.calcHist([slots], [0], where, [MAX_TRACKS + 1], [0, MAX_TRACKS + 1]).ravel()
    return counts


def _table(pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Make a lookup table, uint8 [256], that maps each first number to the second one, and all others to 0."""
    table = np.zeros(MAX_TRACKS + 1, np.uint8)
    for number, value in pairs:
        table[number] = value
    return table
