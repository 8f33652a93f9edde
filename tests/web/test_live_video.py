"""The H.264 video of the live page: over real WebSockets, and in a real browser where there is one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import websocket

from polypstream.core.frame import Frame
from polypstream.sinks import viewers
from polypstream.web import guard
from tests.web.test_live import Served, served, until, value

pytestmark = pytest.mark.slow


@pytest.fixture
def page(make: Callable[..., Path], red_model: Path) -> Iterator[Served]:
    with served([make(frames=750)], red_model) as found:
        yield found


@contextmanager
def watching(port: int, path: str = "/live/0/video", **options: Any) -> Iterator[websocket.WebSocket]:
    """A viewer that is no browser."""
    viewer = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=10, **options)
    try:
        yield viewer
    finally:
        viewer.close()
        viewer.shutdown()  # the server may have ended it


def received(viewer: websocket.WebSocket, count: int) -> list[tuple[dict[str, Any] | None, bytes]]:
    """The next pictures, with what was said before each, all of them answered."""
    pictures: list[tuple[dict[str, Any] | None, bytes]] = []
    said = None
    while len(pictures) < count:
        message = viewer.recv()
        if isinstance(message, str):
            said = json.loads(message)
        else:
            pictures.append((said, message))
            viewer.send("shown")
            said = None
    return pictures


def decoded(data: list[bytes]) -> list[np.ndarray]:
    decoder = av.CodecContext.create("h264", "r")
    packets = [*(av.Packet(each) for each in data), None]
    return [each.to_ndarray(format="rgb24") for packet in packets for each in decoder.decode(packet)]


def test_a_viewer_gets_a_key_frame_at_once_and_then_each_picture(page: Served) -> None:
    until(lambda: page.status()["shown"] > 5)
    started = time.monotonic()
    with watching(page.port) as viewer:
        pictures = received(viewer, 1)
        assert time.monotonic() - started < 1.5  # a regular key frame comes every two seconds
        pictures += received(viewer, 30)
        assert page.status()["viewers"] == 1
    assert {name: pictures[0][0][name] for name in ("codedWidth", "codedHeight")} == {
        "codedWidth": 320,
        "codedHeight": 240,
    }
    assert pictures[0][0]["codec"].startswith("avc1.6400")
    shown = decoded([data for _, data in pictures])
    assert len(shown) == 31
    for each in (shown[0], shown[-1]):
        assert np.abs(each[20, 160].astype(int) - 90).max() <= 4
        red, green, _ = each[120].astype(int).T
        assert (red - green > 40).any()  # the red disc
        assert not (green - red > 60).any()  # it is not marked
    until(lambda: page.status()["viewers"] == 0)
    told = pictures[-1][0]
    assert told is not None
    assert (told["markers"]["colour"], told["markers"]["opacity"]) == ("#40ff60", 0.3)
    outlined = np.zeros((240, 320), np.uint8)
    (outline,) = told["markers"]["polygons"]
    cv2.fillPoly(outlined, [np.array(outline).astype(int)], 1)
    disc = shown[-1][..., 0].astype(int) - shown[-1][..., 1] > 40
    assert (disc & outlined.astype(bool)).sum() > 0.9 * (disc | outlined.astype(bool)).sum()


def test_a_heat_map_stays_in_the_picture(page: Served) -> None:
    page.live.overlay.style = "heatmap"
    with watching(page.port) as viewer:
        pictures = received(viewer, 20)
    assert "markers" not in (pictures[-1][0] or {})
    red = decoded([data for _, data in pictures])[-1][120, :, 0].astype(int)
    assert red.max() - red[160] > 40  # the disc is not red any more
    assert page.status()["overlay_style"] == "heatmap"


def test_two_viewers_get_the_same_bytes(page: Served) -> None:
    with watching(page.port) as one, watching(page.port) as other:
        theirs = [{data for _, data in received(viewer, 30)} for viewer in (one, other)]
        assert page.status()["viewers"] == 2
    assert len(theirs[0] & theirs[1]) >= 20


def test_a_viewer_that_never_reads_holds_up_nobody(page: Served) -> None:
    slow = socket.create_connection(("127.0.0.1", page.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.sendall(
        b"GET /live/0/video HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    until(lambda: page.status()["viewers"] == 1)
    with watching(page.port) as viewer:
        started, before = time.monotonic(), page.live.status()[0]
        received(viewer, 50)
        passed, after = time.monotonic() - started, page.live.status()[0]
    slow.close()
    assert passed < 8  # 50 pictures at 25 per second
    assert after.shown - before.shown >= 0.5 * (after.frames_in - before.frames_in)


def test_a_viewer_that_answers_late_skips_to_a_key_frame(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "LATE_S", 0.2)
    with watching(page.port) as viewer:
        assert viewer.recv_data()[0] == websocket.ABNF.OPCODE_TEXT
        time.sleep(1.5)  # what was sent waits to be read, and nothing more is sent
        viewer.settimeout(0.5)
        unread = []
        with pytest.raises(websocket.WebSocketTimeoutException):
            while True:
                unread.append(viewer.recv())
        assert len(unread) <= 15
        viewer.settimeout(10)
        for _ in unread:
            viewer.send("shown")
        assert json.loads(viewer.recv())["codec"]


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, "", 401),
        ({"Cookie": "polypstream-token=wrong"}, "", 401),
        ({"Authorization": "Bearer secret"}, "", 101),
        ({"Cookie": "polypstream-token=secret"}, "", 101),
        ({}, "?token=secret", 101),
        ({"Authorization": "Bearer secret", "Origin": "http://evil.example"}, "", 403),
        ({"Authorization": "Bearer secret", "Origin": "null"}, "", 403),
        ({"Authorization": "Bearer secret", "Origin": "http://{host}"}, "", 101),
        ({"Authorization": "Bearer secret", "Origin": "http://{host}0"}, "", 403),
        ({"Authorization": "Bearer secret", "Sec-Fetch-Site": "cross-site"}, "", 403),
        ({"Authorization": "Bearer secret", "Host": "evil.example"}, "", 400),
    ],
)
def test_who_may_watch(
    make: Callable[..., Path], red_model: Path, headers: dict[str, str], path: str, status: int
) -> None:
    with served([make(frames=250)], red_model, token="secret") as page:
        host = f"127.0.0.1:{page.port}"
        lines = [f"{name}: {value.format(host=host)}" for name, value in ({"Host": host} | headers).items()]
        with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
            connection.sendall(
                f"GET /live/0/video{path} HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n".encode()
                + "\r\n".join(lines).encode()
                + b"\r\n\r\n"
            )
            head = connection.recv(4096).decode(errors="replace")
    assert head.startswith(f"HTTP/1.1 {status} ")
    if status != 101:
        assert "default-src 'self'" in head


@pytest.mark.parametrize(("path", "status"), [("/live/1/video", 404), ("/live/x/video", 403), ("/nothing", 403)])
def test_there_is_no_other_video(page: Served, path: str, status: int) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException) as error, watching(page.port, path):
        pass
    assert error.value.status_code == status


def test_a_viewer_is_not_taken_for_a_slow_request(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 0.5)
    with watching(page.port) as viewer:
        started = time.monotonic()
        while time.monotonic() < started + 1.5:
            received(viewer, 1)


def test_the_end_of_the_sources_ends_the_video(make: Callable[..., Path], red_model: Path) -> None:
    with served([make(frames=50)], red_model) as page, watching(page.port) as viewer:
        opcodes = [websocket.ABNF.OPCODE_TEXT]
        while opcodes[-1] != websocket.ABNF.OPCODE_CLOSE:
            opcodes.append(viewer.recv_data()[0])
            viewer.send("shown")
        assert websocket.ABNF.OPCODE_BINARY in opcodes
        until(lambda: page.status()["viewers"] == 0)


# Scripts that run in a page before its own ones.
WITHOUT_WEBCODECS = "delete window.VideoDecoder"
WITHOUT_H264 = """
const configure = VideoDecoder.prototype.configure;
VideoDecoder.prototype.configure = function (config) { configure.call(this, { ...config, codec: "avc1.000000" }); };
"""
WITHOUT_WEBSOCKETS = """
window.WebSocket = class extends WebSocket { constructor(address) { super(new URL("/nothing", address)); } };
"""


def pixel(driver: Any, x: int, y: int) -> list[int]:
    """Red, green and blue of a pixel of the canvas."""
    script = """
    const canvas = document.querySelector("canvas.picture");
    return [...canvas.getContext("2d").getImageData(arguments[0], arguments[1], 1, 1).data.slice(0, 3)];
    """
    return list(driver.execute_script(script, x, y))


def size(driver: Any) -> list[int]:
    """Size of the canvas."""
    script = "const { width, height } = document.querySelector('canvas.picture'); return [width, height]"
    return list(driver.execute_script(script))


def is_marked(driver: Any) -> bool:
    """Whether the disc in the canvas has a green outline."""
    script = """
    const { data } = document.querySelector("canvas.picture").getContext("2d").getImageData(0, 120, 320, 1);
    for (let place = 0; place < data.length; place += 4) if (data[place + 1] - data[place] > 50) return true;
    return false;
    """
    return bool(driver.execute_script(script))


def shows_jpegs(driver: Any) -> bool:
    """Whether JPEGs are shown, and no canvas."""
    script = "return document.querySelector('.picture').naturalWidth === 320"
    return bool(driver.execute_script(script)) and not driver.find_elements("css selector", "canvas.picture")


COLOURS = [(200, 40, 40), (40, 180, 60), (40, 60, 200), (230, 220, 60), (90, 90, 90), (250, 250, 250)]


def stripes(clip: Any, _: int) -> np.ndarray:
    """A picture of vertical stripes of these colours."""
    width = clip.width // len(COLOURS)
    return np.repeat(np.array([COLOURS], np.uint8), width, axis=1).repeat(clip.height, axis=0)


@pytest.mark.browser
def test_the_canvas_shows_the_colours_of_the_video(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path
) -> None:
    driver = browse()
    bt601 = {"colorspace": 6, "color_range": 1, "color_primaries": 1, "color_trc": 1}
    video = make(width=480, height=240, frames=500, draw=stripes, colours=bt601, pixel_format="yuv444p")
    with served([video], red_model) as page:
        page.live.overlay.shown = False
        driver.get(f"http://127.0.0.1:{page.port}/")
        until(lambda: size(driver) == [480, 240])
        shown = [pixel(driver, 40 + 80 * number, 120) for number in range(len(COLOURS))]
        assert np.abs(np.array(shown) - COLOURS).max() <= 10
        until(lambda: value(driver, "viewers") == "1")
        assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]


@pytest.mark.browser
def test_two_browsers_watch_each_with_its_own_markers_and_a_hidden_one_does_not(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path
) -> None:
    one, other = browse(), browse()
    with served([make(frames=750)], red_model) as page:
        for driver in (one, other):
            driver.get(f"http://127.0.0.1:{page.port}/")
        for driver in (one, other):
            until(lambda driver=driver: size(driver) == [320, 240], 20)
            assert abs(pixel(driver, 160, 20)[0] - 90) <= 5
        until(lambda: page.status()["viewers"] == 2)
        until(lambda: is_marked(one) and is_marked(other))
        one.find_element("name", "marked").click()
        until(lambda: not is_marked(one))
        until(lambda: is_marked(other))
        assert page.live.overlay.shown
        one.find_element("css selector", "body").send_keys("o")
        until(lambda: is_marked(one))
        other.switch_to.new_window("tab")
        until(lambda: page.status()["viewers"] == 1)


@pytest.mark.browser
@pytest.mark.parametrize(
    "script",
    [WITHOUT_WEBCODECS, WITHOUT_H264, WITHOUT_WEBSOCKETS, None],
    ids=["no WebCodecs", "no H.264", "no WebSockets", "asked for"],
)
def test_a_browser_that_cannot_show_the_video_shows_jpegs(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path, script: str | None
) -> None:
    driver = browse()
    if script is not None:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    with served([make(frames=500)], red_model) as page:
        driver.get(f"http://127.0.0.1:{page.port}/" + ("?mjpeg" if script is None else ""))
        until(lambda: shows_jpegs(driver))
        until(lambda: page.status()["viewers"] == 1)
        until(lambda: value(driver, "fixed") == "(part of JPEGs)")
        assert not driver.find_element("name", "marked").is_enabled()


@pytest.mark.browser
def test_jpegs_replace_a_video_that_cannot_be_encoded(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise av.error.ExternalError(1, "no session is left")

    monkeypatch.setattr(viewers, "PageEncoder", lambda _: fail)
    driver = browse()
    with served([make(frames=500)], red_model) as page:
        driver.get(f"http://127.0.0.1:{page.port}/")
        until(lambda: shows_jpegs(driver))
        assert page.live.sink_problems() == []


@pytest.mark.browser
def test_the_canvas_takes_the_size_of_a_new_picture_and_is_empty_without_the_server(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path
) -> None:
    driver = browse()
    with served([make(frames=500)], red_model) as page:
        driver.get(f"http://127.0.0.1:{page.port}/")
        until(lambda: size(driver) == [320, 240])
        picture = av.VideoFrame.from_ndarray(np.full((400, 640, 3), 200, np.uint8), "rgb24").reformat(format="yuv420p")
        page.live.close()
        until(lambda: page.live.status()[0].ended)
        other = Frame(0, picture, 0, Fraction(1, 25), source="room1")
        until(lambda: page.browser.viewers("room1"))
        page.browser.write(other)
        until(lambda: size(driver) == [640, 400])
        assert abs(pixel(driver, 160, 20)[0] - 200) <= 5
    until(lambda: pixel(driver, 160, 20) == [0, 0, 0])


@pytest.mark.browser
def test_two_sources_are_watched_by_a_browser_that_has_the_token(
    browse: Callable[[], Any], make: Callable[..., Path], red_model: Path
) -> None:
    driver = browse()
    videos = [make(frames=500), make(name="wide.mp4", width=480, frames=500)]
    with served(videos, red_model, token="secret") as page:
        driver.get(f"http://127.0.0.1:{page.port}/?token=secret")
        widths = "return [...document.querySelectorAll('canvas.picture')].map((canvas) => canvas.width)"
        until(lambda: driver.execute_script(widths) == [320, 480])
