"""Attacks on the web application, over real sockets: each is refused, leaves nothing behind, and learns nothing."""

from __future__ import annotations

import html
import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import av
import numpy as np
import pytest

from polypstream.inference.segmenter import Segmenter
from polypstream.web import guard
from tests.conftest import Clip, make_clip
from tests.web.hostile import FORM, JSON, blank, bmp_claiming, concat, elsewhere, form, hls, png_claiming, tiff_claiming
from tests.web.serving import Served, served, settings_for, until

# What the application takes here, so that more is quickly sent.
LIMITS = {"picture_megabytes": 1, "recording_gigabytes": 0.002}
MEGA = 10**6
# A recording of this name was processed; its pages are the places to run a script in.
MARKUP = """<script>alert(1)</script>"'><img src=x onerror=alert(1)>.mp4"""
HEAD = b"Host: localhost\r\n"


class Answer(NamedTuple):
    """Of the server."""

    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, red_model: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("attacked") / "served", settings_for(red_model, serve=LIMITS)) as found:
        yield found


@pytest.fixture(scope="module")
def finished(app: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a recording with results."""
    content = make_clip(tmp_path_factory.mktemp("clip"), Clip(frames=3, width=160, height=120)).read_bytes()
    id_ = announce(app, len(content), MARKUP)
    assert ask(app, "PATCH", f"/api/uploads/{id_}?offset=0", content).status == 200
    assert app.wait_for(id_, "finished", "failed")["state"] == "finished"
    return id_


@pytest.fixture
def unchanged(app: Served) -> Iterator[None]:
    """Nothing is stored that was not, wherever."""
    before = stored(app)
    yield
    assert stored(app) == before


def stored(app: Served) -> set[str]:
    """Everything in the folder and around it."""
    return {str(path) for path in app.folder.parent.rglob("*") if not path.name.startswith("library.sqlite-")}


def ask(app: Served, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """An answer to a request that is sent as it is written: no client of good manners tidies the path."""
    with closing(http.client.HTTPConnection(urlsplit(app.address).netloc, timeout=20)) as connection:
        connection.request(method, path, body, headers or {}, encode_chunked=not isinstance(body, bytes | None))
        return answer_of(connection.getresponse())


def answer_of(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def detail(answer: Answer, *statuses: int) -> str:
    """What is said in an answer of one of these statuses, which tells nothing of the server."""
    assert answer.status in statuses, answer
    said = str(json.loads(answer.body)["detail"])
    for secret in ("Traceback", "site-packages", ".py", "/tmp", str(Path.cwd()), "served"):
        assert secret not in said
    return said


def announce(app: Served, size: int, name: str = "a.mp4") -> str:
    answer = ask(app, "POST", "/api/uploads", json.dumps({"name": name, "size": size}).encode(), JSON)
    assert answer.status == 201
    return str(json.loads(answer.body)["id"])


def delete(app: Served, id_: str) -> None:
    assert ask(app, "DELETE", f"/api/recordings/{id_}").status == 204


# Paths


@pytest.mark.parametrize("target", ["app.py", "/etc/passwd", "../guard.py", "style.css%00.py", "%00"])
@pytest.mark.parametrize("up", ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..\\", "..%5c", "....//", "%252e%252e/", "/"])
def test_no_path_leads_out_of_the_static_files(app: Served, up: str, target: str) -> None:
    assert ask(app, "GET", "/static/style.css").status == 200
    detail(ask(app, "GET", f"/static/{up}{target}"), 404)


@pytest.mark.parametrize(
    "name",
    [
        "../../upload",
        "..%2f..%2fupload",
        "%2e%2e%2f%2e%2e%2fupload",
        "..%5cupload",
        "upload",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "..%2f..%2f..%2f..%2flibrary.sqlite",
        "report.html%00",
        "report.html%2f..%2freport.html",
        "other.txt",
    ],
)
def test_no_name_leads_out_of_the_results(app: Served, finished: str, name: str) -> None:
    (app.folder / "recordings" / finished / "1" / "upload" / "other.txt").touch()  # whatever else comes to lie there
    assert ask(app, "GET", f"/api/recordings/{finished}/files/report.html").status == 200
    detail(ask(app, "GET", f"/api/recordings/{finished}/files/{name}"), 404, 422)


@pytest.mark.parametrize("id_", ["..", "%2e%2e", "..%2frecordings", "%00", "0123456789abcdeg", "0123456789abcdef%0a"])
def test_no_id_leads_anywhere(app: Served, id_: str) -> None:
    for path in (f"/api/recordings/{id_}", f"/recordings/{id_}", f"/api/recordings/{id_}/snapshots/1.jpg"):
        detail(ask(app, "GET", path), 404, 422)


@pytest.mark.parametrize(
    "name",
    [
        b"../../../evil.mp4",
        b"/tmp/evil.mp4",
        b"..\\\\..\\\\evil.mp4",
        b"%2e%2e%2f%2e%2e%2fevil.mp4",
        b"..",
        b".",
        b"evil\0.mp4",
        b"evil.mp4\r\nSet-Cookie: evil=1",
        b"evil\nSet-Cookie: evil=1",
        b'evil"; name="evil',
        b"\xff\xfe\x80.mp4",
        "\N{RIGHT-TO-LEFT OVERRIDE}4pm.live\N{POUTING FACE}".encode(),
        b"e" * 3000,
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_a_file_name_is_a_name_and_nothing_else(app: Served, name: bytes) -> None:
    answer = ask(app, "POST", "/api/recordings", form(b"no video", name), FORM)
    assert "set-cookie" not in answer.headers
    if answer.status != 201:
        detail(answer, 400, 422)
        return
    info = json.loads(answer.body)
    assert info["name"].isprintable()
    assert 0 < len(info["name"]) <= 200
    assert (app.folder / "recordings" / info["id"] / "upload").read_bytes() == b"no video"
    assert ask(app, "GET", f"/recordings/{info['id']}").status == 200
    delete(app, info["id"])


# Recordings that are none


def fails(app: Served, content: bytes) -> str:
    """Why a recording failed, which it must."""
    answer = ask(app, "POST", "/api/recordings", form(content, b"x.mp4"), FORM)
    assert answer.status == 201, answer
    id_ = json.loads(answer.body)["id"]
    info = app.wait_for(id_, "failed", "finished")
    assert info["state"] == "failed"
    for name in ("annotated.mp4", "report.html", "frames.csv"):
        detail(ask(app, "GET", f"/api/recordings/{id_}/files/{name}"), 404)
    delete(app, id_)
    assert str(app.folder) not in info["message"]
    return str(info["message"])


@pytest.mark.parametrize("playlist", [hls, concat])
@pytest.mark.usefixtures("unchanged")
def test_a_playlist_reaches_nothing(app: Served, playlist: Callable[[str], bytes], make: Callable[..., Path]) -> None:
    """Neither a recording on the server's disk nor an address that the server can reach."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        secret, port = make(name="secret.mp4", frames=3, width=160, height=120), listener.getsockname()[1]
        for target in (str(secret), f"http://127.0.0.1:{port}/secret.mp4"):
            assert "x.mp4: not a recording that can be read" in fails(app, playlist(target))
        with pytest.raises(BlockingIOError):
            listener.accept()


def pictures_in(path: Path, **options: str) -> int:
    with av.open(str(path), options=options) as file:
        return sum(1 for _ in file.decode(video=0))


@pytest.mark.usefixtures("unchanged")
def test_an_mp4_takes_no_data_from_other_files(app: Served, make: Callable[..., Path], tmp_path: Path) -> None:
    content = elsewhere(make(name="secret.mp4", frames=3, width=160, height=120))
    evil = tmp_path / "evil.mp4"
    evil.write_bytes(content)
    assert pictures_in(evil, enable_drefs="1", use_absolute_path="1") == 3  # who follows it gets the other's pictures
    assert "none of its pictures can be decoded" in fails(app, content)


# What unpacks to gigabytes


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(png_claiming(50_000, 50_000), id="png"),
        pytest.param(png_claiming(2**31 - 1, 2**31 - 1), id="png-most"),
        pytest.param(tiff_claiming(2**31 - 1, 2**31 - 1), id="tiff"),
        pytest.param(tiff_claiming(7000, 7000), id="tiff-just-too-large"),
        pytest.param(bmp_claiming(60_000, 60_000), id="bmp"),
        pytest.param(blank("PNG", 6400, 6400), id="real-png"),
    ],
)
def test_a_picture_that_claims_too_much_is_not_unpacked(app: Served, content: bytes) -> None:
    assert len(content) < 100_000
    said = detail(ask(app, "POST", "/api/segment", form(content), FORM), 413)
    assert "more pixels than 40 million" in said or "are more pixels than 40 million" in said


@pytest.mark.parametrize("claim", [png_claiming, tiff_claiming, bmp_claiming])
def test_what_claims_a_little_is_known(app: Served, claim: Callable[[int, int], bytes]) -> None:
    """The files above are refused for their size, and not for being none."""
    answer = ask(app, "POST", "/api/segment", form(claim(8, 8)), FORM)
    assert answer.status in (200, 415)
    assert "not an image that can be read" not in answer.body.decode()


@pytest.mark.usefixtures("unchanged")
def test_a_recording_of_huge_pictures_is_not_unpacked(app: Served, tmp_path: Path) -> None:
    path = tmp_path / "huge.mov"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 6400, 6400, "gray"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((6400, 6400), np.uint8), "gray")))
        file.mux(stream.encode(None))
    assert "or they exceed 40 million pixels" in fails(app, path.read_bytes())
    fails(app, b"YUV4MPEG2 W99999 H99999 F25:1 C420jpeg\nFRAME\n" + bytes(1000))


# Too much


@pytest.mark.parametrize("path", ["/api/segment", "/api/recordings", "/api/uploads", "/overlay/on", "/nothing"])
@pytest.mark.usefixtures("unchanged")
def test_too_large_a_body_is_not_awaited(app: Served, path: str) -> None:
    kind = JSON if path == "/api/uploads" else FORM
    with closing(http.client.HTTPConnection(urlsplit(app.address).netloc, timeout=20)) as connection:
        connection.putrequest("PUT" if path == "/overlay/on" else "POST", path)
        connection.putheader("Content-Length", str(200_000 * MEGA))
        connection.putheader("Content-Type", kind["Content-Type"])
        connection.endheaders()
        answer = answer_of(connection.getresponse())
    assert detail(answer, 413) == "the body is too large"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "headers"), [("/api/segment", FORM), ("/api/recordings", FORM), ("/api/uploads", JSON)]
)
@pytest.mark.usefixtures("unchanged")
def test_a_body_that_does_not_say_its_length_is_counted(app: Served, path: str, headers: dict[str, str]) -> None:
    begin = form(b"").partition(b"\r\n--x--")[0] if headers is FORM else b'{"size": 1, "name": "'
    sent: list[int] = []

    def pieces() -> Iterable[bytes]:
        yield begin
        for _ in range(40):
            sent.append(100_000)
            yield bytes(100_000)

    detail(ask(app, "POST", path, pieces(), headers), 413)
    assert sum(sent) > LIMITS["picture_megabytes"] * MEGA


@pytest.mark.usefixtures("unchanged")
def test_no_more_comes_than_was_announced(app: Served) -> None:
    id_ = announce(app, 1000)
    detail(ask(app, "PATCH", f"/api/uploads/{id_}?offset=0", bytes(1001)), 413)
    detail(ask(app, "PATCH", f"/api/uploads/{id_}?offset=0", iter([bytes(500), bytes(501)])), 409, 413)
    assert app.info(id_)["received"] <= 1000
    assert (app.folder / "recordings" / id_ / "upload").stat().st_size <= 1000
    assert app.info(id_)["state"] == "uploading"
    delete(app, id_)


@pytest.mark.parametrize("size", [2 * MEGA + 1, 10**30])
@pytest.mark.usefixtures("unchanged")
def test_no_more_is_announced_than_may_be(app: Served, size: int) -> None:
    detail(ask(app, "POST", "/api/uploads", json.dumps({"name": "a", "size": size}).encode(), JSON), 413)


# What is of another type

NO_PICTURES = {
    "text": b"just text",
    "html": b"<!doctype html><script>alert(1)</script>",
    "elf": b"\x7fELF\x02\x01\x01" + bytes(100),
    "nothing": b"",
    "zeros": bytes(1000),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "gif": blank("GIF", 8, 8),
    "half a jpeg": blank("JPEG", 500, 500)[:600],
    "half a png": png_claiming(500, 500),
    "a playlist": hls("/etc/passwd"),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_is_refused(app: Served, kind: str) -> None:
    detail(ask(app, "POST", "/api/segment", form(NO_PICTURES[kind]), FORM), 415)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"bytes", 415),
        ({"Content-Type": "text/html"}, b"<p>", 415),
        ({"Content-Type": "multipart/form-data"}, form(b"no boundary"), 415),
        (FORM, form(b""), 415),
        (FORM, form(b"another field", field=b"other"), 422),
        (FORM, b"", 422),
        (FORM, b"not a form at all", 400),
        (FORM, form(b"never ends")[:-20], 422),
        (FORM, b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 400),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_what_is_no_upload_is_refused(app: Served, headers: dict[str, str], body: bytes, status: int) -> None:
    detail(ask(app, "POST", "/api/recordings", body, headers), status)


# Slowness


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_TIMEOUT_S", 0.6)
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 0.6)


def connect(app: Served, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", urlsplit(app.address).port), timeout=5)
    connection.sendall(sent)
    return connection


def until_closed(connection: socket.socket) -> bytes:
    """All that comes until the server hangs up, which it must."""
    received = b""
    with connection:
        try:
            while some := connection.recv(65536):
                received += some
        except ConnectionResetError:
            pass
    return received


def body_of(path: str, method: bytes = b"POST") -> bytes:
    length = b"Content-Length: 1000\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
    return method + b" " + path.encode() + b" HTTP/1.1\r\n" + HEAD + length + form(b"half")[:60]


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\n" + HEAD])
@pytest.mark.usefixtures("hasty")
def test_half_a_head_is_not_awaited_for_ever(app: Served, sent: bytes) -> None:
    assert until_closed(connect(app, sent)) == b""


@pytest.mark.usefixtures("hasty")
def test_a_head_that_trickles_is_not_awaited_for_ever(app: Served) -> None:
    """Neither the first one of a connection nor a later one."""
    for before in (b"", b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n"):
        with connect(app, before) as connection:
            received = b""
            while before and not received.endswith(b"ok"):
                received += connection.recv(65536)
            started = time.monotonic()
            with pytest.raises(OSError):
                for _ in range(50):
                    connection.sendall(b"G")
                    time.sleep(0.1)
            assert 0.5 < time.monotonic() - started < 4


@pytest.mark.parametrize("path", ["/api/segment", "/api/recordings"])
@pytest.mark.usefixtures("hasty", "unchanged")
def test_a_body_that_pauses_is_not_awaited_for_ever(app: Served, path: str) -> None:
    head, _, said = until_closed(connect(app, body_of(path))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(said)["detail"] == "no data was received for 0.6 seconds"


@pytest.mark.usefixtures("hasty", "unchanged")
def test_a_piece_that_pauses_is_kept_as_far_as_it_came(app: Served) -> None:
    id_ = announce(app, 1000)
    until_closed(connect(app, body_of(f"/api/uploads/{id_}?offset=0", b"PATCH")))
    assert app.info(id_)["received"] == 60
    assert ask(app, "PATCH", f"/api/uploads/{id_}?offset=60", bytes(10)).status == 200  # and it goes on
    delete(app, id_)


@pytest.mark.parametrize("path", ["/healthz", "/nothing"])
@pytest.mark.usefixtures("hasty")
def test_a_body_that_nobody_wants_is_not_awaited_for_ever(app: Served, path: str) -> None:
    connection = connect(app, body_of(path))
    received = connection.recv(65536)
    assert received.startswith((b"HTTP/1.1 405 ", b"HTTP/1.1 404 "))
    time.sleep(0.2)
    connection.sendall(b"x")
    until_closed(connection)


@pytest.mark.usefixtures("hasty")
def test_many_slow_ones_leave_the_others_their_answers(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_TIMEOUT_S", 3.0)
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 3.0)
    slow = [connect(app, b"GET / HT") for _ in range(100)] + [connect(app, body_of("/api/segment")) for _ in range(100)]
    picture = form(blank("PNG", 64, 64))
    started = time.monotonic()
    assert ask(app, "GET", "/healthz").status == 200
    assert ask(app, "POST", "/api/segment", picture, FORM).status == 200
    assert time.monotonic() - started < 2.5
    for connection in slow:
        until_closed(connection)


# Other sites


CROSS_SITE = [
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site"},  # another port of this machine
    {"Origin": "http://evil.example"},
    {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://localhost.evil.example"},
]


@pytest.mark.parametrize("headers", CROSS_SITE)
@pytest.mark.usefixtures("unchanged")
def test_another_sites_page_changes_nothing(app: Served, finished: str, headers: dict[str, str]) -> None:
    as_text = {"Content-Type": "text/plain"}  # which a form can send without asking
    for method, path, body, kind in (
        ("POST", "/api/recordings", form(b"no video"), FORM),
        ("POST", "/api/segment", form(blank("PNG", 8, 8)), FORM),
        ("POST", "/api/uploads", b'{"name": "a", "size": 1}', as_text),
        ("POST", f"/api/recordings/{finished}/cancel", b"", {}),
        ("DELETE", f"/api/recordings/{finished}", None, {}),
        ("PUT", "/overlay/off", None, {}),
    ):
        assert ask(app, method, path, body, headers | kind).status == 403, path
    assert app.info(finished)["state"] == "finished"


def test_our_own_page_may(app: Served) -> None:
    for headers in ({"Origin": app.address}, {"Origin": app.address, "Sec-Fetch-Site": "same-origin"}):
        assert ask(app, "POST", "/api/segment", form(blank("PNG", 8, 8)), headers | FORM).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1"],
)
@pytest.mark.usefixtures("unchanged")
def test_no_other_name_leads_here(app: Served, host: str) -> None:
    for method, path, body in (("GET", "/api/recordings", None), ("POST", "/api/recordings", form(b"no video"))):
        answer = ask(app, method, path, body, FORM | {"Host": host})
        assert (answer.status, answer.body) == (400, b"Invalid host header")


def test_a_request_without_a_host_is_refused(app: Served) -> None:
    for version in (b"1.0", b"1.1"):
        answer = until_closed(connect(app, b"GET /api/recordings HTTP/" + version + b"\r\nConnection: close\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 400 ")


# Scripts


def test_markup_in_a_name_is_shown_as_it_is_written(app: Served, finished: str) -> None:
    assert app.info(finished)["name"] == MARKUP
    for path in ("/recordings", f"/recordings/{finished}", f"/api/recordings/{finished}/files/report.html"):
        page = ask(app, "GET", path).body.decode()
        assert "alert(1)" in page
        for tag in ("<script>alert", "<img src=x", "\"'>"):
            assert tag not in page
        assert MARKUP in html.unescape(page)


def test_no_page_runs_a_script_of_anybodys(app: Served, finished: str) -> None:
    for path in ("/", "/picture", "/recordings", f"/recordings/{finished}", "/live", "/api", "/api/recordings"):
        headers = ask(app, "GET", path).headers
        policy = headers["content-security-policy"].split("; ")
        assert "default-src 'self'" in policy
        assert not [rule for rule in policy if rule.startswith("script-src") or "unsafe" in rule]
        assert headers["x-content-type-options"] == "nosniff"


def test_a_report_runs_in_a_sandbox(app: Served, finished: str) -> None:
    headers = ask(app, "GET", f"/api/recordings/{finished}/files/report.html").headers
    policy = headers["content-security-policy"].split("; ")
    assert "sandbox allow-scripts" in policy  # and not allow-same-origin
    assert "default-src 'none'" in policy


# The token


def test_nothing_is_said_to_who_does_not_know_the_token(tmp_path: Path, red_model: Path) -> None:
    with served(tmp_path, settings_for(red_model), token="secret") as app:
        known = {"Authorization": "Bearer secret"}
        described = json.loads(ask(app, "GET", "/openapi.json", headers=known).body)["paths"]
        calls = [(method.upper(), path) for path, methods in described.items() for method in methods]
        pages = ["/", "/picture", "/recordings", "/recordings/0123456789abcdef", "/live", "/live/0/stream", "/api"]
        files = ["/openapi.json", "/static/style.css", "/static/picture.js", "/static", "/nothing", "/docs", "/healthz"]
        calls += [("GET", path) for path in pages + files] + [("HEAD", "/"), ("OPTIONS", "/"), ("POST", "/")]
        for method, path in calls:
            for wrong in (
                {},
                {"Authorization": "Bearer "},
                {"Authorization": "Bearer secre"},
                {"Authorization": "Bearer secret2"},
                {"Authorization": "Basic c2VjcmV0OnNlY3JldA=="},
                {"Cookie": "polypstream-token=Secret"},
            ):
                answer = ask(app, method, path, headers=wrong)
                assert answer.status == 401, (method, path, wrong)
                said = b"" if method == "HEAD" else "This page needs a token: open /?token=…".encode()
                assert answer.body == said
        assert ask(app, "GET", "/?token=wrong").status == 401
        assert ask(app, "GET", "/api/recordings?token=secret").headers["location"] == "/api/recordings"
        assert ask(app, "GET", "/healthz", headers=known).body == b"ok"


def test_the_token_leads_to_no_other_site(tmp_path: Path, red_model: Path) -> None:
    with served(tmp_path, settings_for(red_model), token="secret") as app:
        for path in ("//evil.example/?token=secret", "/\\evil.example?token=secret", "/%0d%0aevil:%201?token=secret"):
            answer = ask(app, "GET", path)
            location = answer.headers.get("location", "/")
            assert urlsplit(location).netloc == ""
            assert not location.startswith(("//", "/\\"))
            assert "evil" not in answer.headers


# Errors inside


@pytest.mark.usefixtures("unchanged")
def test_an_error_inside_is_not_told(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = form(blank("PNG", 64, 64))

    def fail(*_: object) -> None:
        raise RuntimeError("secret /etc/path")

    with monkeypatch.context() as patched:
        patched.setattr(Segmenter, "segment", fail)
        answer = ask(app, "POST", "/api/segment", picture, FORM)
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ask(app, "POST", "/api/segment", picture, FORM).status == 200


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow over 200 kB: a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files", "unchanged")
def test_a_disk_that_takes_no_more_is_not_shown(app: Served) -> None:
    said = detail(ask(app, "POST", "/api/recordings", form(bytes(MEGA)), FORM), 507)
    assert "cannot store the file" in said
    id_ = announce(app, MEGA)
    detail(ask(app, "PATCH", f"/api/uploads/{id_}?offset=0", bytes(MEGA)), 507)
    assert app.info(id_)["state"] == "uploading"
    delete(app, id_)


def test_many_at_once_all_get_an_answer(app: Served) -> None:
    """Good and bad pictures together: nobody's error is another's."""
    statuses: list[tuple[int, int]] = []

    def send(number: int) -> None:
        content = NO_PICTURES["half a jpeg"] if number % 2 else blank("PNG", 64, 64)
        statuses.append((number % 2, ask(app, "POST", "/api/segment", form(content), FORM).status))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [(0, 200)] * 12 + [(1, 415)] * 12
    until(lambda: ask(app, "GET", "/healthz").status == 200)
