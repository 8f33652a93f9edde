"""Finds the ground truth of a run, and reads it in whatever format it has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np

from polypstream.errors import DataError
from polypstream.jobs.results import Run, load_run
from polypstream.jobs.reviewed import load_truth
from polypstream.jobs.reviews import ReviewStore
from polypstream.jobs.score import polyp_numbers, within
from polypstream.study.annotations import read_coco, read_cvat, read_real_colon, read_sun
from polypstream.study.shapes import TruePolyp, Truth, truth_of_shapes

# What may follow the name of a recording in the name of its ground truth.
ENDINGS = ("", "_annotations", "_annotation")


def find_truth(truth: Path, name: str) -> Path:
    """Find the ground truth of a recording.

    Args:
        truth: folder with one entry for each recording, or the ground truth of a single recording.
        name: name of the folder with the results of the recording.

    Returns:
        The file or folder whose name, without its ending, is that of the recording.

    Raises:
        DataError: there is none, or there are several.
    """
    if truth.is_file():
        return truth
    if not truth.is_dir():
        raise DataError(f"{truth}: no such file or folder")
    wanted = {name + ending for ending in ENDINGS}
    found = sorted(each for each in truth.iterdir() if (each.name if each.is_dir() else each.stem) in wanted)
    if not found:
        raise DataError(
            f"{truth}: holds no ground truth of {name}; add a file or folder of this name, for instance {name}.mkv"
        )
    if len(found) > 1:
        raise DataError(f"{truth}: holds {found[0].name} and {found[1].name}; which one is the ground truth of {name}?")
    return found[0]


def read_truth(path: Path, run: Run) -> Truth:
    """Read a ground truth.

    Args:
        path: a lossless video of polyp numbers, a folder of masks, COCO (.json), CVAT for video (.xml), the text file
            of a case of SUN (.txt or .csv), the folder of annotations of a recording of REAL-Colon, or a folder with
            reviewed results of `process` (findings.json).
        run: the run that is compared with it.

    Raises:
        DataError: it cannot be read, or does not fit the run. Masks are read later, so that their errors come from
            `Truth.frames`.
    """
    frames, size = len(run.frames["frame"]), run.picture_size
    ending = path.suffix.lower()
    if path.is_dir() and (path / "findings.json").is_file():
        return Truth(path, True, _reviewed(path, run))
    if path.is_dir() and next(path.glob("*.xml"), None):
        return truth_of_shapes(path, read_real_colon(path, frames, size), size)
    if ending == ".json":
        return truth_of_shapes(path, read_coco(path, frames, size), size)
    if ending == ".xml":
        return truth_of_shapes(path, read_cvat(path, frames, size), size)
    if ending in (".txt", ".csv"):
        return truth_of_shapes(path, read_sun(path, frames), size)
    return Truth(path, True, _of_masks(path, run))


def _reviewed(path: Path, run: Run) -> Iterator[list[TruePolyp]]:
    """Tracks of a run that somebody reviewed, as polyps: on the page Review, or in findings.json itself."""
    truth = load_truth(path) if ReviewStore(path).revision() else load_run(path)
    if truth.picture_size != run.picture_size or len(truth.frames["frame"]) != len(run.frames["frame"]):
        raise DataError(f"{path}: is of another recording than {run.folder}, or of another range of it")
    outlines = truth.outlines()
    for frame in range(len(run.frames["frame"])):
        shapes = [(outline.track_id, outline.mask(*run.picture_size)) for outline in outlines.get(frame, [])]
        yield [TruePolyp(str(track), cv2.boundingRect(mask), mask) for track, mask in shapes]


def _of_masks(path: Path, run: Run) -> Iterator[list[TruePolyp]]:
    """Polyps of a video of numbers or of a folder of masks."""
    seconds, masks = run.frames["pts_s"], polyp_numbers(path)
    if run.times and not path.is_dir():
        masks = within(masks, seconds[0], seconds[-1])
    for second, stored in zip_longest(seconds, masks):
        if second is None or stored is None:
            raise DataError(f"{path}: holds {'more' if second is None else 'fewer'} frames than {run.folder}")
        numbers = stored[1]
        if numbers.shape[::-1] != run.picture_size:
            raise DataError(f"{path}: its size {numbers.shape[::-1]} is not that of {run.folder}, {run.picture_size}")
        yield [_numbered(numbers, number) for number in np.unique(numbers[numbers > 0])]


def _numbered(numbers: np.ndarray, number: int) -> TruePolyp:
    mask = (numbers == number).astype(np.uint8)
    return TruePolyp(str(number), cv2.boundingRect(mask), mask)
