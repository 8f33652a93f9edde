"""A `polypstream serve` that uploads.py attacks: requests as they are written, and what must be true after each."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
from campaign import (
    FAST,
    POLYPSTREAM,
    UNFORESEEN,
    Running,
    address_of,
    faults_of_messages,
    faults_of_results,
    rows_of,
    served_results,
    started,
    until,
)
from PIL import Image

from tests.web.hostile import FORM, JSON, form

TOKEN = "a-long-secret"
# An answer must come in this time, and an accepted recording must end in this time.
ANSWER_S, ENDS_S = 60.0, 120.0
# After a case the server must have tidied up in this time.
TIDY_S = 20.0
# Most memory in MB of the server, and of a process that reads a recording.
MOST_MB = 1500
# Files that a server may have open besides those of the begin, for connections that are not closed yet.
MORE_FILES = 16
# What the server takes.
LARGEST_RECORDING_GB, LARGEST_PICTURE_MB = 0.01, 2
MEGA = 10**6
# Answers to refused requests that are no JSON.
PLAIN = (
    b"This page needs a token",
    b"Pages of other sites cannot",
    b"Invalid host header",
    b"Invalid HTTP request received.",
    b"Malformed range header",
)


class Fault(Exception):
    """What is wrong in a case."""


def expect(true: object, text: object) -> None:
    """Raise Fault with a text unless something is true."""
    if not true:
        raise Fault(str(text))


class Answer(NamedTuple):
    """Of the server. A status of 0 means that it closed the connection without one."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A server under attack.

    Attributes:
        running: its command.
        around: its current folder, which has all that it may write to.
        host, port: its address.
        others: what the API says of the recordings that must not change, by id.
        files: what must be in `around`.
        open_files: how many the server had at the begin.
        peak_mb: most memory that a process for recordings was seen to have in the current case.
    """

    running: Running
    around: Path
    host: str
    port: int
    others: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    open_files: int = 0
    peak_mb: int = 0
    _heard: int = 0

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.running.process.pid)

    @property
    def alive(self) -> bool:
        return self.running.process.poll() is None

    @property
    def memory_mb(self) -> int:
        """Memory of the server."""
        return int(self.process.memory_info().rss // MEGA)

    # Requests

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, token: str | None = TOKEN
    ) -> Answer:
        """Send a request as it is written, and check the answer."""
        sent = ({"Authorization": f"Bearer {token}"} if token is not None else {}) | (headers or {})
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=ANSWER_S)) as connection:
            try:
                with suppress(BrokenPipeError, ConnectionResetError):  # it may refuse a body before it has all of it
                    connection.request(
                        method, path, body, sent, encode_chunked=body is not None and not isinstance(body, bytes)
                    )
                response = connection.getresponse()
                answer = Answer(response.status, response.read())
            except TimeoutError:
                raise Fault(f"{method} {path[:100]}: no answer in {ANSWER_S:.0f} s") from None
            except (http.client.HTTPException, ConnectionResetError, BrokenPipeError):
                return Answer(0, b"")
        self.check(f"{method} {path[:100]}", answer, page=sent.get("Accept") == "text/html")
        return answer

    def check(self, what: str, answer: Answer, page: bool = False) -> None:
        """A refusal says why, in one text or on a page, and nothing that helps an attacker; no request fails inside."""
        expect(answer.status < 500, f"{what}: {answer.status} {answer.body[:300]!r}")
        if answer.status < 400 or not answer.body:
            return
        if page:
            expect(answer.body.startswith(b"<!doctype html>"), f"{what}: it is no page: {answer.body[:300]!r}")
        elif not answer.body.startswith(PLAIN):
            said = answer.json() if answer.body.startswith(b"{") else None
            expect(
                isinstance(said, dict) and isinstance(said.get("detail"), str), f"{what}: it says {answer.body[:300]!r}"
            )
        self.expect_no_secret(what, answer.body.decode())

    def expect_no_secret(self, what: str, said: str) -> None:
        """A message must not tell where the server's files are."""
        for secret in (str(self.around), "Traceback", "site-packages", TOKEN):
            expect(secret not in said, f"{what}: it tells {secret}: {said[:600]}")

    def send_raw(self, sent: bytes, seconds: float = 5.0) -> bytes:
        """Send bytes, and return what comes until the server closes the connection or is silent for some time."""
        received = b""
        with self.connect(sent, seconds) as connection, suppress(TimeoutError, ConnectionError):
            while some_bytes := connection.recv(65536):
                received += some_bytes
                expect(not received.startswith(b"HTTP/1.1 5"), f"{sent[:100]!r}: {received[:300]!r}")
        return received

    def connect(self, sent: bytes, seconds: float = ANSWER_S) -> socket.socket:
        """A connection with the begin of a request, which the server may close."""
        connection = socket.create_connection((self.host, self.port), timeout=seconds)
        with suppress(ConnectionError):
            connection.sendall(sent)
        return connection

    # Recordings

    def id_of(self, name: str) -> str:
        """The id of a recording that must not change."""
        return next(id_ for id_, info in self.others.items() if info["name"] == name)

    def upload(self, content: bytes, name: bytes = b"a.mp4") -> str:
        """Send a recording in one request; how that ends."""
        return self.end_of(self.ask("POST", "/api/recordings", form(content, name), FORM))

    def announce(self, size: int, name: str = "a.mp4") -> str:
        """Announce a recording that is sent in pieces; its id."""
        answer = self.ask("POST", "/api/uploads", json.dumps({"name": name, "size": size}).encode(), JSON)
        expect(answer.status == 201, f"announced: {answer}")
        return str(answer.json()["id"])

    def append(self, id_: str, offset: object, content: Any) -> Answer:
        """Send a piece of a recording."""
        return self.ask("PATCH", f"/api/uploads/{id_}?offset={offset}", content)

    def info(self, id_: str) -> dict[str, Any]:
        """What the server says of a recording."""
        answer = self.ask("GET", f"/api/recordings/{id_}")
        expect(answer.status == 200, f"{id_} is lost: {answer}")
        return dict(answer.json())

    def end_of(self, answer: Answer) -> str:
        """How a request ends: the state of its recording, or the status that refuses it."""
        if answer.status not in (200, 201) or b'"state"' not in answer.body:
            return str(answer.status)
        id_ = answer.json()["id"]
        if answer.json()["state"] == "uploading":
            return "uploading"

        def ended() -> bool:
            self._look()
            return self.info(id_)["state"] in ("finished", "failed", "cancelled")

        expect(until(ended, ENDS_S), f"it did not end: {self.info(id_)}")
        self.check_end(id_)
        return str(self.info(id_)["state"])

    def check_end(self, id_: str) -> None:
        """The words of a recording that has ended are foreseen, and its results are what they say."""
        info = self.info(id_)
        said = info["message"]
        self.expect_no_secret("a recording", said)
        wrong = f"{UNFORESEEN}|the process that read it died|nothing moved in it"
        expect(not re.search(wrong, said), f"an error that was not foreseen: {said}")
        if info["state"] == "finished":
            results = served_results(self.around / "kept", id_)
            faults = faults_of_images(results) if info["image_count"] else faults_of_results(results)
            expect(not faults, faults)
        elif info["state"] == "failed":
            expect(said, "it failed and does not say why")
            folder = self.around / "kept" / "recordings" / id_
            expect(until(lambda: not list(folder.glob("*/upload")), 5), "it failed and has results")

    def _look(self) -> None:
        """Note the memory of the processes that work for the server."""
        self.running.look()
        for each in self.running.family:
            with suppress(psutil.NoSuchProcess):
                if each.is_running():  # and its number is not that of another process by now
                    self.peak_mb = max(self.peak_mb, each.memory_info().rss // MEGA)

    # What must not change

    def protect(self) -> None:
        """From now on nothing of what is there may change."""
        self.others = {info["id"]: self.info(info["id"]) for info in self.ask("GET", "/api/recordings").json()}
        self.files = self._stored()
        self.open_files = self.process.num_fds()

    def tidy(self) -> list[str]:
        """Delete what a case has left; faults of the server after it."""
        if not self.alive:
            return [f"the server has ended with {self.running.process.poll()}: {self.running.said[-600:]}"]
        try:
            for info in self.ask("GET", "/api/recordings").json():
                if info["id"] not in self.others:
                    answer = self.ask("DELETE", f"/api/recordings/{info['id']}")
                    expect(answer.status in (204, 404), f"deletion: {answer}")
            until(lambda: not self._wrong(), TIDY_S)
            faults = self._wrong()
        except Fault as fault:
            faults = [str(fault)]
        said, self._heard = self.running.said[self._heard :], len(self.running.said)
        return faults + faults_of_messages(said)

    def _wrong(self) -> list[str]:
        """What is not as it was."""
        now, wrong = self._stored(), []
        changed = [path for path in now.keys() | self.files.keys() if now.get(path) != self.files.get(path)]
        if changed:
            wrong.append(f"files left, missing or changed: {', '.join(sorted(changed)[:10])}")
        wrong += [f"{id_} has changed: {self.info(id_)}" for id_ in self.others if self.info(id_) != self.others[id_]]
        answer = self.ask("GET", "/healthz")
        if answer.body != b"ok":
            wrong.append(f"/healthz: {answer.body[:300]!r}")
        if (files := self.process.num_fds()) > self.open_files + MORE_FILES:
            wrong.append(f"{files} open files; {self.open_files} at the begin")
        if working := [each for each in self.process.children(recursive=True) if "spawn_main" in str(each.cmdline())]:
            wrong.append(f"{len(working)} processes are left")
        largest = max(self.memory_mb, self.peak_mb)
        if largest > MOST_MB:
            wrong.append(f"{largest} MB of memory")
        return wrong

    def _stored(self) -> dict[str, Any]:
        """Size and time of every file of the server, and its folders."""
        found = {}
        for path in self.around.rglob("*"):
            if not path.name.startswith(("library.sqlite", "said-")):
                with suppress(FileNotFoundError):
                    about = path.stat()
                    found[str(path.relative_to(self.around))] = path.is_dir() or (about.st_size, about.st_mtime_ns)
        return found


@contextmanager
def attacked(folder: Path, model: Path) -> Iterator[Server]:
    """A server for the duration of a block.

    Args:
        folder: for all its files, the temporary ones included.
        model: of the server.
    """
    (folder / "temporary").mkdir()
    limits = (f"serve.recording_gigabytes={LARGEST_RECORDING_GB}", f"serve.picture_megabytes={LARGEST_PICTURE_MB}")
    options = [option for limit in limits for option in ("--set", limit)]
    command = (POLYPSTREAM, "serve", "--port", 0, "--folder", "kept", "--token", TOKEN, "--model", model)
    with started(folder, f"TMPDIR={folder / 'temporary'}", *command, *options, *FAST, program="env") as running:
        address = urlsplit(address_of(running))
        assert address.hostname and address.port
        yield Server(running, folder, address.hostname, address.port)


def faults_of_images(folder: Path) -> list[str]:
    """What is wrong with the results of a set of images."""
    try:
        rows = [row for row in rows_of(folder / "frames.csv") if not row.get("problem")]
        faults = []
        for name in ("annotated", "masks"):
            pictures = list((folder / name).iterdir())
            for each in pictures:
                Image.open(each).load()
            if len(pictures) != len(rows):
                faults.append(f"{len(pictures)} pictures in {name}, and {len(rows)} rows in frames.csv")
        summary = json.loads((folder / "summary.json").read_text())
        if "</html>" not in (folder / "report.html").read_text():
            faults.append("report.html is cut off")
        return faults if summary else [*faults, "summary.json is empty"]
    except (OSError, ValueError) as error:
        return [f"results of images: {type(error).__name__}: {error}"]
