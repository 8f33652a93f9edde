"""The state of live sources and of their sinks, for users and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from polypstream.core.protocols import STOPPED
from polypstream.jobs.live_recent import Recent

PERCENTILES = (50, 95, 99, 100)


class Percentiles(NamedTuple):
    """Percentiles of durations, in milliseconds."""

    median: float
    p95: float
    p99: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Status:
    """State of a source.

    Attributes:
        source: name of the source.
        signal: True if frames arrive; otherwise `problem` gives the reason.
        ended: True if no more frames will come.
        problem: problem of the source or of inference, for the user; empty if there is none.
        losses: number of times the signal was lost.
        frames_in, shown: numbers of frames since the start. Placeholders without a signal are in no number.
        findings_of: numbers of shown frames by the frame in which the model found what they are marked with: "own", the
            frame itself; "earlier", an earlier frame; "none", the model had no current findings. They add up to
            `shown`.
        dropped: numbers of frames not shown, by reason. When no frame is in the pipeline, `frames_in` is the sum of
            these and `shown`.
        unrecorded: number of frames that were shown, but that the recordings were too slow for, added up.
        recent: numbers of frames of the last seconds. In pass-through, frames that the model did not see are skipped.
        warning: why polyps may be missed at present, for the user; empty if the machine is fast enough.
        latency_ms: latency of the latest frames, from arrival to the sinks: median, 95th and 99th percentile, maximum.
        markers_age_ms: age of the markers of the latest frames that have any: from the arrival of the frame in which
            the findings were detected to the drawing. The same four values. In-step, this is the latency up to the
            drawing.
        shown_per_second: frame rate of the latest frames.
    """

    source: str
    signal: bool
    ended: bool
    problem: str
    losses: int
    frames_in: int
    shown: int
    findings_of: dict[str, int]
    dropped: dict[str, int]
    unrecorded: int
    recent: Recent
    warning: str
    latency_ms: Percentiles | None
    markers_age_ms: Percentiles | None
    shown_per_second: float


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """State of a sink.

    Attributes:
        name: name of the sink.
        source: name of the source that it records or sends; empty if it takes all of them.
        doing: what it does, for the user; empty if it does not report this.
        problem: why it does not work, for the user; empty if it works.
    """

    name: str
    source: str
    doing: str
    problem: str


def describe(status: Status) -> str:
    """Describe the state of a source in one line for the user.

    Args:
        status: the state.
    """
    latency, skipped = status.latency_ms, sum(status.dropped.values())
    lost = "once" if status.losses == 1 else f"{status.losses} times"
    ended = "source ended" if status.frames_in else "nothing arrived"
    state = ended if status.ended else "" if status.signal else "no signal"
    if status.ended and status.problem.startswith(STOPPED):
        state = status.problem
    elif status.problem and not (status.ended and status.problem == state):
        state = f"{state} ({status.problem})".lstrip()
    parts = [
        state,
        f"{status.shown} of {status.frames_in} frames shown, {status.shown_per_second:.1f} per second",
        origins_of(status.findings_of),
        f"skipped {skipped} of {status.frames_in} ({reasons_of(status.dropped)})" if skipped else "",
        f"{status.unrecorded} not recorded" if status.unrecorded else "",
        "" if latency is None else f"latency {latency.median:.0f} ms, 99 % under {latency.p99:.0f} ms",
        f"signal lost {lost}" if status.losses else "",
        status.warning if status.signal else "",
    ]
    return f"{status.source}: {', '.join(filter(None, parts))}"


def reasons_of(dropped: Mapping[str, int]) -> str:
    """Say why frames were skipped.

    Args:
        dropped: numbers of frames: "overtaken", a newer frame replaced them; "too_old", they were too old.
    """
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items() if count)


def origins_of(findings_of: Mapping[str, int]) -> str:
    """Say in how many frames the findings are not those of the frame itself.

    Args:
        findings_of: as in Status.

    Returns:
        Text for the user; empty if all frames have their own.
    """
    if findings_of["own"] == sum(findings_of.values()):
        return ""
    words = {"own": "of the frame itself", "earlier": "of an earlier frame", "none": "none"}
    return "findings " + ", ".join(f"{words[origin]} in {count}" for origin, count in findings_of.items())


def percentiles_of(seconds: Sequence[float]) -> Percentiles:
    """Percentiles of durations.

    Args:
        seconds: durations in seconds.

    Returns:
        The percentiles in milliseconds.
    """
    return Percentiles(*np.percentile(np.array(seconds) * 1000, PERCENTILES).tolist())
