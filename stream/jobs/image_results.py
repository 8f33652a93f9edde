"""Reads a finished run of `process` of images: the findings in each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from polypstream.errors import DataError, SourceError
from polypstream.jobs.image import load_image
from polypstream.jobs.images import result_names
from polypstream.jobs.results import Outline
from polypstream.sinks.findings import IMAGES_SCHEMA, OUTLINE_TOLERANCE_PX, read_findings


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image of a run, with its findings.

    Attributes:
        path: path of the image.
        name: name of its results, unique in the run.
        size: width and height of the upright image in pixels.
        outlines: the findings. Their numbers go on from image to image: each is a polyp of its own.
    """

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


def load_images(folder: Path, images: Sequence[Path]) -> tuple[dict[str, Any], list[FoundImage]]:
    """Read the findings in some images of a run.

    Args:
        folder: folder of the run.
        images: paths of images. Those that are not in the run, for instance damaged ones, are left out.

    Returns:
        The head of findings.json (input, model, settings, version), and the images in the order of the run.

    Raises:
        DataError: there are no results of images, they cannot be read, or none of the images is in them.
    """
    about = read_findings(folder, (IMAGES_SCHEMA,))
    paths, names, numbers = {path.name: path for path in images}, result_names(tuple(images)), count(1)
    try:
        found = [
            FoundImage(
                paths[entry["image"]],
                names[paths[entry["image"]]],
                (entry["width"], entry["height"]),
                [_outline_of(finding, number) for finding, number in zip(entry["findings"], numbers, strict=False)],
            )
            for entry in about.pop("images")
            if entry["image"] in paths
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'findings.json'}: cannot be read as findings ({error})") from error
    if not found:
        raise DataError(f"{folder}: holds no results of {images[0]}; process it first")
    return about, found


def _outline_of(finding: dict[str, Any], number: int) -> Outline:
    """Convert one finding of findings.json. Its polygon becomes as simple as those of recordings are."""
    polygon = np.array(finding["polygon"], np.int32).reshape(-1, 2)
    simplified = cv2.approxPolyDP(polygon, OUTLINE_TOLERANCE_PX, True)[:, 0]
    return Outline(number, 0, 0.0, finding["probability"], [simplified])
