"""Read annotations with their formats' own public readers, and save what those see: `readers.py FORMAT FOLDER OUT.npz`.

Runs in an environment of its own (tests/readers.txt), since some of them need other versions of what we need.
OUT.npz gets for each picture its mask, uint8 [height, width] of 0 and 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np


def read_coco(folder: Path) -> dict[str, np.ndarray]:
    """By pycocotools; Datumaro and supervision must find as many."""
    from datumaro import Dataset
    from pycocotools.coco import COCO
    from supervision import DetectionDataset

    masks: dict[str, np.ndarray] = {}
    tracks, categories = set(), []
    for file in sorted((folder / "annotations").glob("instances_*.json")):
        coco = COCO(str(file))
        categories.append(coco.loadCats(coco.getCatIds()))
        for picture in coco.loadImgs(coco.getImgIds()):
            annotations = coco.loadAnns(coco.getAnnIds(picture["id"]))
            nothing = np.zeros((picture["height"], picture["width"]), np.uint8)
            masks[Path(picture["file_name"]).stem] = np.maximum.reduce([nothing, *map(coco.annToMask, annotations)])
        tracks |= {annotation["attributes"]["track_id"] for annotation in coco.anns.values()}
        images = folder / "images" / file.stem.removeprefix("instances_")
        pictures = DetectionDataset.from_coco(str(images), str(file), force_masks=True)
        assert sum(len(found) for _, _, found in pictures) == len(coco.anns)
    assert all(each == categories[0] for each in categories)
    items = list(Dataset.import_from(str(folder), "coco_instances"))
    assert sorted(item.id for item in items) == sorted(masks)
    assert all(item.media_as(type(item.media)).size == masks[item.id].shape for item in items)
    assert {annotation.attributes["track_id"] for item in items for annotation in item.annotations} == tracks
    return masks


def read_coco_tracks(folder: Path) -> dict[str, np.ndarray]:
    """By pycocotools; the names are those of the images and the numbers of the tracks."""
    from pycocotools.coco import COCO

    coco = COCO(str(folder / "annotations" / "instances_default.json"))
    stems = {picture["id"]: Path(picture["file_name"]).stem for picture in coco.loadImgs(coco.getImgIds())}
    return {
        f"{stems[annotation['image_id']]}-{annotation['attributes']['track_id']}": coco.annToMask(annotation)
        for annotation in coco.anns.values()
    }


def read_yolo(folder: Path) -> dict[str, np.ndarray]:
    """By supervision, the splits that data.yaml names."""
    import yaml
    from supervision import DetectionDataset

    content = yaml.safe_load((folder / "data.yaml").read_text())
    masks: dict[str, np.ndarray] = {}
    for images in sorted({content["train"], content["val"]}):
        labels = folder / images.replace("images", "labels")
        pictures = DetectionDataset.from_yolo(
            str(folder / images), str(labels), str(folder / "data.yaml"), force_masks=True
        )
        assert pictures.classes == ["polyp"]
        for path, picture, found in pictures:
            each = [np.zeros(picture.shape[:2], np.uint8), *(found.mask.astype(np.uint8) if len(found) else ())]
            assert Path(path).stem not in masks
            masks[Path(path).stem] = np.maximum.reduce(each)
    return masks


def read_cvat(folder: Path) -> dict[str, np.ndarray]:
    """By Datumaro; the names are those of the images or, in videos, of the file and the numbers of the frames."""
    from xml.etree import ElementTree

    from datumaro import Dataset
    from PIL import Image
    from pycocotools import mask

    masks = {}
    for file in sorted(folder.glob("*.xml")):
        video = ElementTree.parse(file).getroot().find("meta/task/original_size")
        for item in Dataset.import_from(str(file), "cvat"):
            if video is None:
                name, (width, height) = item.id, Image.open(folder / "images" / f"{item.id}.jpg").size
            else:
                name = f"{file.stem}_{item.attributes['frame']:06d}"
                width, height = (int(video.findtext(each) or 0) for each in ("width", "height"))
            visible = [each for each in item.annotations if not each.attributes.get("outside")]
            decoded = [mask.decode(mask.frPyObjects([each.points], height, width))[..., 0] for each in visible]
            masks[name] = np.maximum.reduce([np.zeros((height, width), np.uint8), *decoded])
    return masks


def read_labelme(folder: Path) -> dict[str, np.ndarray]:
    """By labelme itself, the picture and the shapes."""
    from io import BytesIO

    from labelme._label_file import read_label_file
    from labelme.utils import shape_to_mask
    from PIL import Image

    masks = {}
    for path in sorted((folder / "images").glob("*.json")):
        read = read_label_file(str(path))
        width, height = Image.open(BytesIO(read.image_data)).size
        nothing = np.zeros((height, width), np.uint8)
        assert all(shape["label"] == "polyp" and shape["group_id"] for shape in read.shapes)
        found = [shape_to_mask((height, width), shape["points"], "polygon").astype(np.uint8) for shape in read.shapes]
        masks[path.stem] = np.maximum.reduce([nothing, *found])
    return masks


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "coco": read_coco,
    "coco-tracks": read_coco_tracks,
    "yolo": read_yolo,
    "cvat": read_cvat,
    "labelme": read_labelme,
}

if __name__ == "__main__":
    name, folder, out = sys.argv[1:]
    np.savez_compressed(out, **READERS[name](Path(folder)))
