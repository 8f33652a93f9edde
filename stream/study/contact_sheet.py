"""Pictures of false positives and of missed polyps, from the recordings of the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from polypstream.core.files import writing
from polypstream.core.frame import Frame
from polypstream.core.protocols import Source
from polypstream.errors import PolypstreamError
from polypstream.jobs.process import VIDEO
from polypstream.jobs.report import SNAPSHOT_QUALITY, SNAPSHOT_WIDTH
from polypstream.jobs.results import Run, open_again
from polypstream.media.jpeg import SNAPSHOT_QUANTISER, Jpeg
from polypstream.sources.recording import Recording

PICTURES = "pictures"
# Colour of the box around what a picture is about, BGR.
BOX_COLOUR = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A picture to make.

    Attributes:
        frame: number of the frame.
        box: box to draw, in pixels of the stored frame: x, y, width, height.
        name: name of the JPEG file.
    """

    frame: int
    box: np.ndarray
    name: str


def write_pictures(
    run: Run, wanted: Sequence[Wanted], folder: Path, on_frame: Callable[[], None] = lambda: None
) -> set[str]:
    """Write pictures of frames of a run, from its recording, or else from its annotated video.

    Args:
        run: the run.
        wanted: the pictures.
        folder: folder to write to.
        on_frame: called for each frame that is read.

    Returns:
        Names of the files that were written. Frames that cannot be read are left out.

    Raises:
        OutputError: a file cannot be written.
    """
    written: set[str] = set()
    source = _source_of(run) if wanted else None
    if source is None:
        return written
    by_frame: dict[int, list[Wanted]] = {}
    for each in wanted:
        by_frame.setdefault(each.frame, []).append(each)
    jpeg = Jpeg(SNAPSHOT_WIDTH, SNAPSHOT_QUANTISER)
    with closing(source), writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for frame in _frames_until(source, max(by_frame)):
            on_frame()
            for each in by_frame.get(frame.index, ()):
                (folder / each.name).write_bytes(_with_box(jpeg(frame.in_memory(), frame.orientation), frame, each.box))
                written.add(each.name)
    return written


def _source_of(run: Run) -> Source | None:
    """The recording of a run, which shows the mucosa without markers, or else its annotated video; None: neither."""
    recording, annotated = str(run.about["input"]), run.folder / VIDEO
    for opened in (lambda: open_again(run, recording), lambda: Recording(annotated)):
        with suppress(PolypstreamError):
            return opened()
    return None


def _frames_until(source: Source, last: int) -> Iterator[Frame]:
    for frame in source.frames():
        yield frame
        if frame.index >= last:
            return


def _with_box(jpeg: bytes, frame: Frame, box: np.ndarray) -> bytes:
    """Draw a box, in pixels of the stored frame, on its picture as displayed."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert picture is not None  # it was encoded just now
    width, height = frame.picture.width, frame.picture.height
    corners = np.array([(box[0], box[1]), (box[0] + box[2], box[1] + box[3])])
    shown = frame.orientation.points(corners, width, height)
    shown *= np.divide(picture.shape[1::-1], frame.orientation.size(width, height))
    (left, top), (right, bottom) = np.sort(shown, axis=0).round().astype(int)
    for colour, thickness in (((0, 0, 0), 3), (BOX_COLOUR, 1)):
        cv2.rectangle(picture, (int(left), int(top)), (int(right), int(bottom)), colour, thickness)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, SNAPSHOT_QUALITY])[1])
