"""`polypstream masks`: every format, read back by its own public reader."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

from polypstream.core.config import Settings, load_settings
from polypstream.errors import DataError, SettingsError, SourceError
from polypstream.jobs.annotation_formats import Annotated, Coco, Cvat, Labelme, Png, RecordingInSet, Writer, Yolo
from polypstream.jobs.annotations import Selection, write_annotations
from polypstream.jobs.image import load_image
from polypstream.jobs.images import process_images
from polypstream.jobs.process import Job, process
from polypstream.jobs.results import Outline, load_run
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.models.data import find_pairs, read_pair
from polypstream.sinks.findings import OUTLINE_TOLERANCE_PX
from tests.conftest import Clip, call, disc, make_clip, picture

pytestmark = pytest.mark.slow

# The disc is in the first 20 of 30 frames; every fifth of a second at 25 a second.
FRAMES, EVERY = range(0, 30, 5), 0.2
CLIP = Clip()


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> tuple[Path, Path]:
    """A recording with a red disc, and the folder of its results."""
    folder = tmp_path_factory.mktemp("annotations")
    recording = make_clip(folder, CLIP)
    # Without steadying a finding is gone when the disc is.
    call("process", recording, "--output", folder / "results", "--model", red_model, "--set", "findings.steady=false")
    return recording, folder / "results"


@pytest.fixture
def annotate(processed: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    """annotate(format, ...) is the folder that the command wrote."""

    def run(name: str, *more: object) -> Path:
        recording, results = processed
        out = tmp_path / name
        call("masks", recording, "--results", results, "--format", name, "--output", out, *more)
        return out

    return run


def disc_of(frame: int, clip: Clip = CLIP) -> np.ndarray:
    """uint8 [height, width]: 1 where the disc is in a frame."""
    x, y, radius = disc(clip, frame)
    rows, columns = np.ogrid[: clip.height, : clip.width]
    inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return (inside & (frame < clip.frames * 2 / 3)).astype(np.uint8)


def assert_alike(found: np.ndarray, truth: np.ndarray) -> None:
    assert found.shape == truth.shape
    if not truth.any():
        assert not found.any()
        return
    # The network's map is 128 wide, so that the outline may be a pixel or two off.
    assert np.count_nonzero(found & truth) / np.count_nonzero(found | truth) > 0.93


def read_by_others(name: str, folder: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    """By the name of each picture, the mask that the format's public reader sees."""
    python = Path(sys.prefix) / "readers" / "bin" / "python"
    if not python.is_file():
        pytest.skip("needs the formats' public readers: make .venv/.readers")
    read = [python, Path(__file__).with_name("readers.py"), name, folder, tmp_path / "read.npz"]
    done = subprocess.run([*map(str, read)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(tmp_path / "read.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco", "yolo", "cvat", "labelme"])
def test_public_readers_see_the_disc(name: str, annotate: Callable[..., Path], tmp_path: Path) -> None:
    masks = read_by_others(name, annotate(name, "--every", EVERY), tmp_path)
    stem = "annotations" if name == "cvat" else "clip"
    expected = {f"{stem}_{frame:06d}": frame for frame in FRAMES}
    if name == "cvat":  # CVAT's tracks name frames that show something, and the first one after.
        del expected[f"{stem}_000025"]
    assert set(masks) == set(expected)
    for name_of_picture, frame in expected.items():
        assert_alike(masks[name_of_picture], disc_of(frame))


def test_png_is_what_train_reads(annotate: Callable[..., Path]) -> None:
    pairs = find_pairs(annotate("png", "--every", EVERY))
    assert [pair.name for pair in pairs] == [f"clip_{frame:06d}" for frame in FRAMES]
    for pair, frame in zip(pairs, FRAMES, strict=True):
        picture, mask = read_pair(pair)
        truth = disc_of(frame)
        assert_alike(mask // 255, truth)
        if truth.any():
            # The picture is clean: the disc as it was filmed, neither tinted nor outlined.
            inside = cv2.erode(truth, np.ones((9, 9), np.uint8)) > 0
            assert np.abs(picture[inside].mean(axis=0) - (200, 30, 30)).max() < 12


def test_every_picture_without_every(annotate: Callable[..., Path]) -> None:
    content = json.loads((annotate("coco") / "annotations" / "instances_default.json").read_text())
    assert len(content["images"]) == 30
    assert {each["attributes"]["track_id"] for each in content["annotations"]} == {1}
    assert len(content["annotations"]) == 20


SMALL = np.array([(1, 1), (5, 1), (5, 5), (1, 5)], np.int32)
LARGE = np.array([(20, 20), (40, 20), (40, 40), (20, 40)], np.int32)
THIRD = np.array([(51, 31), (55, 31), (55, 35), (51, 35)], np.int32)
# Track 7 in two pieces beside track 3, nothing, and track 7 again; the polygons go through the middles of pixels.
OF_TRACK_3 = Outline(3, 0, 0.0, 0.6, [THIRD])
PICTURES = [
    Annotated("a", (64, 48), 0, [Outline(7, 0, 0.0, 0.9, [SMALL, LARGE]), OF_TRACK_3], [4, 0]),
    Annotated("b", (64, 48), 5, [], []),
    Annotated("c", (64, 48), 10, [Outline(7, 10, 0.4, 0.8, [LARGE])], [10]),
]


def begun(format_: type[Writer], folder: Path, size: tuple[int, int], frames: int) -> Writer:
    """A writer that waits for the images of one recording."""
    writer = format_(folder)
    writer.begin(RecordingInSet("x", size, frames))
    return writer


def test_a_track_in_pieces_and_one_that_comes_back(tmp_path: Path) -> None:
    """CVAT has one polygon a frame in a track, and `outside` where it is not seen."""
    writer = begun(Cvat, tmp_path, (64, 48), 50)
    # It is shown up to frame 14, and again up to 35.
    seen = {0: ([SMALL, LARGE], 14), 10: ([LARGE], 14), 20: ([], 0), 30: ([LARGE], 35), 40: ([], 0)}
    for frame, (polygons, end) in seen.items():
        outlines = [Outline(7, frame, frame / 25, 0.9, polygons)] if polygons else []
        writer.write(Annotated(f"x_{frame}", (64, 48), frame, outlines, [end] * len(outlines)))
    writer.close()
    tracks = ElementTree.parse(tmp_path / "annotations.xml").getroot().findall("track")
    shapes = [[(int(each.get("frame")), each.get("outside")) for each in track.findall("polygon")] for track in tracks]
    assert shapes == [[(0, "0"), (10, "0"), (15, "1"), (30, "0"), (36, "1")], [(0, "0"), (10, "1")]]


def test_coco_says_where_and_which(tmp_path: Path) -> None:
    writer = begun(Coco, tmp_path, (64, 48), 50)
    for each in PICTURES:
        writer.write(each)
    writer.close()
    content = json.loads((tmp_path / "annotations" / "instances_default.json").read_text())
    assert [(each["id"], each["file_name"]) for each in content["images"]] == [(1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg")]
    found = content["annotations"]
    assert [(each["id"], each["image_id"]) for each in found] == [(1, 1), (2, 1), (3, 3)]
    assert [(each["attributes"]["track_id"], each["score"]) for each in found] == [(7, 0.9), (3, 0.6), (7, 0.8)]
    assert [each["bbox"] for each in found] == [[1, 1, 40, 40], [51, 31, 5, 5], [20, 20, 21, 21]]
    assert [each["area"] for each in found] == [25 + 441, 25, 441]
    assert found[0]["segmentation"] == [(SMALL + 0.5).ravel().tolist(), (LARGE + 0.5).ravel().tolist()]


def test_labelme_says_where_and_which(tmp_path: Path) -> None:
    writer = begun(Labelme, tmp_path, (64, 48), 50)
    writer.write(PICTURES[0])
    content = json.loads((tmp_path / "images" / "a.json").read_text())
    assert (content["imagePath"], content["imageWidth"], content["imageHeight"]) == ("a.jpg", 64, 48)
    assert [shape["group_id"] for shape in content["shapes"]] == [7, 7, 3]
    assert [shape["points"] for shape in content["shapes"]] == [
        (polygon + 0.5).tolist() for polygon in (SMALL, LARGE, THIRD)
    ]


def test_a_mask_has_all_findings_of_its_picture(tmp_path: Path) -> None:
    writer = begun(Png, tmp_path, (64, 48), 50)
    for each in PICTURES[:2]:
        writer.write(each)
    expected = np.zeros((48, 64), np.uint8)
    expected[1:6, 1:6] = expected[20:41, 20:41] = expected[31:36, 51:56] = 255
    assert np.array_equal(cv2.imread(str(tmp_path / "masks" / "a.png"), cv2.IMREAD_UNCHANGED), expected)
    assert not cv2.imread(str(tmp_path / "masks" / "b.png"), cv2.IMREAD_UNCHANGED).any()


def test_cvats_tracks_are_pieces_of_which_the_largest_is_the_first(tmp_path: Path) -> None:
    writer = begun(Cvat, tmp_path, (64, 48), 50)
    for each in PICTURES:
        writer.write(each)
    writer.close()
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert [root.findtext(f"meta/task/{name}") for name in ("size", "original_size/width", "original_size/height")] == [
        "50", "64", "48"
    ]  # fmt: skip
    tracks = [
        [(int(each.get("frame") or -1), each.get("outside"), each.get("points")) for each in track.findall("polygon")]
        for track in root.findall("track")
    ]
    small, large, third = (
        ";".join(f"{x + 0.5:.2f},{y + 0.5:.2f}" for x, y in polygon) for polygon in (SMALL, LARGE, THIRD)
    )
    assert tracks == [
        [(0, "0", third), (1, "1", third)],
        [(0, "0", large), (5, "1", large), (10, "0", large), (11, "1", large)],
        [(0, "0", small), (5, "1", small)],
    ]


def test_a_finding_of_two_pixels_is_not_lost(tmp_path: Path) -> None:
    writer = begun(Yolo, tmp_path, (100, 50), 1)
    writer.write(
        Annotated("x", (100, 50), 0, [Outline(1, 0, 0.0, 0.9, [np.array([(10, 20), (11, 20)], np.int32)])], [0])
    )
    line = (tmp_path / "labels" / "train" / "x.txt").read_text().split()
    assert len(line) == 1 + 2 * 4
    assert line[0] == "0"
    assert all(0 < float(share) < 1 for share in line[1:])
    writer.write(
        Annotated("rim", (100, 50), 0, [Outline(1, 0, 0.0, 0.9, [np.array([(98, 49), (99, 49)], np.int32)])], [0])
    )
    shares = [float(share) for share in (tmp_path / "labels" / "train" / "rim.txt").read_text().split()[1:]]
    assert (min(shares), max(shares)) == (0.98, 1.0)  # x 98 to 100 of 100, y 49 to 50 of 50
    writer.close()
    assert "path" not in (tmp_path / "data.yaml").read_text()  # which Ultralytics takes from wherever it is started


def polygons_of(
    name: str, folder: Path, frame: int, width: int, height: int, recording: str = "turned"
) -> list[np.ndarray]:
    """The polygons of a frame, float [n, 2] in pixels, as the format has them."""
    stem = f"{recording}_{frame:06d}"
    if name == "coco":
        content = json.loads((folder / "annotations" / "instances_default.json").read_text())
        (number,) = [each["id"] for each in content["images"] if each["file_name"] == f"{stem}.jpg"]
        flat = [p for each in content["annotations"] if each["image_id"] == number for p in each["segmentation"]]
        return [np.reshape(polygon, (-1, 2)) for polygon in flat]
    if name == "yolo":
        lines = (folder / "labels" / "train" / f"{stem}.txt").read_text().splitlines()
        return [np.reshape([float(x) for x in line.split()[1:]], (-1, 2)) * (width, height) for line in lines]
    if name == "labelme":
        return [
            np.array(shape["points"])
            for shape in json.loads((folder / "images" / f"{stem}.json").read_text())["shapes"]
        ]
    polygons = ElementTree.parse(folder / "annotations.xml").getroot().iter("polygon")
    wanted = [each.get("points") or "" for each in polygons if each.get("frame") == str(frame)]
    return [np.array([[float(x) for x in point.split(",")] for point in points.split(";")]) for points in wanted]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco", "yolo", "labelme", "png", "cvat"])
@pytest.mark.parametrize(("rotation", "shape"), [(90, Fraction(1)), (180, Fraction(3, 2)), (270, Fraction(2, 3))])
def test_what_a_player_turns_is_annotated_as_it_is_shown(
    tmp_path: Path, red_model: Path, name: str, rotation: int, shape: Fraction
) -> None:
    """The points lie on the disc in the picture that another program shows, ffmpeg, turned and with square pixels."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("needs the ffmpeg program")
    clip = Clip(name="turned.mp4", frames=10, rotation=rotation, sample_aspect_ratio=shape)
    recording, out, frame = make_clip(tmp_path, clip), tmp_path / "out", 3
    call("process", recording, "--output", tmp_path, "--model", red_model, "--set", "findings.steady=false")
    call("masks", recording, "--results", tmp_path, "--format", name, "--output", out)
    square = "scale='if(gt(sar,1),iw*sar,iw)':'if(gt(sar,1),ih,ih/sar)'," if name != "cvat" else ""
    look = ["-vf", f"{square}select=eq(n\\,{frame})", "-frames:v", "1", tmp_path / "shown.png"]
    subprocess.run([ffmpeg, "-loglevel", "error", "-y", "-i", recording, *look], check=True)
    picture = cv2.imread(str(tmp_path / "shown.png")).astype(int)
    red = (picture[:, :, 2] - picture[:, :, 1] > 80).astype(np.uint8)
    if name == "png":
        found = cv2.imread(str(out / "masks" / f"turned_{frame:06d}.png"), cv2.IMREAD_GRAYSCALE) // 255
    else:
        found = np.zeros(red.shape, np.uint8)
        for polygon in polygons_of(name, out, frame, *red.shape[::-1]):
            cv2.fillPoly(found, [np.rint(polygon - 0.5).astype(np.int32)], 1)
    assert_alike(found, red)
    written = list(out.rglob(f"turned_{frame:06d}.jpg"))
    assert len(written) == (name != "cvat")
    for path in written:
        assert np.abs(cv2.imread(str(path)).astype(int) - picture).mean() < 3


def test_a_track_that_no_sample_falls_on_is_annotated_where_it_is_seen_best(
    processed: tuple[Path, Path], annotate: Callable[..., Path], tmp_path: Path
) -> None:
    findings = processed[1] / "clip" / "findings.json"
    content = json.loads(findings.read_text())
    short = [row for row in content["tracks"][0]["outlines"] if 6 <= row["frame"] <= 8]
    best = 7
    for row in short:
        row["polygons"] = row["polygons"] if row["frame"] == best else [[100, 100, 104, 100, 104, 104]]
    (tmp_path / "run").mkdir()
    shutil.copy(processed[1] / "clip" / "frames.csv", tmp_path / "run")
    content["tracks"][0]["outlines"] = short
    (tmp_path / "run" / "findings.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    wanted = ("--results", tmp_path / "run", "--format", "cvat", "--output", out, "--every", "10")
    call("masks", processed[0], *wanted)
    track = ElementTree.parse(out / "annotations.xml").getroot().find("track")
    assert track is not None
    shapes = [(int(each.get("frame") or -1), each.get("outside")) for each in track.findall("polygon")]
    assert shapes == [(best, "0"), (9, "1")], "it ends where it ends"
    call("masks", processed[0], *wanted[:2], "--format", "coco", "--output", tmp_path / "coco", "--every", "10")
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_default.json").read_text())
    assert [each["file_name"][-8:-4] for each in content["images"]] == ["0000", "0007"]
    assert len(content["annotations"]) == 1


def test_odd_sizes_keep_their_pixels(tmp_path: Path, red_model: Path) -> None:
    clip = Clip(width=321, height=241, frames=5, pixel_format="yuv444p")
    recording = make_clip(tmp_path, clip)
    settings = ("--set", "findings.steady=false")
    call("process", recording, "--output", tmp_path / "results", "--model", red_model, *settings)
    call(
        "masks", recording, "--results", tmp_path / "results" / "clip", "--format", "png", "--output", tmp_path / "out"
    )
    pairs = find_pairs(tmp_path / "out")
    assert len(pairs) == 5
    for frame, pair in enumerate(pairs):
        found, mask = read_pair(pair)
        assert_alike(mask // 255, disc_of(frame, clip))
        assert np.abs(found.astype(int) - picture(clip, frame)).mean() < 3


@pytest.mark.slow
def test_what_can_go_wrong_is_said(processed: tuple[Path, Path], tmp_path: Path, red_model: Path) -> None:
    recording, results = processed

    def refused(*arguments: object) -> str:
        done = call("masks", *arguments, "--format", "coco", check=False)
        assert done.returncode == 1
        return done.stderr

    said = refused(recording, "--results", tmp_path)
    assert "clip: holds no finished run of `polypstream process`. If the results are elsewhere, give --results" in said
    other = make_clip(tmp_path, Clip(name="clip.mp4", width=160, height=120))
    assert "160x120" in refused(other, "--results", results)
    shorter = make_clip(tmp_path, Clip(name="clip.mp4", frames=10))
    assert "ends before" in refused(shorter, "--results", results)
    slower = make_clip(tmp_path, Clip(name="clip.mp4", rate=Fraction(20)))
    assert "other times" in refused(slower, "--results", results)
    # A folder of somebody else's is never touched, and one of ours only if told so.
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for more in ((), ("--overwrite",)):
        assert "choose another --output" in refused(recording, "--results", results, "--output", mine, *more)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    out = tmp_path / "out"
    first = ("masks", recording, "--results", results, "--format", "coco", "--output", out)
    call(*first)
    assert "--overwrite" in refused(recording, "--results", results, "--output", out)
    call(*first, "--every", "0.2", "--overwrite")
    assert len(list((out / "images" / "default").iterdir())) == len(FRAMES)
    assert not list(tmp_path.glob(".out-*"))


def test_findings_of_another_version_are_refused(processed: tuple[Path, Path], tmp_path: Path) -> None:
    content = json.loads((processed[1] / "clip" / "findings.json").read_text())
    (tmp_path / "findings.json").write_text(json.dumps(content | {"schema": "polypstream-findings-9"}))
    with pytest.raises(Exception, match="polypstream-findings-9"):
        load_run(tmp_path)
    for size in ({}, {"picture_size": None}, {"picture_size": [0, 0]}):
        damaged = {key: value for key, value in content.items() if key != "picture_size"} | size
        (tmp_path / "findings.json").write_text(json.dumps(damaged))
        with pytest.raises(DataError, match=r"findings\.json: cannot be read as findings"):
            load_run(tmp_path)


# Several recordings. Two have the same name, and one has another size.
CLIPS = {
    "a/clip.mp4": CLIP,
    "b/clip.mp4": Clip(width=400, height=300, frames=20),
    "b/other.mp4": Clip(name="other.mp4", frames=10),
}
NAMES = dict(zip(("clip", "clip-2", "other"), CLIPS.values(), strict=True))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> tuple[list[Path], list[Path]]:
    """Three recordings, and for each the folder of the results."""
    folder = tmp_path_factory.mktemp("several")
    settings = with_model(load_settings(None, ["findings.steady=false"]), red_model)
    segmenter = make_segmenter(settings)
    recordings, results = [], []
    for path, clip in CLIPS.items():
        (folder / path).parent.mkdir(exist_ok=True)
        recordings.append(make_clip((folder / path).parent, clip))
        results.append(folder / "results" / (folder / path).parent.name)
        process(Job(str(recordings[-1]), results[-1]), segmenter, settings)
    return recordings, results


Several = tuple[list[Path], list[Path]]


def merge(
    several: Several, name: str, out: Path | None, validation: float | None = None, overwrite: bool = False
) -> dict[str, str]:
    """Write a data set of a frame per fifth of a second; the split of each of its recordings."""
    recordings, results = several
    _, entries = write_annotations(
        [str(path) for path in recordings], results, name, out, Selection(EVERY), validation, overwrite
    )
    return {entry.name: entry.split for entry in entries}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"), [("coco", ()), ("coco", ("--validation", 0.5)), ("yolo", ()), ("cvat", ()), ("labelme", ())]
)
def test_public_readers_see_a_data_set_of_several_recordings(
    several: Several, name: str, more: tuple[object, ...], tmp_path: Path
) -> None:
    out, wanted = tmp_path / "out", [each for path in several[1] for each in ("--results", path)]
    done = call("masks", *several[0], *wanted, "--format", name.upper(), "--every", EVERY, "-o", out, *more)
    assert [line.partition(", split")[0] for line in done.stdout.splitlines()] == [
        "clip: 4 findings in 6 images",
        "clip-2: 3 findings in 4 images",
        "other: 2 findings in 2 images",
        f"The annotations are in {out}",
    ]
    masks = read_by_others(name, out, tmp_path)
    expected = {
        f"{stem}_{frame:06d}": disc_of(frame, clip)
        for stem, clip in NAMES.items()
        for frame in range(0, clip.frames, 5)
    }
    if name == "cvat":
        shown = {key for key, truth in expected.items() if truth.any()}
        assert shown <= set(masks)
        expected = {key: expected[key] for key in shown}
    else:
        assert set(masks) == set(expected)
    for key, truth in expected.items():
        assert_alike(masks[key], truth)


def test_ids_of_several_recordings_are_unique_also_over_splits(several: Several, tmp_path: Path) -> None:
    splits = merge(several, "coco", tmp_path, validation=0.4)
    assert sorted(splits.values()) == ["train", "train", "val"]
    files = {split: tmp_path / "annotations" / f"instances_{split}.json" for split in ("train", "val")}
    contents = {split: json.loads(file.read_text()) for split, file in files.items()}
    for kind in ("images", "annotations"):
        ids = [each["id"] for content in contents.values() for each in content[kind]]
        assert len(set(ids)) == len(ids)
    assert contents["train"]["categories"] == contents["val"]["categories"]
    tracks: dict[int, set[str]] = {}
    for content in contents.values():
        names = {each["id"]: each["file_name"].rpartition("_")[0] for each in content["images"]}
        for each in content["annotations"]:
            tracks.setdefault(each["attributes"]["track_id"], set()).add(names[each["image_id"]])
    assert tracks == {1: {"clip"}, 2: {"clip-2"}, 3: {"other"}}
    for split, content in contents.items():
        images = {each["file_name"] for each in content["images"]}
        assert {path.name for path in (tmp_path / "images" / split).iterdir()} == images
        assert {name.rpartition("_")[0] for name in images} == {name for name, of in splits.items() if of == split}


def test_yolo_splits_by_recording_and_always_alike(several: Several, tmp_path: Path) -> None:
    splits = merge(several, "yolo", tmp_path / "one")
    assert sorted(splits.values()) == ["train", "train", "val"]
    for part in ("images", "labels"):
        held = {
            split: {path.stem.rpartition("_")[0] for path in (tmp_path / "one" / part / split).iterdir()}
            for split in ("train", "val")
        }
        assert held == {split: {name for name, of in splits.items() if of == split} for split in ("train", "val")}
    assert "val: images/val\n" in (tmp_path / "one" / "data.yaml").read_text()
    # Recording 1 and 3 have names that do not depend on the order.
    few = ([several[0][0], several[0][2]], [several[1][0], several[1][2]])
    backwards = (few[0][::-1], few[1][::-1])
    assert merge(few, "yolo", tmp_path / "two") == merge(backwards, "yolo", tmp_path / "three")
    assert set(merge(several, "yolo", tmp_path / "one", validation=0, overwrite=True).values()) == {""}
    assert "val: images/train " in (tmp_path / "one" / "data.yaml").read_text()


def test_a_recording_without_split_is_for_training(processed: tuple[Path, Path], tmp_path: Path) -> None:
    assert merge(([processed[0]], [processed[1]]), "yolo", tmp_path) == {"clip": ""}
    assert "val: images/train " in (tmp_path / "data.yaml").read_text()


@pytest.mark.parametrize("name", ["coco", "png", "yolo", "cvat", "labelme"])
def test_only_findings_leaves_out_the_other_frames(processed: tuple[Path, Path], name: str, tmp_path: Path) -> None:
    recording, results = processed
    _, (entry,) = write_annotations([str(recording)], [results], name, tmp_path, Selection(EVERY, only_findings=True))
    assert (entry.pictures, entry.findings) == (4, 4)
    pictures = {path.stem for path in tmp_path.rglob("*.jpg")}
    assert pictures == ({f"clip_{frame:06d}" for frame in range(0, 20, 5)} if name != "cvat" else set())
    if name == "cvat":
        track = ElementTree.parse(tmp_path / "annotations.xml").getroot().find("track")
        assert track is not None
        shapes = [(each.get("frame"), each.get("outside")) for each in track]
        assert shapes == [("0", "0"), ("5", "0"), ("10", "0"), ("15", "0"), ("20", "1")]


def test_json_files_of_labelme_are_annotations(annotate: Callable[..., Path]) -> None:
    folder = annotate("labelme", "--every", EVERY)
    assert {path.stem for path in (folder / "images").glob("*.json")} == {f"clip_{frame:06d}" for frame in FRAMES}
    assert {path.name for path in folder.iterdir()} == {"images", "about.json", "reviewed.csv"}


def test_about_says_which_recordings_and_how_outlines_were_simplified(several: Several, tmp_path: Path) -> None:
    merge(several, "coco", tmp_path)
    about = json.loads((tmp_path / "about.json").read_text())
    assert (about["format"], about["outline_tolerance_px"]) == ("coco", OUTLINE_TOLERANCE_PX)
    assert [each["name"] for each in about["recordings"]] == list(NAMES)
    assert [each["input"] for each in about["recordings"]] == [str(path) for path in several[0]]
    assert [each["first_track"] for each in about["recordings"]] == [1, 2, 3]
    assert [each["pictures"] for each in about["recordings"]] == [6, 4, 2]
    info = json.loads((tmp_path / "annotations" / "instances_default.json").read_text())["info"]
    assert info["outline_tolerance_px"] == OUTLINE_TOLERANCE_PX


def test_formats_get_the_polygons_of_findings_json(processed: tuple[Path, Path], tmp_path: Path) -> None:
    """They are simplified there, once, so that all formats have the same points."""
    source = ([processed[0]], [processed[1]])
    rows = {row["frame"]: row for row in json.loads(findings_of(processed).read_text())["tracks"][0]["outlines"]}
    (expected,) = (np.reshape(polygon, (-1, 2)) + 0.5 for polygon in rows[5]["polygons"])
    for name in ("coco", "yolo", "cvat", "labelme"):
        merge(source, name, tmp_path / name)
        (found,) = polygons_of(name, tmp_path / name, 5, CLIP.width, CLIP.height, "clip")
        assert np.abs(found - expected).max() < 1e-3


def findings_of(processed: tuple[Path, Path]) -> Path:
    return processed[1] / "clip" / "findings.json"


def test_several_recordings_go_beside_their_runs(several: Several) -> None:
    recordings, results = several
    both = ([recordings[1], recordings[2]], [results[1]])
    merge(both, "png", None)
    assert (results[1] / "annotations-png" / "about.json").is_file()


def test_recordings_that_cannot_be_one_data_set_are_refused(several: Several, tmp_path: Path) -> None:
    (one, two, three), (first, second, _) = several
    with pytest.raises(DataError, match="both have their results in"):
        merge(([one, two], [first]), "coco", tmp_path)
    with pytest.raises(SettingsError, match="2 folders for 3 recordings"):
        merge(([one, two, three], [first, second]), "coco", tmp_path)
    with pytest.raises(SettingsError, match="--output: give a folder"):
        merge(([one, two], [first, second]), "coco", None)
    with pytest.raises(SettingsError, match="labelme has no validation split; coco and yolo have one"):
        merge(([one, two], [first, second]), "labelme", tmp_path, validation=0.5)
    with pytest.raises(SettingsError, match="two or more recordings"):
        merge(([one], [first]), "yolo", tmp_path, validation=0.5)
    assert list(tmp_path.iterdir()) == []


# Images: two with a disc, of other sizes, one of them turned by its EXIF data, one without a disc, and a damaged one.
SET = {"large.png": (Clip(width=400, height=300), 0), "turned.jpg": (CLIP, 5), "without.png": (CLIP, 29)}


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> tuple[Path, Path]:
    """A folder of images, and the folder of the results of `process`."""
    folder = tmp_path_factory.mktemp("annotated images")
    (folder / "views").mkdir()
    for name, (clip, frame) in SET.items():
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned.jpg" else 1
        Image.fromarray(picture(clip, frame)).save(folder / "views" / name, exif=exif)
    (folder / "views" / "broken.png").write_bytes(b"no image")
    images = tuple(sorted((folder / "views").iterdir()))
    segmenter = make_segmenter(with_model(load_settings(), red_model))
    process_images(Job(str(folder / "views"), folder / "results", name="views", images=images), segmenter, Settings())
    process_images(Job(str(images[1]), folder / "results", name="large", images=images[1:2]), segmenter, Settings())
    return folder / "views", folder / "results"


def masks_of(image_run: tuple[Path, Path]) -> dict[str, np.ndarray]:
    """The masks of `process`, 0 and 1, by the names that the images have in a data set."""
    folder = image_run[1] / "views" / "masks"
    return {f"views_{path.stem}": cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 255 for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["coco", "yolo", "cvat", "labelme"])
def test_public_readers_see_what_was_found_in_images(name: str, image_run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, (entry,) = write_annotations([str(image_run[0])], [image_run[1]], name, tmp_path / "out")
    assert (entry.name, entry.pictures, entry.findings) == ("views", 3, 2)
    found, expected = read_by_others(name, folder, tmp_path), masks_of(image_run)
    assert set(found) == set(expected)
    for each, mask in expected.items():
        assert_alike(found[each], mask)
    for image in SET:
        (written,) = folder.rglob(f"views_{Path(image).stem}.jpg")
        difference = load_image(written).astype(int) - load_image(image_run[0] / image)
        assert np.abs(difference).mean() < 3


def test_masks_of_images_are_pairs_that_train_reads(image_run: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the results alone: the folder of all results, of which one is of a single image."""
    call("masks", image_run[1], "--format", "png", "--output", tmp_path / "out", "--only-findings")
    pairs = {pair.name: pair for pair in find_pairs(tmp_path / "out")}
    assert sorted(pairs) == ["large", "views_large", "views_turned"]
    for name, pair in pairs.items():
        assert_alike(read_pair(pair)[1] // 255, masks_of(image_run)[name if "_" in name else f"views_{name}"])
    about = json.loads((tmp_path / "out" / "about.json").read_text())["recordings"]
    assert [(each["name"], each["first_track"], each["findings"]) for each in about] == [
        ("large", 1, 1),
        ("views", 2, 2),
    ]


def test_recordings_and_images_are_one_data_set(
    processed: tuple[Path, Path], image_run: tuple[Path, Path], tmp_path: Path
) -> None:
    """A pattern, images by name, and the folder of a run."""
    recording, results = processed
    arguments = [str(results / "clip"), str(image_run[0] / "t*.jpg"), str(image_run[0] / "large.png")]
    _, entries = write_annotations(arguments, [image_run[1]], "coco", tmp_path, Selection(EVERY))
    assert [(each.name, each.pictures, each.findings) for each in entries] == [("clip", 6, 4), ("views", 2, 2)]
    content = json.loads((tmp_path / "annotations" / "instances_default.json").read_text())
    assert {each["attributes"]["track_id"] for each in content["annotations"]} == {1, 2, 3}
    sizes = {each["file_name"]: (each["width"], each["height"]) for each in content["images"]}
    assert sizes["views_large.jpg"] == (400, 300)
    assert sizes["views_turned.jpg"] == (240, 320)
    _, entries = write_annotations([str(recording.parent / "*.mp4")], [results], "yolo", tmp_path / "yolo")
    assert [each.name for each in entries] == ["clip"]


def test_an_input_that_cannot_be_used_does_not_keep_the_others_back(
    processed: tuple[Path, Path], tmp_path: Path
) -> None:
    """A run whose recording has gone, a run without findings.json, and a name of nothing."""
    gone, empty = tmp_path / "results" / "gone", tmp_path / "empty"
    shutil.copytree(processed[1] / "clip", gone)
    findings = json.loads((gone / "findings.json").read_text())
    (gone / "findings.json").write_text(json.dumps(findings | {"input": "/nowhere/gone.mp4"}))
    empty.mkdir()
    (tmp_path / "new.avi").write_bytes(b"new")
    arguments = [processed[1] / "clip", gone, tmp_path / "new.avi", tmp_path / "nothing*.mp4"]
    done = call("masks", *arguments, "--results", empty, "--format", "coco", "--output", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert f"The annotations are in {tmp_path / 'out'}" in done.stdout
    assert f"{gone}: was made from /nowhere/gone.mp4, which is not there" in done.stderr
    assert "nothing*.mp4: no file has such a name" in done.stderr
    assert "holds no finished run" in done.stderr
    assert "3 inputs left out" in done.stderr
    content = json.loads((tmp_path / "out" / "annotations" / "instances_default.json").read_text())
    assert content["annotations"]


def test_what_masks_cannot_find_is_said(
    processed: tuple[Path, Path], image_run: tuple[Path, Path], tmp_path: Path
) -> None:
    def refused(*arguments: object, results: Path = image_run[1]) -> str:
        with pytest.raises((DataError, SourceError)) as error:
            write_annotations([str(each) for each in arguments], [results], "coco", tmp_path / "out")
        return str(error.value)

    assert "standard input cannot be read again" in refused("-")
    assert refused(tmp_path) == f"{tmp_path}: holds no recordings and no images"
    assert "no file has such a name" in refused(tmp_path / "*.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "new.png")
    assert "holds no finished run" in refused(tmp_path / "new.png")
    assert "holds no results of" in refused(tmp_path / "new.png", results=image_run[1] / "views")
    assert "holds results of a recording, not of images" in refused(tmp_path / "new.png", results=processed[1] / "clip")
    Image.new("RGB", (8, 8)).save(tmp_path / "large.png")
    assert "has 8x8 pixels, but had 400x300 when it was processed" in refused(tmp_path / "large.png")
    moved = tmp_path / "moved run"
    moved.mkdir()
    content = json.loads((image_run[1] / "views" / "findings.json").read_text())
    (moved / "findings.json").write_text(json.dumps(content | {"input": "elsewhere/views"}))
    said = refused(moved)
    assert "was made from elsewhere/views, which is not there. Say where it is now: polypstream masks REC" in said
    assert said.endswith(f" --results '{moved}'")
