"""Reads frames of a run's recording by their number: for the page Review, and to follow an outline."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2

from polypstream.core.frame import Frame
from polypstream.core.orientation import AS_STORED
from polypstream.core.protocols import Source
from polypstream.core.time_range import TimeRange
from polypstream.errors import DataError
from polypstream.jobs.image_results import Stills, images_of
from polypstream.jobs.results import SAME_TIME_S, Run, open_again
from polypstream.media.jpeg import WHOLE, Jpeg

# Quantiser of the JPEG images of recordings, see Jpeg; and quality of those of images.
QUANTISER, QUALITY = 3, 95
# JPEG images that are kept, and frames before a wanted one that are read too: readers often step back.
KEPT, BEFORE = 160, 20
# A frame that is at most this many frames ahead is reached by decoding on. For others the recording is entered again.
NEAR = 60


class FrameReader:
    """Reads frames by number. The pictures are as stored, since outlines are in pixels of the stored frame.

    Args:
        run: the run.
        recording: path of its recording, or a demo's address.

    Attributes:
        run: the run.
    """

    def __init__(self, run: Run, recording: str) -> None:
        self.run, self._recording = run, recording
        self._times = run.frames["pts_s"]
        self._jpeg = Jpeg(WHOLE, QUANTISER)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._source: Source | None = None
        self._frames: Iterator[Frame] = iter(())
        # Number of the next frame of `_frames`.
        self._next = 0

    def jpeg(self, index: int) -> bytes:
        """Read a frame as JPEG, neither rotated nor stretched.

        Args:
            index: number of the frame, from 0.

        Raises:
            DataError: there is no such frame, or it is not the recording of this run.
            SourceError: the recording cannot be read.
        """
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        if not self._next <= index <= self._next + NEAR or self._source is None:
            self._enter(max(0, index - BEFORE))
        for frame in self._frames:
            self._next = frame.index + 1
            self._keep(frame.index, self._jpeg(frame.in_memory(), AS_STORED))
            if frame.index == index:
                return self._kept[index]
        self.close()
        raise DataError(f"{self._recording}: has no frame {index}; it is not the recording of {self.run.folder}")

    def frames_from(self, first: int) -> Iterator[Frame]:
        """Decode frames, independently of `jpeg`.

        Args:
            first: number of the first frame, from 0.

        Yields:
            The frames, with their numbers in the run.

        Raises:
            DataError: it is not the recording of this run.
            SourceError: the recording cannot be read.
        """
        with closing(self._open_at(first)) as source:
            yield from self._numbered(source, first)

    def close(self) -> None:
        """Close the recording."""
        if self._source is not None:
            self._source.close()
            self._source, self._frames = None, iter(())

    def _keep(self, index: int, jpeg: bytes) -> None:
        self._kept[index] = jpeg
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _enter(self, first: int) -> None:
        self.close()
        self._source = self._open_at(first)
        self._frames, self._next = self._numbered(self._source, first), first

    def _open_at(self, first: int) -> Source:
        """Open the recording at a frame. Its time is exact, so that the frame is, too."""
        if not 0 <= first < len(self._times):
            raise DataError(f"{self.run.folder}: has no frame {first}")
        end = self.run.times.end if self.run.times else None
        times = TimeRange(Fraction(f"{self._times[first]:.6f}"), end)
        return open_again(replace(self.run, times=times), self._recording)

    def _numbered(self, source: Source, first: int) -> Iterator[Frame]:
        for frame in source.frames():
            frame.index += first
            if frame.index >= len(self._times):
                return
            if abs(frame.seconds - self._times[frame.index]) > SAME_TIME_S:
                raise DataError(f"{self._recording}: its frames have other times than those of {self.run.folder}")
            yield frame


class StillReader:
    """Reads the images of a run by number.

    Args:
        run: the run.
        folder: folder of its images.

    Attributes:
        run: the run.
    """

    def __init__(self, run: Stills, folder: Path) -> None:
        self.run = run
        self._images = images_of(run, [folder / name for name in run.names])

    def jpeg(self, index: int) -> bytes:
        """Read an image as JPEG, upright.

        Args:
            index: number of the image, from 0.

        Raises:
            DataError: there is no such image, or it has another size than in the run.
            SourceError: it cannot be read.
        """
        if not 0 <= index < len(self._images):
            raise DataError(f"{self.run.folder}: has no image {index}")
        rgb = self._images[index].load()
        return cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()

    def close(self) -> None:
        """Do nothing: no file is open."""


def open_reader(run: Run, recording: str) -> FrameReader | StillReader:
    """The reader of the frames of a run.

    Args:
        run: the run.
        recording: path of its recording, or a demo's address; of images, their folder.
    """
    return StillReader(run, Path(recording)) if isinstance(run, Stills) else FrameReader(run, recording)
