"""`polypstream score`: compares a finished run with the ground truth."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from av import VideoFrame

from polypstream.errors import DataError
from polypstream.jobs.results import Outline, load_run
from polypstream.jobs.reviewed import REVIEWED, load_truth
from polypstream.media.pictures import planes_of, read_mask
from polypstream.sources.recording import Recording

# Seconds in view from which a polyp counts, and seconds of overlap with findings from which it counts as found.
IN_VIEW_S, FOUND_S = 1.0, 0.2
# Lossless codecs.
LOSSLESS = frozenset({"ffv1", "ffvhuff", "huffyuv", "png", "rawvideo", "utvideo"})
# Two times of a frame differ by less than this if one of them is rounded to milliseconds.
ROUNDING_S = 0.001
# False alarms less than this many seconds apart count as one.
APART_S = 0.5


@dataclass(slots=True)
class _Polyp:
    """A polyp of the ground truth. The lists have one entry for each frame in which it is in view.

    Attributes:
        seconds: times in seconds.
        hit: whether a finding overlaps it.
        tracks: number of the track that covers most of it; 0: none.
    """

    seconds: list[float] = field(default_factory=list)
    hit: list[bool] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    """Values of the frames so far.

    Attributes:
        dice, iou: of each frame.
        correct: whether each frame is classified correctly, for frames with (True) and without (False) a polyp.
        false_alarms: time of each frame in seconds, and whether it has a finding that overlaps no polyp.
        polyps: the polyps, by number.
    """

    dice: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    correct: dict[bool, list[bool]] = field(default_factory=lambda: {True: [], False: []})
    false_alarms: list[tuple[float, bool]] = field(default_factory=list)
    polyps: dict[int, _Polyp] = field(default_factory=dict)


def score(run: Path, truth: Path) -> dict[str, Any]:
    """Compare the masks and tracks of a run with the ground truth.

    Args:
        run: folder of results of `process --masks`.
        truth: a lossless video whose pixel values are polyp numbers (0: none), as `demo-video --truth` writes. Or a
            folder of masks, one for each frame, in the order of their names. Each stretch of frames with a polyp then
            counts as one polyp. Or REVIEWED: what the readers of the run have accepted, corrected and drawn. If the
            run is of a range of the recording, the frames of a video that have the times of the range are compared; a
            folder must hold the masks of the range.

    Returns:
        mean_dice, mean_iou: means over frames; 1 for a frame if both masks are empty.
        frame_sensitivity: share of frames with a polyp in which a finding overlaps it; None if there are none.
        frame_specificity: share of frames without a polyp in which nothing is found; None if there are none.
        polyps, polyps_found: numbers of polyps in view for at least 1 s, and overlapped for at least 0.2 s.
        seconds_to_first_detection: median over the polyps found; None if there are none.
        false_alarms_per_minute: number of times per minute at which findings that overlap no polyp begin. Those less
            than 0.5 s apart count once.
        flicker_per_minute: changes per minute between found and not found while a polyp is in view, between its first
            and last detection, and changes of false alarms.
        id_switches_per_minute: changes per minute of the track that overlaps a polyp; None if there are no tracks.

    Raises:
        DataError: the run has no masks, its findings cannot be read, or the ground truth differs in number or size of
            frames, or is not lossless.
    """
    masks = run / "masks.mkv"
    if not masks.is_file():
        raise DataError(f"{masks}: is not there; run `polypstream process` with --masks")
    results = load_run(run) if (run / "findings.json").is_file() else None
    tracks = results.outlines() if results else {}
    truths = _reviewed_numbers(run) if truth == REVIEWED else polyp_numbers(truth)
    if results and results.times and truth != REVIEWED and not truth.is_dir():
        times = results.frames["pts_s"]
        truths = within(truths, times[0], times[-1])
    tally = _Tally()
    for index, (found, true) in enumerate(zip_longest(stored_planes(masks), truths)):
        if found is None or true is None:
            raise DataError(f"{truth}: holds {'fewer' if true is None else 'more'} frames than {masks}")
        if found[1].shape != true[1].shape:
            raise DataError(f"{truth}: its size {true[1].shape[::-1]} is not that of {masks}, {found[1].shape[::-1]}")
        _count(tally, found[0], found[1] > 127, true[1], tracks.get(index, []))
    if not tally.dice:
        raise DataError(f"{masks}: holds no frames")
    return _figures(tally, bool(tracks))


def stored_planes(video: Path, codecs: Collection[str] = ()) -> Iterator[tuple[float, np.ndarray]]:
    """Decode the stored values of each frame.

    Args:
        video: the video file.
        codecs: allowed codecs; empty: all.

    Yields:
        Time in seconds, and values, uint8 or uint16 [height, width].

    Raises:
        DataError: the video has another codec, or colours.
    """
    with closing(Recording(video)) as source:
        if codecs and source.codec not in codecs:
            raise DataError(
                f"{video}: {source.codec} does not keep the polyps' numbers; use FFV1, or a folder of masks"
            )
        for seconds, picture in source.as_stored():
            yield seconds, _numbers_of(picture, video)


def _numbers_of(picture: VideoFrame, video: Path) -> np.ndarray:
    """Grey levels as stored, without conversion of range or colours.

    Returns:
        uint8 or uint16 [height, width].

    Raises:
        DataError: the frame has colours.
    """
    if picture.format.has_palette:
        picture = picture.reformat(format="rgb24")
    if picture.format.is_rgb:
        planes = picture.to_ndarray()[..., :3]
        if (planes != planes[..., :1]).any():
            raise DataError(
                f"{video}: has colours; the ground truth must be a grey video whose levels are numbers of polyps"
            )
        return np.ascontiguousarray(planes[..., 0])
    if len(picture.format.components) > 1 and len(picture.planes) == 1:
        raise DataError(f"{video}: mixes grey and colour in one plane ({picture.format.name}); store it as grey")
    return planes_of(picture)[0]


def _reviewed_numbers(folder: Path) -> Iterator[tuple[float, np.ndarray]]:
    """The reviewed findings of a run, in the form of `polyp_numbers`.

    Raises:
        DataError: not all tracks are reviewed.
    """
    run = load_truth(folder)
    outlines = run.outlines()
    for frame, seconds in enumerate(run.frames["pts_s"].tolist()):
        numbers = np.zeros(run.picture_size[::-1], np.uint16)
        for outline in outlines.get(frame, []):
            cv2.fillPoly(numbers, outline.polygons, outline.track_id)
        yield seconds, numbers


def polyp_numbers(truth: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Read a ground truth of masks.

    Args:
        truth: a video of polyp numbers or a folder of masks, as for `score`.

    Yields:
        Time in seconds (0 for a mask in a folder), and polyp numbers, uint8 or uint16 [height, width].

    Raises:
        DataError: the video is not lossless or has colours, or a mask cannot be read.
    """
    if not truth.is_dir():
        yield from stored_planes(truth, LOSSLESS)
        return
    polyp, before = 0, False
    for path in sorted(path for path in truth.iterdir() if path.is_file()):
        mask = read_mask(path)
        has_polyp = bool(mask.any())
        polyp += has_polyp and not before
        before = has_polyp
        yield 0.0, cv2.min(mask, min(polyp, 255))


def within(truths: Iterable[tuple[float, np.ndarray]], first: float, last: float) -> Iterator[tuple[float, np.ndarray]]:
    """Leave out the frames of a ground truth that are outside a range. Matroska rounds times to milliseconds.

    Args:
        truths: times in seconds, and polyp numbers.
        first, last: times of the first and the last frame of the range, in seconds.
    """
    for seconds, values in truths:
        if seconds > last + ROUNDING_S:
            return
        if seconds >= first - ROUNDING_S:
            yield seconds, values


def _count(
    tally: _Tally,
    seconds: float,
    found: np.ndarray,
    truth: np.ndarray,
    tracks: Sequence[Outline],
) -> None:
    """Add one frame.

    Args:
        tally: values so far.
        seconds: time of the frame in seconds.
        found: mask of the run, bool [h, w].
        truth: polyp numbers, uint8 [h, w].
        tracks: outlines of the run in this frame.
    """
    is_polyp = truth > 0
    both, either = int(np.count_nonzero(found & is_polyp)), int(np.count_nonzero(found | is_polyp))
    tally.dice.append(2 * both / (both + either) if either else 1.0)
    tally.iou.append(both / either if either else 1.0)
    has_polyp = bool(is_polyp.any())
    tally.correct[has_polyp].append(both > 0 if has_polyp else not either)
    count, blobs = cv2.connectedComponents(found.astype(np.uint8))
    touching = np.unique(blobs[is_polyp & found])
    tally.false_alarms.append((seconds, len(touching) < count - 1))
    for number in np.unique(truth[is_polyp]):
        each, place = tally.polyps.setdefault(int(number), _Polyp()), truth == number
        each.seconds.append(seconds)
        each.hit.append(bool((found & place).any()))
        each.tracks.append(_track_on(place, tracks))


def _track_on(place: np.ndarray, outlines: Iterable[Outline]) -> int:
    """Number of the track that covers most of a region, or 0.

    Args:
        place: the region, bool [h, w].
        outlines: outlines in this frame.
    """
    best, most = 0, 0
    for outline in outlines:
        covered = int(np.count_nonzero(outline.mask(place.shape[1], place.shape[0])[place]))
        if covered > most:
            best, most = outline.track_id, covered
    return best


def _figures(tally: _Tally, tracked: bool) -> dict[str, Any]:
    times, alarms = zip(*tally.false_alarms, strict=True)
    # Not the median: Matroska rounds times to milliseconds, so 30 frames at 30 per second would last 0.99 s.
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    minutes = max((times[-1] - times[0] + step) / 60, 1e-9)
    polyps = [each for each in tally.polyps.values() if lasts_longer(len(each.seconds), step, IN_VIEW_S)]
    found = [each for each in polyps if lasts_longer(sum(each.hit), step, FOUND_S)]
    first = [each.seconds[each.hit.index(True)] - each.seconds[0] for each in found]
    flicker = sum(changes(between_hits(each.hit)) for each in polyps) + changes([False, *alarms, False])
    switches = sum(changes([track for track in each.tracks if track]) for each in polyps)
    return {
        "frames": len(tally.dice),
        "mean_dice": float(np.mean(tally.dice)),
        "mean_iou": float(np.mean(tally.iou)),
        "frame_sensitivity": _mean(tally.correct[True]),
        "frame_specificity": _mean(tally.correct[False]),
        "polyps": len(polyps),
        "polyps_found": len(found),
        "seconds_to_first_detection": float(np.median(first)) if first else None,
        "false_alarms_per_minute": _episodes(tally.false_alarms) / minutes,
        "flicker_per_minute": flicker / minutes,
        "id_switches_per_minute": switches / minutes if tracked else None,
    }


def lasts_longer(frames: int, step: float, seconds: float) -> bool:
    """Whether frames last longer than some seconds. Half a frame is added, because `step` is a measured value.

    Args:
        frames: number of frames.
        step: duration of a frame in seconds.
        seconds: the limit.
    """
    return (frames + 0.5) * step > seconds


def _mean(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def changes(values: Sequence[int]) -> int:
    """Count how often a value differs from the one before.

    Args:
        values: the values.
    """
    return sum(before != after for before, after in pairwise(values))


def between_hits(hits: Sequence[bool]) -> Sequence[bool]:
    """The part from the first hit to the last.

    Args:
        hits: whether a polyp is found in each frame.
    """
    places = np.flatnonzero(hits)
    return hits[places[0] : places[-1] + 1] if len(places) else []


def _episodes(alarms: Iterable[tuple[float, bool]]) -> int:
    count, last = 0, float("-inf")
    for seconds, false in alarms:
        if false:
            count += seconds - last > APART_S
            last = seconds
    return count
