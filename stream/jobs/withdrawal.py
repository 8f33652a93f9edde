"""Figures of the withdrawal: how long it took, and what was found and seen meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polypstream.core.marks import Mark, MarkKind
from polypstream.sinks.tables import QUALITIES

# Stretches with markers that are less than this many seconds apart count as one alarm.
APART_S = 0.5


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Figures of a withdrawal.

    Attributes:
        begins, ends: its times in seconds of the recording.
        findings: number of polyps that are first shown in it.
        alarms: number of stretches of it in which a polyp is shown.
        clear: share of its frames that are neither blurred, overexposed nor outside the body, 0..1.
    """

    begins: float
    ends: float
    findings: int
    alarms: int
    clear: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ends - self.begins

    @property
    def findings_per_minute(self) -> float:
        """Number of polyps per minute."""
        return 60 * self.findings / self.seconds

    @property
    def alarms_per_minute(self) -> float:
        """Number of alarms per minute."""
        return 60 * self.alarms / self.seconds


def withdrawal_of(
    marks: Sequence[Mark], frames: Mapping[str, np.ndarray], tracks: Sequence[Mapping[str, Any]]
) -> Withdrawal | None:
    """Compute the figures of the withdrawal.

    It begins with the mark `withdrawal-begins` or, if there is none, `caecum-reached`. It ends with the next mark
    `withdrawal-ends` or, if there is none, with the recording.

    Args:
        marks: marks of the recording, in the order of their times.
        frames: columns of frames.csv, as `read_frames` returns them.
        tracks: tracks of findings.json.

    Returns:
        The figures; None if no mark says when it begins, or it has no duration.
    """
    begins = _first(marks, "withdrawal-begins")
    begins = _first(marks, "caecum-reached") if begins is None else begins
    times = frames["pts_s"]
    if begins is None or not len(times):
        return None
    ends = _first([mark for mark in marks if mark.seconds > begins], "withdrawal-ends")
    ends = float(times[-1]) if ends is None else ends
    within = (times >= begins) & (times <= ends)
    if ends <= begins or not within.any():
        return None
    unclear = np.logical_or.reduce([frames[name][within] for name in QUALITIES])
    return Withdrawal(
        begins,
        ends,
        sum(begins <= track["first_s"] <= ends for track in tracks),
        _stretches(times[within][frames["polyp_count"][within] > 0]),
        1 - float(unclear.mean()),
    )


def _first(marks: Sequence[Mark], kind: MarkKind) -> float | None:
    return next((mark.seconds for mark in marks if mark.kind == kind), None)


def _stretches(times: np.ndarray) -> int:
    """Number of stretches of rising times, float [n] in seconds, that are APART_S or more apart."""
    return int(len(times) > 0) + int((np.diff(times) >= APART_S).sum())
