"""`polypstream serve`: its HTTP API over real sockets, its recordings processed by real processes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
import psutil
import pytest
import requests
from fastapi import HTTPException
from PIL import Image

from polypstream.core.geometry import grey_level
from polypstream.core.pipeline import in_background
from polypstream.errors import OutputError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs import annotation_formats
from polypstream.jobs.image import prepare_image
from polypstream.jobs.predictions import ImageResult
from polypstream.stages.findings import choose_rules
from polypstream.web import recordings
from polypstream.web.annotations import AnnotationFormat
from polypstream.web.batcher import Batcher
from polypstream.web.library import MAX_CRASHES, Library, open_library
from polypstream.web.pictures import choose_type
from polypstream.web.zipped import folder_name, zip_chunks
from tests.conftest import Clip, command, frames_of, make_clip, picture
from tests.web.serving import Served, served, settings_for, until

pytestmark = pytest.mark.slow

# An encoder so slow that there is time to look while a recording is processed.
SLOW = {"output": {"video": {"preset": "placebo"}}}


def png(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()


def segment(app: Served, content: bytes, accept: str, **options: Any) -> Any:
    answer = app.post("/api/segment", files={"file": ("a.png", content)}, headers={"Accept": accept}, **options)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == accept
    return answer


def what_should_be_found(rgb: np.ndarray, model: Path) -> ImageResult:
    segmenter, settings = Segmenter(model, "cpu"), settings_for(model)
    view, model_input = prepare_image(rgb, segmenter.size)
    rules = choose_rules(settings.findings, segmenter.card.threshold, segmenter.card.peak)
    return ImageResult(rgb, view, segmenter.segment([model_input])[0], rules)


def test_a_picture_becomes_findings(app: Served) -> None:
    found = segment(app, png(picture(Clip(), 0)), "application/json").json()
    assert (found["width"], found["height"]) == (320, 240)
    assert (found["threshold"], found["peak"]) == (0.5, 0.5)
    (finding,) = found["findings"]
    left, top, width, height = finding["box"]
    assert abs(left + width / 2 - 96) < 4
    assert abs(top + height / 2 - 120) < 4
    assert finding["probability"] > 0.95
    assert finding["polyp_area_fraction"] == pytest.approx(np.pi * 36**2 / (320 * 240), rel=0.1)
    assert len(finding["polygon"]) % 2 == 0


def test_mask_map_and_arrays_are_what_the_rules_say(app: Served, red_model: Path) -> None:
    rgb = picture(Clip(), 0)
    looked, content = what_should_be_found(rgb, red_model), png(rgb)
    mask = np.asarray(Image.open(io.BytesIO(segment(app, content, "image/png").content)))
    assert mask.any()
    assert ((mask > 0) == looked.mask).all()
    answer = segment(app, content, "image/png", params={"layer": "probability"})
    assert (np.asarray(Image.open(io.BytesIO(answer.content))) == looked.probability_levels()).all()
    view = looked.view
    assert answer.headers["Field-Of-View"] == f"{view.x},{view.y},{view.width},{view.height}"
    answer = segment(app, content, "image/png", params={"layer": "thresholds"})
    thresholds = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert (thresholds[..., 0] == looked.probability_levels()).all()
    assert ((thresholds[..., 1] >= grey_level(looked.rules.threshold)) == looked.mask).all()
    counts = [int(count) for count in answer.headers["Finding-Counts"].split(",")]
    assert len(counts) == 256
    assert counts[grey_level(looked.rules.threshold)] == len(looked.findings)
    arrays = np.load(io.BytesIO(segment(app, content, "application/x-npz").content))
    assert (arrays["mask"] == looked.mask * 255).all()
    assert (arrays["probability"] == looked.probability_levels()).all()


def test_a_picture_lies_as_it_is_looked_at(app: Served) -> None:
    """A camera's picture that is stored on its side: mask and places are of the upright one."""
    exif, stored = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    rgb = picture(Clip(), 0)
    Image.fromarray(np.rot90(rgb)).save(stored, "TIFF", exif=exif)
    found = segment(app, stored.getvalue(), "application/json").json()
    assert (found["width"], found["height"]) == (320, 240)
    assert abs(found["findings"][0]["box"][0] - 60) < 6
    shown = segment(app, stored.getvalue(), "image/png", params={"layer": "picture"})
    assert (np.asarray(Image.open(io.BytesIO(shown.content))) == rgb).all()


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("image/*", "image/png"),
        ("text/html, application/x-npz", "application/x-npz"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("application/json; q=0.1, image/png;q=0.05", "application/json"),
        ("application/json;q=0, */*", "image/png"),
        ("*/*;q=0.1, image/*;q=0, application/json;q=0", "application/x-npz"),
    ],
)
def test_the_accept_header_chooses(accept: str, chosen: str) -> None:
    assert choose_type(accept) == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png;q=0", "", "image/png;q=much", "application/json;q=0", "*/*;q=nan", "*/*;q=0"]
)
def test_what_cannot_be_had_is_said(accept: str) -> None:
    with pytest.raises(HTTPException) as raised:
        choose_type(accept)
    assert raised.value.status_code == 406


def test_pictures_that_wait_go_together(red_model: Path) -> None:
    segmenter = Segmenter(red_model, "cpu")
    segmenter.batch_size = 8  # as on a GPU
    batches: list[int] = []
    begun, go = threading.Event(), threading.Event()
    alone = segmenter.segment

    def counted(pictures: list[np.ndarray]) -> list[np.ndarray]:
        batches.append(len(pictures))
        begun.set()
        go.wait(10)
        return alone(pictures)

    segmenter.segment = counted  # type: ignore[method-assign]
    batcher = Batcher(segmenter)
    pictures = [np.full((128, 128, 3), (number * 10, 0, 0), np.uint8) for number in range(9)]
    answers: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        answers[number] = batcher.segment(pictures[number])

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(9)]
    with in_background("batcher", batcher.run, batcher.close):
        threads[0].start()
        assert begun.wait(10)
        for thread in threads[1:]:
            thread.start()
        until(lambda: len(batcher._waiting._items) == 8)
        go.set()
        for thread in threads:
            thread.join(10)
    assert batches == [1, 8]
    for number in range(9):
        assert (answers[number] == number * 15).all()


def test_a_failing_session_is_told_to_those_who_wait_and_the_next_ones_may_pass(red_model: Path) -> None:
    segmenter = Segmenter(red_model, "cpu")
    works, fails = segmenter.segment, [True]

    def sometimes(pictures: list[np.ndarray]) -> list[np.ndarray]:
        if fails.pop():
            raise RuntimeError("out of memory")
        return works(pictures)

    fails.insert(0, False)
    segmenter.segment = sometimes  # type: ignore[method-assign]
    batcher = Batcher(segmenter)
    red = np.full((128, 128, 3), (100, 0, 0), np.uint8)
    with in_background("batcher", batcher.run, batcher.close):
        with pytest.raises(RuntimeError, match="out of memory"):
            batcher.segment(red)
        assert np.array_equal(batcher.segment(red), np.full((128, 128), 150, np.uint8))


def test_a_recording_is_processed_and_its_results_can_be_had(app: Served, make: Callable[..., Path]) -> None:
    sent = make(frames=60, audio=("aac",))
    id_ = app.send(sent, "Ward 3/Ünser Film.mp4")
    info = app.wait_for(id_, "finished")
    assert info["name"] == "Ward 3/Ünser Film.mp4"
    assert info["size"] == info["received"] == sent.stat().st_size
    (track,) = info["tracks"]
    assert (track["track"], track["first_s"]) == (1, 0.0)
    assert "outlines" not in track
    assert set(info["files"]) == {
        "annotated.mp4", "masks.mkv", "frames.csv", "polyps.csv", "findings.json", "summary.json", "report.html",
    }  # fmt: skip
    files = {name: app.get(f"/api/recordings/{id_}/files/{name}").content for name in info["files"]}
    assert json.loads(files["findings.json"])["input"] == "Ward 3/Ünser Film.mp4"
    assert str(app.folder) not in files["report.html"].decode()
    copy = sent.with_name("copy.mp4")
    copy.write_bytes(files["annotated.mp4"])
    assert len(frames_of(copy, "gray")) == 60
    assert app.get(f"/api/recordings/{id_}/files/snapshots/track-1.jpg").headers["Content-Type"] == "image/jpeg"
    assert app.get(f"/api/recordings/{id_}/files/snapshots/track-2.jpg").status_code == 404
    page = app.get(f"/recordings/{id_}").text
    assert page.count('class="bar"') == page.count('class="card"') == 1


def test_a_recording_is_marked(app: Served, make: Callable[..., Path]) -> None:
    id_ = app.send(make(frames=50))
    address = f"/api/recordings/{id_}/marks"
    assert app.post(f"/api/recordings/{'0' * 16}/marks", json={"kind": "biopsy", "seconds": 1}).status_code == 404
    app.wait_for(id_, "finished")
    for kind, seconds in (("withdrawal-ends", 1.5), ("withdrawal-begins", 0.5)):
        assert app.post(address, json={"kind": kind, "seconds": seconds}).status_code == 201
    assert app.post(address, json={"kind": "biopsy", "seconds": -1}).status_code == 422
    marks = app.get(f"/api/recordings/{id_}/files/findings.json").json()["marks"]
    assert [(mark["kind"], mark["pts_s"]) for mark in marks] == [("withdrawal-begins", 0.5), ("withdrawal-ends", 1.5)]
    report = app.get(f"/api/recordings/{id_}/files/report.html").text
    assert "<dt>time</dt><dd>0:00:01, from 0:00:00.5 to 0:00:01.5</dd>" in report


def test_an_image_among_recordings_is_refused_at_once(app: Served) -> None:
    content = png(np.zeros((64, 64, 3), np.uint8))
    before = len(app.get("/api/recordings").json())
    sent = app.post("/api/recordings", files={"file": ("Polyp 1.PNG", content)})
    announced = app.post("/api/uploads", json={"name": "a.jpg", "size": len(content)})
    for answer, name in ((sent, "Polyp 1.PNG"), (announced, "a.jpg")):
        assert answer.status_code == 415
        assert answer.json()["detail"].startswith(f"{name}: is an image, not a recording; send it to /api/segment")
    assert len(app.get("/api/recordings").json()) == before


def test_all_results_come_in_one_archive(app: Served, make: Callable[..., Path]) -> None:
    id_ = app.send(make(frames=60), "Ward 3/Ünser: Film.mp4")
    assert app.get(f"/api/recordings/{id_}/files.zip").status_code == 409  # it is not finished
    files = app.wait_for(id_, "finished")["files"]
    answer = app.get(f"/api/recordings/{id_}/files.zip")
    assert answer.headers["Content-Disposition"] == "attachment; filename*=utf-8''%C3%9Cnser_%20Film.zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
        names = {f"Ünser_ Film/{name}" for name in [*files, "snapshots/track-1.jpg"]}
        assert set(archive.namelist()) == names
        same = app.get(f"/api/recordings/{id_}/files/annotated.mp4").content
        assert archive.read("Ünser_ Film/annotated.mp4") == same


def test_an_archive_is_made_while_it_is_sent(tmp_path: Path) -> None:
    """It needs no memory for its files, and a download may be broken off."""
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(200_000_000)
    tracemalloc.start()
    chunks = zip_chunks([(big, "folder/big")])
    size = sum(map(len, chunks))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 200_000_000 < size < 200_001_000
    assert peak < 5_000_000
    broken = zip_chunks([(big, "folder/big")])
    next(broken)
    broken.close()
    assert not [file for file in psutil.Process().open_files() if file.path == str(big)]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("colon.mp4", "colon"),
        ("../../etc/passwd", "passwd"),
        ("C:\\films\\a b.mkv", "a b"),
        ("..", "recording"),
        ("", "recording"),
        ('a"<b>\n.mp4', "a__b__"),
        (".hidden", "hidden"),
    ],
)
def test_the_folder_in_an_archive_has_a_name_that_every_system_allows(name: str, folder: str) -> None:
    assert folder_name(name) == folder


def annotations_of(app: Served, id_: str, kind: str, every: float = 0) -> Any:
    """Wait for annotations, and download them."""
    url = f"/api/recordings/{id_}/annotations/{kind}?every={every}"
    assert app.get(url).status_code == 404
    started = app.post(url)
    assert started.status_code == 202, started.text
    until(lambda: state_of(app, id_, kind) in ("finished", "failed"), 60)
    return app.get(url)


def state_of(app: Served, id_: str, kind: str) -> str | None:
    return next((each["state"] for each in app.info(id_)["annotations"] if each["format"] == kind), None)


def test_the_page_offers_every_annotation_format() -> None:
    assert (
        {kind for kind, _ in recordings.FORMATS} == set(annotation_formats.FORMATS) == set(get_args(AnnotationFormat))
    )


@pytest.fixture(scope="module")
def colon(app: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a recording that is processed. While it was not, it had no annotations."""
    id_ = app.send(make_clip(tmp_path_factory.mktemp("colon"), Clip(frames=50)), "colon.mp4")
    for kind in annotation_formats.FORMATS:
        assert app.post(f"/api/recordings/{id_}/annotations/{kind}").status_code == 409
    app.wait_for(id_, "finished")
    return id_


@pytest.mark.parametrize("kind", sorted(annotation_formats.FORMATS))
def test_annotations_are_made_when_they_are_wanted(app: Served, colon: str, kind: str) -> None:
    with zipfile.ZipFile(io.BytesIO(annotations_of(app, colon, kind, 1).content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert all(name.startswith(f"colon-{kind}/") for name in names)
    if kind != "cvat":
        assert sorted(Path(name).stem for name in names if name.endswith(".jpg")) == ["colon_000000", "colon_000025"]
    assert app.post(f"/api/recordings/{colon}/annotations/{kind}?every=1").json()["state"] == "finished"
    assert not list((app.folder / "incoming").iterdir())


def test_one_archive_of_a_format_is_kept(app: Served, make: Callable[..., Path]) -> None:
    id_ = app.send(make(frames=50))
    app.wait_for(id_, "finished")
    assert annotations_of(app, id_, "coco", 1).status_code == 200
    assert annotations_of(app, id_, "coco", 0.5).status_code == 200
    assert app.get(f"/api/recordings/{id_}/annotations/coco?every=1").status_code == 404


def test_annotations_that_fail_say_why(app: Served, make: Callable[..., Path]) -> None:
    id_ = app.send(make(frames=50))
    app.wait_for(id_, "finished")
    (app.folder / "recordings" / id_ / "upload").write_bytes(b"damaged since")
    assert annotations_of(app, id_, "coco").status_code == 404
    (state,) = app.info(id_)["annotations"]
    assert state["state"] == "failed"
    assert state["message"].startswith("clip.mp4: not a recording that can be read")
    assert str(app.folder) not in state["message"]


def test_a_recording_is_deleted_while_its_annotations_are_made(app: Served, make: Callable[..., Path]) -> None:
    id_ = app.send(make(width=1280, height=960, frames=60, options={"preset": "ultrafast"}))
    app.wait_for(id_, "finished")
    app.post(f"/api/recordings/{id_}/annotations/png")
    until(lambda: app.info(id_)["annotations"][0]["frames_done"])
    assert requests.delete(f"{app.address}/api/recordings/{id_}", timeout=30).status_code == 204
    until(lambda: not list((app.folder / "incoming").iterdir()))
    assert not (app.folder / "recordings" / id_).exists()
    next_one = app.send(make(frames=10))
    app.wait_for(next_one, "finished")
    assert annotations_of(app, next_one, "cvat").status_code == 200


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/nothing", 404, "There is no page at this address."),
        ("/static/nothing.css", 404, "There is no page at this address."),
        ("/recordings/0123456789abcdef", 404, "There is no such recording."),
        ("/recordings/nothing", 404, "There is no such recording."),
        ("/api/segment", 405, "This address is for programs."),
        ("/api/recordings/nothing", 422, "`id` in the address must be the ID of a recording"),
        ("/live/7/stream", 404, "There is no such source."),
    ],
)
def test_errors_are_pages_for_people_and_json_for_programs(app: Served, path: str, status: int, said: str) -> None:
    page = app.get(path, headers=BROWSER)
    assert page.status_code == status
    assert page.headers["Content-Type"].startswith("text/html")
    assert said in page.text
    assert '<nav aria-label="Pages">' in page.text
    answer = app.get(path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json")
    assert "detail" in answer.json()
    assert answer.headers.get("Allow") == page.headers.get("Allow")


def test_a_defect_is_a_page_that_tells_nothing(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret /etc/path")

    monkeypatch.setattr(Library, "some", fail)
    page = app.get("/recordings", headers=BROWSER)
    assert page.status_code == 500
    assert "The server made an error." in page.text
    assert "secret" not in page.text


def test_a_part_of_a_video_can_be_asked_for(app: Served, make: Callable[..., Path]) -> None:
    """Players seek so."""
    id_ = app.send(make(frames=20))
    app.wait_for(id_, "finished")
    url = f"/api/recordings/{id_}/files/annotated.mp4"
    whole = app.get(url).content
    part = app.get(url, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole[100:200]
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(whole)}"


def announce(app: Served, name: str, size: int) -> dict[str, Any]:
    answer = app.post("/api/uploads", json={"name": name, "size": size})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def append(app: Served, id_: str, offset: int, piece: bytes) -> Any:
    return requests.patch(f"{app.address}/api/uploads/{id_}?offset={offset}", data=piece, timeout=30)


def test_a_recording_can_come_in_pieces(app: Served, make: Callable[..., Path]) -> None:
    content = make(frames=20).read_bytes()
    begun = announce(app, "pieces.mp4", len(content))
    assert (begun["state"], begun["received"]) == ("uploading", 0)
    id_ = begun["id"]
    assert append(app, id_, 0, content[:1000]).json()["received"] == 1000
    again = append(app, id_, 0, content[:1000])
    assert again.status_code == 409
    assert again.json()["detail"] == "1000 bytes have been received, and the state is uploading"
    assert append(app, id_, 1000, content[1000:] + b"more").status_code == 413
    assert app.info(id_)["received"] == 1000
    assert append(app, id_, 1000, content[1000:]).json()["state"] in ("waiting", "processing")
    assert app.wait_for(id_, "finished")["frames_done"] is None
    assert append(app, id_, len(content), b"more").status_code == 409


def test_a_broken_line_costs_what_was_on_it(app: Served, make: Callable[..., Path]) -> None:
    content = make(frames=20).read_bytes()
    id_ = announce(app, "broken.mp4", len(content))["id"]
    line = socket.create_connection(("127.0.0.1", urlsplit(app.address).port or 0))
    head = f"PATCH /api/uploads/{id_}?offset=0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    line.sendall(head.encode() + content[:2000])
    until(lambda: app.info(id_)["received"] == 2000)
    assert append(app, id_, 2000, content[2000:]).status_code == 409  # it is still coming in
    line.close()
    until(lambda: append(app, id_, 2000, content[2000:]).status_code == 200)
    app.wait_for(id_, "finished")
    assert (app.folder / "recordings" / id_ / "upload").read_bytes() == content


def test_what_is_no_recording_fails_with_its_reason_and_the_next_one_does_not(
    app: Served, make: Callable[..., Path], tmp_path: Path
) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no recording")
    wrong, right = app.send(text), app.send(make(frames=10))
    failed = app.wait_for(wrong, "failed")
    assert failed["message"].startswith("notes.mp4: not a recording that can be read")
    assert app.get(f"/api/recordings/{wrong}/files/annotated.mp4").status_code == 404
    assert app.wait_for(right, "finished")["message"] == ""


def test_of_a_damaged_recording_there_is_what_could_be_read(app: Served, make: Callable[..., Path]) -> None:
    whole = make(name="a.mkv", frames=50)
    damaged = bytearray(whole.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 400] = bytes(400)
    whole.write_bytes(bytes(damaged))
    info = app.wait_for(app.send(whole), "finished", "failed")
    assert info["state"] == "finished"
    assert "damaged" in info["message"]
    assert str(app.folder) not in info["message"]
    assert "annotated.mp4" in info["files"]


@pytest.fixture
def slow(tmp_path: Path, red_model: Path) -> Iterator[Served]:
    """An application that takes its time with recordings."""
    with served(tmp_path / "slow", settings_for(red_model, **SLOW)) as found:
        yield found


def workers() -> list[psutil.Process]:
    """The processes of ours that process uploads."""
    return children_of(os.getpid())


def children_of(pid: int) -> list[psutil.Process]:
    """The processes that a server starts for recordings."""
    return [each for each in psutil.Process(pid).children() if any("spawn_main" in word for word in each.cmdline())]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that takes a while."""
    clip = Clip(name="long.mp4", width=640, height=480, frames=400, options={"preset": "ultrafast"})
    return make_clip(tmp_path_factory.mktemp("long"), clip)


def test_progress_place_in_line_and_cancel(slow: Served, long: Path, make: Callable[..., Path]) -> None:
    first, second, third = slow.send(long), slow.send(make(frames=10)), slow.send(make(frames=10))
    until(lambda: (slow.info(first)["frames_done"] or 0) > 20)
    info = slow.info(first)
    assert info["frames_expected"] == 400
    assert info["seconds_left"] > 0
    assert [slow.info(each)["place_in_line"] for each in (second, third)] == [0, 1]
    assert slow.post(f"/api/recordings/{second}/cancel").json()["state"] == "cancelled"
    assert slow.info(third)["place_in_line"] == 0
    (worker,) = workers()
    assert slow.post(f"/api/recordings/{first}/cancel").json()["state"] == "cancelled"
    worker.wait(10)
    assert slow.wait_for(third, "finished")
    assert not list((slow.folder / "recordings" / first).glob("*/upload/*"))  # half a video is of no use
    assert [slow.info(each)["state"] for each in (first, second)] == ["cancelled", "cancelled"]
    again = slow.post(f"/api/recordings/{first}/cancel")
    assert (again.status_code, again.json()["detail"]) == (409, "the state is cancelled")
    assert slow.post(f"/api/recordings/{second}/process").json()["state"] in ("waiting", "processing")
    assert slow.wait_for(second, "finished")["findings"] == 1
    assert slow.post(f"/api/recordings/{second}/process").status_code == 409


def left_of(app: Served, id_: str) -> list[Path]:
    """The files that a recording has in the folder, wherever they lie."""
    return [path for path in app.folder.rglob("*") if id_ in path.parts and path.is_file()]


def test_a_recording_is_deleted_with_its_results(app: Served, make: Callable[..., Path]) -> None:
    id_, other = app.send(make(frames=10)), app.send(make(name="other.mp4", frames=10))
    for each in (id_, other):
        app.wait_for(each, "finished")
    names = {path.name for path in left_of(app, id_)}
    assert names >= {"upload", "annotated.mp4", "findings.json", "frames.csv", "masks.mkv", "track-1.jpg"}
    kept = left_of(app, other)
    assert requests.delete(f"{app.address}/api/recordings/{id_}", timeout=10).status_code == 204
    assert left_of(app, id_) == []
    assert not (app.folder / "recordings" / id_).exists()
    assert left_of(app, other) == kept
    for path in ("", "/files/annotated.mp4", "/files/snapshots/track-1.jpg"):
        assert app.get(f"/api/recordings/{id_}{path}").status_code == 404
        assert app.get(f"/api/recordings/{other}{path}").status_code == 200


def test_a_recording_that_is_deleted_while_it_is_received_is_not_there(app: Served) -> None:
    address = f"{app.address}/api/recordings/"
    id_ = app.post("/api/uploads", json={"name": "a.mp4", "size": 2000}).json()["id"]

    def pieces() -> Iterator[bytes]:
        yield bytes(1000)
        assert requests.delete(address + id_, timeout=30).status_code == 204
        yield bytes(1000)

    answer = requests.patch(f"{app.address}/api/uploads/{id_}?offset=0", data=pieces(), timeout=30)
    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no such recording")


def test_a_recording_is_deleted_while_it_is_processed(slow: Served, long: Path) -> None:
    id_ = slow.send(long)
    until(lambda: slow.info(id_)["frames_done"])
    (worker,) = workers()
    assert "annotated.mp4" in {path.name for path in left_of(slow, id_)}
    assert requests.delete(f"{slow.address}/api/recordings/{id_}", timeout=10).status_code == 204
    worker.wait(10)
    assert slow.get(f"/api/recordings/{id_}").status_code == 404
    assert slow.get("/api/recordings").json() == []
    until(lambda: not left_of(slow, id_))


def test_a_file_that_kills_its_reader_kills_nothing_else(slow: Served, long: Path, make: Callable[..., Path]) -> None:
    id_, other = slow.send(long), slow.send(make(frames=10))
    until(lambda: slow.info(id_)["frames_done"])
    workers()[0].send_signal(signal.SIGSEGV)
    assert "the process that read it died (SIGSEGV)" in slow.wait_for(id_, "failed")["message"]
    assert slow.wait_for(other, "finished")


def start(folder: Path, model: Path, preset: str = "placebo") -> tuple[subprocess.Popen[str], Served]:
    """The command, as a user starts it."""
    settings = ("--set", "inference.provider=cpu", "--set", f"output.video.preset={preset}")
    process = subprocess.Popen(
        [*command(), "serve", "--port", "0", "--folder", folder, "--model", model, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, Served(process.stdout.readline().strip().rstrip("/"), folder)


def test_a_killed_server_comes_back_with_its_queue(
    tmp_path: Path, red_model: Path, long: Path, make: Callable[..., Path]
) -> None:
    process, before = start(tmp_path / "kept", red_model)
    with process:
        being_processed, waiting = before.send(long), before.send(make(frames=10))
        until(lambda: (before.info(being_processed)["frames_done"] or 0) > 20)
        (worker,) = children_of(process.pid)
        process.kill()
    psutil.wait_procs([worker], 10)
    assert not worker.is_running()
    process, after = start(tmp_path / "kept", red_model, "ultrafast")
    with process:
        assert after.wait_for(waiting, "finished", seconds=120)["name"] == "clip.mp4"
        video = after.get(f"/api/recordings/{being_processed}/files/annotated.mp4").content
        with av.open(io.BytesIO(video)) as file:
            assert sum(1 for _ in file.decode(video=0)) == 400
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_end_leaves_the_recording_at_work_for_the_next_time(
    tmp_path: Path, red_model: Path, long: Path, ending: signal.Signals
) -> None:
    process, app = start(tmp_path / "kept", red_model)
    with process:
        id_ = app.send(long)
        until(lambda: app.info(id_)["frames_done"])
        assert process.stderr is not None
        os.killpg(process.pid, ending)  # as a terminal does, and a service manager
        assert process.wait(20) == 130
        (line,) = process.stderr.read().splitlines()
        assert line.startswith("polypstream: open this address in a browser; ")
    with open_library(tmp_path / "kept") as library:
        assert [(entry.state, entry.crashes) for entry in library.all()] == [("waiting", 0)]


def test_an_unexpected_error_does_not_end_the_queue(
    tmp_path: Path, red_model: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polypstream.web.queue.RETRY_S", 0.5)
    finish, fails = Library.finish, [True]

    def on_a_full_disk(self: Library, *values: Any) -> None:
        if fails and fails.pop():
            raise OutputError("the disk is full")
        finish(self, *values)

    monkeypatch.setattr(Library, "finish", on_a_full_disk)
    with served(tmp_path / "served", settings_for(red_model)) as app:
        id_ = app.send(make(frames=10))
        until(lambda: app.get("/healthz").status_code == 503)
        assert app.get("/healthz").text == "recordings: the disk is full"
        assert app.wait_for(id_, "finished")["findings"] == 1
        until(lambda: app.get("/healthz").text == "ok")


def test_uploads_leave_room_on_the_disk(
    tmp_path: Path, red_model: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make(frames=10).read_bytes()
    with served(tmp_path / "served", settings_for(red_model)) as app:
        id_ = announce(app, "a.mp4", len(content))["id"]
        monkeypatch.setattr(Library, "free_bytes", lambda _: 10**9)
        assert append(app, id_, 0, content).status_code == 507
        assert app.post("/api/recordings", files={"file": content}).status_code == 507
        assert app.info(id_)["received"] == 0
        assert app.get("/healthz").text == "recordings: the disk is full (1.0 GB are free)"
        monkeypatch.undo()
        append(app, id_, 0, content)
        app.wait_for(id_, "finished")


def test_what_a_killed_server_was_receiving_is_cleared_away(tmp_path: Path) -> None:
    with open_library(tmp_path) as library:
        (library.incoming / "tmpabc").mkdir()
        (library.incoming / "tmpabc" / "upload").write_bytes(bytes(1000))
    with open_library(tmp_path) as library:
        assert not list(library.incoming.iterdir())


def test_there_are_a_hundred_recordings_on_a_page(app: Served, tmp_path: Path, red_model: Path) -> None:
    with open_library(tmp_path / "many") as library:
        for number in range(105):
            library.add(f"number {number}.", 10)
    with served(tmp_path / "many", settings_for(red_model)) as app:
        first, second = app.get("/recordings").text, app.get("/recordings?first=100").text
        assert (first.count("<tr data-id"), second.count("<tr data-id")) == (100, 5)
        assert "number 104." in first
        assert "number 0." in second
        assert 'href="?first=100"' in first
        assert 'href="?first=0"' in second
        assert app.get("/recordings?first=x").text.count("<tr data-id") == 100


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with open_library(tmp_path / "library") as found:
        yield found


def test_one_server_at_a_time_has_a_folder(library: Library) -> None:
    with pytest.raises(OutputError, match="another `polypstream serve` uses this folder"):
        Library(library.folder)


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Library(tmp_path / "file")
    (tmp_path / "library.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(OutputError, match="is damaged"):
        Library(tmp_path)


def test_a_folder_of_another_version_is_said(tmp_path: Path) -> None:
    with open_library(tmp_path) as library:
        library._database.execute("PRAGMA user_version = 7")
    with pytest.raises(OutputError, match="belongs to another version of polypstream; choose another folder"):
        Library(tmp_path)


def test_what_the_server_does_not_survive_is_not_begun_for_ever(tmp_path: Path) -> None:
    for _ in range(MAX_CRASHES):
        with open_library(tmp_path) as library:
            entry = library.all()[0] if library.all() else library.add("bad.mp4", 1)
            library.move(entry.id, "uploading", "waiting")
            assert library.begin_next() is not None
    with open_library(tmp_path) as library:
        assert library.begin_next() is None
        (entry,) = library.all()
        assert entry.state == "failed"
        assert entry.message.startswith("it was started 3 times, and the server ended each time")


def test_old_recordings_are_deleted_and_new_ones_are_not(library: Library) -> None:
    old, new, half, fresh_half = (library.add(name, 10) for name in ("old", "new", "half", "fresh half"))
    line = library.add("in line", 10)
    library.move(line.id, "uploading", "waiting")
    for entry in (old, new):
        library.move(entry.id, "uploading", "finished")
    for entry, days in ((old, 8), (half, 2), (new, 6), (fresh_half, 0.5), (line, 8)):
        then = time.time() - days * 86400
        os.utime(library.upload_path(entry.id), (then, then))
        os.utime(library.upload_path(entry.id).parent, (then, then))
        library._database.execute("UPDATE recordings SET created = ? WHERE id = ?", (then, entry.id))
    stray = library.folder / "recordings" / "stray"
    stray.mkdir()
    os.utime(stray, (0, 0))
    library.remove_old(keep_days=7)
    assert {entry.name for entry in library.all()} == {"new", "fresh half", "in line"}
    assert {path.name for path in (library.folder / "recordings").iterdir()} == {new.id, fresh_half.id, line.id}


def test_health_and_description(app: Served) -> None:
    assert app.get("/healthz").text == "ok"
    described = app.get("/openapi.json").json()
    assert "/api/segment" in described["paths"]
    page = app.get("/api").text
    for path in described["paths"]:
        assert path in page


def test_the_description_says_that_a_token_is_asked_for(tmp_path: Path, red_model: Path) -> None:
    with served(tmp_path / "served", settings_for(red_model), token="secret") as app:
        assert app.get("/openapi.json").status_code == 401
        described = app.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
        assert described["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
        assert all("security" in each for path in described["paths"].values() for each in path.values())


def test_without_sources_the_live_page_says_how(app: Served) -> None:
    assert "polypstream serve --live" in app.get("/live").text
    assert app.get("/status.json").json() == []


def test_live_sources_are_shown_beside_the_rest(tmp_path: Path, red_model: Path, make: Callable[..., Path]) -> None:
    settings = settings_for(red_model, live={"max_staleness": 60.0})
    with served(tmp_path / "served", settings, f"theatre=replay:{make(frames=50)}") as app:
        until(lambda: app.get("/live/0/snapshot.jpg").status_code == 200)
        assert 'aria-label="theatre"' in app.get("/live").text
        assert segment(app, png(picture(Clip(), 0)), "application/json").json()["findings"]
        until(lambda: app.get("/healthz").status_code == 503)
        assert app.get("/healthz").text == "theatre: source ended"
        assert segment(app, png(picture(Clip(), 0)), "application/json").json()["findings"]  # and the rest goes on
