"""Ground truths in the formats of annotation tools and public data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from polypstream.errors import DataError
from polypstream.jobs.annotation_formats import Annotated, Cvat, RecordingInSet
from polypstream.jobs.results import Run, load_run, shown_until
from polypstream.study.observation import Observation, observe
from polypstream.study.truth import read_truth
from tests.jobs.test_score import write_video
from tests.study.hand_made import HEIGHT, WIDTH, Mark, make_run, marks, squares

# A polyp at 20, 20 of 20x20 pixels in the frames 2 to 5 of eight.
FRAMES, IN_VIEW = 8, range(2, 6)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of 8 frames that marks the right half of the polyp in frame 3, and something beside it in frame 4."""
    return load_run(make_run(tmp_path / "001-001", FRAMES, [Mark(3, 1, 0.9, x=30, width=10), Mark(4, 2, 0.9, x=60)]))


def observed(path: Path, run: Run) -> Observation:
    return observe(run, read_truth(path, run))


def assert_is_the_polyp(found: Observation, names: tuple[str, ...], by_masks: bool) -> None:
    assert tuple(found.polyps) == names
    assert found.target_frame.tolist() == list(IN_VIEW)
    assert found.target_share == pytest.approx(np.full(4, 400 / (WIDTH * HEIGHT)))
    assert found.target_box == pytest.approx(np.array([(20, 20, 20, 20)] * 4))
    assert (found.pair_mark.tolist(), found.pair_target.tolist()) == ([0], [1])
    assert found.pair_overlap == pytest.approx([200])
    assert found.pair_iou == pytest.approx([200 / 400])
    assert (found.dice is not None) == by_masks
    if found.dice is not None:
        assert found.dice == pytest.approx([1, 1, 0, 2 * 200 / (400 + 200), 0, 0, 1, 1])


def coco_of(**annotation: Any) -> dict[str, Any]:
    """Images are numbered from 1 and listed backwards."""
    images = [
        {"id": 100 + frame, "file_name": f"frame_{frame + 1:05d}.png", "width": WIDTH, "height": HEIGHT}
        for frame in reversed(range(FRAMES))
    ]
    boxes = [{"id": frame, "image_id": 100 + frame, "bbox": [20, 20, 20, 20], **annotation} for frame in IN_VIEW]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "polyp"}]}


POLYGON = [20, 20, 40, 20, 40, 40, 20, 40]


@pytest.mark.parametrize(
    ("annotation", "name", "by_masks"),
    [
        ({"attributes": {"track_id": 7}}, "7", False),
        ({"track_id": 8, "segmentation": []}, "8", False),
        ({"unique_id": "001-001_1", "segmentation": {"counts": "abc", "size": [1, 1]}}, "001-001_1", False),
        ({}, "stretch 1", False),
    ],
)
def test_coco(annotation: dict[str, Any], name: str, by_masks: bool, run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(coco_of(**annotation)))
    assert_is_the_polyp(observed(tmp_path / "t.json", run), (name,), by_masks)


def test_polygons_of_coco_are_masks(run: Run, tmp_path: Path) -> None:
    """Their edges lie on the outer edges of the pixels."""
    (tmp_path / "t.json").write_text(json.dumps(coco_of(track_id=1, segmentation=[POLYGON])))
    assert_is_the_polyp(observed(tmp_path / "t.json", run), ("1",), True)


def test_polyps_without_a_name_are_named_by_stretch(run: Run, tmp_path: Path) -> None:
    content = coco_of()
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 104]
    (tmp_path / "t.json").write_text(json.dumps(content))
    found = observed(tmp_path / "t.json", run)
    assert found.polyps == ["stretch 1", "stretch 2"]
    assert found.target_frame.tolist() == [2, 3, 5]


def cvat_of(shape: dict[str, str], tag: str = "box", frames: int = FRAMES) -> ElementTree.Element:
    """As CVAT exports a track: every frame, and the first one without."""
    root = ElementTree.Element("annotations")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    ElementTree.SubElement(task, "size").text = str(frames)
    size = ElementTree.SubElement(task, "original_size")
    ElementTree.SubElement(size, "width").text, ElementTree.SubElement(size, "height").text = str(WIDTH), str(HEIGHT)
    track = ElementTree.SubElement(root, "track", id="5", label="polyp")
    for frame in [*IN_VIEW, IN_VIEW.stop]:
        values = {"frame": str(frame), "outside": str(int(frame == IN_VIEW.stop)), "keyframe": "0"}
        ElementTree.SubElement(track, tag, values | shape)
    return root


BOX = {"xtl": "20.00", "ytl": "20.00", "xbr": "40.00", "ybr": "40.00"}


def test_cvat_for_video(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.xml"
    ElementTree.ElementTree(cvat_of(BOX)).write(path)
    assert_is_the_polyp(observed(path, run), ("5",), False)
    points = {"points": "20.50,20.50;39.50,20.50;39.50,39.50;20.50,39.50"}
    ElementTree.ElementTree(cvat_of(points, "polygon")).write(path)
    found = observed(path, run)
    assert found.target_share == pytest.approx(np.full(4, 400 / (WIDTH * HEIGHT)))
    assert found.dice == pytest.approx([1, 1, 0, 2 * 200 / (400 + 200), 0, 0, 1, 1])


def test_what_polypstream_writes_for_cvat_can_be_the_truth_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    writer, ends, outlines = Cvat(tmp_path / "annotations"), shown_until(run), run.outlines()
    writer.begin(RecordingInSet("001-001", (WIDTH, HEIGHT), FRAMES))
    for frame in range(FRAMES):
        here = outlines.get(frame, [])
        writer.write(Annotated(str(frame), (WIDTH, HEIGHT), frame, here, [ends[each.track_id, frame] for each in here]))
    writer.close()
    found = observed(tmp_path / "annotations" / "annotations.xml", run)
    assert found.pair_iou == pytest.approx([1, 1])


def test_real_colon(run: Run, tmp_path: Path) -> None:
    """One file for each frame, in the form that its README shows."""
    folder = tmp_path / "001-001_annotations"
    folder.mkdir()
    for frame in range(FRAMES):
        box = (
            "<object><name>lesion</name><unique_id>001-001_1</unique_id><box_id>1</box_id><bndbox><xmin>20</xmin>"
            "<xmax>40</xmax><ymin>20</ymin><ymax>40</ymax></bndbox></object>"
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        text = (
            f"<annotation><filename>001-001_{frame}.jpg</filename>{size}{box if frame in IN_VIEW else ''}</annotation>"
        )
        (folder / f"001-001_{frame + 95}.xml").write_text(text)  # so that the order of names is not that of numbers
    assert_is_the_polyp(observed(folder, run), ("001-001_1",), False)
    (folder / "001-001_95.xml").unlink()
    with pytest.raises(DataError, match="is of 7 frames; the run has 8"):
        observed(folder, run)


def test_sun(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "case1.txt"
    lines = [f"case_M_1_001-1_a2_ayy_image{frame + 1:04d}.jpg 20,20,40,40,0" for frame in IN_VIEW]
    path.write_text("\n".join(lines) + "\n")
    assert_is_the_polyp(observed(path, run), ("case1",), False)
    path.write_text("")
    assert observed(path, run).polyps == []
    path.write_text("\n".join([*lines, "image0009.jpg 20,20,40,40,0"]))
    with pytest.raises(DataError, match="names images 3 to 9; the run has 8 frames"):
        observed(path, run)


def test_reviewed_results_are_a_truth(run: Run, tmp_path: Path) -> None:
    reviewed = make_run(tmp_path / "reviewed", FRAMES, marks(IN_VIEW, 1, 1.0))
    assert_is_the_polyp(observed(reviewed, run), ("1",), True)
    other = make_run(tmp_path / "other", FRAMES + 1, [])
    with pytest.raises(DataError, match="is of another recording"):
        observed(other, run)


def test_masks(run: Run, tmp_path: Path) -> None:
    pictures = squares({IN_VIEW: (3, 20, 20)}, FRAMES)
    assert_is_the_polyp(observed(write_video(tmp_path / "t.mkv", pictures), run), ("3",), True)
    folder = tmp_path / "masks"
    folder.mkdir()
    for frame, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{frame:03}.png"), 255 * (picture > 0).astype(np.uint8))
    assert_is_the_polyp(observed(folder, run), ("1",), True)
    (folder / "007.png").unlink()
    with pytest.raises(DataError, match="holds fewer frames than"):
        observed(folder, run)


def test_the_masks_of_a_run_are_used_where_they_are(run: Run, tmp_path: Path) -> None:
    """Outlines have no holes, and their edges are simplified."""
    write_video(run.folder / "masks.mkv", squares({IN_VIEW: (255, 20, 20)}, FRAMES))
    found = observed(write_video(tmp_path / "t.mkv", squares({IN_VIEW: (3, 20, 20)}, FRAMES)), run)
    assert found.dice == pytest.approx(np.ones(FRAMES))


def without(content: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"t\.json: cannot be read as COCO annotations"),
        (json.dumps(without(coco_of(), "images")), "'images' is missing or unknown"),
        (json.dumps(coco_of(image_id=5)), "5 is missing or unknown"),
        (json.dumps(coco_of() | {"images": coco_of()["images"][1:]}), "is of 7 frames; the run has 8"),
        (
            json.dumps(coco_of()).replace(f'"width": {WIDTH}', '"width": 97'),
            "97x64 pixels; those of the run have 96x64",
        ),
        (json.dumps(coco_of()).replace("_00001", "_00002"), "have the same number"),
        (json.dumps(coco_of()).replace("frame_00001", "first"), "first.png has no number"),
    ],
)
def test_wrong_coco_is_said(content: str, message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=message):
        observed(tmp_path / "t.json", run)


def test_wrong_cvat_is_said(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.xml"
    with_gap, images = cvat_of(BOX), cvat_of(BOX)
    track = with_gap.find("track")
    assert track is not None
    track.remove(track[1])
    ElementTree.SubElement(images, "image")
    for root, message in (
        (cvat_of(BOX, frames=9), "is of 9 frames; the run has 8"),
        (with_gap, "track 5 says nothing of the frames from 3 to 3"),
        (images, "export it as CVAT for video"),
        (cvat_of(BOX, "ellipse"), "has the shape ellipse"),
        (cvat_of({}), "'xtl' is missing or unknown"),
    ):
        ElementTree.ElementTree(root).write(path)
        with pytest.raises(DataError, match=message):
            observed(path, run)
    path.write_text("<annotations>")
    with pytest.raises(DataError, match="cannot be read as annotations of CVAT"):
        observed(path, run)


def test_wrong_sun_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("image0001.jpg 1,2,3\n")
    with pytest.raises(DataError, match="cannot be read as annotations of SUN"):
        observed(tmp_path / "t.txt", run)
