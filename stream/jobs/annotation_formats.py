"""File formats of annotation tools. Each format is a folder that the tool imports.

A writer takes the annotated images of one recording after another and finishes its files when it is closed. Coordinates
are pixels from the top left corner of the image as displayed. If the images are written beside the annotations,
displayed means rotated and with square pixels; otherwise it means rotated only. A track is one polyp. It keeps its
number if the format can store one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from xml.etree import ElementTree

import cv2
import numpy as np

from polypstream.core.notice import NOTICE
from polypstream.core.orientation import Orientation
from polypstream.jobs.results import Outline
from polypstream.sinks.findings import OUTLINE_TOLERANCE_PX

TRAIN, VALIDATION = "train", "val"
LABEL = "polyp"
# Format version that labelme checks.
LABELME_VERSION = "5.5.0"


class RecordingInSet(NamedTuple):
    """A recording of the data set, or a set of images.

    Attributes:
        name: its name in the data set. No other recording has it.
        size: width and height of the displayed frames in pixels; None: it is a set of images, each with its own size.
        frames: number of frames of the recording, or of images.
        split: TRAIN or VALIDATION; empty: the data set is not split.
    """

    name: str
    size: tuple[int, int] | None
    frames: int
    split: str = ""


class Annotated(NamedTuple):
    """An image with its findings.

    Attributes:
        name: name of its files, without ending.
        size: width and height in pixels, as displayed.
        frame: number of the frame in the recording, from 0.
        outlines: outlines of the findings.
        ends: for each outline the last frame up to which its track is shown without a gap.
    """

    name: str
    size: tuple[int, int]
    frame: int
    outlines: list[Outline]
    ends: list[int]


class Writer(Protocol):
    """Writes images and their annotations into a folder.

    Args:
        folder: folder to write into.

    Attributes:
        has_splits: the format has a place for a validation split.
        default_validation: fraction of several recordings that goes into the validation split if the user gives none.
    """

    has_splits: bool
    default_validation: float

    def __init__(self, folder: Path) -> None: ...

    @staticmethod
    def shown(orientation: Orientation) -> Orientation:
        """Orientation in which the format displays a recording.

        Args:
            orientation: orientation of the recording.
        """
        ...

    def begin(self, recording: RecordingInSet) -> Path | None:
        """Begin the images of a recording.

        Args:
            recording: the recording.

        Returns:
            Folder for its images, as JPEG; None: the format needs no images.
        """

    def write(self, picture: Annotated) -> None:
        """Add an image of the recording that was begun last. The image file itself is written by the caller."""

    def close(self) -> None:
        """Finish the files."""


class _WithPictures:
    """A format with image files."""

    has_splits = False
    default_validation = 0.0

    @staticmethod
    def shown(orientation: Orientation) -> Orientation:
        """The recording's orientation: rotated and with square pixels."""
        return orientation


class Coco(_WithPictures):
    """COCO instances in the layout of CVAT and Datumaro: annotations/instances_default.json, images/default/.

    With splits, the names are `train` and `val` instead of `default`. An annotation is one track in one image: one or
    more polygons, with `track_id`, `score` and `reviewed`. Each id is unique, also over both splits.
    Source: https://cocodataset.org/#format-data
    """

    has_splits = True

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, folder / "annotations"
        self._files.mkdir(parents=True)
        self._contents: dict[str, dict[str, Any]] = {}
        self._picture_ids, self._annotation_ids = count(1), count(1)

    def begin(self, recording: RecordingInSet) -> Path:
        """See Writer."""
        subset = recording.split or "default"
        if subset not in self._contents:
            self._contents[subset] = {
                "info": {
                    "description": f"Pre-annotations by polypstream. {NOTICE}",
                    "outline_tolerance_px": OUTLINE_TOLERANCE_PX,
                },
                "licenses": [],
                "categories": [{"id": 1, "name": LABEL, "supercategory": ""}],
                "images": [],
                "annotations": [],
            }
        self._content = self._contents[subset]
        images = self._folder / "images" / subset
        images.mkdir(parents=True, exist_ok=True)
        return images

    def write(self, picture: Annotated) -> None:
        """Add the annotations of an image."""
        number, (width, height) = next(self._picture_ids), picture.size
        self._content["images"].append(
            {"id": number, "file_name": f"{picture.name}.jpg", "width": width, "height": height}
        )
        for outline in picture.outlines:
            self._content["annotations"].append(
                {
                    "id": next(self._annotation_ids),
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": [polygon.ravel().tolist() for polygon in _polygons_of(outline)],
                    "area": cv2.countNonZero(outline.mask(width, height)),
                    "bbox": list(cv2.boundingRect(np.concatenate(outline.polygons))),
                    "iscrowd": 0,
                    "score": outline.probability,
                    "attributes": {
                        "track_id": outline.track_id,
                        "occluded": False,
                        "reviewed": outline.reviewed,
                    },
                }
            )

    def close(self) -> None:
        """Write the JSON files."""
        for subset, content in self._contents.items():
            (self._files / f"instances_{subset}.json").write_text(json.dumps(content))


class Png(_WithPictures):
    """images/ and masks/ with equal file names, mask values 0 and 255: the layout that `polypstream train` reads."""

    def __init__(self, folder: Path) -> None:
        self._images, self._masks = folder / "images", folder / "masks"
        for place in (self._images, self._masks):
            place.mkdir(parents=True)

    def begin(self, recording: RecordingInSet) -> Path:
        """See Writer."""
        return self._images

    def write(self, picture: Annotated) -> None:
        """Write the mask of an image."""
        mask = np.zeros(picture.size[::-1], np.uint8)
        for outline in picture.outlines:
            mask |= outline.mask(*picture.size)
        _, png = cv2.imencode(".png", mask)
        (self._masks / f"{picture.name}.png").write_bytes(bytes(png))

    def close(self) -> None:
        """Do nothing: the masks are written already."""


class Yolo(_WithPictures):
    """Segmentation labels of Ultralytics: data.yaml, images/train/, labels/train/ with a line for each polygon.

    A line is the class, 0, and x y x y … as shares of the image's width and height. An image without findings has an
    empty file. The validation split is in images/val/ and labels/val/. data.yaml has no `path`, so the folder that
    contains it is used. Its `val` must exist: without a validation split, it is the folder of the training split.
    Source: https://docs.ultralytics.com/datasets/segment/
    """

    has_splits = True
    default_validation = 0.2

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._splits: set[str] = set()

    def begin(self, recording: RecordingInSet) -> Path:
        """See Writer."""
        split = recording.split or TRAIN
        self._splits.add(split)
        images, self._labels = (self._folder / part / split for part in ("images", "labels"))
        for place in (images, self._labels):
            place.mkdir(parents=True, exist_ok=True)
        return images

    def write(self, picture: Annotated) -> None:
        """Write the label file of an image."""
        lines = [
            " ".join(["0", *(f"{share:.6f}" for share in (polygon / np.array(picture.size)).ravel())])
            for outline in picture.outlines
            for polygon in _polygons_of(outline)
        ]
        (self._labels / f"{picture.name}.txt").write_text("".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Write data.yaml."""
        has_validation = VALIDATION in self._splits
        remark = "" if has_validation else "  # there is no validation split"
        lines = [
            f"# Pre-annotations by polypstream. {NOTICE}",
            f"# Polygons are simplified with a tolerance of {OUTLINE_TOLERANCE_PX:g} pixel of the recording.",
            f"train: images/{TRAIN}",
            f"val: images/{VALIDATION if has_validation else TRAIN}{remark}",
            "names:",
            f"  0: {LABEL}",
        ]
        (self._folder / "data.yaml").write_text("".join(f"{line}\n" for line in lines))


class Labelme(_WithPictures):
    """images/ with a JSON file beside each image, which has a polygon for each outline. A polygon's group is its track.

    Only these JSON files are in that folder, because tools for labelme read every JSON file of a folder.
    Source: https://github.com/wkentaro/labelme
    """

    def __init__(self, folder: Path) -> None:
        self._images = folder / "images"
        self._images.mkdir(parents=True)

    def begin(self, recording: RecordingInSet) -> Path:
        """See Writer."""
        return self._images

    def write(self, picture: Annotated) -> None:
        """Write the JSON file of an image."""
        shapes = [
            {
                "label": LABEL,
                "points": polygon.tolist(),
                "group_id": outline.track_id,
                "description": f"probability {outline.probability:.2f}",
                "shape_type": "polygon",
                "flags": {"reviewed": outline.reviewed},
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
            "imageHeight": picture.size[1],
            "imageWidth": picture.size[0],
        }
        (self._images / f"{picture.name}.json").write_text(json.dumps(content, indent=1))

    def close(self) -> None:
        """Do nothing: the JSON files are written already."""


class _Shape(NamedTuple):
    """A polygon of a CVAT track.

    Attributes:
        place: number of the annotated frame, counted over annotated frames only.
        polygon: float [n, 2], x and y in pixels.
        end: last frame of the recording up to which the track is shown without a gap.
        reviewed: a reader has reviewed it.
    """

    place: int
    polygon: np.ndarray
    end: int
    reviewed: bool


# CVAT's description of the attribute `reviewed`, which may differ between the frames of a track.
_REVIEWED_ATTRIBUTE = {
    "name": "reviewed",
    "mutable": "True",
    "input_type": "checkbox",
    "default_value": "false",
    "values": "false",
}


class Cvat:
    """CVAT for video 1.1, and CVAT for images 1.1.

    Of a recording: annotations.xml with tracks, for a task whose data are the recording itself. Of a set of images:
    annotations.xml with polygons, for a task whose data are the images in images/.

    A task has one video, so that each of several recordings has a file of its own, NAME.xml. A track has a polygon in
    each annotated frame, and CVAT interpolates between them. It is marked as outside from the first frame that does not
    show the polyp. If a polyp has several pieces, the smaller ones are separate tracks. CVAT rotates a recording as its
    metadata say, and does not correct the pixel shape.
    Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
    """

    has_splits = False
    default_validation = 0.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recording: RecordingInSet | None = None
        self._files: list[Path] = []

    @staticmethod
    def shown(orientation: Orientation) -> Orientation:
        """The recording's rotation, without square pixels.

        Args:
            orientation: orientation of the recording.
        """
        return orientation.turned_only

    def begin(self, recording: RecordingInSet) -> Path | None:
        """See Writer."""
        self._finish_recording()
        self._recording = recording
        self._frames: list[int] = []
        self._pieces: dict[tuple[int, int], list[_Shape]] = {}
        self._images: list[Annotated] = []
        if recording.size is not None:
            return None
        images = self._folder / "images"
        images.mkdir(exist_ok=True)
        return images

    def write(self, picture: Annotated) -> None:
        """Add the polygons of a frame or of an image."""
        assert self._recording is not None
        if self._recording.size is None:
            self._images.append(picture)
            return
        for outline, end in zip(picture.outlines, picture.ends, strict=True):
            largest_first = sorted(_polygons_of(outline), key=_area, reverse=True)
            for piece, polygon in enumerate(largest_first):
                shape = _Shape(len(self._frames), polygon, end, outline.reviewed)
                self._pieces.setdefault((outline.track_id, piece), []).append(shape)
        self._frames.append(picture.frame)

    def close(self) -> None:
        """Write the file of the last recording."""
        self._finish_recording()
        if len(self._files) == 1:
            self._files[0].rename(self._folder / "annotations.xml")

    def _finish_recording(self) -> None:
        if self._recording is None:
            return
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        root.append(_meta_of(self._recording))
        for number, image in enumerate(self._images):
            _add_image(root, number, image)
        for number, key in enumerate(sorted(self._pieces)):
            track = ElementTree.SubElement(root, "track", id=str(number), label=LABEL, source="auto")
            self._add_shapes(track, self._pieces[key], self._recording.frames)
        ElementTree.indent(root)
        self._files.append(self._folder / f"{self._recording.name}.xml")
        ElementTree.ElementTree(root).write(self._files[-1], encoding="utf-8", xml_declaration=True)

    def _add_shapes(self, track: ElementTree.Element, shapes: Sequence[_Shape], frames: int) -> None:
        for shape, following in zip_longest(shapes, shapes[1:]):
            _add_polygon(track, self._frames[shape.place], shape, outside=False)
            outside_from = shape.end + 1
            if shape.place + 1 < len(self._frames) and (following is None or following.place > shape.place + 1):
                outside_from = min(outside_from, self._frames[shape.place + 1])
            if outside_from < (self._frames[following.place] if following else frames):
                _add_polygon(track, outside_from, shape, outside=True)


def _meta_of(recording: RecordingInSet) -> ElementTree.Element:
    meta = ElementTree.Element("meta")
    task = ElementTree.SubElement(meta, "task")
    ElementTree.SubElement(task, "size").text = str(recording.frames)
    ElementTree.SubElement(task, "mode").text = "interpolation" if recording.size else "annotation"
    label = ElementTree.SubElement(ElementTree.SubElement(task, "labels"), "label")
    ElementTree.SubElement(label, "name").text = LABEL
    attribute = ElementTree.SubElement(ElementTree.SubElement(label, "attributes"), "attribute")
    for tag, text in _REVIEWED_ATTRIBUTE.items():
        ElementTree.SubElement(attribute, tag).text = text
    if recording.size is not None:
        size = ElementTree.SubElement(task, "original_size")
        for name, value in zip(("width", "height"), recording.size, strict=True):
            ElementTree.SubElement(size, name).text = str(value)
    return meta


def _add_image(root: ElementTree.Element, number: int, image: Annotated) -> None:
    width, height = map(str, image.size)
    place = ElementTree.SubElement(
        root, "image", {"id": str(number), "name": f"{image.name}.jpg", "width": width, "height": height}
    )
    for outline in image.outlines:
        for polygon in _polygons_of(outline):
            attributes = {"label": LABEL, "source": "auto", "occluded": "0", "points": _points(polygon), "z_order": "0"}
            _mark(ElementTree.SubElement(place, "polygon", attributes), outline.reviewed)


def _add_polygon(track: ElementTree.Element, frame: int, shape: _Shape, outside: bool) -> None:
    attributes = {"outside": str(int(outside)), "occluded": "0", "keyframe": "1"}
    polygon = ElementTree.SubElement(
        track, "polygon", {"frame": str(frame), **attributes, "points": _points(shape.polygon), "z_order": "0"}
    )
    _mark(polygon, shape.reviewed)


def _mark(polygon: ElementTree.Element, reviewed: bool) -> None:
    """Mark a polygon as reviewed, or as the network's guess."""
    ElementTree.SubElement(polygon, "attribute", name="reviewed").text = str(reviewed).lower()


def _points(polygon: np.ndarray) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon)


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
