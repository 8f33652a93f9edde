"""Reads annotation files with boxes or polygons: COCO, CVAT for video, and those of REAL-Colon and SUN."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from polypstream.errors import DataError
from polypstream.study.shapes import Box, Shape, box_around

# Keys of COCO annotations, or of their attributes, that tell which polyp it is.
NAMES = ("track_id", "instance_id", "unique_id")
NUMBER = re.compile(r"(\d+)\D*$")


def read_coco(path: Path, frames: int, size: tuple[int, int]) -> list[list[Shape]]:
    """Read COCO annotations of one recording: one image for each frame. Every annotation counts as a polyp.

    Source: https://cocodataset.org/#format-data

    Args:
        path: the JSON file.
        frames: number of frames of the recording.
        size: width and height of its frames in pixels.

    Returns:
        The polyps of each frame.

    Raises:
        DataError: the file cannot be read, or does not fit the recording.
    """
    try:
        content = json.loads(path.read_text())
        images, annotations = list(content["images"]), list(content["annotations"])
        names = [str(image["file_name"]) for image in images]
        for image in images:
            _check_size(path, (image["width"], image["height"]), size)
        order = _in_order(path, names, frames)
        place = {images[index]["id"]: number for number, index in enumerate(order)}
        found: list[list[Shape]] = [[] for _ in range(frames)]
        for annotation in annotations:
            found[place[annotation["image_id"]]].append(_coco_shape(annotation))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as COCO annotations ({_reason(error)})") from error


def _coco_shape(annotation: dict[str, Any]) -> Shape:
    values = annotation.get("attributes", {}) | annotation
    name = next((str(values[key]) for key in NAMES if values.get(key) is not None), "")
    segmentation = annotation.get("segmentation") or []
    # Run-length encoded masks are a dictionary. Of those the box is used.
    polygons = [np.array(each, np.float64).reshape(-1, 2) for each in segmentation if isinstance(segmentation, list)]
    x, y, width, height = annotation["bbox"]
    return Shape(name, (float(x), float(y), float(width), float(height)), polygons)


def read_cvat(path: Path, frames: int, size: tuple[int, int]) -> list[list[Shape]]:
    """Read annotations of CVAT in its format "CVAT for video 1.1". Each track is a polyp.

    Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/

    Args:
        path: the XML file.
        frames, size: as for `read_coco`.

    Returns:
        The polyps of each frame.

    Raises:
        DataError: the file cannot be read, does not fit the recording, or leaves out frames of a track.
    """
    try:
        root = ElementTree.parse(path).getroot()
        if root.find("image") is not None:
            raise DataError(f"{path}: is of the format CVAT for images; export it as CVAT for video 1.1")
        stated = root.findtext(".//task/size") or root.findtext(".//job/size")
        if stated is not None and int(stated) != frames:
            raise DataError(f"{path}: is of {stated} frames; the run has {frames}")
        width, height = root.findtext(".//original_size/width"), root.findtext(".//original_size/height")
        if width is not None and height is not None:
            _check_size(path, (int(width), int(height)), size)
        found: list[list[Shape]] = [[] for _ in range(frames)]
        for track in root.iter("track"):
            for number, shape in _cvat_shapes(path, track):
                found[number].append(shape)
        return found
    except (OSError, ElementTree.ParseError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: cannot be read as annotations of CVAT ({_reason(error)})") from error


def _cvat_shapes(path: Path, track: ElementTree.Element) -> Iterable[tuple[int, Shape]]:
    """The frames in which a track is visible."""
    before = None
    for element in sorted(track, key=lambda each: int(each.attrib["frame"])):
        number = int(element.attrib["frame"])
        if before is not None and number > before + 1:
            raise DataError(
                f"{path}: track {track.attrib['id']} says nothing of the frames from {before + 1} to {number - 1}; "
                "import the file into CVAT and export it again, which writes every frame"
            )
        before = None
        if element.attrib["outside"] == "0":
            before = number
            yield number, _cvat_shape(track.attrib["id"], element)


def _cvat_shape(name: str, element: ElementTree.Element) -> Shape:
    if element.tag == "box":
        left, top, right, bottom = (float(element.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        return Shape(name, (left, top, right - left, bottom - top))
    if element.tag == "polygon":
        points = [point.split(",") for point in element.attrib["points"].split(";")]
        polygon = np.array(points, np.float64).reshape(-1, 2)
        return Shape(name, box_around([polygon]), [polygon])
    raise ValueError(f"a track has the shape {element.tag}; box and polygon can be read")


def read_real_colon(folder: Path, frames: int, size: tuple[int, int]) -> list[list[Shape]]:
    """Read the annotations of a recording of REAL-Colon: one Pascal VOC file for each frame, with `unique_id`.

    Source: https://doi.org/10.25452/figshare.plus.22202866 (Biffi et al., Scientific Data 2024)

    Args:
        folder: the folder SSS-VVV_annotations.
        frames, size: as for `read_coco`.

    Returns:
        The polyps of each frame.

    Raises:
        DataError: a file cannot be read, or the folder does not fit the recording.
    """
    files = list(folder.glob("*.xml"))
    return [_voc_shapes(files[index], size) for index in _in_order(folder, [file.name for file in files], frames)]


def _voc_shapes(path: Path, size: tuple[int, int]) -> list[Shape]:
    try:
        root = ElementTree.parse(path).getroot()
        _check_size(path, (_number(root, "size/width"), _number(root, "size/height")), size)
        return [Shape(each.findtext("unique_id", ""), _voc_box(each)) for each in root.iter("object")]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a Pascal VOC annotation ({_reason(error)})") from error


def _voc_box(element: ElementTree.Element) -> Box:
    left, top, right, bottom = (_number(element, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax"))
    return left, top, right - left, bottom - top


def _number(element: ElementTree.Element, name: str) -> float:
    text = element.findtext(name)
    if text is None:
        raise ValueError(f"it has no {name}")
    return float(text)


def read_sun(path: Path, frames: int) -> list[list[Shape]]:
    """Read the annotations of a case of the SUN database, which shows one polyp.

    Each line is `FILE left,top,right,bottom,class`. A file without lines is a case without a polyp.
    Source: http://amed8k.sundatabase.org (Misawa et al., Gastrointestinal Endoscopy 2021)

    Args:
        path: the text file caseN.txt.
        frames: number of frames of the recording. Frame 0 is image 1, unless the file names as many images as there
            are frames. Then they are those images in the order of their numbers.

    Returns:
        The polyps of each frame.

    Raises:
        DataError: the file cannot be read, or does not fit the recording.
    """
    boxes: dict[str, list[Shape]] = {}
    try:
        for line in filter(None, map(str.strip, path.read_text().splitlines())):
            name, _, values = line.partition(" ")
            left, top, right, bottom, kind = map(float, values.split(","))
            boxes.setdefault(name, []).extend(
                [Shape(path.stem, (left, top, right - left, bottom - top))] if kind == 0 else []
            )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as annotations of SUN ({_reason(error)})") from error
    names = list(boxes)
    if len(names) == frames:
        return [boxes[names[index]] for index in _in_order(path, names, frames)]
    numbered = {_number_in(path, name): boxes[name] for name in names}
    if numbered and not 1 <= min(numbered) <= max(numbered) <= frames:
        raise DataError(f"{path}: names images {min(numbered)} to {max(numbered)}; the run has {frames} frames")
    return [numbered.get(number, []) for number in range(1, frames + 1)]


def _in_order(path: Path, names: Sequence[str], frames: int) -> list[int]:
    """Indices of names in the order of the numbers at their ends.

    Raises:
        DataError: there are not as many as frames, a name has no number, or two have the same.
    """
    if len(names) != frames:
        raise DataError(f"{path}: is of {len(names)} frames; the run has {frames}")
    numbers = [_number_in(path, name) for name in names]
    order = sorted(range(frames), key=numbers.__getitem__)
    for before, after in pairwise(order):
        if numbers[before] == numbers[after]:
            raise DataError(f"{path}: {names[before]} and {names[after]} have the same number")
    return order


def _number_in(path: Path, name: str) -> int:
    match = NUMBER.search(Path(name).stem)
    if match is None:
        raise DataError(f"{path}: {name} has no number that says which frame it is")
    return int(match[1])


def _check_size(path: Path, stated: tuple[float, float], size: tuple[int, int]) -> None:
    if (int(stated[0]), int(stated[1])) != size:
        raise DataError(
            f"{path}: is of frames of {int(stated[0])}x{int(stated[1])} pixels; those of the run have "
            f"{size[0]}x{size[1]}"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing or unknown"
    return getattr(error, "strerror", None) or str(error)
