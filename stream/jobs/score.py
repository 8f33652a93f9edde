"""`polypstream score`: a finished run against the truth, in figures about video."""

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
from polypstream.media.pictures import planes_of, read_mask
from polypstream.sources.recording import Recording

# A polyp counts if it was in view for so long, and is found once something overlapped it for so long, in seconds.
IN_VIEW_S, FOUND_S = 1.0, 0.2
# Codecs that keep every pixel's value.
LOSSLESS = frozenset({"ffv1", "ffvhuff", "huffyuv", "png", "rawvideo", "utvideo"})
# False alarms less than so many seconds apart are one.
APART_S = 0.5


@dataclass(slots=True)
class _Polyp:
    """One true polyp: for each frame in which it is in view, the time, whether it was hit, and by which track."""

    seconds: list[float] = field(default_factory=list)
    hit: list[bool] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    """What the frames so far gave; `right` of frames with and without a polyp."""

    dice: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    right: dict[bool, list[bool]] = field(default_factory=lambda: {True: [], False: []})
    false_alarms: list[tuple[float, bool]] = field(default_factory=list)
    polyps: dict[int, _Polyp] = field(default_factory=dict)


def score(run: Path, truth: Path) -> dict[str, Any]:
    """Compare a run's masks and tracks with the truth.

    Args:
        run: folder of results of `process --masks`.
        truth: a lossless video whose pixels hold the number of the polyp (0: none), as `demo-video --truth` writes, or
            a folder of masks, one a frame in the order of their names; there each stretch of frames with a polyp is
            one polyp.

    Returns:
        mean_dice, mean_iou: of the frames; 1 where neither mask has anything.
        frame_sensitivity: share of frames with a polyp in which some finding overlaps it; None if there are none.
        frame_specificity: share of frames without one in which nothing is found; None if there are none.
        polyps, polyps_found: in view for a second at least, and overlapped for 0.2 s.
        seconds_to_first_detection: median over the polyps found.
        false_alarms_per_minute: times at which findings began that overlap no polyp, half a second apart.
        flicker_per_minute: changes between found and not found while a polyp is in view, after it was first and
            before it was last found, and changes of false alarms.
        id_switches_per_minute: changes of the track that overlaps a polyp; None if there are no tracks.

    Raises:
        DataError: the run has no masks, its findings cannot be read, or the truth is not of as many frames, not of
            their size, or not lossless.
    """
    masks = run / "masks.mkv"
    if not masks.is_file():
        raise DataError(f"{masks}: is not there; run `polypstream process` with --masks")
    tracks = load_run(run).outlines() if (run / "findings.json").is_file() else {}
    tally = _Tally()
    for index, (found, true) in enumerate(zip_longest(_planes_of(masks), _truths_of(truth))):
        if found is None or true is None:
            raise DataError(f"{truth}: holds {'fewer' if true is None else 'more'} frames than {masks}")
        if found[1].shape != true[1].shape:
            raise DataError(f"{truth}: its size {true[1].shape[::-1]} is not that of {masks}, {found[1].shape[::-1]}")
        _count(tally, found[0], found[1] > 127, true[1], tracks.get(index, []))
    if not tally.dice:
        raise DataError(f"{masks}: holds no frames")
    return _figures(tally, bool(tracks))


def _planes_of(video: Path, codecs: Collection[str] = ()) -> Iterator[tuple[float, np.ndarray]]:
    """Time and numbers of every frame, as they are stored; of one of these codecs, if any are given."""
    with closing(Recording(video)) as source:
        if codecs and source.codec not in codecs:
            raise DataError(
                f"{video}: {source.codec} does not keep the polyps' numbers; use FFV1, or a folder of masks"
            )
        for seconds, picture in source.as_stored():
            yield seconds, _numbers_of(picture, video)


def _numbers_of(picture: VideoFrame, video: Path) -> np.ndarray:
    """Grey levels as they are stored, uint8 or uint16 [height, width]; no conversion of range or colours.

    Raises:
        DataError: the picture has colours.
    """
    if picture.format.has_palette:
        picture = picture.reformat(format="rgb24")
    if picture.format.is_rgb:
        planes = picture.to_ndarray()[..., :3]
        if (planes != planes[..., :1]).any():
            raise DataError(f"{video}: has colours; the truth is a grey picture whose levels are the polyps' numbers")
        return np.ascontiguousarray(planes[..., 0])
    if len(picture.format.components) > 1 and len(picture.planes) == 1:
        raise DataError(f"{video}: mixes grey and colour in one plane ({picture.format.name}); store it as grey")
    return planes_of(picture)[0]


def _truths_of(truth: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Time and numbers of the polyps, uint8, of every frame; the time of a mask in a folder is nothing."""
    if not truth.is_dir():
        yield from _planes_of(truth, LOSSLESS)
        return
    polyp, before = 0, False
    for path in sorted(path for path in truth.iterdir() if path.is_file()):
        mask = read_mask(path)
        there = bool(mask.any())
        polyp += there and not before
        before = there
        yield 0.0, cv2.min(mask, min(polyp, 255))


def _count(
    tally: _Tally,
    seconds: float,
    found: np.ndarray,
    truth: np.ndarray,
    tracks: Sequence[Outline],
) -> None:
    """Count one frame: bool [h, w] what was found, uint8 [h, w] the numbers of the polyps."""
    there = truth > 0
    both, either = int(np.count_nonzero(found & there)), int(np.count_nonzero(found | there))
    tally.dice.append(2 * both / (both + either) if either else 1.0)
    tally.iou.append(both / either if either else 1.0)
    polyp = bool(there.any())
    tally.right[polyp].append(both > 0 if polyp else not either)
    count, blobs = cv2.connectedComponents(found.astype(np.uint8))
    touching = np.unique(blobs[there & found])
    tally.false_alarms.append((seconds, len(touching) < count - 1))
    for number in np.unique(truth[there]):
        each, place = tally.polyps.setdefault(int(number), _Polyp()), truth == number
        each.seconds.append(seconds)
        each.hit.append(bool((found & place).any()))
        each.tracks.append(_track_on(place, tracks))


def _track_on(place: np.ndarray, outlines: Iterable[Outline]) -> int:
    """The track that covers most of a place, or 0."""
    best, most = 0, 0
    for outline in outlines:
        covered = int(np.count_nonzero(outline.mask(place.shape[1], place.shape[0])[place]))
        if covered > most:
            best, most = outline.track_id, covered
    return best


def _figures(tally: _Tally, tracked: bool) -> dict[str, Any]:
    times, alarms = zip(*tally.false_alarms, strict=True)
    # Not the median: Matroska rounds times to milliseconds, and 30 frames at 30 a second would be 0.99 s.
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    minutes = max((times[-1] - times[0] + step) / 60, 1e-9)
    polyps = [each for each in tally.polyps.values() if _last(len(each.seconds), step, IN_VIEW_S)]
    found = [each for each in polyps if _last(sum(each.hit), step, FOUND_S)]
    first = [each.seconds[each.hit.index(True)] - each.seconds[0] for each in found]
    flicker = sum(_changes(_between_hits(each.hit)) for each in polyps) + _changes([False, *alarms, False])
    switches = sum(_changes([track for track in each.tracks if track]) for each in polyps)
    return {
        "frames": len(tally.dice),
        "mean_dice": float(np.mean(tally.dice)),
        "mean_iou": float(np.mean(tally.iou)),
        "frame_sensitivity": _mean(tally.right[True]),
        "frame_specificity": _mean(tally.right[False]),
        "polyps": len(polyps),
        "polyps_found": len(found),
        "seconds_to_first_detection": float(np.median(first)) if first else None,
        "false_alarms_per_minute": _episodes(tally.false_alarms) / minutes,
        "flicker_per_minute": flicker / minutes,
        "id_switches_per_minute": switches / minutes if tracked else None,
    }


def _last(frames: int, step: float, seconds: float) -> bool:
    """Whether so many frames last so long; to the nearest frame, the step being measured."""
    return (frames + 0.5) * step > seconds


def _mean(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _changes(values: Sequence[int]) -> int:
    return sum(before != after for before, after in pairwise(values))


def _between_hits(hits: Sequence[bool]) -> Sequence[bool]:
    """From the first hit to the last."""
    places = np.flatnonzero(hits)
    return hits[places[0] : places[-1] + 1] if len(places) else []


def _episodes(alarms: Iterable[tuple[float, bool]]) -> int:
    count, last = 0, float("-inf")
    for seconds, false in alarms:
        if false:
            count += seconds - last > APART_S
            last = seconds
    return count
