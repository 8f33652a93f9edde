"""Reads a finished run of `process` of images: the findings in each image."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from polypstream.core.config import Settings
from polypstream.errors import DataError, SettingsError, SourceError
from polypstream.jobs.image import load_image
from polypstream.jobs.report import review_of
from polypstream.jobs.results import Outline, Run, TrackSummary, run_of
from polypstream.jobs.reviews import Review
from polypstream.sinks.findings import IMAGES_SCHEMA, OUTLINE_TOLERANCE_PX, SCHEMA, read_findings


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image of a run, with its findings.

    Attributes:
        frame: number of the image in the run, from 0.
        path: path of the image.
        name: name of its results, unique in the run.
        size: width and height of the upright image in pixels.
        outlines: the findings. Their numbers go on from image to image: each is a polyp of its own.
    """

    frame: int
    path: Path
    name: str
    size: tuple[int, int]
    outlines: list[Outline]

    def load(self) -> np.ndarray:
        """Read the image again.

        Returns:
            uint8 RGB [H, W, 3], upright.

        Raises:
            SourceError: it cannot be read.
            DataError: it has another size than in the run.
        """
        try:
            image = load_image(self.path)
        except SourceError as error:
            raise SourceError(f"{self.path}: {error}") from error
        height, width = image.shape[:2]
        if (width, height) != self.size:
            raise DataError(
                f"{self.path}: has {width}x{height} pixels, but had {self.size[0]}x{self.size[1]} when it was "
                "processed: it is not the image of this run"
            )
        return image


@dataclass(frozen=True)
class Stills(Run):
    """Results of `process` for images, as a run whose frames are the images: frame 0 is the first one.

    Each finding is a track of its own. Their numbers go on from image to image.

    Attributes:
        names: file names of the images.
        sizes: width and height of each upright image in pixels.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the first image in pixels."""
        return self.sizes[0]

    def size_of(self, frame: int) -> tuple[int, int]:
        """Width and height of an image in pixels.

        Args:
            frame: number of the image, from 0.
        """
        return self.sizes[frame]

    def annotated(self, frame: int) -> str:
        """File name of the annotated copy of an image, in the folder `annotated`.

        Args:
            frame: number of the image, from 0.
        """
        # See result_names: other images with the same name, which the run may have been unable to read, change it.
        whole = f"{self.names[frame]}.jpg"
        return whole if (self.folder / "annotated" / whole).is_file() else f"{Path(self.names[frame]).stem}.jpg"

    @cached_property
    def frames(self) -> dict[str, np.ndarray]:
        """Columns of frames.csv with one value per image.

        `frame`, `polyp_count`: int64. `pts_s`: float64, the number of the image. `polyp_area_fraction`,
        `max_probability`: float64. `tracks`: object, a tuple of numbers of findings.

        Raises:
            DataError: it cannot be read.
        """
        path, numbers = self.folder / "frames.csv", np.arange(len(self.names))
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            if [row["image"] for row in rows] != list(self.names):
                raise ValueError("it has other images than findings.json")
            shares, highest = (
                [float(row[name]) for row in rows] for name in ("polyp_area_fraction", "max_probability")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as a table of images ({error})") from error
        found = self.outlines()
        tracks = np.empty(len(numbers), object)
        tracks[:] = [tuple(outline.track_id for outline in found.get(number, ())) for number in numbers.tolist()]
        return {
            "frame": numbers,
            "pts_s": numbers.astype(float),
            "polyp_count": np.array([len(each) for each in tracks]),
            "polyp_area_fraction": np.array(shares),
            "max_probability": np.array(highest),
            "tracks": tracks,
        }


def load_stills(folder: Path) -> Stills:
    """Read the results of `process` for images.

    Args:
        folder: folder of the results.

    Raises:
        DataError: there are no results of images, or they cannot be read.
    """
    return _stills_of(folder, read_findings(folder, (IMAGES_SCHEMA,)))


def load_reviewable(folder: Path) -> Run:
    """Read the results of `process` for a recording or for images.

    Args:
        folder: folder of the results.

    Raises:
        DataError: there are no results, or they cannot be read.
    """
    about = read_findings(folder, (SCHEMA, IMAGES_SCHEMA))
    return _stills_of(folder, about) if about["schema"] == IMAGES_SCHEMA else run_of(folder, about)


def _stills_of(folder: Path, about: dict[str, Any]) -> Stills:
    numbers = count(1)
    try:
        images = about.pop("images")
        tracks = [
            _track_of(finding, frame, number)
            for frame, image in enumerate(images)
            for finding, number in zip(image["findings"], numbers, strict=False)
        ]
        names, sizes = [image["image"] for image in images], [(image["width"], image["height"]) for image in images]
        settings = Settings.model_validate(about["settings"])
        return Stills(folder, about, tracks, settings, names=tuple(names), sizes=tuple(sizes))
    except (ValueError, KeyError, TypeError, SettingsError) as error:
        raise DataError(f"{folder / 'findings.json'}: cannot be read as findings ({error})") from error


def images_of(run: Stills, paths: Sequence[Path]) -> list[FoundImage]:
    """The images of a run, with their findings.

    Args:
        run: the run.
        paths: paths of images. Those that are not in the run, for instance damaged ones, are left out.

    Returns:
        Those of the paths, in the order of the run.

    Raises:
        DataError: none of the images is in the run.
    """
    by_name, names, outlines = {path.name: path for path in paths}, result_names(tuple(paths)), run.outlines()
    found = [
        FoundImage(frame, by_name[name], names[by_name[name]], run.size_of(frame), outlines.get(frame, []))
        for frame, name in enumerate(run.names)
        if name in by_name
    ]
    if not found:
        raise DataError(f"{run.folder}: holds no results of {paths[0]}; process it first")
    return found


def result_names(images: tuple[Path, ...]) -> dict[Path, str]:
    """Names of the results of images: the file name without its ending; with it, where two images share that name.

    Args:
        images: paths of images in one folder.
    """
    stems = Counter(image.stem.casefold() for image in images)
    return {image: image.stem if stems[image.stem.casefold()] == 1 else image.name for image in images}


def reviews_of_images(run: Stills, review: Review) -> list[list[str]]:
    """What readers decided about the findings of images, and what they drew, one phrase for each finding.

    Args:
        run: the run, as `process` wrote it. Its tracks are numbered from image to image. The phrases count them in each
            image, as the annotated copy does.
        review: what the readers stored.

    Returns:
        Phrases of each image.
    """
    said: list[list[str]] = []
    for place, tracks in enumerate(run.frames["tracks"]):
        found = [(number, review_of(track, review)) for number, track in enumerate(tracks, 1)]
        # A finding of an image is in no other frame.
        phrases = [f"polyp {number}: {text.removesuffix(' in 1 frame')}" for number, text in found if text]
        here = [
            (track, each) for (track, frame), each in review.corrections.items() if frame == place and each.polygons
        ]
        said.append(phrases + [f"a polyp drawn by {each.reader}" for track, each in here if track in review.drawn])
    return said


def _track_of(finding: dict[str, Any], frame: int, number: int) -> TrackSummary:
    """One finding of findings.json as a track. Its polygon becomes as simple as those of recordings are."""
    polygon = np.array(finding["polygon"], np.int32).reshape(-1, 2)
    simplified = cv2.approxPolyDP(polygon, OUTLINE_TOLERANCE_PX, True)[:, 0]
    seconds, probability = float(frame), finding["probability"]
    return TrackSummary(
        track_id=number,
        first_s=seconds,
        last_s=seconds,
        seconds_in_view=0.0,
        frames=1,
        peak_probability=probability,
        mean_probability=probability,
        largest_area_fraction=finding["polyp_area_fraction"],
        snapshot=Path(),
        snapshot_s=seconds,
        outlines=[Outline(number, frame, seconds, probability, [simplified])],
    )
