"""The live page and its HTTP API: over real sockets, and in a real browser where there is one."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
import requests

from polypstream.core.config import Settings
from polypstream.core.pipeline import in_background
from polypstream.errors import SettingsError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_outputs import clips_of, recordings_of
from polypstream.sinks.browser import Browser
from polypstream.web.app import make_app
from polypstream.web.live import LivePage
from polypstream.web.server import parse_listen, serving, token_for, web
from tests.conftest import pts_of

pytestmark = pytest.mark.slow

SETTINGS = Settings.model_validate({"live": {"max_staleness": 60.0}})


@dataclass
class Served:
    """A live page at work."""

    live: Live
    browser: Browser
    port: int

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """Of the first source."""
        return json.loads(self.get("/status.json")[2])[0]


@contextmanager
def served(videos: list[Path], model: Path, token: str | None = None) -> Iterator[Served]:
    sources = open_sources([f"room{number}=replay:{video}" for number, video in enumerate(videos, 1)], SETTINGS)
    browser = Browser()
    live = Live(sources, Segmenter(model, "cpu"), SETTINGS, [("web", browser)])
    app = make_app([LivePage(live, browser)], "127.0.0.1", token)
    with serving(app, "127.0.0.1", 0) as port, in_background("live", lambda: live.run(lambda: None), live.close):
        yield Served(live, browser, port)


@pytest.fixture
def page(make: Callable[..., Path], red_model: Path) -> Iterator[Served]:
    with served([make(frames=500)], red_model) as found:
        yield found


def until(true: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


def pictures(port: int, count: int) -> list[np.ndarray]:
    """The first pictures of the stream, decoded."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/live/0/stream")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "multipart/x-mixed-replace; boundary=frame"
    found = []
    for _ in range(count):
        assert answer.readline() == b"--frame\r\n"
        assert answer.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(answer.readline().removeprefix(b"Content-Length: "))
        assert answer.readline() == b"\r\n"
        found.append(cv2.imdecode(np.frombuffer(answer.read(length), np.uint8), cv2.IMREAD_COLOR))
        assert answer.readline() == b"\r\n"
    connection.close()
    return found


def test_each_source_has_its_own_recording_and_its_latency_by_names(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    videos = [make(name=f"{number}.mp4", frames=200) for number in (1, 2)]
    sources = open_sources([f"room{number}=replay:{video}" for number, video in enumerate(videos, 1)], SETTINGS)
    browser = Browser()
    recordings = recordings_of(tmp_path / "r.mp4", sources, SETTINGS)
    live = Live(sources, Segmenter(red_model, "cpu"), SETTINGS, [("web", browser), *recordings])
    app = make_app([LivePage(live, browser)], "127.0.0.1", None)
    with serving(app, "127.0.0.1", 0) as port, in_background("live", lambda: live.run(lambda: None), live.close):
        page = Served(live, browser, port)
        until(lambda: all(each["latency_ms"] for each in json.loads(page.get("/status.json")[2])))
        both = json.loads(page.get("/status.json")[2])
    for number, each in enumerate(both, 1):
        assert [sink["name"] for sink in each["sinks"]] == ["web", f"record room{number}"]
        assert list(each["latency_ms"]) == ["median", "p95", "p99", "maximum"]
        assert list(each["recent"]) == ["seconds", "frames_in", "skipped"]
        assert each["warning"] == ""


def test_the_stream_shows_the_picture_with_its_markers(page: Served) -> None:
    shown = pictures(page.port, 5)
    assert all(each.shape == (240, 320, 3) for each in shown)
    _, green, red = shown[-1][120, :, :].reshape(-1, 3).astype(int).T
    assert (red - green > 40).any()  # the red disc
    assert (green - red > 10).any()  # its outline
    until(lambda: page.status()["viewers"] == 0)  # nobody looks any more, and nothing is encoded for nobody


def test_the_colours_are_the_recordings(page: Served) -> None:
    """Grey 90 of limited range comes out as grey 90, not as what JPEG's full range would make of the same bytes."""
    assert np.abs(pictures(page.port, 1)[0][20, 160].astype(int) - 90).max() <= 4


def shows_the_disc(picture: np.ndarray) -> bool:
    """Whether a BGR picture has the tinted disc, at its size, and the grey around it."""
    _, green, red = picture.reshape(-1, 3).astype(int).T
    grey = picture[20:40, 150:170].mean(axis=(0, 1))
    return bool(0.04 < (red - green > 40).mean() < 0.06) and bool(np.abs(grey - 90).max() < 4)


def test_status_snapshot_findings_and_metrics(page: Served) -> None:
    until(lambda: page.get("/live/0/snapshot.jpg")[0] == 200)
    snapshot = cv2.imdecode(np.frombuffer(page.get("/live/0/snapshot.jpg")[2], np.uint8), cv2.IMREAD_COLOR)
    assert snapshot.shape == (240, 320, 3)
    assert shows_the_disc(snapshot)
    until(lambda: page.status()["findings"])
    status = page.status()
    assert status["source"] == "room1"
    assert status["signal"] is True
    code, headers, body = page.get("/live/0/findings/1.jpg")
    assert (code, headers["content-type"]) == (200, "image/jpeg")
    assert shows_the_disc(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR))
    metrics = page.get("/metrics")[2].decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in metrics if not line.startswith("#"))
    assert float(values['polypstream_signal{source="room1"}']) == 1
    assert float(values['polypstream_frames_in_total{source="room1"}']) > 0
    assert float(values['polypstream_frames_findings_total{frame="own",source="room1"}']) > 0
    assert page.get("/healthz")[::2] == (200, b"ok")


def test_a_source_that_ended_is_no_good_health(make: Callable[..., Path], red_model: Path) -> None:
    with served([make(frames=3)], red_model) as page:
        until(lambda: page.get("/healthz")[0] == 503)
        assert page.get("/healthz")[2] == b"room1: source ended"


@pytest.mark.parametrize("path", ["/live/1/stream", "/live/-1/snapshot.jpg", "/live/0/findings/99.jpg", "/nothing"])
def test_what_is_not_there_is_not_found(page: Served, path: str) -> None:
    assert page.get(path)[0] in (404, 422)


def test_answers_forbid_what_is_not_ours(page: Served) -> None:
    headers = page.get("/")[1]
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_on_loopback_no_other_name_is_answered(page: Served) -> None:
    assert page.get("/", Host="evil.example")[0] == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_it_answers_to_the_address_that_it_listens_on_and_to_no_name_of_anothers(host: str) -> None:
    own = f"[{host}]" if ":" in host else host
    with web([LivePage(None, Browser())], host, 0, None) as address:
        assert address.startswith(f"http://{own}:")
        assert requests.get(f"{address}api", timeout=10).status_code == 200
        rebound = requests.get(f"{address}api", headers={"Host": "elsewhere.example"}, timeout=10)
        assert rebound.status_code == 400


def test_a_token_is_asked_for_and_moves_into_a_cookie(make: Callable[..., Path], red_model: Path) -> None:
    with served([make(frames=250)], red_model, token="secret") as page:
        for path in ("/", "/status.json", "/live/0/snapshot.jpg", "/metrics", "/static/style.css"):
            assert page.get(path)[0] == 401, path
        assert page.get("/status.json", Authorization="Bearer wrong")[0] == 401
        assert page.get("/status.json", Authorization="Bearer secret")[0] == 200
        code, headers, _ = page.get("/?token=secret")
        assert code == 303
        assert "secret" not in headers["location"]
        assert "HttpOnly" in headers["set-cookie"]
        assert page.get("/", Cookie=headers["set-cookie"].partition(";")[0])[0] == 200


@pytest.mark.realtime
def test_a_slow_viewer_keeps_nobody_waiting(page: Served) -> None:
    slow = socket.create_connection(("127.0.0.1", page.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.sendall(b"GET /live/0/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")  # and never reads
    until(lambda: page.status()["viewers"] == 1)
    started, before = time.monotonic(), page.live.status()[0]
    assert len(pictures(page.port, 40)) == 40
    passed, after = time.monotonic() - started, page.live.status()[0]
    slow.close()
    assert passed < 8  # 40 pictures at 25 per second
    assert after.shown - before.shown >= 0.5 * (after.frames_in - before.frames_in)


def test_where_to_listen() -> None:
    assert parse_listen("127.0.0.1:8000") == ("127.0.0.1", 8000)
    assert parse_listen("8000") == ("127.0.0.1", 8000)
    assert parse_listen("[::1]:8000") == ("::1", 8000)
    with pytest.raises(SettingsError, match="write HOST:PORT"):
        parse_listen("somewhere")
    assert token_for("127.0.0.1", None) is None
    assert token_for("127.0.0.1", "mine") == "mine"
    assert token_for("0.0.0.0", None)


def test_a_port_in_use_is_said(page: Served, make: Callable[..., Path], red_model: Path) -> None:
    app = make_app([LivePage(page.live, page.browser)], "127.0.0.1", None)
    with (
        pytest.raises(SettingsError, match=rf"127.0.0.1:{page.port}: another program uses port {page.port} already"),
        serving(app, "127.0.0.1", page.port),
    ):
        pass


@contextmanager
def served_with_clips(video: Path, model: Path, folder: Path) -> Iterator[Served]:
    """A live page whose only source, room1, is kept."""
    sources = open_sources([f"room1=replay:{video}"], SETTINGS)
    browser = Browser()
    clips = clips_of(folder, sources, SETTINGS)
    live = Live(sources, Segmenter(model, "cpu"), SETTINGS, [("web", browser), *clips])
    app = make_app([LivePage(live, browser)], "127.0.0.1", None)
    with serving(app, "127.0.0.1", 0) as port, in_background("live", lambda: live.run(lambda: None), live.close):
        yield Served(live, browser, port)


def test_a_clip_is_saved_through_the_api(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    with served_with_clips(make(frames=300), red_model, tmp_path / "clips") as page:
        until(lambda: page.live.status()[0].shown > 20)
        answer = requests.post(f"http://127.0.0.1:{page.port}/api/live/room1/clip", timeout=20)
        assert answer.status_code == 201
        assert len(pts_of(tmp_path / "clips" / answer.json()["file"])) >= 20
        assert requests.post(f"http://127.0.0.1:{page.port}/api/live/none/clip", timeout=20).status_code == 404
    with served([make(frames=300)], red_model) as page:
        answer = requests.post(f"http://127.0.0.1:{page.port}/api/live/room1/clip", timeout=20)
        assert answer.status_code == 409
        assert answer.json()["detail"] == "nothing of this source is kept; see live.keep_seconds"


@pytest.mark.browser
def test_marks_are_set_with_buttons_and_through_the_api(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path
) -> None:
    driver = browse()
    with served([make(frames=500)], red_model) as page:
        driver.get(f"http://127.0.0.1:{page.port}/")
        until(lambda: value(driver, "state") == "looking for polyps")
        driver.find_element("css selector", "[data-mark=caecum-reached]").click()
        until(lambda: value(driver, "said") == "marked: Caecum reached")
        text = driver.find_element("css selector", ".mark [name=text]")
        text.send_keys("lipoma")
        text.submit()
        until(lambda: value(driver, "said") == "marked: Note: lipoma")
        address = f"http://127.0.0.1:{page.port}/api/live/room1/marks"
        made = requests.post(address, json={"kind": "biopsy", "text": "rectum"}, timeout=10)
        assert made.status_code == 201
        assert made.json()["title"] == "Biopsy: rectum"
        marks = page.status()["marks"]
        assert [mark["kind"] for mark in marks] == ["caecum-reached", "note", "biopsy"]
        assert [mark["pts_s"] for mark in marks] == sorted(mark["pts_s"] for mark in marks)
        assert requests.post(address, json={"kind": "lunch"}, timeout=10).status_code == 422


def test_a_source_that_is_named_after_its_address_is_marked(make: Callable[..., Path], red_model: Path) -> None:
    (source,) = open_sources([f"replay:{make(frames=300)}"], SETTINGS)
    live, browser = Live([source], Segmenter(red_model, "cpu"), SETTINGS, []), Browser()
    app = make_app([LivePage(live, browser)], "127.0.0.1", None)
    with serving(app, "127.0.0.1", 0) as port, in_background("live", lambda: live.run(lambda: None), live.close):
        until(lambda: live.status()[0].shown)
        address = f"http://127.0.0.1:{port}/api/live/{quote(source.name, safe='')}/marks"
        assert requests.post(address, json={"kind": "biopsy"}, timeout=10).status_code == 201
    assert [mark.kind for mark in live.marks.of(source.name)] == ["biopsy"]


@pytest.mark.browser
def test_a_clip_is_saved_with_the_button(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    driver = browse()
    with served_with_clips(make(frames=500), red_model, tmp_path / "clips") as page:
        driver.get(f"http://127.0.0.1:{page.port}/")
        until(lambda: value(driver, "state") == "looking for polyps")
        driver.find_element("css selector", "[data-act=clip]").click()
        until(lambda: value(driver, "said").startswith("saved as room1-"))
        name = value(driver, "said").removeprefix("saved as ")
        assert len(pts_of(tmp_path / "clips" / name)) >= 5
        assert (tmp_path / "clips" / name).with_suffix("").joinpath("findings.json").is_file()


def value(driver: Any, name: str) -> str:
    """What the page says of its first source."""
    return str(driver.find_element("css selector", f"[data-value={name}]").text)


@pytest.mark.browser
def test_the_page_in_a_browser(browse: Callable[[], Any], make: Callable[..., Path], red_model: Path) -> None:
    driver = browse()
    with served([make(frames=500)], red_model) as page:
        driver.get(f"http://127.0.0.1:{page.port}/")
        until(lambda: value(driver, "state") == "looking for polyps")
        width = "return document.querySelector('canvas.picture').width"
        until(lambda: driver.execute_script(width) == 320)
        until(lambda: driver.find_elements("css selector", ".findings img"))
        until(lambda: value(driver, "viewers") == "1")
        assert "per second" in value(driver, "rate")
        until(lambda: re.fullmatch(r"\d+ of [1-9]\d* in the last \d+ s", value(driver, "recent")))
        assert value(driver, "origins") == ""  # in-step says nothing of it
        passed_through = page.status() | {"findings_of": {"own": 1, "earlier": 7, "none": 2}}
        driver.execute_script("show([...videos.keys()][0], arguments[0])", passed_through)
        assert value(driver, "origins") == "of the frame itself in 1, of an earlier frame in 7, none in 2"
        driver.find_element("name", "sound").click()
        requests.put(f"http://127.0.0.1:{page.port}/overlay/off", timeout=10)
        until(lambda: value(driver, "fixed") == "(off for all viewers)")
        before = page.live.status()[0].shown
        until(lambda: page.live.status()[0].shown > before + 5)  # and the picture flows on
        requests.put(f"http://127.0.0.1:{page.port}/overlay/on", timeout=10)
        until(lambda: value(driver, "fixed") == "")
        assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]
    until(lambda: value(driver, "state") == "polypstream does not answer")


@pytest.mark.browser
@pytest.mark.realtime
def test_a_browser_on_a_slow_line_holds_up_nobody(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path
) -> None:
    quick, slow = browse(), browse()
    slow.set_network_conditions(latency=200, download_throughput=10_000, upload_throughput=10_000)
    with served([make(frames=750)], red_model) as page:
        for driver in (quick, slow):
            driver.get(f"http://127.0.0.1:{page.port}/?mjpeg")  # Chromium does not slow down WebSockets
        until(lambda: page.status()["viewers"] == 2, 20)
        until(lambda: value(quick, "state") == "looking for polyps")
        before, started = page.live.status()[0], time.monotonic()
        time.sleep(3)
        after, passed = page.live.status()[0], time.monotonic() - started
        assert after.frames_in - before.frames_in > 0.9 * 25 * passed
        assert after.shown - before.shown >= 0.9 * (after.frames_in - before.frames_in)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 204),  # a script
        ({"Sec-Fetch-Site": "same-origin"}, 204),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_no_page_of_another_site_may_change_anything(page: Served, headers: dict[str, str], code: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    connection.request("PUT", "/overlay/off", headers=headers)
    assert connection.getresponse().status == code
    connection.close()
    assert page.live.overlay.shown is (code == 403)
    assert page.status()["overlay"] is (code == 403)
