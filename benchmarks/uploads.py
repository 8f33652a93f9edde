"""Hostile uploads to `polypstream serve`: it goes on, says what is wrong, and changes nothing of another upload.

    python benchmarks/uploads.py FOLDER [--cases 1000] [--first 0] [--seed 1] [--kinds damaged_recording,…]

One server takes all cases, one after another. It has a finished recording and a half-sent one, which the attacks must
not change. The kinds of cases take turns: damaged, forged and huge recordings and images, file names that are paths,
forms and requests that are none, lengths that are wrong, connections that break or stall, pieces out of order,
recordings that are deleted while they are processed, other sites, wrong tokens, and hundreds of requests at once.

After each case all its recordings are deleted. It is faulty if

- the server ends, writes a traceback, answers with a status of 500 or more, or tells where its files are;
- a recording that was accepted does not end, or ends with an error that is not foreseen, or has unreadable results;
- a file in the server's folders is left, missing or changed, its temporary folder included;
- processes are left, open files grow, or the server or one of its processes needs too much memory.

FOLDER gets results.jsonl, with one line for each case; a run that was interrupted goes on. A case takes about a second.
"""

from __future__ import annotations

import io
import itertools
import json
import socket
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from urllib.parse import quote

from attacked import (
    ANSWER_S,
    LARGEST_PICTURE_MB,
    LARGEST_RECORDING_GB,
    MEGA,
    TOKEN,
    Answer,
    Fault,
    Server,
    attacked,
    expect,
)
from campaign import Cases, until, working_folder
from fuzz import CLIPS, DAMAGE, SMALL, some, whole
from PIL import Image

from tests.conftest import make_clip, picture
from tests.jobs.test_dicom import as_dicom
from tests.web.hostile import (
    FORM,
    JSON,
    blank,
    bmp_claiming,
    chunk,
    concat,
    elsewhere,
    form,
    hls,
    png_claiming,
    tiff_claiming,
)

LARGEST = int(LARGEST_RECORDING_GB * 1000) * MEGA
# The server gives up a body that pauses for 30 seconds.
STALL_S = 45.0
# Closes a connection by a reset, and not in order.
RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
Work = TypeVar("Work")
Result = TypeVar("Result")


def main() -> None:
    """Run the cases that are left. A server that has ended is replaced."""
    cases = Cases(__doc__, 1000, KINDS)
    model = cases.model()
    while left := cases.left():
        with working_folder(cases.folder) as folder, attacked(folder, model) as server:
            protect_some(server)
            for number in left:
                kind = cases.kinds[number % len(cases.kinds)]
                cases.add(number, kind=kind, **attack(server, kind, cases.chance(number)))
                if not server.alive:
                    break
    cases.summarize("kind", "ending")


def protect_some(server: Server) -> None:
    """Give the server a finished recording, a half-sent one and a set of images, which no attack may change."""
    content = whole("mp4-h264")
    expect(server.upload(content, b"mine.mp4") == "finished", "a whole recording is not finished")
    half = server.announce(len(content), "half.mp4")
    expect(server.append(half, 0, content[: len(content) // 2]).status == 200, "half a recording is not taken")
    images = [("1.png", a_picture("PNG")), ("2.jpg", a_picture("JPEG"))]
    expect(upload_images(server, images) == "finished", "a set of images is not finished")
    server.protect()


def attack(server: Server, kind: str, chance: Random) -> dict[str, object]:
    """Run a case; what is stored of it."""
    begin, server.peak_mb = time.monotonic(), 0
    try:
        ending, faults = KINDS[kind](server, chance), []
    except Fault as fault:
        ending, faults = "fault", [str(fault)]
    faults += server.tidy()
    seconds = round(time.monotonic() - begin, 1)
    measured = {"memory_mb": server.memory_mb, "peak_mb": server.peak_mb, "seconds": seconds} if server.alive else {}
    return {"ending": ending, **measured, "faults": faults}


# Contents


@cache
def a_picture(kind: str) -> bytes:
    """A picture of the tests, in a format of Pillow."""
    file = io.BytesIO()
    Image.fromarray(picture(SMALL, 3)).save(file, kind)
    return file.getvalue()


@cache
def a_dicom() -> bytes:
    """A DICOM video object."""
    with tempfile.TemporaryDirectory() as folder:
        return as_dicom(make_clip(Path(folder), CLIPS["mp4-h264"]), PatientName="Secret^Patient").read_bytes()


@cache
def an_archive() -> bytes:
    """A ZIP archive with a name that leads out of it, and a member that unpacks to 50 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../evil.mp4", whole("mp4-h264"))
        archive.writestr("bomb", bytes(50 * MEGA))
    return file.getvalue()


def damaged(chance: Random, content: bytes) -> bytes:
    """A content with random damage, as in fuzz.py."""
    return DAMAGE[chance.choice(list(DAMAGE))](chance, content)


def a_recording(chance: Random) -> tuple[bytes, str]:
    """A whole recording, and its ending."""
    kind = chance.choice(list(CLIPS))
    return whole(kind), Path(CLIPS[kind].name).suffix


@cache
def a_bomb() -> bytes:
    """What unpacks to 80 MB."""
    return zlib.compress(bytes(80 * MEGA))


def a_reference(server: Server, chance: Random) -> bytes:
    """A playlist, or another file, that leads to the recording of another, to a file of the system or to an address."""
    kept = server.around / "kept" / "recordings" / server.id_of("mine.mp4") / "upload"
    target = chance.choice([str(kept), "/etc/passwd", f"http://{server.host}:{server.port}/?token={TOKEN}", "upload"])
    files = [
        hls(target),
        concat(target),
        elsewhere(kept),
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{target}"/><script>a()</script></svg>'.encode(),
        f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file://{target}">]><a>&b;</a>'.encode(),
        f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{target}</BaseURL></Period></MPD>'.encode(),
        f"v=0\no=- 0 0 IN IP4 {server.host}\nm=video {server.port} RTP/AVP 96\n".encode(),
        f"[InternetShortcut]\nURL=file://{target}".encode(),
    ]
    return chance.choice(files)


def a_foreign_file(chance: Random) -> bytes:
    """A file of another type."""
    begins = [b"%PDF-1.7\n", b"\x7fELF\x02\x01\x01", b"SQLite format 3\0", b"#!/bin/sh\nid\n", b"%!PS-Adobe-3.0\n", b""]
    texts = [begin + chance.randbytes(some(chance, 5000)) for begin in begins]
    files = [an_archive(), a_bomb(), a_dicom(), a_dicom()[:5000], a_picture("JPEG"), blank("GIF", 8, 8), bytes(1000)]
    return chance.choice([*texts, *files])


def a_polyglot(chance: Random) -> bytes:
    """A file that is two things at once."""
    first = chance.choice([a_recording(chance)[0], a_picture("PNG"), a_picture("JPEG"), a_dicom()])
    second = chance.choice([an_archive(), a_foreign_file(chance), a_recording(chance)[0]])
    return first + second if chance.random() < 0.5 else second[: some(chance, len(second))] + first


def a_huge_picture(chance: Random) -> bytes:
    """A small file that claims, or has, millions of pixels, or has parts that unpack to much."""
    width, height = (some(chance, 2**31 - 1) for _ in range(2))
    small = a_picture("PNG")
    makers: list[Callable[[], bytes]] = [
        lambda: png_claiming(width, height),
        lambda: tiff_claiming(width, height),
        lambda: bmp_claiming(width, height),
        lambda: blank("PNG", 6400, 6400),
        lambda: blank("PNG", some(chance, 40_000), some(chance, 900)),
        lambda: blank(chance.choice(["PNG", "TIFF", "BMP"]), some(chance, 1200), some(chance, 1200)),
        lambda: small[:33] + chunk(chance.choice([b"zTXt", b"iCCP"]), b"a\0\0" + a_bomb()) + small[33:],
        lambda: with_jpeg_size(a_picture("JPEG"), chance.randrange(65536), chance.randrange(65536)),
    ]
    return chance.choice(makers)()


def with_jpeg_size(content: bytes, width: int, height: int) -> bytes:
    """A JPEG, or motion JPEG, whose pictures claim another size."""
    parts = content.split(b"\xff\xc0")
    return b"\xff\xc0".join(
        [parts[0], *(part[:3] + struct.pack(">HH", height, width) + part[7:] for part in parts[1:])]
    )


def a_huge_recording(chance: Random) -> bytes:
    """A small recording that claims millions of pixels or of frames."""
    width, height, rate = (some(chance, 100_000) for _ in range(3))
    y4m = f"YUV4MPEG2 W{width} H{height} F{rate}:{some(chance, 1000)} C420jpeg\nFRAME\n".encode() + bytes(1000)
    jpeg = with_jpeg_size(whole("avi-mjpeg"), chance.randrange(65536), chance.randrange(65536))
    mp4, mkv = whole("mp4-h264"), whole("mkv-h264")
    at = mp4.index(b"avc1", mp4.index(b"stsd")) + 28
    entry = mp4[:at] + struct.pack(">HH", width & 65535, height & 65535) + mp4[at + 4 :]
    counted = mp4.index(b"stts") + 12
    frames = mp4[:counted] + struct.pack(">I", chance.randrange(2**32)) + mp4[counted + 4 :]
    timescale = mp4.index(b"mdhd") + 16
    slow = mp4[:timescale] + struct.pack(">I", chance.choice([0, 1, 2**31, 2**32 - 1])) + mp4[timescale + 4 :]
    size = mkv.index(b"\xb0\x81") if b"\xb0\x81" in mkv else 0
    matroska = mkv[: size + 2] + bytes([chance.randrange(256)]) + mkv[size + 3 :]
    return chance.choice([y4m, jpeg, entry, frames, slow, matroska])


PARTS = [
    *(
        "../",
        "..\\",
        "/",
        "\\",
        "..%2f",
        "%2e%2e/",
        "%00",
        "\0",
        "\r\n",
        "\n",
        "\t",
        '"',
        "'",
        ";",
        "=",
        " ",
        ".",
        "..",
    ),
    *("<script>alert(1)</script>", "{{7*7}}", "%s%n", "$(id)", "`id`", "| id", "*", "?", ":", "~", "-rf", "--", "CON"),
    *("\N{RIGHT-TO-LEFT OVERRIDE}", "\N{POUTING FACE}", "e\N{COMBINING ACUTE ACCENT}", "\ufeff", "\u2028", "a" * 300),
    *(
        "etc/passwd",
        "upload",
        "library.sqlite",
        "images.json",
        "incoming",
        "report.html",
        "file:///",
        "http://127.0.0.1/",
    ),
]


def a_name(chance: Random, ending: str = "") -> str:
    """A file name that tries to be a path, markup, a command or a header."""
    return "".join(chance.choices(PARTS, k=chance.randint(1, 5))) + ending


# Recordings in one request


def damaged_recording(server: Server, chance: Random) -> str:
    content, ending = a_recording(chance)
    return server.upload(damaged(chance, content), f"a{ending}".encode())


def hostile_name(server: Server, chance: Random) -> str:
    """A name is shown, and nothing else: it is printable text, and no part of a path."""
    content, ending = a_recording(chance)
    name = a_name(chance, ending)
    answer = server.ask("POST", "/api/recordings", form(content, name.encode(errors="replace")), FORM)
    if answer.status == 201:
        shown = answer.json()["name"]
        expect(shown.isprintable() and 0 < len(shown) <= 200, f"its name is {shown!r}")
        page = server.ask("GET", f"/recordings/{answer.json()['id']}").body
        expect(b"<script>alert" not in page, f"the page runs {name!r}")
    return server.end_of(answer)


def hostile_form(server: Server, chance: Random) -> str:
    """A form that is none, or that has other fields, parts or types than announced."""
    content = a_recording(chance)[0]
    whole_form, name = form(content, b"a.mp4"), a_name(chance).encode(errors="replace")
    bodies = [
        damaged(chance, form(content[:2000], b"a.mp4")),
        form(content, name, name),
        whole_form.replace(b"--x--", b"--x") + whole_form,
        b"--x\r\nA: b\r\n" * some(chance, 2000) + whole_form,
        b"--x\r\nContent-Disposition: form-data; " + name * 50 + b"\r\n\r\n" + content,
        whole_form[: chance.randrange(len(whole_form))],
        form(form(content)),
        b"",
    ]
    types = ["multipart/form-data; boundary=x"] * 4
    types += ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 500, "multipart/mixed; boundary=x"]
    types += ["text/html", "application/json", 'multipart/form-data; boundary="x', "multipart/form-data; boundary=\xff"]
    path = chance.choice(["/api/recordings", "/api/segment", "/api/uploads", "/api/image-sets"])
    return server.end_of(server.ask("POST", path, chance.choice(bodies), {"Content-Type": chance.choice(types)}))


def foreign_file(server: Server, chance: Random) -> str:
    return server.upload(a_foreign_file(chance), chance.choice([b"a.mp4", b"a.dcm", b"a.zip", b"a.svg", b"a"]))


def reference(server: Server, chance: Random) -> str:
    """What refers to other files is no recording, for nobody may read them through it."""
    ending = server.upload(a_reference(server, chance), chance.choice([b"a.mp4", b"a.m3u8", b"a.svg"]))
    expect(ending in ("failed", "415"), f"a reference is {ending}")
    return ending


def polyglot(server: Server, chance: Random) -> str:
    return server.upload(a_polyglot(chance), b"a.mp4")


def dicom(server: Server, chance: Random) -> str:
    return server.upload(damaged(chance, a_dicom()), b"IM0001")


def huge_recording(server: Server, chance: Random) -> str:
    return server.upload(a_huge_recording(chance), b"a.mp4")


def wrong_length(server: Server, chance: Random) -> str:
    """A body that is shorter or longer than its announced length, or whose length is no number."""
    body = form(a_recording(chance)[0], b"a.mp4")
    larger = str(len(body) + some(chance, 10**12))
    said = chance.choice(
        [larger, str(some(chance, len(body))), "-1", "1e9", "0", "9" * 30, f"{len(body)}, 5", "0x10", ""]
    )
    chunks = chance.choice(
        [b"%x\r\n" % len(body) + body + b"\r\n", b"-5\r\n" + body, b"ffffffffffffffff\r\n" + body, body]
    )
    length = f"Content-Length: {said}\r\n"
    coding = chance.choice(["Transfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip, chunked\r\n"])
    header, sent = chance.choice([(length, body), (coding, chunks), (coding + length, chunks), (length * 2, body)])
    received = server.send_raw(head("POST", "/api/recordings", header + TYPE) + sent)
    return received[9:12].decode() or "closed"


def broken_connection(server: Server, chance: Random) -> str:
    """A connection that breaks at any byte, in the head or the body. Nothing is kept of it."""
    body = form(a_recording(chance)[0], b"a.mp4")
    request = head(
        "POST", chance.choice(["/api/recordings", "/api/segment"]), f"Content-Length: {len(body)}\r\n" + TYPE
    )
    sent = request + body
    with server.connect(sent[: chance.randrange(len(sent))]) as connection:
        if chance.random() < 0.5:  # a reset, and not an orderly end
            connection.setsockopt(*RESET)
    return "broken"


def stalled_bodies(server: Server, chance: Random) -> str:
    """Many bodies that stop, while others get their answers. Sometimes it is awaited that the server gives them up."""
    lines = f"Content-Length: {MEGA}\r\n" + TYPE
    paths = ["/api/recordings", "/api/segment", "/api/uploads", "/nothing"]
    stalled = [server.connect(head("POST", chance.choice(paths), lines) + b"--x\r\n") for _ in range(some(chance, 150))]
    stalled += [server.connect(b"GET / HT") for _ in range(some(chance, 150))]
    try:
        begin = time.monotonic()
        expect(server.ask("GET", "/healthz").body == b"ok", "others get no answer")
        expect(time.monotonic() - begin < ANSWER_S / 2, f"an answer takes {time.monotonic() - begin:.0f} s")
        ending = server.upload(whole("mp4-h264"))
        expect(ending == "finished", f"another recording is {ending}")
        if chance.random() < 0.8:
            return "others finished"
        for each in stalled:
            each.settimeout(STALL_S)
            with suppress(ConnectionResetError):
                while each.recv(65536):
                    pass
        return "given up"
    except TimeoutError:
        raise Fault(f"a stalled connection is open for more than {STALL_S:.0f} s") from None
    finally:
        for each in stalled:
            each.close()


def slow_body(server: Server, chance: Random) -> str:
    """A body that comes in small pieces, with pauses."""
    body = form(a_recording(chance)[0], b"a.mp4")
    edges = sorted(chance.sample(range(len(body)), 8))

    def pieces() -> Iterator[bytes]:
        for begin, end in zip([0, *edges], [*edges, len(body)], strict=True):
            yield body[begin:end]
            time.sleep(0.3 * chance.random())

    return server.end_of(server.ask("POST", "/api/recordings", pieces(), FORM))


def too_large(server: Server, chance: Random) -> str:
    """More bytes than are allowed, with and without a length."""
    path, size = chance.choice([("/api/recordings", LARGEST), ("/api/segment", LARGEST_PICTURE_MB * MEGA)])
    begin = form(b"", b"a.mp4").partition(b"\r\n--x--")[0]
    body = begin + bytes(size + 2 * MEGA)
    cut = (body[place : place + 65536] for place in range(0, len(body), 65536))
    answer = server.ask("POST", path, chance.choice([body, cut]), FORM)
    expect(answer.status in (0, 413), answer)
    return str(answer.status)


# Recordings in pieces


def pieces_out_of_order(server: Server, chance: Random) -> str:
    """Several clients send the pieces of a recording, in any order and more than once. It becomes what it was."""
    content = a_recording(chance)[0]
    id_ = server.announce(len(content))
    edges = [0, *sorted(chance.sample(range(1, len(content)), 6)), len(content)]
    parts = list(itertools.pairwise(edges))

    def send(seed: int) -> None:
        order = Random(seed)
        while server.info(id_)["state"] == "uploading":
            begin, end = order.choice(parts)
            expect(server.append(id_, begin, content[begin:end]).status in (200, 409), "a piece is refused")

    in_parallel(send, [chance.randrange(10**6) for _ in range(4)])
    stored = server.around / "kept" / "recordings" / id_ / "upload"
    expect(stored.read_bytes() == content, "the recording is not what was sent")
    ending = server.end_of(server.ask("GET", f"/api/recordings/{id_}"))
    expect(ending == "finished", f"a whole recording is {ending}")
    return ending


def wrong_pieces(server: Server, chance: Random) -> str:
    """Offsets that are wrong, too many bytes, and pieces for the recordings of others."""
    content = a_recording(chance)[0]
    id_ = server.announce(len(content))
    offsets = [-1, 1, len(content), 10**30, "NaN", "0x0", "", "1e3", "0&offset=5", quote(a_name(chance))]
    answers = [server.append(id_, chance.choice(offsets), content[:100]) for _ in range(5)]
    answers += [server.append(chance.choice(list(server.others)), chance.choice([0, 1, *offsets]), b"evil")]
    answers += [server.append(id_, 0, content + chance.randbytes(some(chance, 10_000)))]
    expect(all(answer.status in (0, 409, 413, 422) for answer in answers), answers)
    received = server.info(id_)["received"]
    expect(received <= len(content), f"{received} bytes of {len(content)}")
    return server.end_of(server.append(id_, received, content[received:]))


def broken_pieces(server: Server, chance: Random) -> str:
    """Each piece breaks somewhere. The sender asks what is there, and goes on."""
    content = a_recording(chance)[0]
    id_, received = server.announce(len(content)), 0
    path = f"/api/uploads/{id_}?offset="
    for _ in range(4):
        request = head("PATCH", f"{path}{received}", f"Content-Length: {len(content) - received}\r\n")
        server.connect(request + content[received : chance.randrange(received, len(content))]).close()
        time.sleep(0.2 * chance.random())
        before, received = received, server.info(id_)["received"]
        expect(before <= received <= len(content), f"{received} bytes, {before} before")

    def go_on() -> bool:
        received = server.info(id_)["received"]
        return server.append(id_, received, content[received:]).status == 200

    expect(until(go_on, 20), f"it cannot go on: {server.info(id_)}")
    ending = server.end_of(server.ask("GET", f"/api/recordings/{id_}"))
    expect(ending == "finished", f"a whole recording is {ending}")
    return ending


def wrong_announcement(server: Server, chance: Random) -> str:
    """Announcements of recordings and of sets with values of wrong types, sizes and lengths."""
    values: list[Any] = [
        0,
        -1,
        1,
        10**30,
        1.5,
        True,
        None,
        "5",
        [],
        {},
        "",
        "\ud800",
        a_name(chance),
        ["a"] * 2000,
        "a" * 10**5,
    ]
    image = {"name": chance.choice(["a.png", *values]), "size": chance.choice([10, *values])}
    whats = [
        {"name": chance.choice(["a.mp4", *values]), "size": chance.choice([1000, *values])},
        {"name": chance.choice(["a", *values]), "images": chance.choice([[image], [image] * 5001, *values])},
        {"name": "a", "images": [{"name": f"{number}.png", "size": LARGEST} for number in range(some(chance, 6000))]},
    ]
    texts = [json.dumps(chance.choice(whats)).encode() for _ in range(4)]
    texts += [b"[" * 50_000, b'{"size": 1e999, "name": "a"}', b"\xff\xfe", b'{"name": "a", "size": NaN}', b""]
    path = chance.choice(["/api/uploads", "/api/image-sets"])
    return server.end_of(server.ask("POST", path, chance.choice(texts), JSON))


def deleted(server: Server, chance: Random) -> str:
    """A recording is deleted or cancelled while it is sent, waits or is processed, by several clients at once."""
    content = a_recording(chance)[0]
    ids = [server.announce(len(content)) for _ in range(2)]
    piece = len(content) // 5 + 1

    def send(id_: str, _: Random) -> None:
        for begin in range(0, len(content), piece):
            answer = server.append(id_, begin, content[begin : begin + piece])
            expect(answer.status in (200, 404, 409), f"a piece of a deleted recording: {answer}")

    def end(id_: str, order: Random) -> None:
        time.sleep(2.0 * order.random() ** 2)
        for _ in range(3):
            method, below = order.choice([("DELETE", ""), ("POST", "/cancel"), ("POST", "/process")])
            answer = server.ask(method, f"/api/recordings/{id_}{below}")
            expect(answer.status in (200, 204, 404, 409), f"{method} {below}: {answer}")

    jobs = [(job, id_, Random(chance.random())) for id_ in ids for job in (send, end, end)]
    in_parallel(lambda job: job[0](job[1], job[2]), jobs)
    left = [info["id"] for info in server.ask("GET", "/api/recordings").json()]
    ends = {server.end_of(server.ask("GET", f"/api/recordings/{id_}")) if id_ in left else "deleted" for id_ in ids}
    return ", ".join(sorted(ends))


# Images


def upload_images(server: Server, images: list[tuple[str, bytes]]) -> str:
    """Send a set of images; how that ends."""
    announced = {"name": "a set", "images": [{"name": name, "size": len(content)} for name, content in images]}
    answer = server.ask("POST", "/api/image-sets", json.dumps(announced).encode(), JSON)
    if answer.status != 201:
        return str(answer.status)
    return server.end_of(server.append(answer.json()["id"], 0, b"".join(content for _, content in images)))


def image_set(server: Server, chance: Random) -> str:
    """A set of damaged, huge and foreign images, whose names are the same, or lead elsewhere."""
    makers: list[Callable[[], bytes]] = [
        lambda: a_picture(chance.choice(FORMATS)),
        lambda: damaged(chance, a_picture(chance.choice(FORMATS))),
        lambda: a_huge_picture(chance),
        lambda: a_foreign_file(chance),
    ]
    names = [a_name(chance)[-190:] + chance.choice([".png", ".PNG", ".jpg", ".tif", ".webp"]) for _ in range(3)]
    images = [(chance.choice(names), chance.choice(makers)()) for _ in range(chance.randint(1, 6))]
    return upload_images(server, images)


def damaged_picture(server: Server, chance: Random) -> str:
    content, accept = damaged(chance, a_picture(chance.choice(FORMATS))), chance.choice(ACCEPTS)
    answer = server.ask("POST", f"/api/segment{chance.choice(LAYERS)}", form(content), FORM | {"Accept": accept})
    return str(answer.status)


def huge_picture(server: Server, chance: Random) -> str:
    answer = server.ask("POST", "/api/segment", form(a_huge_picture(chance)), FORM | {"Accept": chance.choice(ACCEPTS)})
    return str(answer.status)


def foreign_picture(server: Server, chance: Random) -> str:
    content = chance.choice([a_foreign_file, a_polyglot])(chance)[: LARGEST_PICTURE_MB * MEGA]
    return str(server.ask("POST", "/api/segment", form(content, a_name(chance).encode()), FORM).status)


# Requests


def path_trick(server: Server, chance: Random) -> str:
    """A path that leads out of the static files, out of the results, or to no recording."""
    known = chance.choice(list(server.others))
    begins = ["/static/", f"/api/recordings/{known}/files/", "/api/recordings/", "/recordings/", "/api/uploads/", "/"]
    begins += [f"/api/recordings/{known}/files/annotated/", f"/api/recordings/{known}/files/snapshots/", "//", "/\\"]
    path = chance.choice(begins) + quote(a_name(chance), safe=chance.choice(["/", "", "/.%\\"]))
    method = chance.choice(["GET", "GET", "DELETE", "PATCH", "PUT", "POST", "HEAD", "OPTIONS", "TRACE", "BREW"])
    answer = server.ask(method, path, b"" if method in ("PATCH", "PUT", "POST") else None)
    expect(b"root:" not in answer.body and b"SQLite" not in answer.body, f"{path} leads out")
    expect(answer.status != 201, answer)
    return str(answer.status)


def wrong_token(server: Server, chance: Random) -> str:
    """Requests with a wrong token, which change nothing and learn nothing."""
    wrong = chance.choice(["", TOKEN[:-1], TOKEN + "a", TOKEN.upper(), "Bearer", "a" * 5000, "é", None])
    known = chance.choice(list(server.others))
    method, path = chance.choice(
        [
            ("GET", "/"),
            ("GET", "/api/recordings"),
            ("GET", f"/api/recordings/{known}/files/report.html"),
            ("DELETE", f"/api/recordings/{known}"),
            ("POST", "/api/recordings"),
            ("PATCH", f"/api/uploads/{known}?offset=0"),
            ("GET", f"/?token={quote(wrong or 'wrong')}"),
        ]
    )
    body = form(a_recording(chance)[0]) if method in ("POST", "PATCH") else None
    answer = server.ask(method, path, body, FORM if body else {}, token=wrong)
    expect(answer.status in (0, 400, 401), answer)
    return str(answer.status)


def other_site(server: Server, chance: Random) -> str:
    """A request in the name of another site's page, or under another name of this server."""
    evil = chance.choice(["http://evil.example", "null", f"http://{server.host}:1", a_name(chance).encode().hex()])
    headers = chance.choice(
        [
            {"Origin": evil},
            {"Sec-Fetch-Site": chance.choice(["cross-site", "same-site", "", "SAME-ORIGIN"])},
            {"Host": "evil.example"},
        ]
    )
    known = chance.choice(list(server.others))
    content = form(a_recording(chance)[0], b"a.mp4")
    requests = [("POST", "/api/recordings", content), ("DELETE", f"/api/recordings/{known}", None)]
    method, path, body = chance.choice([*requests, ("POST", f"/api/recordings/{known}/process", b"")])
    answer = server.ask(method, path, body, (FORM if body else {}) | headers)
    expect(answer.status in (0, 400, 403, 413), answer)
    return str(answer.status)


def raw_request(server: Server, chance: Random) -> str:
    """Bytes that are no request, or hardly one."""
    body = form(a_recording(chance)[0][:3000], b"a.mp4")
    request = head("POST", "/api/recordings", f"Content-Length: {len(body)}\r\n" + TYPE)
    sent = chance.choice(
        [
            damaged(chance, request) + body,
            request.replace(b"\r\n", chance.choice([b"\n", b"\r", b"\r\n\r\n"])) + body,
            request[:-2] + b"X: " + b"a" * some(chance, 200_000) + b"\r\n\r\n" + body,
            request[:-2] + b"X: a\r\n" * some(chance, 5000) + b"\r\n" + body,
            chance.randbytes(some(chance, 20_000)),
            head("GET", "/healthz") * some(chance, 300),
            head("GET", "/api/recordings", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\n"),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
    )
    received = server.send_raw(sent, 1.0)
    return received[9:12].decode(errors="replace") or "closed"


def at_once(server: Server, chance: Random) -> str:
    """Hundreds of requests at once, good and bad ones: no one's error is another's."""
    good, clip = form(a_picture("PNG")), form(whole("mp4-h264"), b"a.mp4")
    bad = form(damaged(chance, a_picture("JPEG"))[:200])
    huge, foreign = form(png_claiming(50_000, 50_000)), form(b"text", b"a.png")

    def send(number: int) -> Answer:
        which = number % 50
        if which == 0:
            return server.ask("POST", "/api/recordings", clip, FORM)
        path, body, token = [
            ("/api/segment", good, TOKEN),
            ("/api/segment", bad, TOKEN),
            ("/api/segment", huge, TOKEN),
            ("/api/recordings", foreign, TOKEN),
            ("/api/segment", good, "wrong"),
        ][which % 5]
        return server.ask("POST", path, body, FORM, token)

    answers = in_parallel(send, range(chance.choice([100, 200, 300])), threads=100)
    wanted = [201 if not number % 50 else [200, 415, 413, 415, 401][number % 50 % 5] for number in range(len(answers))]
    wrong = [(number, answer) for number, answer in enumerate(answers) if answer.status not in (0, wanted[number])]
    expect(not wrong, f"{len(wrong)} answers, of which the first is {wrong[:1]}")
    accepted = [answer for number, answer in enumerate(answers) if not number % 50]
    ends = {server.end_of(answer) for answer in accepted}
    expect(ends == {"finished"}, f"whole recordings are {ends}")
    return "finished"


# Parts of requests


def in_parallel(work: Callable[[Work], Result], items: Iterable[Work], threads: int = 8) -> list[Result]:
    """What a function returns for each item, in their order. A Fault of one is raised."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


TYPE = "Content-Type: multipart/form-data; boundary=x\r\n"
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
ACCEPTS = ["*/*", "image/png", "application/x-npz", "application/json", "text/html", "image/*;q=0.1", ";;;", "a" * 1000]
LAYERS = ["", "?layer=probability", "?layer=thresholds", "?layer=picture", "?layer=" + "a" * 1000, "?layer=../x"]


def head(method: str, path: str, lines: str = "") -> bytes:
    """The head of a request, with the token."""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n{lines}\r\n".encode()


KINDS: dict[str, Callable[[Server, Random], str]] = {
    each.__name__: each
    for each in (
        *(damaged_recording, hostile_name, hostile_form, foreign_file, reference, polyglot, dicom, huge_recording),
        *(wrong_length, broken_connection, stalled_bodies, slow_body, too_large),
        *(pieces_out_of_order, wrong_pieces, broken_pieces, wrong_announcement, deleted),
        *(image_set, damaged_picture, huge_picture, foreign_picture),
        *(path_trick, wrong_token, other_site, raw_request, at_once),
    )
}


if __name__ == "__main__":
    main()
