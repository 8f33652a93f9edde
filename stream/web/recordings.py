"""The recordings page: upload a recording, follow its progress, and look at its findings."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field

from polypstream.core.config import Settings
from polypstream.core.marks import LONGEST_TEXT, TITLES, Mark, MarkKind, marks_in
from polypstream.jobs.image_results import load_stills, reviews_of_images
from polypstream.jobs.images import update_images_report
from polypstream.jobs.inputs import is_image
from polypstream.jobs.report import review_of, update_report, write_report
from polypstream.jobs.reviews import REVIEWS, ReviewStore
from polypstream.sinks.findings import SNAPSHOTS, read_findings, write_marks
from polypstream.web.annotations import AnnotationFormat, AnnotationMaker, AnnotationState
from polypstream.web.found import Found, FoundInImage, FoundTrack
from polypstream.web.frames import FrameChild
from polypstream.web.library import ID_PATTERN, LONGEST_NAME, Entry, Library, State
from polypstream.web.page import BINARY, BODY, INVALID, JSON_TYPE, MULTIPART_EXTRA, Described, Render, refusal
from polypstream.web.queue import RecordingQueue
from polypstream.web.review import RecordingFiles, matrix_of, review_router
from polypstream.web.stills import UploadedImage, file_names
from polypstream.web.upload import append_body, save_file_field
from polypstream.web.zipped import ZIP_TYPE, as_download, folder_name, zip_chunks

GIGA = 10**9
# Number of recordings per page.
PAGE = 100
# Most images in a set, and largest body with their names.
MOST_IMAGES, MAX_NAMES = 5000, 4 * 10**6
# Free space that uploads leave on the disk, for results.
SPARE_BYTES = 2 * GIGA
# The report allows its own styles and script only, and the images and the video of its recording.
REPORT_POLICY = (
    "default-src 'none'; img-src data: {}; media-src {}; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; sandbox allow-scripts"
)
# Headers of files that the report shows. It runs in a sandbox, so browsers treat it as another site.
EMBEDDED = {"Cross-Origin-Resource-Policy": "cross-origin"}
Id = Annotated[str, PathParameter(pattern=ID_PATTERN, description="ID of a recording")]
Every = Annotated[float, Query(ge=0, le=3600, description="Seconds between annotated frames; 0: all frames")]
OnlyReviewed = Annotated[
    bool, Query(description="Leave out frames whose findings no reader has accepted, rejected or corrected")
]
UNFINISHED: Described = {409: refusal("The recording is not finished")}
NO_SPACE: Described = {507: refusal("The disk is full or not writable")}
UPLOAD: Described = (
    BODY
    | NO_SPACE
    | {
        413: refusal("The body is larger than allowed, or than announced"),
        415: refusal("The file is an image, not a recording"),
    }
)
NO_IMAGE: Described = {415: refusal("The name of a file has not the ending of an image")}
FORM: Described = {
    415: refusal("The body has another content type, or the file is empty or an image"),
    422: refusal("The form has no field `file` with a file"),
}
NOT_THERE: Described = INVALID | {404: refusal("There is no such recording, or it has no such result yet")}


class ResultFile(StrEnum):
    """The files of a finished run."""

    VIDEO = "annotated.mp4"
    MASKS = "masks.mkv"
    FRAMES = "frames.csv"
    POLYPS = "polyps.csv"
    FINDINGS = "findings.json"
    SUMMARY = "summary.json"
    REPORT = "report.html"


RESULT_TYPES = {
    ResultFile.VIDEO: "video/mp4",
    ResultFile.MASKS: "video/x-matroska",
    ResultFile.FRAMES: "text/csv",
    ResultFile.POLYPS: "text/csv",
    ResultFile.FINDINGS: JSON_TYPE,
    ResultFile.SUMMARY: JSON_TYPE,
    ResultFile.REPORT: "text/html",
}


# Annotation formats and their names on the page.
FORMATS: list[tuple[AnnotationFormat, str]] = [
    ("coco", "COCO"),
    ("cvat", "CVAT for video"),
    ("yolo", "YOLO"),
    ("labelme", "labelme"),
    ("png", "PNG masks"),
]
ZIP_RESPONSE: Described = {200: {"content": {ZIP_TYPE: BINARY}}}


def in_parts(*types: str) -> Described:
    """Describe the responses with a file of one of these types, or with a range of it."""
    whole = {kind: {"schema": {"type": "object"}} if kind == JSON_TYPE else BINARY for kind in types}
    return {
        200: {"content": whole},
        206: {"content": whole | {"multipart/byteranges": BINARY}, "description": "The requested range"},
        400: {"content": {"text/plain": {}}, "description": "The Range header is malformed"},
        416: {"content": {"text/plain": {}}, "description": "There is no such range"},
    }


class RecordingInfo(BaseModel):
    """A recording, or a set of images, and its state."""

    id: str
    name: str
    size: int
    """Size in bytes."""
    received: int
    """Number of bytes that have been received."""
    state: State
    message: str
    """An error, or notes."""
    created: datetime
    place_in_line: int | None = None
    """Number of recordings before it in the queue, while it waits."""
    image_count: int | None = None
    """Number of images of a set; null: it is a recording."""
    frames_done: int | None = None
    """Number of frames, or of images, that are processed."""
    frames_expected: int | None = None
    seconds_left: float | None = None
    findings: int | None = None
    """Number of findings, once it is finished."""
    tracks: list[FoundTrack] | None = None
    """The findings, in the response for a single recording. Images have none."""
    images: list[FoundInImage] | None = None
    """The images of a set, in the response for a single one."""
    files: list[ResultFile] = []
    annotations: list[AnnotationState] = []
    """States of annotations, in the response for a single recording."""


def _refuse_image(name: str) -> None:
    """Refuse a file whose name is that of an image. It would fail when it is processed.

    Raises:
        HTTPException: it is an image.
    """
    if is_image(name):
        raise HTTPException(
            415,
            f"{name}: is an image, not a recording; send it to /api/segment, or open it on the image page; a set of "
            "images is announced at /api/image-sets",
        )


class RecordingMark(BaseModel):
    """A mark of a recording."""

    kind: MarkKind
    seconds: Annotated[float, Field(ge=0, le=10**7)]
    """Time in the recording in seconds."""
    text: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""


class Announced(BaseModel):
    """A recording that will be uploaded in chunks."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    size: Annotated[int, Field(ge=1)]


class AnnouncedImage(BaseModel):
    """An image of a set that will be uploaded."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    """File name, with the ending of an image."""
    size: Annotated[int, Field(ge=1)]
    """Size in bytes."""


class AnnouncedImages(BaseModel):
    """A set of images that will be uploaded in chunks, as one file in which they follow one another."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    """Name of the set, for instance of its folder."""
    images: Annotated[list[AnnouncedImage], Field(min_length=1, max_length=MOST_IMAGES)]


class RecordingsPage:
    """The page that takes recordings and shows their findings.

    Args:
        library: stores the recordings.
        queue: processes them.
        annotations: makes annotations of finished ones.
        frames: reads frames of finished ones.
        carrier: carries outlines of readers in finished ones.
        settings: `serve` is used.
    """

    title, path = "Recordings", "/recordings"

    def __init__(
        self,
        library: Library,
        queue: RecordingQueue,
        annotations: AnnotationMaker,
        frames: FrameChild,
        carrier: FrameChild,
        settings: Settings,
    ) -> None:
        self._library, self._queue, self._annotations = library, queue, annotations
        self._frames, self._carrier = frames, carrier
        self._max_size = round(settings.serve.recording_gigabytes * GIGA)
        self._keep_days = settings.serve.keep_days
        self._receiving: set[str] = set()
        self._marking = threading.Lock()

    def problems(self) -> list[str]:
        """Return the problems of the disk and of the queue, one line each."""
        free = self._library.free_bytes()
        full = [] if free > SPARE_BYTES else [f"recordings: the disk is full ({free / GIGA:.1f} GB are free)"]
        return full + ([self._queue.problem] if self._queue.problem else [])

    def page(self, request: Request, render: Render) -> Response:
        """Render the page."""
        try:
            first = max(0, int(request.query_params.get("first", "0")))
        except ValueError:
            first = 0
        entries, positions = self._library.some(first, PAGE + 1), self._library.queue_positions()
        return render(
            request,
            "recordings.html",
            recordings=[self._info(entry, positions) for entry in entries[:PAGE]],
            newer=max(0, first - PAGE) if first else None,
            older=first + PAGE if len(entries) > PAGE else None,
            max_size=self._max_size,
            days=self._keep_days,
        )

    def router(self, render: Render) -> APIRouter:
        """Return the API of the pages."""
        router = APIRouter(tags=["recordings"])
        self._add_uploads(router)
        self._add_states(router)
        self._add_results(router)
        self._add_annotations(router)
        self._add_marks(router)

        router.include_router(review_router(self._files_of, self._frames, self._carrier))

        @router.get("/recordings/{id}/review", include_in_schema=False)
        def review(request: Request, id: str) -> Response:
            info, matrix = self._info(self._finished(id), {}), matrix_of(self._frames, self._files_of(id))
            return render(request, "review.html", recording=info, matrix=matrix)

        @router.get("/recordings/{id}", include_in_schema=False)
        def recording(request: Request, id: str) -> Response:
            entry = self._known(id)
            kept = self._library.found(entry.id)
            found = Found.model_validate_json(kept) if kept else None
            timeline = found.timeline() if found and not found.images else None
            url = f"/api/recordings/{entry.id}/files/{SNAPSHOTS}"
            results = self._library.results_path(entry)
            review = ReviewStore(results).read()
            tracks = [
                each.model_dump()
                | dict.fromkeys(("picture", "snapshot"), f"{url}/track-{each.track}.jpg")
                | {"review": review_of(each.track, review)}
                for each in (found.tracks if found else ())
            ]
            reviews = reviews_of_images(load_stills(results), review) if found and found.images else []
            images = list(zip(found.images, reviews, strict=True)) if found else []
            values = {"found": found, "timeline": timeline, "tracks": tracks, "images": images}
            detail = self._in_detail(entry)
            return render(request, "recording.html", recording=detail, formats=FORMATS, titles=TITLES, **values)

        return router

    def _add_uploads(self, router: APIRouter) -> None:
        file = {"type": "string", "format": "binary", "minLength": 1}
        form = {"type": "object", "required": ["file"], "properties": {"file": file}}
        in_one = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
        in_pieces = {"requestBody": {"content": {"application/octet-stream": BINARY}}}
        announced = {"properties": {"size": {"maximum": self._max_size}}}
        announcement = {"requestBody": {"content": {"application/json": {"schema": announced}}}}

        @router.post(
            "/api/recordings",
            status_code=201,
            openapi_extra=in_one,
            responses=UPLOAD | FORM,
            max_body_size=self._max_size + MULTIPART_EXTRA,
        )
        async def send(request: Request) -> RecordingInfo:
            """Upload a recording (multipart field `file`). It is processed after those that wait already."""
            self._check_space(int(request.headers.get("Content-Length") or 0))
            with tempfile.TemporaryDirectory(dir=self._library.incoming) as folder:
                path = Path(folder) / "upload"
                name = await save_file_field(request, path, self._check_space)
                _refuse_image(name)
                entry = self._library.add(name, path.stat().st_size)
                path.replace(self._library.upload_path(entry.id))
            return self._enqueue(entry)

        @router.post("/api/uploads", status_code=201, openapi_extra=announcement, responses=UPLOAD)
        def announce(what: Announced) -> RecordingInfo:
            """Announce a recording that is uploaded in chunks. A broken connection then costs one chunk only."""
            _refuse_image(what.name)
            return self._announce(what.name, what.size)

        @router.post("/api/image-sets", status_code=201, responses=UPLOAD | NO_IMAGE, max_body_size=MAX_NAMES)
        def announce_images(what: AnnouncedImages) -> RecordingInfo:
            """Announce a set of images. They are uploaded like a recording, one after another in the same order.

            Each image is processed by itself. `size` of the answer is the sum of their sizes.
            """
            for image in what.images:
                if not is_image(image.name):
                    raise HTTPException(415, f"{image.name}: has not the ending of an image")
            names, sizes = file_names([image.name for image in what.images]), [image.size for image in what.images]
            return self._announce(what.name, sum(sizes), list(map(UploadedImage, names, sizes)))

        @router.patch(
            "/api/uploads/{id}",
            openapi_extra=in_pieces,
            responses=NOT_THERE | UPLOAD | {409: refusal("The next chunk has another offset; see `received`")},
            max_body_size=self._max_size,
        )
        async def append(
            request: Request,
            id: Id,
            offset: Annotated[int, Query(ge=0, description="Position of the chunk in the file, in bytes")],
        ) -> RecordingInfo:
            """Upload the next chunk of an announced recording. It is processed when the last chunk has been received.

            After a broken connection, request the recording: `received` is the offset of the next chunk. If it is the
            end of the file, send an empty chunk.
            """
            entry = self._known(id)
            if entry.state != "uploading" or offset != self._library.received(entry):
                received = self._library.received(entry)
                raise HTTPException(409, f"{received} bytes have been received, and the state is {entry.state}")
            if id in self._receiving:
                raise HTTPException(409, "another chunk of it is being received")
            self._receiving.add(id)
            try:
                await append_body(request, self._library.upload_path(id), entry.size - offset, self._check_space)
            finally:
                self._receiving.discard(id)
            entry = self._known(id)  # it may have been deleted meanwhile
            return self._enqueue(entry) if self._library.received(entry) == entry.size else self._info(entry, {})

    def _add_states(self, router: APIRouter) -> None:
        @router.get("/api/recordings")
        def recordings() -> list[RecordingInfo]:
            """All recordings, the newest first. Only the response for a single recording has `tracks` and `files`."""
            positions = self._library.queue_positions()
            return [self._info(entry, positions) for entry in self._library.all()]

        @router.get("/api/recordings/{id}", responses=NOT_THERE)
        def recording(id: Id) -> RecordingInfo:
            """One recording with its progress and its findings."""
            return self._in_detail(self._known(id))

        @router.post(
            "/api/recordings/{id}/process",
            responses=NOT_THERE | {409: refusal("The recording has neither failed nor been cancelled")},
        )
        def process(id: Id) -> RecordingInfo:
            """Process a recording again that failed or was cancelled."""
            entry = self._known(id)
            if entry.size > self._library.upload_path(id).stat().st_size or not self._library.begin_again(id):
                raise HTTPException(409, f"the state is {entry.state}")
            self._queue.wake()
            return self._info(self._known(id), self._library.queue_positions())

        @router.post(
            "/api/recordings/{id}/cancel",
            responses=NOT_THERE | {409: refusal("The recording neither waits nor is being processed")},
        )
        def cancel(id: Id) -> RecordingInfo:
            """Cancel a recording that waits or is being processed."""
            entry = self._known(id)
            if not self._queue.cancel(id):
                raise HTTPException(409, f"the state is {entry.state}")
            return self._info(self._known(id), {})

        @router.delete("/api/recordings/{id}", status_code=204, response_class=Response, responses=NOT_THERE)
        def delete(id: Id) -> None:
            """Delete a recording and its results."""
            self._known(id)
            self._queue.cancel(id)
            self._annotations.forget(id)
            self._library.remove(id)

    def _add_results(self, router: APIRouter) -> None:
        @router.get(
            "/api/recordings/{id}/files/{name}",
            response_class=FileResponse,
            responses=NOT_THERE | in_parts(*RESULT_TYPES.values()),
        )
        def file(request: Request, id: Id, name: ResultFile) -> FileResponse:
            """One file of the results."""
            entry = self._known(id)
            path = self._library.results_path(entry) / name
            if entry.state != "finished" or not path.is_file():
                raise HTTPException(404, "there is no such file, or the recording is not finished yet")
            headers = None
            if name is ResultFile.REPORT:
                self._update_report(entry)
                base = request.url_for("file", id=id, name=name).replace(path="").components
                own = f"{base.scheme}://{base.netloc}"
                headers = {"Content-Security-Policy": REPORT_POLICY.format(own, own)}
            elif name is ResultFile.VIDEO:
                headers = EMBEDDED
            return FileResponse(path, 200, headers, RESULT_TYPES[name])

        @router.get(
            "/api/recordings/{id}/files/snapshots/track-{track}.jpg",
            response_class=FileResponse,
            responses=NOT_THERE | in_parts("image/jpeg"),
        )
        def snapshot(id: Id, track: Annotated[int, PathParameter(ge=1, le=10**6)]) -> FileResponse:
            """The frame in which a track has its largest area."""
            path = self._library.results_path(self._known(id)) / SNAPSHOTS / f"track-{track}.jpg"
            if not path.is_file():
                raise HTTPException(404, "there is no such track, or the recording is not finished yet")
            return FileResponse(path, headers=EMBEDDED, media_type="image/jpeg")

        @router.get(
            "/api/recordings/{id}/files/annotated/{name}",
            response_class=FileResponse,
            responses=NOT_THERE | in_parts("image/jpeg"),
        )
        def annotated(id: Id, name: Annotated[str, PathParameter(max_length=255)]) -> FileResponse:
            """An image of a set, with its findings marked. `images` of the recording has the names."""
            info = self._in_detail(self._known(id))
            if name not in {image.annotated for image in info.images or ()}:
                raise HTTPException(404, "there is no such image, or the set of images is not finished yet")
            path = self._library.results_path(self._known(id)) / "annotated" / name
            return FileResponse(path, headers=EMBEDDED, media_type="image/jpeg")

        @router.get(
            "/api/recordings/{id}/files.zip",
            response_class=StreamingResponse,
            responses=NOT_THERE | UNFINISHED | ZIP_RESPONSE,
        )
        def all_files(id: Id) -> StreamingResponse:
            """All files of the results in one ZIP archive, without compression."""
            entry = self._finished(id)
            name, results = folder_name(entry.name), self._library.results_path(entry)
            self._update_report(entry)
            paths = [
                results / REVIEWS,
                *(results / each for each in ResultFile),
                *sorted((results / SNAPSHOTS).glob("track-*.jpg")),
                *(path for folder in ("annotated", "masks") for path in sorted((results / folder).glob("*"))),
            ]
            files = [(path, f"{name}/{path.relative_to(results).as_posix()}") for path in paths if path.is_file()]
            return StreamingResponse(zip_chunks(files), 200, as_download(f"{name}.zip"), ZIP_TYPE)

    def _add_marks(self, router: APIRouter) -> None:
        @router.post("/api/recordings/{id}/marks", status_code=201, responses=BODY | NOT_THERE | UNFINISHED | NO_SPACE)
        def mark(id: Id, new: RecordingMark) -> RecordingMark:
            """Set a mark of a finished recording. It is in findings.json and in the report."""
            results = self._library.results_path(self._finished(id))
            if self._library.images(id):
                raise HTTPException(409, "a set of images has no times, so it has no marks")
            with self._marking:
                marks = marks_in(read_findings(results))
                marks.append(Mark(new.kind, new.seconds, new.text.strip()))
                write_marks(results, sorted(marks, key=lambda each: each.seconds))
                write_report(results)
            return new

    def _add_annotations(self, router: APIRouter) -> None:
        @router.post(
            "/api/recordings/{id}/annotations/{format}", status_code=202, responses=NOT_THERE | UNFINISHED | NO_SPACE
        )
        def make(
            id: Id, format: AnnotationFormat, every: Every = 0.0, only_reviewed: OnlyReviewed = False
        ) -> AnnotationState:
            """Make annotations for an annotation tool, from the findings of a finished recording.

            They are complete when their state is `finished`; see `annotations` of the recording.
            """
            entry = self._finished(id)
            self._check_space(entry.size)
            return self._annotations.start(entry, format, every, only_reviewed)

        @router.get(
            "/api/recordings/{id}/annotations/{format}",
            response_class=FileResponse,
            responses=NOT_THERE | UNFINISHED | in_parts(ZIP_TYPE),
        )
        def download(
            id: Id, format: AnnotationFormat, every: Every = 0.0, only_reviewed: OnlyReviewed = False
        ) -> FileResponse:
            """Annotations that have been made, in one ZIP archive."""
            entry = self._finished(id)
            path = self._annotations.path(entry, format, every, only_reviewed)
            if not path.is_file():
                raise HTTPException(404, "these annotations have not been made yet: send a POST request first")
            headers = as_download(f"{folder_name(entry.name)}-{format}.zip")
            return FileResponse(path, 200, headers, ZIP_TYPE)

    def _known(self, id_: str) -> Entry:
        entry = self._library.get(id_)
        if entry is None:
            raise HTTPException(404, "there is no such recording")
        return entry

    def _finished(self, id_: str) -> Entry:
        entry = self._known(id_)
        if entry.state != "finished":
            raise HTTPException(409, f"the recording has no results: its state is {entry.state}")
        return entry

    def _files_of(self, id_: str) -> RecordingFiles:
        entry = self._finished(id_)
        return RecordingFiles(self._library.original_path(entry), self._library.results_path(entry))

    def _update_report(self, entry: Entry) -> None:
        """Write the report of a recording, or of a set of images, again if it was reviewed since."""
        update = update_images_report if self._library.images(entry.id) else update_report
        update(self._library.results_path(entry))

    def _announce(self, name: str, size: int, images: Sequence[UploadedImage] = ()) -> RecordingInfo:
        """Add a recording, or a set of images, that will be uploaded in chunks.

        Raises:
            HTTPException: it is too large, or the disk has too little free space.
        """
        if size > self._max_size:
            raise HTTPException(413, f"recordings may have at most {self._max_size / GIGA:g} GB")
        self._check_space(2 * size if images else size)  # images are stored a second time, as files
        return self._info(self._library.add(name, size, images), {})

    def _check_space(self, size: int = 0) -> None:
        if self._library.free_bytes() < size + SPARE_BYTES:
            raise HTTPException(507, "the disk of the server has too little free space")

    def _enqueue(self, entry: Entry) -> RecordingInfo:
        self._library.move(entry.id, "uploading", "waiting")
        self._queue.wake()
        return self._info(self._known(entry.id), self._library.queue_positions())

    def _info(self, entry: Entry, positions: dict[str, int]) -> RecordingInfo:
        """Describe a recording without reading its results."""
        progress = self._queue.progress
        info = RecordingInfo(
            id=entry.id,
            name=entry.name,
            size=entry.size,
            received=self._library.received(entry),
            state=entry.state,
            message=entry.message,
            created=datetime.fromtimestamp(entry.created, UTC),
            image_count=len(self._library.images(entry.id)) or None,
        )
        if entry.state == "waiting":
            info.place_in_line = positions.get(entry.id)
        elif entry.state == "processing" and progress is not None and progress.id == entry.id:
            info.frames_done, info.frames_expected = progress.done, progress.of
            info.seconds_left = progress.seconds_left
        elif entry.state == "finished":
            info.findings = entry.tracks
        return info

    def _in_detail(self, entry: Entry) -> RecordingInfo:
        """Describe a recording with its findings and files."""
        info, kept = self._info(entry, self._library.queue_positions()), self._library.found(entry.id)
        if kept:
            results = self._library.results_path(entry)
            info.files = [name for name in ResultFile if (results / name).is_file()]
            found = Found.model_validate_json(kept)
            info.tracks, info.images = found.tracks, found.images or None
            info.annotations = self._annotations.states(entry.id)
        return info
