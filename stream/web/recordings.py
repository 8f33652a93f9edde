"""The recordings page: bring a recording, watch its progress, see what was found in it."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from polypstream.core.config import Settings
from polypstream.sinks.findings import SNAPSHOTS
from polypstream.web.found import Found, FoundTrack
from polypstream.web.library import ID_PATTERN, LONGEST_NAME, Entry, Library, State
from polypstream.web.page import BINARY, BODY, JSON_TYPE, MULTIPART_EXTRA, Described, Render, refusal
from polypstream.web.queue import RecordingQueue
from polypstream.web.upload import append_body, save_file_field

GIGA = 10**9
# Recordings on a page.
PAGE = 100
# Space that uploads leave on the disk, for results.
SPARE_BYTES = 2 * GIGA
# A page about other people's pictures: its own styles and script and nothing else.
REPORT_POLICY = (
    "default-src 'none'; img-src data: {}; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
)
Id = Annotated[str, PathParameter(pattern=ID_PATTERN, description="Of a recording")]
UPLOAD: Described = BODY | {
    413: refusal("More than may be, or than was said"),
    507: refusal("The disk is full, or cannot be written"),
}
FORM: Described = {
    415: refusal("The body is of another type, or the file is empty"),
    422: refusal("The form has no file in a field `file`"),
}
NOT_THERE: Described = {404: refusal("There is no such recording, or it has none yet")}


class ResultFile(StrEnum):
    """What a finished run leaves."""

    VIDEO = "annotated.mp4"
    MASKS = "masks.mkv"
    FRAMES = "frames.csv"
    FINDINGS = "findings.json"
    SUMMARY = "summary.json"
    REPORT = "report.html"


RESULT_TYPES = {
    ResultFile.VIDEO: "video/mp4",
    ResultFile.MASKS: "video/x-matroska",
    ResultFile.FRAMES: "text/csv",
    ResultFile.FINDINGS: JSON_TYPE,
    ResultFile.SUMMARY: JSON_TYPE,
    ResultFile.REPORT: "text/html",
}


def in_parts(*types: str) -> Described:
    """The responses with a file of one of these types, or with a part of it."""
    whole = {kind: {"schema": {"type": "object"}} if kind == JSON_TYPE else BINARY for kind in types}
    return {
        200: {"content": whole},
        206: {"content": whole | {"multipart/byteranges": BINARY}, "description": "The part that was asked for"},
        400: {"content": {"text/plain": {}}, "description": "The Range header is malformed"},
        416: {"content": {"text/plain": {}}, "description": "There is no such part"},
    }


class RecordingInfo(BaseModel):
    """A recording and what has become of it."""

    id: str
    name: str
    size: int
    """In bytes."""
    received: int
    """Of them, so many are here."""
    state: State
    message: str
    """What went wrong, or what else to know."""
    created: datetime
    place_in_line: int | None = None
    """How many are before it, while it waits."""
    frames_done: int | None = None
    frames_expected: int | None = None
    seconds_left: float | None = None
    findings: int | None = None
    """How many, once it is finished."""
    tracks: list[FoundTrack] | None = None
    """They themselves, where it was asked for by itself."""
    files: list[ResultFile] = []


class Announced(BaseModel):
    """A recording that is going to be sent in pieces."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    size: Annotated[int, Field(ge=1)]


class RecordingsPage:
    """Takes recordings and shows them.

    Args:
        library: that keeps them.
        queue: that processes them.
        settings: of which `serve` has a say here.
    """

    title, path = "Recordings", "/recordings"

    def __init__(self, library: Library, queue: RecordingQueue, settings: Settings) -> None:
        self._library, self._queue = library, queue
        self._most = round(settings.serve.recording_gigabytes * GIGA)
        self._keep_days = settings.serve.keep_days
        self._arriving: set[str] = set()

    def problems(self) -> list[str]:
        """No room for uploads, or what keeps the queue from working."""
        free = self._library.free_bytes()
        full = [] if free > SPARE_BYTES else [f"recordings: the disk is full ({free / GIGA:.1f} GB are left)"]
        return full + ([self._queue.problem] if self._queue.problem else [])

    def page(self, request: Request, render: Render) -> Response:
        """The page itself."""
        try:
            first = max(0, int(request.query_params.get("first", "0")))
        except ValueError:
            first = 0
        entries, line = self._library.some(first, PAGE + 1), self._library.line()
        return render(
            request,
            "recordings.html",
            recordings=[self._info(entry, line) for entry in entries[:PAGE]],
            newer=max(0, first - PAGE) if first else None,
            older=first + PAGE if len(entries) > PAGE else None,
            most=self._most,
            days=self._keep_days,
        )

    def router(self, render: Render) -> APIRouter:
        """What the pages ask for, and what scripts may."""
        router = APIRouter(tags=["recordings"])
        self._add_uploads(router)
        self._add_states(router)
        self._add_results(router)

        @router.get("/recordings/{id}", include_in_schema=False)
        def recording(request: Request, id: Id) -> Response:
            entry = self._known(id)
            kept = self._library.found(entry.id)
            found = Found.model_validate_json(kept) if kept else None
            timeline = found.timeline() if found else None
            url = f"/api/recordings/{entry.id}/files/{SNAPSHOTS}"
            tracks = [
                each.model_dump() | dict.fromkeys(("picture", "snapshot"), f"{url}/track-{each.track}.jpg")
                for each in (found.tracks if found else ())
            ]
            values = {"recording": self._in_detail(entry), "found": found, "timeline": timeline, "tracks": tracks}
            return render(request, "recording.html", **values)

        return router

    def _add_uploads(self, router: APIRouter) -> None:
        file = {"type": "string", "format": "binary", "minLength": 1}
        form = {"type": "object", "required": ["file"], "properties": {"file": file}}
        in_one = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
        in_pieces = {"requestBody": {"content": {"application/octet-stream": BINARY}}}
        announced = {"properties": {"size": {"maximum": self._most}}}
        announcement = {"requestBody": {"content": {"application/json": {"schema": announced}}}}

        @router.post(
            "/api/recordings",
            status_code=201,
            openapi_extra=in_one,
            responses=UPLOAD | FORM,
            max_body_size=self._most + MULTIPART_EXTRA,
        )
        async def send(request: Request) -> RecordingInfo:
            """Send a recording (multipart field `file`); it is processed when it is its turn."""
            self._see_room(int(request.headers.get("Content-Length") or 0))
            with tempfile.TemporaryDirectory(dir=self._library.incoming) as folder:
                path = Path(folder) / "upload"
                name = await save_file_field(request, path, self._see_room)
                entry = self._library.add(name, path.stat().st_size)
                path.replace(self._library.upload_path(entry.id))
            return self._enqueue(entry)

        @router.post("/api/uploads", status_code=201, openapi_extra=announcement, responses=UPLOAD)
        def announce(what: Announced) -> RecordingInfo:
            """Announce a recording that is sent in pieces, so that a broken line costs one piece."""
            if what.size > self._most:
                raise HTTPException(413, f"recordings may have {self._most / GIGA:g} GB")
            self._see_room(what.size)
            return self._info(self._library.add(what.name, what.size), {})

        @router.patch(
            "/api/uploads/{id}",
            openapi_extra=in_pieces,
            responses=NOT_THERE | UPLOAD | {409: refusal("Another place is next; `received` says which")},
            max_body_size=self._most,
        )
        async def append(
            request: Request,
            id: Id,
            offset: Annotated[int, Query(ge=0, description="Where the piece belongs, in bytes")],
        ) -> RecordingInfo:
            """Send the next piece of an announced recording, which is processed once the last one is here.

            After a broken line ask for the recording: `received` is the offset to go on from. Where that is the end,
            send an empty piece.
            """
            entry = self._known(id)
            if entry.state != "uploading" or offset != self._library.received(entry):
                raise HTTPException(409, f"{self._library.received(entry)} bytes are here, and it is {entry.state}")
            if id in self._arriving:
                raise HTTPException(409, "another piece of it is coming in")
            self._arriving.add(id)
            try:
                await append_body(request, self._library.upload_path(id), entry.size - offset, self._see_room)
            finally:
                self._arriving.discard(id)
            return self._enqueue(entry) if self._library.received(entry) == entry.size else self._info(entry, {})

    def _add_states(self, router: APIRouter) -> None:
        @router.get("/api/recordings")
        def recordings() -> list[RecordingInfo]:
            """Every recording, the newest first; of finished ones `tracks` and `files` are with each by itself."""
            line = self._library.line()
            return [self._info(entry, line) for entry in self._library.all()]

        @router.get("/api/recordings/{id}", responses=NOT_THERE)
        def recording(id: Id) -> RecordingInfo:
            """One recording, how far it is and what was found in it."""
            return self._in_detail(self._known(id))

        @router.post(
            "/api/recordings/{id}/process",
            responses=NOT_THERE | {409: refusal("It has neither failed nor been cancelled")},
        )
        def process(id: Id) -> RecordingInfo:
            """Process a recording again that failed or was cancelled."""
            entry = self._known(id)
            if entry.size > self._library.upload_path(id).stat().st_size or not self._library.begin_again(id):
                raise HTTPException(409, f"it is {entry.state}")
            self._queue.look()
            return self._info(self._known(id), self._library.line())

        @router.post(
            "/api/recordings/{id}/cancel",
            responses=NOT_THERE | {409: refusal("It is neither waiting nor being processed")},
        )
        def cancel(id: Id) -> RecordingInfo:
            """Let go of a recording that waits or is being processed."""
            entry = self._known(id)
            if not self._queue.cancel(id):
                raise HTTPException(409, f"it is {entry.state}")
            return self._info(self._known(id), {})

        @router.delete("/api/recordings/{id}", status_code=204, response_class=Response, responses=NOT_THERE)
        def delete(id: Id) -> None:
            """Delete a recording and what was found in it."""
            self._known(id)
            self._queue.cancel(id)
            self._library.remove(id)

    def _add_results(self, router: APIRouter) -> None:
        @router.get(
            "/api/recordings/{id}/files/{name}",
            response_class=FileResponse,
            responses=NOT_THERE | in_parts(*RESULT_TYPES.values()),
        )
        def file(request: Request, id: Id, name: ResultFile) -> FileResponse:
            """A file of the results."""
            entry = self._known(id)
            path = self._library.results_path(entry) / name
            if entry.state != "finished" or not path.is_file():
                raise HTTPException(404, "there is no such file, or not yet")
            headers = None
            if name is ResultFile.REPORT:
                beside = request.url_for("file", id=id, name=name).replace(path="").components
                headers = {"Content-Security-Policy": REPORT_POLICY.format(f"{beside.scheme}://{beside.netloc}")}
            return FileResponse(path, 200, headers, RESULT_TYPES[name])

        @router.get(
            "/api/recordings/{id}/files/snapshots/track-{track}.jpg",
            response_class=FileResponse,
            responses=NOT_THERE | in_parts("image/jpeg"),
        )
        def snapshot(id: Id, track: Annotated[int, PathParameter(ge=1, le=10**6)]) -> FileResponse:
            """What a track looked like at its largest."""
            path = self._library.results_path(self._known(id)) / SNAPSHOTS / f"track-{track}.jpg"
            if not path.is_file():
                raise HTTPException(404, "there is no such track, or not yet")
            # The report, in its sandbox, counts as another site.
            return FileResponse(path, headers={"Cross-Origin-Resource-Policy": "cross-origin"}, media_type="image/jpeg")

    def _known(self, id_: str) -> Entry:
        entry = self._library.get(id_)
        if entry is None:
            raise HTTPException(404, "there is no such recording")
        return entry

    def _see_room(self, size: int = 0) -> None:
        if self._library.free_bytes() < size + SPARE_BYTES:
            raise HTTPException(507, "the server's disk has no room for it")

    def _enqueue(self, entry: Entry) -> RecordingInfo:
        self._library.move(entry.id, "uploading", "waiting")
        self._queue.look()
        return self._info(self._known(entry.id), self._library.line())

    def _info(self, entry: Entry, line: dict[str, int]) -> RecordingInfo:
        """What there is to say without looking into files."""
        progress = self._queue.progress
        info = RecordingInfo(
            id=entry.id,
            name=entry.name,
            size=entry.size,
            received=self._library.received(entry),
            state=entry.state,
            message=entry.message,
            created=datetime.fromtimestamp(entry.created, UTC),
        )
        if entry.state == "waiting":
            info.place_in_line = line.get(entry.id)
        elif entry.state == "processing" and progress is not None and progress.id == entry.id:
            info.frames_done, info.frames_expected = progress.done, progress.of
            info.seconds_left = progress.seconds_left
        elif entry.state == "finished":
            info.findings = entry.tracks
        return info

    def _in_detail(self, entry: Entry) -> RecordingInfo:
        """What there is to say of one recording."""
        info, kept = self._info(entry, self._library.line()), self._library.found(entry.id)
        if kept:
            results = self._library.results_path(entry)
            info.files = [name for name in ResultFile if (results / name).is_file()]
            info.tracks = Found.model_validate_json(kept).tracks
        return info
