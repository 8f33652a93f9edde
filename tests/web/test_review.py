"""The API of the review of a recording."""

from __future__ import annotations

import io
import json
import signal
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import requests

from tests.conftest import RED, Clip, disc, make_clip
from tests.web.serving import Served, until
from tests.web.test_serve import children_of, start

# Each test has a server of its own.
pytestmark = pytest.mark.slow

SQUARE = [20, 20, 60, 20, 60, 60, 20, 60]


@pytest.fixture
def api(app: Served, tmp_path: Path) -> str:
    """Path of the API of the review of a finished recording."""
    id_ = app.send(make_clip(tmp_path, Clip(frames=50)))
    app.wait_for(id_, "finished")
    return f"/api/recordings/{id_}/review"


def put(app: Served, path: str, **body: Any) -> requests.Response:
    return requests.put(app.address + path, json={"reader": "Anna"} | body, timeout=30)


def test_a_track_is_accepted_and_rejected(app: Served, api: str) -> None:
    (track,) = app.get(api).json()["tracks"]
    assert (track["track"], track["drawn"], track["decision"], track["first_frame"]) == (1, False, None, 0)
    assert put(app, f"{api}/tracks/1", decision="accepted").status_code == 200
    refused = put(app, f"{api}/tracks/1", decision="rejected", reader="Bert")
    assert refused.status_code == 409
    assert refused.json()["detail"].startswith("Anna has marked polyp 1 as accepted on 20")
    assert refused.json()["earlier"]["reader"] == "Anna"
    assert all(each["reviewed"] for each in app.get(f"{api}/findings").json())
    replaced = put(app, f"{api}/tracks/1?replace=true", decision="rejected", reader="Bert")
    assert replaced.json()["decision"] == "rejected"
    assert app.get(f"{api}/findings").json() == []
    (track,) = app.get(api).json()["tracks"]  # which can be accepted again
    assert track["decision"]["reader"] == "Bert"


def test_an_outline_is_corrected_and_withdrawn(app: Served, api: str) -> None:
    frame = f"{api}/tracks/1/frames/3"
    network = app.get(f"{api}/tracks/1").json()
    assert network[3]["source"] == "network"
    stored = put(app, frame, polygons=[SQUARE]).json()
    assert (stored["source"], stored["reader"], stored["polygons"]) == ("reader", "Anna", [SQUARE])
    assert app.get(f"{api}/tracks/1").json()[3] == stored
    refused = put(app, frame, polygons=[SQUARE], reader="Bert")
    assert refused.status_code == 409
    assert refused.json()["earlier"] == stored
    assert requests.delete(app.address + frame, params={"reader": "Bert"}, timeout=30).status_code == 409
    assert requests.delete(app.address + frame, params={"reader": "Anna"}, timeout=30).status_code == 204
    assert app.get(f"{api}/tracks/1").json() == network


def test_a_polyp_is_drawn(app: Served, api: str) -> None:
    answer = app.post(f"{api}/tracks", json={"frame": 45, "polygons": [[-1, 10, 500, 10, 500, 90]], "reader": "Anna"})
    assert answer.status_code == 201
    assert answer.json() == {"track": 2}
    drawn = app.get(api).json()["tracks"][1]
    assert (drawn["drawn"], drawn["decision"]["decision"], drawn["first_frame"]) == (True, "accepted", 45)
    (found,) = (each for each in app.get(f"{api}/findings").json() if each["track"] == 2)
    assert found["polygons"] == [[0, 10, 319, 10, 319, 90]]  # cut at the edges of the frame
    assert (found["pts_s"], found["reviewed"]) == (1.8, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("tracks/9", {"decision": "accepted"}, 404, "there is no polyp 9"),
        ("tracks/1", {"decision": "perhaps"}, 422, "`decision`"),
        ("tracks/1", {"decision": "accepted", "reader": " "}, 422, "give the name of the reader"),
        ("tracks/1/frames/50", {"polygons": []}, 404, "there is no frame 50: the recording has 50"),
        ("tracks/1/frames/3", {"polygons": [[1, 2, 3, 4, 5, 6, 7]]}, 422, "even number of values"),
        ("tracks/1/frames/3", {"polygons": [[400, 2, 450, 4, 500, 90]]}, 422, "an area inside the frame"),
    ],
)
def test_what_cannot_be_stored_says_why(
    app: Served, api: str, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    answer = put(app, f"{api}/{path}", **body)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert app.get(api).json()["revision"] == 0


def test_a_recording_without_results_has_no_review(app: Served, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no recording")
    id_ = app.send(text)
    app.wait_for(id_, "failed")
    assert app.get(f"/api/recordings/{id_}/review").status_code == 409
    assert app.get("/api/recordings/0123456789abcdef/review").status_code == 404


def annotations_of(app: Served, recording: str, query: str) -> zipfile.ZipFile:
    """The annotations of a recording in the format COCO, downloaded."""
    url = f"{recording}/annotations/coco?every=0{query}"
    assert app.post(url).status_code == 202
    until(lambda: app.get(recording).json()["annotations"][0]["state"] == "finished", 60)
    return zipfile.ZipFile(io.BytesIO(app.get(url).content))


def coco_of(app: Served, recording: str, query: str) -> dict[str, Any]:
    """The content of these annotations."""
    with annotations_of(app, recording, query) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".json") and "instances" in each)
        return dict(json.loads(archive.read(name)))


def test_downloads_have_the_review(app: Served, api: str) -> None:
    recording = api.removesuffix("/review")
    before = coco_of(app, recording, "")
    put(app, f"{api}/tracks/1/frames/3", polygons=[SQUARE])
    after = coco_of(app, recording, "")  # and not the archive that was made before
    assert [each["attributes"]["reviewed"] for each in after["annotations"]].count(True) == 1
    assert len(after["annotations"]) == len(before["annotations"])
    assert len(coco_of(app, recording, "&only_reviewed=true")["images"]) == 1
    put(app, f"{api}/tracks/1", decision="accepted", reader="Anna B.")
    assert "accepted by Anna B. on 20" in app.get(f"{recording}/files/report.html").text
    assert "accepted by Anna B. on 20" in app.get(recording.removeprefix("/api")).text
    with zipfile.ZipFile(io.BytesIO(app.get(f"{recording}/files.zip").content)) as archive:
        assert "clip/reviews.sqlite" in archive.namelist()


def test_a_review_survives_a_killed_server(tmp_path: Path, red_model: Path) -> None:
    process, app = start(tmp_path / "served", red_model, "ultrafast")
    with process:
        id_ = app.send(make_clip(tmp_path, Clip()))
        app.wait_for(id_, "finished")
        put(app, f"/api/recordings/{id_}/review/tracks/1", decision="rejected")
        assert app.get(f"/api/recordings/{id_}/frames/3.jpg").status_code == 200
        children = children_of(process.pid)
        process.kill()
    _, left = psutil.wait_procs(children, 20)
    assert children
    assert not left  # what reads frames ends, too
    process, app = start(tmp_path / "served", red_model, "ultrafast")
    with process:
        (track,) = app.get(f"/api/recordings/{id_}/review").json()["tracks"]
        assert (track["decision"]["decision"], track["decision"]["reader"]) == ("rejected", "Anna")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_frames_of_a_recording(app: Served, api: str) -> None:
    recording = api.removesuffix("/review")
    answer = app.get(f"{recording}/frames/7.jpg")
    assert answer.headers["Content-Type"] == "image/jpeg"
    shown = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (240, 320, 3)
    x, y, _ = disc(Clip(frames=50), 7)
    assert np.abs(shown[round(y), round(x), ::-1].astype(int) - RED).max() < 20
    assert app.get(f"{recording}/frames/50.jpg").status_code == 404
    assert len(app.get(f"{api}/uncertain?count=5").json()) == 5


def test_a_recording_that_cannot_be_read_again_says_so(app: Served, tmp_path: Path) -> None:
    id_ = app.send(make_clip(tmp_path, Clip()))
    app.wait_for(id_, "finished")
    (app.folder / "recordings" / id_ / "upload").write_bytes(b"damaged since")
    answer = app.get(f"/api/recordings/{id_}/frames/3.jpg")
    assert answer.status_code == 409
    assert answer.json()["detail"] == "the frames of the recording cannot be read again"
    assert app.get(f"/recordings/{id_}/review").status_code == 409


def test_a_decoder_that_crashes_is_started_again(app: Served, api: str) -> None:
    frame = f"{api.removesuffix('/review')}/frames/3.jpg"
    assert app.get(frame).status_code == 200
    for child in [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]:
        child.kill()
    assert [app.get(frame).status_code for _ in range(2)][-1] == 200


def test_an_outline_is_carried(app: Served, api: str) -> None:
    assert app.post(f"{api}/tracks/1/frames/10/carry", json={"reader": "Anna"}).status_code == 409  # nobody drew it
    network = app.get(f"{api}/tracks/1").json()
    put(app, f"{api}/tracks/1/frames/10", polygons=network[10]["polygons"])
    put(app, f"{api}/tracks/1/frames/13", polygons=network[13]["polygons"], reader="Bert")
    answer = app.post(f"{api}/tracks/1/frames/10/carry", json={"reader": "Anna", "seconds": 0.2})
    assert answer.json() == {"frames": [5, 6, 7, 8, 9, 11, 12, 14, 15]}
    carried = app.get(f"{api}/tracks/1").json()[5]
    assert (carried["source"], carried["reader"]) == ("motion", "Anna")
    address = f"{app.address}{api}/tracks/1/frames/10/carry"
    assert requests.delete(address, params={"reader": "Anna"}, timeout=30).status_code == 204
    found = app.get(f"{api}/tracks/1").json()
    assert [each["frame"] for each in found if each["source"] != "network"] == [10, 13]
