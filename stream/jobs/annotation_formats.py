"""File formats of annotation tools. Each format is a folder that the tool imports.

A writer takes annotated images one by one and finishes its files when it is closed. Coordinates are pixels from the
top left corner of the image as displayed. If the images are written beside the annotations, displayed means rotated
and with square pixels; otherwise it means rotated only. A track is one polyp. It keeps its number if the format can
store one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from xml.etree import ElementTree

import cv2
import numpy as np

from polypstream.core.orientation import Orientation
from polypstream.inference.model_card import NOTICE
from polypstream.jobs.results import Outline

LABEL = "polyp"
# Format version that labelme checks.
LABELME_VERSION = "5.5.0"


class Annotated(NamedTuple):
    """An image with its findings.

    Attributes:
        name: name of its files, without ending.
        frame: number of the frame in the recording, from 0.
        outlines: outlines of the findings.
        ends: for each outline the last frame up to which its track is shown without a gap.
    """

    name: str
    frame: int
    outlines: list[Outline]
    ends: list[int]


class Writer(Protocol):
    """Writes images of one size and their annotations into a folder.

    Args:
        folder: folder to write into.
        width, height: size of the displayed images in pixels.
        frames: number of frames of the recording.

    Attributes:
        images: folder for the images, as JPEG; None: the format needs no images.
    """

    def __init__(self, folder: Path, width: int, height: int, frames: int) -> None: ...

    @staticmethod
    def shown(orientation: Orientation) -> Orientation:
        """Orientation in which the format displays a recording.

        Args:
            orientation: orientation of the recording.
        """
        ...

    @property
    def images(self) -> Path | None:
        """Folder for the images, as JPEG; None: the format needs no images."""

    def write(self, picture: Annotated) -> None:
        """Add an image. The image file itself is written by the caller."""

    def close(self) -> None:
        """Finish the files."""


class _WithPictures:
    """A format with image files."""

    @staticmethod
    def shown(orientation: Orientation) -> Orientation:
        """The recording's orientation: rotated and with square pixels."""
        return orientation


class Coco(_WithPictures):
    """COCO instances in the layout of CVAT and Datumaro: annotations/instances_default.json, images/default/.

    An annotation is one track in one image: one or more polygons, with `track_id` and `score`.
    Source: https://cocodataset.org/#format-data
    """

    def __init__(self, folder: Path, width: int, height: int, frames: int) -> None:
        self.images, self._file = folder / "images" / "default", folder / "annotations" / "instances_default.json"
        self._size = width, height
        for place in (self.images, self._file.parent):
            place.mkdir(parents=True)
        self._pictures: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def write(self, picture: Annotated) -> None:
        """Add the annotations of an image."""
        number, (width, height) = len(self._pictures) + 1, self._size
        self._pictures.append({"id": number, "file_name": f"{picture.name}.jpg", "width": width, "height": height})
        for outline in picture.outlines:
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": [polygon.ravel().tolist() for polygon in _polygons_of(outline)],
                    "area": cv2.countNonZero(outline.mask(width, height)),
                    "bbox": list(cv2.boundingRect(np.concatenate(outline.polygons))),
                    "iscrowd": 0,
                    "score": outline.probability,
                    "attributes": {"track_id": outline.track_id, "occluded": False},
                }
            )

    def close(self) -> None:
        """Write the JSON file."""
        content = {
            "info": {"description": f"Pre-annotations by polypstream. {NOTICE}"},
            "licenses": [],
            "categories": [{"id": 1, "name": LABEL, "supercategory": ""}],
            "images": self._pictures,
            "annotations": self._annotations,
        }
        self._file.write_text(json.dumps(content))


class Png(_WithPictures):
    """images/ and masks/ with equal file names, mask values 0 and 255: the layout that `polypstream train` reads."""

    def __init__(self, folder: Path, width: int, height: int, frames: int) -> None:
        self.images, self._masks, self._size = folder / "images", folder / "masks", (width, height)
        for place in (self.images, self._masks):
            place.mkdir()

    def write(self, picture: Annotated) -> None:
        """Write the mask of an image."""
        mask = np.zeros(self._size[::-1], np.uint8)
        for outline in picture.outlines:
            mask |= outline.mask(*self._size)
        _, png = cv2.imencode(".png", mask)
        (self._masks / f"{picture.name}.png").write_bytes(bytes(png))

    def close(self) -> None:
        """Do nothing: the masks are written already."""


class Yolo(_WithPictures):
    """Segmentation labels of Ultralytics: data.yaml, images/train/, labels/train/ with a line for each polygon.

    A line is the class, 0, and x y x y … as shares of the image's width and height. An image without findings has an
    empty file. data.yaml has no `path`, so the folder that contains it is used.
    Source: https://docs.ultralytics.com/datasets/segment/
    """

    def __init__(self, folder: Path, width: int, height: int, frames: int) -> None:
        self.images, self._labels = folder / "images" / "train", folder / "labels" / "train"
        self._size = np.array([width, height], np.float64)
        for place in (self.images, self._labels):
            place.mkdir(parents=True)
        (folder / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames:\n  0: {LABEL}\n")

    def write(self, picture: Annotated) -> None:
        """Write the label file of an image."""
        lines = [
            " ".join(["0", *(f"{share:.6f}" for share in (polygon / self._size).ravel())])
            for outline in picture.outlines
            for polygon in _polygons_of(outline)
        ]
        (self._labels / f"{picture.name}.txt").write_text("".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Do nothing: the label files are written already."""


class Labelme(_WithPictures):
    """A JSON file beside each image, with a polygon for each outline. The group of a polygon is its track.

    Source: https://github.com/wkentaro/labelme
    """

    def __init__(self, folder: Path, width: int, height: int, frames: int) -> None:
        self.images, self._size = folder, (width, height)

    def write(self, picture: Annotated) -> None:
        """Write the JSON file of an image."""
        shapes = [
            {
                "label": LABEL,
                "points": polygon.tolist(),
                "group_id": outline.track_id,
                "description": f"probability {outline.probability:.2f}",
                "shape_type": "polygon",
                "flags": {},
            }
            for outline in picture.outlines
            for polygon in _polygons_of(outline)
        ]
        content: dict[str, Any] = {
            "version": LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{picture.name}.jpg",
            "imageData": None,
            "imageHeight": self._size[1],
            "imageWidth": self._size[0],
        }
        (self.images / f"{picture.name}.json").write_text(json.dumps(content, indent=1))

    def close(self) -> None:
        """Do nothing: the JSON files are written already."""


class _Shape(NamedTuple):
    """A polygon of a CVAT track.

    Attributes:
        place: number of the annotated frame, counted over annotated frames only.
        polygon: float [n, 2], x and y in pixels.
        end: last frame of the recording up to which the track is shown without a gap.
    """

    place: int
    polygon: np.ndarray
    end: int


class Cvat:
    """CVAT for video 1.1: annotations.xml with tracks, for a task whose data are the recording itself.

    A track has a polygon in each annotated frame, and CVAT interpolates between them. It is marked as outside from the
    first frame that does not show the polyp. If a polyp has several pieces, the smaller ones are separate tracks. CVAT
    rotates a recording as its metadata say, and does not correct the pixel shape.
    Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
    """

    def __init__(self, folder: Path, width: int, height: int, frames: int) -> None:
        self.images = None
        self._path, self._size, self._count = folder / "annotations.xml", (width, height), frames
        self._frames: list[int] = []
        self._pieces: dict[tuple[int, int], list[_Shape]] = {}

    @staticmethod
    def shown(orientation: Orientation) -> Orientation:
        """The recording's rotation, without square pixels.

        Args:
            orientation: orientation of the recording.
        """
        return orientation.turned_only

    def write(self, picture: Annotated) -> None:
        """Add the polygons of a frame."""
        for outline, end in zip(picture.outlines, picture.ends, strict=True):
            largest_first = sorted(_polygons_of(outline), key=_area, reverse=True)
            for piece, polygon in enumerate(largest_first):
                shape = _Shape(len(self._frames), polygon, end)
                self._pieces.setdefault((outline.track_id, piece), []).append(shape)
        self._frames.append(picture.frame)

    def close(self) -> None:
        """Write annotations.xml."""
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        root.append(self._meta())
        for number, key in enumerate(sorted(self._pieces)):
            track = ElementTree.SubElement(root, "track", id=str(number), label=LABEL, source="auto")
            self._add_shapes(track, self._pieces[key])
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(self._path, encoding="utf-8", xml_declaration=True)

    def _meta(self) -> ElementTree.Element:
        meta = ElementTree.Element("meta")
        task = ElementTree.SubElement(meta, "task")
        ElementTree.SubElement(task, "size").text = str(self._count)
        ElementTree.SubElement(task, "mode").text = "interpolation"
        label = ElementTree.SubElement(ElementTree.SubElement(task, "labels"), "label")
        ElementTree.SubElement(label, "name").text = LABEL
        ElementTree.SubElement(label, "attributes")
        size = ElementTree.SubElement(task, "original_size")
        for name, value in zip(("width", "height"), self._size, strict=True):
            ElementTree.SubElement(size, name).text = str(value)
        return meta

    def _add_shapes(self, track: ElementTree.Element, shapes: Sequence[_Shape]) -> None:
        for shape, following in zip_longest(shapes, shapes[1:]):
            _add_polygon(track, self._frames[shape.place], shape.polygon, outside=False)
            outside_from = shape.end + 1
            if shape.place + 1 < len(self._frames) and (following is None or following.place > shape.place + 1):
                outside_from = min(outside_from, self._frames[shape.place + 1])
            if outside_from < (self._frames[following.place] if following else self._count):
                _add_polygon(track, outside_from, shape.polygon, outside=True)


def _add_polygon(track: ElementTree.Element, frame: int, polygon: np.ndarray, outside: bool) -> None:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon)
    attributes = {"outside": str(int(outside)), "occluded": "0", "keyframe": "1", "points": points, "z_order": "0"}
    ElementTree.SubElement(track, "polygon", {"frame": str(frame), **attributes})


def _polygons_of(outline: Outline) -> list[np.ndarray]:
    """Polygons of an outline, float [n, 2]. A polygon of fewer than three points, which no tool accepts, becomes a box.

    Outlines pass through the centres of the outermost pixels. In these formats the centre of a pixel is at half a
    pixel.
    """
    return [polygon + 0.5 if len(polygon) > 2 else _box(polygon) for polygon in outline.polygons]


def _area(polygon: np.ndarray) -> float:
    return float(cv2.contourArea(polygon.astype(np.float32)))


def _box(polygon: np.ndarray) -> np.ndarray:
    """Box around the outer edges of the outline's pixels, float [4, 2]."""
    x, y, width, height = cv2.boundingRect(polygon)
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)


FORMATS: dict[str, type[Writer]] = {"coco": Coco, "png": Png, "yolo": Yolo, "cvat": Cvat, "labelme": Labelme}
