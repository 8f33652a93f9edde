"""Sets of images, uploaded for review."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from PIL import Image

from polypstream.web import library
from polypstream.web.stills import file_names, unpack
from tests.conftest import RED, Clip, disc, picture
from tests.web.serving import Served, served, settings_for, until
from tests.web.test_review import SQUARE, annotations_of, coco_of, put

pytestmark = pytest.mark.slow

LARGE = Clip(width=400, height=300)


def save_set(folder: Path) -> list[Path]:
    """Images of different sizes: with a disc, without one, with two, turned by its EXIF data, and damaged."""
    folder.mkdir(exist_ok=True)
    two = picture(Clip(), 5)
    two[180:230, 20:70] = RED
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, rgb in {"a.png": picture(LARGE, 0), "b.jpg": picture(Clip(), 29), "c.png": two}.items():
        Image.fromarray(rgb).save(folder / name)
    Image.fromarray(picture(Clip(), 0)).save(folder / "turned.jpg", exif=exif)
    (folder / "z.png").write_bytes(b"no image")
    return sorted(folder.iterdir())


@pytest.fixture
def finished(app: Served, tmp_path: Path) -> str:
    """Path of the API of a finished set."""
    id_ = app.send_images(save_set(tmp_path / "views"))
    app.wait_for(id_, "finished", "failed")
    return f"/api/recordings/{id_}"


def test_each_image_is_processed_by_itself(app: Served, finished: str) -> None:
    info = app.get(finished).json()
    assert (info["state"], info["image_count"], info["findings"]) == ("finished", 5, 4)
    assert [(image["image"], image["polyp_count"]) for image in info["images"]] == [
        ("a.png", 1),
        ("b.jpg", 0),
        ("c.png", 2),
        ("turned.jpg", 1),
    ]
    assert info["message"].startswith("views: damaged: z.png: not an image")
    assert str(app.folder) not in app.get(f"{finished}/files/findings.json").text
    assert app.get(f"{finished}/files/findings.json").json()["input"] == "views"
    annotated = app.get(f"{finished}/files/annotated/a.jpg")
    assert cv2.imdecode(np.frombuffer(annotated.content, np.uint8), cv2.IMREAD_COLOR).shape == (300, 400, 3)
    assert app.get(f"{finished}/files/annotated/other.jpg").status_code == 404
    assert app.get(f"{finished}/files/annotated/..%2Ffindings.json").status_code == 404
    assert "a.png" in app.get(f"{finished}/files/report.html").text
    with zipfile.ZipFile(io.BytesIO(app.get(f"{finished}/files.zip").content)) as archive:
        assert {"views/annotated/a.jpg", "views/masks/turned.png", "views/polyps.csv"} <= set(archive.namelist())
    assert app.post(f"{finished}/marks", json={"kind": "biopsy", "seconds": 1}).status_code == 409


def test_images_are_reviewed(app: Served, finished: str) -> None:
    """The findings are numbered from image to image: 1 in the first image, 2 and 3 in the third, 4 in the fourth."""
    api = f"{finished}/review"
    review = app.get(api).json()
    assert [(each["image"], each["width"], each["height"]) for each in review["images"]] == [
        ("a.png", 400, 300),
        ("b.jpg", 320, 240),
        ("c.png", 320, 240),
        ("turned.jpg", 240, 320),
    ]
    assert [(each["track"], each["first_frame"]) for each in review["tracks"]] == [(1, 0), (2, 2), (3, 2), (4, 3)]
    shown = cv2.imdecode(np.frombuffer(app.get(f"{finished}/frames/3.jpg").content, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (320, 240, 3)
    x, y, _ = disc(Clip(), 0)
    assert np.abs(shown[round(x), round(239 - y), ::-1].astype(int) - RED).max() < 20
    assert put(app, f"{api}/tracks/1", decision="accepted").status_code == 200
    assert put(app, f"{api}/tracks/2", decision="rejected").status_code == 200
    put(app, f"{api}/tracks/3/frames/2", polygons=[SQUARE])
    put(app, f"{api}/tracks/4/frames/3", polygons=[])
    assert [each["track"] for each in app.get(api).json()["tracks"]] == [1, 2, 3, 4]  # it can be corrected again
    assert app.get(f"{api}/tracks/4").json()[0]["polygons"] == []
    url = f"{app.address}{api}/tracks/4/frames/3"
    assert requests.delete(url, params={"reader": "Anna"}, timeout=30).status_code == 204
    drawn = app.post(f"{api}/tracks", json={"frame": 1, "polygons": [[10, 10, 500, 10, 500, 90]], "reader": "Anna"})
    assert drawn.json() == {"track": 5}
    (found,) = (each for each in app.get(f"{api}/findings").json() if each["track"] == 5)
    assert found["polygons"] == [[10, 10, 319, 10, 319, 90]]  # cut at the edges of this image
    carried = app.post(f"{api}/tracks/5/frames/1/carry", json={"reader": "Anna"})
    assert (carried.status_code, carried.json()["detail"].split(" to")[0]) == (409, "images have no frames around them")
    assert len(app.get(f"{api}/uncertain").json()) == 4
    page = app.get(finished.removeprefix("/api")).text
    assert "polyp 1: accepted by Anna on 20" in page
    assert "polyp 2: outline corrected<" in page  # the second one of its image
    assert "a polyp drawn by Anna" in page
    report = app.get(f"{finished}/files/report.html").text
    assert "polyp 1: accepted by Anna on 20" in report
    assert "a polyp drawn by Anna" in report
    content = coco_of(app, finished, "")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    marks = {
        (names[each["image_id"]], each["attributes"]["track_id"]): each["attributes"]["reviewed"]
        for each in content["annotations"]
    }
    expected = {("a", 1): True, ("b", 5): True, ("c", 3): True, ("turned", 4): False}
    assert marks == {(f"views_{name}.jpg", track): reviewed for (name, track), reviewed in expected.items()}
    only = coco_of(app, finished, "&only_reviewed=true")
    assert [image["file_name"] for image in only["images"]] == ["views_a.jpg", "views_b.jpg", "views_c.jpg"]
    with annotations_of(app, finished, "&only_reviewed=true") as archive:
        assert "views-coco/reviewed.csv" in archive.namelist()


def test_a_set_of_one_image(app: Served, tmp_path: Path) -> None:
    id_ = app.send_images(save_set(tmp_path / "views")[:1], "one")
    app.wait_for(id_, "finished")
    put(app, f"/api/recordings/{id_}/review/tracks/1", decision="accepted")
    (annotation,) = coco_of(app, f"/api/recordings/{id_}", "&only_reviewed=true")["annotations"]
    assert annotation["attributes"]["reviewed"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_set_that_is_deleted_while_it_is_unpacked_leaves_nothing(
    app: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    deleted = threading.Event()

    def delete(upload: Path) -> None:
        assert requests.delete(f"{app.address}/api/recordings/{upload.parent.name}", timeout=30).status_code == 204

    def unpack_deleted(upload: Path, *arguments: Any) -> list[Path]:
        if moment == "before":
            delete(upload)
        try:
            return unpack(upload, *arguments)
        finally:
            if moment == "after":
                delete(upload)
                (upload.parent / "1" / "images").mkdir(parents=True)  # as a file that was written at the same time
            deleted.set()

    images = save_set(tmp_path / "views")[:2]
    with monkeypatch.context() as patched:
        patched.setattr(library, "unpack", unpack_deleted)
        id_ = app.send_images(images)
        assert deleted.wait(30)
        until(lambda: not (app.folder / "recordings" / id_).exists())
    assert app.get("/healthz").text == "ok"
    assert app.wait_for(app.send_images(images), "finished", "failed")["state"] == "finished"


def test_a_set_without_a_readable_image_fails(app: Served, tmp_path: Path) -> None:
    id_ = app.send_images(save_set(tmp_path / "views")[-1:], "damaged")
    info = app.wait_for(id_, "failed", "finished")
    assert info["state"] == "failed"
    assert info["message"].startswith("damaged: no image can be read: z.png")


@pytest.mark.parametrize(
    ("images", "status", "said"),
    [
        ([], 422, "images"),
        ([{"name": "notes.txt", "size": 3}], 415, "notes.txt: has not the ending of an image"),
        ([{"name": "a.png", "size": 0}], 422, "size"),
        ([{"name": "a.png", "size": 10**15}], 413, "at most"),
    ],
)
def test_what_cannot_be_a_set_is_refused(app: Served, images: list[dict[str, Any]], status: int, said: str) -> None:
    answer = app.post("/api/image-sets", json={"name": "views", "images": images})
    assert answer.status_code == status
    assert said in json.dumps(answer.json())


def test_a_set_is_uploaded_in_chunks(app: Served, tmp_path: Path) -> None:
    images = save_set(tmp_path / "views")[:3]
    body = b"".join(image.read_bytes() for image in images)
    announced = [{"name": image.name, "size": image.stat().st_size} for image in images]
    id_ = app.post("/api/image-sets", json={"name": "views", "images": announced}).json()["id"]
    for start in range(0, len(body), 1000):
        part = body[start : start + 1000]
        answer = requests.patch(f"{app.address}/api/uploads/{id_}?offset={start}", data=part, timeout=30)
        assert answer.json()["received"] == start + len(part)
    assert app.wait_for(id_, "finished")["findings"] == 3


def test_names_of_images_are_safe_and_differ() -> None:
    names = ["../../etc/a.png", "C:\\views\\b?.JPG", ".hidden.png", "a.jpg", "A.png", "ä" * 200 + ".tif"]
    assert file_names(names)[:5] == ["a.png", "b_.JPG", "hidden.png", "a-4.jpg", "A-5.png"]
    assert len(file_names(names)[5].encode()) <= 204


def test_a_server_that_de_identifies_refuses_sets(tmp_path: Path, red_model: Path) -> None:
    with served(tmp_path / "served", settings_for(red_model, deidentify={"enabled": True})) as app:
        id_ = app.send_images(save_set(tmp_path / "views"))
        info = app.wait_for(id_, "failed", "finished")
    assert info["state"] == "failed"
    assert info["message"] == "views: --deidentify is for recordings; images are not de-identified"
