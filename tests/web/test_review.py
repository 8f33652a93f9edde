"""The API of the review of a recording."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Clip, make_clip
from tests.web.serving import Served, served, settings_for, until

SQUARE = [20, 20, 60, 20, 60, 60, 20, 60]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), settings_for(red_model)) as found:
        yield found


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


def coco_of(app: Served, recording: str, query: str) -> dict[str, Any]:
    """The annotations of a recording in the format COCO, downloaded."""
    url = f"{recording}/annotations/coco?every=0{query}"
    assert app.post(url).status_code == 202
    until(lambda: app.get(recording).json()["annotations"][0]["state"] == "finished", 60)
    with zipfile.ZipFile(io.BytesIO(app.get(url).content)) as archive:
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


def test_a_review_survives_the_server(tmp_path: Path, red_model: Path) -> None:
    settings = settings_for(red_model)
    with served(tmp_path / "served", settings) as app:
        id_ = app.send(make_clip(tmp_path, Clip()))
        app.wait_for(id_, "finished")
        put(app, f"/api/recordings/{id_}/review/tracks/1", decision="rejected")
    with served(tmp_path / "served", settings) as app:
        (track,) = app.get(f"/api/recordings/{id_}/review").json()["tracks"]
        assert (track["decision"]["decision"], track["decision"]["reader"]) == ("rejected", "Anna")
