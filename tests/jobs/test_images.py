"""`process` for images: each by itself, with the results of the Python API."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from polypstream import Detector, load_settings
from polypstream.core.config import Settings
from polypstream.errors import OutputError, SettingsError, SourceError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image_results import result_names
from polypstream.jobs.images import POLYP_COLUMNS, Drawing, ImageRun, process_images
from polypstream.jobs.process import Job
from polypstream.jobs.setup import make_overlay
from polypstream.sinks.findings import read_polyps
from tests.conftest import Clip, picture


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, ...]:
    """With a disc, without, of odd size and turned by its EXIF data, two that share a stem, and a damaged one."""
    clip = Clip(width=321, height=241)
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(picture(clip, 0)).save(folder / "with.png")
    Image.fromarray(picture(clip, 29)).save(folder / "without.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(picture(clip, 5))).save(folder / "turned.tif", exif=exif)
    Image.fromarray(picture(clip, 0)).save(folder / "with.jpg", quality=95)
    (folder / "broken.jpg").write_bytes((folder / "with.jpg").read_bytes()[:500])
    return tuple(sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def segmenter(red_model: Path) -> Segmenter:
    return Segmenter(red_model, "cpu")


def job(images: tuple[Path, ...], **changes: object) -> Job:
    return Job(str(images[0].parent), images[0].parents[1] / "out", name="set", images=images, **changes)  # type: ignore[arg-type]


def test_the_area_of_a_finding_has_the_name_that_recordings_have(tmp_path: Path) -> None:
    """Results of an earlier version had another name for it, and are still read."""
    (tmp_path / "polyps.csv").write_text("input,image,number,area_fraction\na,b.png,1,0.25\n")
    (row,) = read_polyps(tmp_path)
    assert row["polyp_area_fraction"] == "0.25"
    assert "polyp_area_fraction" in POLYP_COLUMNS


def test_results_of_a_killed_run_are_replaced_after_a_minute(
    images: tuple[Path, ...], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(done: int, _: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ImageRun, "finish", lambda *_: None)
        process_images(job(images), segmenter, Settings(), killed)
    with pytest.raises(OutputError, match="written less than a minute ago, perhaps by a run that goes on"):
        process_images(job(images), segmenter, Settings())
    long_ago = time.time() - 61
    results = [path for path in (images[0].parents[1] / "out").glob("**/*") if path.is_file()]
    for path in results[1:]:
        os.utime(path, (long_ago, long_ago))
    with pytest.raises(OutputError, match="written less than a minute ago"):
        process_images(job(images), segmenter, Settings())
    os.utime(results[0], (long_ago, long_ago))
    assert process_images(job(images), segmenter, Settings()).frames == 4


def test_the_summary_is_the_last_file(
    images: tuple[Path, ...], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed before must not count as finished."""
    there: list[bool] = []
    monkeypatch.setattr(
        "polypstream.jobs.images.write_summary", lambda folder, _: there.append((folder / "report.html").exists())
    )
    process_images(job(images), segmenter, Settings())
    assert there == [True]


def test_results_are_those_of_the_python_api(images: tuple[Path, ...], segmenter: Segmenter, red_model: Path) -> None:
    told: list[tuple[int, int | None]] = []
    result = process_images(job(images), segmenter, Settings(), lambda *progress: told.append(progress))
    assert told == [(number, 5) for number in range(1, 6)]
    assert (result.frames, result.polyps, result.images_with_polyps) == (4, 3, 3)
    assert result.damage == ["broken.jpg: the image is damaged or incomplete"]
    assert "4 images could be read; the results are in" in result.problem
    names = ["turned", "with.jpg", "with.png", "without"]
    assert sorted(path.name for path in (result.folder / "masks").iterdir()) == [f"{name}.png" for name in names]
    assert sorted(path.name for path in (result.folder / "annotated").iterdir()) == [f"{name}.jpg" for name in names]
    found = json.loads((result.folder / "findings.json").read_text())
    assert found["schema"] == "polypstream-images-1"
    rows = list(csv.DictReader((result.folder / "frames.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == ["turned.tif", "with.jpg", "with.png", "without.bmp"]
    detector = Detector(red_model)
    for row, entry, name in zip(rows, found["images"], names, strict=True):
        expected = detector(images[0].parent / entry["image"])
        height, width = expected.mask.shape
        assert (entry["width"], entry["height"]) == (width, height)
        mask = cv2.imread(str(result.folder / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask, 255 * expected.mask)
        assert [tuple(each["box"]) for each in entry["findings"]] == [each.box for each in expected.findings]
        assert int(row["polyp_count"]) == len(expected.findings)
        assert float(row["polyp_area_fraction"]) == pytest.approx(expected.mask.mean(), abs=1e-6)
        assert float(row["max_probability"]) == pytest.approx(expected.probability.max(), abs=1e-3)
    polyps = [
        (
            row["input"],
            row["image"],
            int(row["number"]),
            tuple(int(row[side]) for side in ("left", "top", "width", "height")),
        )
        for row in read_polyps(result.folder)
    ]
    assert polyps == [
        (str(images[0].parent), entry["image"], each["number"], tuple(each["box"]))
        for entry in found["images"]
        for each in entry["findings"]
    ]
    for row in rows:
        shares = [each["polyp_area_fraction"] for each in read_polyps(result.folder) if each["image"] == row["image"]]
        assert sum(map(float, shares)) == pytest.approx(float(row["polyp_area_fraction"]), abs=2e-6)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert (summary["complete"], summary["problem"]) == (False, None)
    assert (summary["frames_in"], summary["frames_out"], summary["polyps"]) == (5, 4, 3)


def test_the_report_shows_each_image_once(images: tuple[Path, ...], segmenter: Segmenter) -> None:
    folder = process_images(job(images), segmenter, Settings()).folder
    report = (folder / "report.html").read_text()
    assert report.count("data:image/jpeg;base64,") == 4
    assert report.count("1 polyp,") == 3
    assert report.count("0 polyps,") == 1
    assert "broken.jpg: the image is damaged" in report
    assert 'href="annotated/with.png.jpg"' in report


def test_what_is_drawn_obeys_the_settings_and_leaves_the_rest(images: tuple[Path, ...], red_model: Path) -> None:
    result = Detector(red_model)(images[2])
    settings = load_settings(overrides=["overlay.style=box", 'overlay.colour="#ff00ff"', "overlay.labels=none"])
    drawn = Drawing(make_overlay(settings))(result)[..., ::-1].astype(int)
    (x, y, width, height) = result.findings[0].box
    assert np.abs(drawn[y, x + width // 2] - (255, 0, 255)).max() <= 60
    inside = np.s_[y + 8 : y + height - 8, x + 8 : x + width - 8]
    assert np.abs(drawn[inside] - result.image[inside]).max() <= 3
    assert np.abs(drawn[:20] - result.image[:20]).max() <= 3


def test_without_one_readable_image_the_command_fails_and_may_be_repeated(tmp_path: Path, segmenter: Segmenter) -> None:
    broken = tmp_path / "in" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    missing = broken.with_name("missing.png")
    for _ in range(2):
        with pytest.raises(
            SourceError, match=r"no image can be read: broken\.png: not an image.*missing\.png: no such"
        ):
            process_images(job((broken, missing)), segmenter, Settings())


def test_finished_results_are_kept_and_interrupted_ones_replaced(
    images: tuple[Path, ...], segmenter: Segmenter
) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process_images(job(images), segmenter, Settings(), interrupt)
    folder = images[0].parents[1] / "out" / "set"
    assert json.loads((folder / "summary.json").read_text())["problem"] == "interrupted"
    assert len((folder / "frames.csv").read_text().splitlines()) == 3  # the header, and two images that could be read
    result = process_images(job(images[1:]), segmenter, Settings())
    assert result.problem == ""
    with pytest.raises(OutputError, match="holds results already"):
        process_images(job(images), segmenter, Settings())
    process_images(job(images[3:], overwrite=True), segmenter, Settings())
    assert len(list((folder / "masks").iterdir())) == 2, "masks of the earlier run are left"


@pytest.mark.parametrize("setting", ["deidentify.enabled=true", "view.field_of_view=full"])
def test_settings_for_recordings_only_are_refused(images: tuple[Path, ...], segmenter: Segmenter, setting: str) -> None:
    with pytest.raises(SettingsError, match="for recordings"):
        process_images(job(images), segmenter, load_settings(overrides=[setting]))
    assert not (images[0].parents[1] / "out").exists()


def test_names_are_unique_whatever_the_file_system_makes_of_capitals() -> None:
    names = result_names((Path("a.jpg"), Path("A.png"), Path("b.png")))
    assert list(names.values()) == ["a.jpg", "A.png", "b"]
