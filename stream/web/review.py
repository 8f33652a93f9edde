"""The review of a finished recording: readers accept, reject and correct its findings, and draw missed polyps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
from fastapi import APIRouter, HTTPException, Query
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from polypstream.errors import DataError, PolypstreamError, ReviewConflict
from polypstream.jobs.following import LONGEST_S, follow
from polypstream.jobs.image_results import Stills, load_reviewable
from polypstream.jobs.results import Run, TrackSummary
from polypstream.jobs.reviewed import merge
from polypstream.jobs.reviews import LONGEST_READER, Choice, Correction, Decision, Review, ReviewStore, checked_reader
from polypstream.jobs.uncertain import choose_uncertain
from polypstream.web.frames import FrameChild, Question, read_jpeg, read_orientation
from polypstream.web.library import ID_PATTERN
from polypstream.web.page import BINARY, BODY, INVALID, Described, Problem, refusal

Id = Annotated[str, PathParameter(pattern=ID_PATTERN, description="ID of a recording")]
TrackNumber = Annotated[int, PathParameter(ge=1, le=10**6, description="Number of a track")]
FrameNumber = Annotated[int, PathParameter(ge=0, le=10**8, description="Number of a frame, from 0")]
Replace = Annotated[bool, Query(description="Replace what another reader has stored")]
ReaderName = Annotated[str, Field(min_length=1, max_length=LONGEST_READER, description="Name of the reader")]
ReaderQuery = Annotated[str, Query(min_length=1, max_length=LONGEST_READER, description="Name of the reader")]
# x and y of each point in turn, in pixels.
Polygon = Annotated[list[Annotated[int, Field(ge=-1, le=65536)]], Field(min_length=6, max_length=4000)]
Polygons = Annotated[list[Polygon], Field(max_length=20)]
# Largest body with such polygons.
MAX_BODY = 10**6
TOO_LARGE: Described = {413: refusal("The body is larger than allowed")}
UNFINISHED: Described = INVALID | {
    404: refusal("There is no such recording, track or frame"),
    409: refusal("The recording is not finished"),
}


class DecisionInfo(BaseModel):
    """A decision about a track."""

    decision: Choice
    reader: str
    time: datetime


class OutlineInfo(BaseModel):
    """The outline of a track in one frame."""

    frame: int
    polygons: list[list[int]]
    """x and y of each point in turn, in pixels of the stored frame. None: the frame does not show the polyp."""
    source: Literal["network", "reader", "motion"]
    """Who made it: the network, a reader in this frame, or motion, which carried it from a frame that a reader drew."""
    reader: str = ""
    time: datetime | None = None
    carried_from: int | None = None
    """The frame from which motion carried it."""


class ReviewedTrack(BaseModel):
    """A track and what was decided about it."""

    track: int
    drawn: bool
    """A reader has drawn it; the network has not found it."""
    decision: DecisionInfo | None
    first_frame: int
    last_frame: int
    peak_probability: float
    corrected: int
    """Number of frames with an outline of a reader."""


class ReviewedImage(BaseModel):
    """An image of a set of images."""

    image: str
    """File name."""
    width: int
    height: int
    """Size of the upright image, in pixels."""


class ReviewInfo(BaseModel):
    """The review of a recording, or of a set of images, whose frames are the images."""

    revision: int
    """Number of changes so far."""
    frames: int
    width: int
    height: int
    """Size of the stored frames, or of the first image, in pixels."""
    images: list[ReviewedImage]
    """The images; none: it is a recording."""
    tracks: list[ReviewedTrack]


class ReviewedFinding(BaseModel):
    """A finding in one frame, as a reader or the network has outlined it."""

    track: int
    frame: int
    pts_s: float
    probability: float
    """1 if a reader has drawn it."""
    polygons: list[list[int]]
    """x and y of each point in turn, in pixels of the stored frame."""
    reviewed: bool
    """A reader has drawn it or accepted its track; otherwise it is the network's guess."""


class UncertainFrame(BaseModel):
    """A frame to review."""

    frame: int
    track: int | None
    """A track that it shows; null: it shows none."""


class DecisionRequest(BaseModel):
    """A decision about a track."""

    decision: Choice
    reader: ReaderName


class OutlineRequest(BaseModel):
    """The outline of a track in one frame."""

    polygons: Polygons
    """x and y of each point in turn, in pixels of the stored frame. None: the frame does not show the polyp."""
    reader: ReaderName


class DrawnRequest(OutlineRequest):
    """A polyp that the network has missed."""

    frame: Annotated[int, Field(ge=0, le=10**8)]


class CarryRequest(BaseModel):
    """A request to carry an outline to other frames."""

    reader: ReaderName
    seconds: Annotated[float, Field(gt=0, le=5)] = LONGEST_S
    """The longest time in each direction, in seconds."""


class Carried(BaseModel):
    """Where an outline was carried to."""

    frames: list[int]


class Drawn(BaseModel):
    """The number of a new track."""

    track: int


class DecisionConflict(Problem):
    """Another reader has decided differently."""

    earlier: DecisionInfo


class OutlineConflict(Problem):
    """Another reader has stored an outline in the same frame."""

    earlier: OutlineInfo


JPEG: Described = {200: {"content": {"image/jpeg": BINARY}}}
CONFLICT = "Another reader has stored something else, and `replace` is not set; or the recording is not finished"
DECISION_CONFLICT: Described = (
    BODY | TOO_LARGE | UNFINISHED | {409: {"model": DecisionConflict | Problem, "description": CONFLICT}}
)
OUTLINE_CONFLICT: Described = (
    BODY | TOO_LARGE | UNFINISHED | {409: {"model": OutlineConflict | Problem, "description": CONFLICT}}
)


class RecordingFiles(NamedTuple):
    """The files of a finished recording.

    Attributes:
        recording: the file that was uploaded; of a set of images, their folder.
        results: folder of its results.
    """

    recording: Path
    results: Path


FilesOf = Callable[[str], RecordingFiles]


class _Reviewed:
    """A run with its review.

    Args:
        folder: folder of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.run, self.store = _run_in(folder), ReviewStore(folder)
        self.review = self.store.read()

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.run.frames["pts_s"])

    def check_frame(self, frame: int) -> None:
        """Check the number of a frame.

        Raises:
            HTTPException: there is no such frame.
        """
        if frame >= self.frames:
            raise HTTPException(404, f"there is no frame {frame}: the recording has {self.frames}")

    def known_track(self, track: int) -> TrackSummary | None:
        """The track of the run; None: a reader has drawn it.

        Raises:
            HTTPException: there is no such track.
        """
        found = next((each for each in self.run.tracks if each.track_id == track), None)
        if found is None and track not in self.review.drawn:
            raise HTTPException(404, f"there is no polyp {track}")
        return found

    def polygons(self, flat: Sequence[Sequence[int]], frame: int) -> list[np.ndarray]:
        """Polygons of a request, cut at the edges of the frame.

        Raises:
            HTTPException: there is no such frame, or one is no polygon inside it.
        """
        self.check_frame(frame)
        width, height = self.run.size_of(frame)
        if any(len(each) % 2 for each in flat):
            raise HTTPException(422, "each polygon must have an even number of values: x and y of each point in turn")
        polygons = [np.array(each, np.int32).reshape(-1, 2).clip(0, (width - 1, height - 1)) for each in flat]
        if any(cv2.contourArea(polygon) <= 0 for polygon in polygons):
            raise HTTPException(422, "each polygon must have an area inside the frame")
        return polygons

    def info(self) -> ReviewInfo:
        """Describe the review."""
        width, height = self.run.picture_size
        merged = {track.track_id: track for track in merge(self.run, _without_rejections(self.review)).tracks}
        # A track that a reader has seen in none of its frames stays in the list, so that this can be changed.
        found = [merged.pop(track.track_id, track) for track in self.run.tracks]
        tracks = [self._track_info(track) for track in (*found, *merged.values())]
        return ReviewInfo(
            revision=self.review.revision,
            frames=self.frames,
            width=width,
            height=height,
            images=self._images(),
            tracks=tracks,
        )

    def _images(self) -> list[ReviewedImage]:
        if not isinstance(self.run, Stills):
            return []
        sizes = zip(self.run.names, self.run.sizes, strict=True)
        return [ReviewedImage(image=name, width=width, height=height) for name, (width, height) in sizes]

    def _track_info(self, track: TrackSummary) -> ReviewedTrack:
        decision, frames = self.review.decisions.get(track.track_id), [outline.frame for outline in track.outlines]
        return ReviewedTrack(
            track=track.track_id,
            drawn=track.track_id in self.review.drawn,
            decision=decision_info(decision) if decision else None,
            first_frame=min(frames),
            last_frame=max(frames),
            peak_probability=track.peak_probability,
            corrected=sum(number == track.track_id for number, _ in self.review.corrections),
        )

    def outlines(self, track: int) -> list[OutlineInfo]:
        """The outlines of a track, by frame.

        Raises:
            HTTPException: there is no such track.
        """
        found = self.known_track(track)
        outlines = {outline.frame: outline for outline in (found.outlines if found else ())}
        infos = {
            frame: OutlineInfo(frame=frame, polygons=_flat(outline.polygons), source="network")
            for frame, outline in outlines.items()
        }
        for (number, frame), correction in self.review.corrections.items():
            if number == track:
                infos[frame] = outline_info(frame, correction)
        return [infos[frame] for frame in sorted(infos)]


def decision_info(decision: Decision) -> DecisionInfo:
    """Describe a decision."""
    time = datetime.fromtimestamp(decision.time, UTC)
    return DecisionInfo(decision=decision.choice, reader=decision.reader, time=time)


def outline_info(frame: int, correction: Correction) -> OutlineInfo:
    """Describe the outline of a reader."""
    return OutlineInfo(
        frame=frame,
        polygons=_flat(correction.polygons),
        source="reader" if correction.carried_from is None else "motion",
        reader=correction.reader,
        time=datetime.fromtimestamp(correction.time, UTC),
        carried_from=correction.carried_from,
    )


def _flat(polygons: Sequence[np.ndarray]) -> list[list[int]]:
    return [polygon.ravel().tolist() for polygon in polygons]


def _without_rejections(review: Review) -> Review:
    """The review with all tracks, also rejected ones."""
    kept = {track: decision for track, decision in review.decisions.items() if decision.choice != "rejected"}
    return Review(review.revision, kept, review.corrections, review.drawn)


@lru_cache(maxsize=4)
def _run_in(folder: Path) -> Run:
    """A finished run. Its files do not change any more, and those of long recordings take a second to read."""
    return load_reviewable(folder)


def _checked(reader: str) -> str:
    """The reader's name.

    Raises:
        HTTPException: it is not one.
    """
    try:
        return checked_reader(reader)
    except DataError as error:
        raise HTTPException(422, str(error)) from None


def _refused(
    error: ReviewConflict, kind: type[DecisionConflict] | type[OutlineConflict], earlier: BaseModel
) -> JSONResponse:
    said = kind.model_validate({"detail": f"{error}; send ?replace=true to replace it", "earlier": earlier})
    return JSONResponse(said.model_dump(mode="json"), 409)


def review_router(files_of: FilesOf, frames: FrameChild, carrier: FrameChild) -> APIRouter:
    """Make the API of the review.

    Args:
        files_of: returns the files of a finished recording, by its ID; raises an HTTPException if there are none.
        frames: reads frames.
        carrier: carries outlines, which takes seconds. A reader goes on looking at frames meanwhile.
    """
    router = APIRouter(tags=["review"])
    _add_reading(router, files_of)
    _add_decisions(router, files_of)
    _add_outlines(router, files_of)
    _add_frames(router, files_of, frames)
    _add_carrying(router, files_of, carrier)
    return router


def _add_reading(router: APIRouter, files_of: FilesOf) -> None:
    @router.get("/api/recordings/{id}/review", responses=UNFINISHED)
    def review(id: Id) -> ReviewInfo:
        """The tracks of a finished recording, also drawn and rejected ones, and what was decided about them."""
        return _Reviewed(files_of(id).results).info()

    @router.get("/api/recordings/{id}/review/findings", responses=UNFINISHED)
    def findings(id: Id) -> list[ReviewedFinding]:
        """The reviewed findings: without rejected tracks, with the outlines that readers corrected and drew."""
        reviewed = _Reviewed(files_of(id).results)
        merged = merge(reviewed.run, reviewed.review)
        return [
            ReviewedFinding(
                track=outline.track_id,
                frame=outline.frame,
                pts_s=outline.seconds,
                probability=outline.probability,
                polygons=_flat(outline.polygons),
                reviewed=outline.reviewed,
            )
            for track in merged.tracks
            for outline in track.outlines
        ]

    @router.get("/api/recordings/{id}/review/uncertain", responses=UNFINISHED)
    def uncertain(id: Id, count: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[UncertainFrame]:
        """Frames to review, the most uncertain one first, far apart in time."""
        chosen = choose_uncertain(_Reviewed(files_of(id).results).run, count)
        return [UncertainFrame(frame=each.frame, track=each.track) for each in chosen]

    @router.get("/api/recordings/{id}/review/tracks/{track}", responses=UNFINISHED)
    def outlines(id: Id, track: TrackNumber) -> list[OutlineInfo]:
        """The outlines of a track: those of readers, and the network's in all other frames."""
        return _Reviewed(files_of(id).results).outlines(track)


def _add_decisions(router: APIRouter, files_of: FilesOf) -> None:
    @router.put("/api/recordings/{id}/review/tracks/{track}", response_model=DecisionInfo, responses=DECISION_CONFLICT)
    def decide(
        id: Id, track: TrackNumber, what: DecisionRequest, replace: Replace = False
    ) -> DecisionInfo | JSONResponse:
        """Accept or reject a track. `undecided` withdraws a decision."""
        reviewed = _Reviewed(files_of(id).results)
        reviewed.known_track(track)
        try:
            reviewed.store.decide(track, what.decision, _checked(what.reader), replace)
        except ReviewConflict as error:
            earlier = decision_info(reviewed.store.read().decisions[track])
            return _refused(error, DecisionConflict, earlier)
        return decision_info(reviewed.store.read().decisions[track])

    @router.post(
        "/api/recordings/{id}/review/tracks",
        status_code=201,
        responses=BODY | TOO_LARGE | UNFINISHED,
        max_body_size=MAX_BODY,
    )
    def draw(id: Id, what: DrawnRequest) -> Drawn:
        """Add a polyp that the network has missed, with its outline in one frame."""
        reviewed = _Reviewed(files_of(id).results)
        polygons = reviewed.polygons(what.polygons, what.frame)
        if not polygons:
            raise HTTPException(422, "`polygons` must hold the outline of the new polyp")
        first = max((track.track_id for track in reviewed.run.tracks), default=0) + 1
        return Drawn(track=reviewed.store.draw(what.frame, polygons, _checked(what.reader), first))


def _add_outlines(router: APIRouter, files_of: FilesOf) -> None:
    path = "/api/recordings/{id}/review/tracks/{track}/frames/{frame}"

    @router.put(path, response_model=OutlineInfo, responses=OUTLINE_CONFLICT, max_body_size=MAX_BODY)
    def correct(
        id: Id, track: TrackNumber, frame: FrameNumber, what: OutlineRequest, replace: Replace = False
    ) -> OutlineInfo | JSONResponse:
        """Store the outline of a track in one frame."""
        reviewed = _Reviewed(files_of(id).results)
        reviewed.known_track(track)
        polygons = reviewed.polygons(what.polygons, frame)
        try:
            reviewed.store.correct(track, frame, polygons, _checked(what.reader), replace)
        except ReviewConflict as error:
            return _refused(error, OutlineConflict, _stored(reviewed.store, track, frame))
        return _stored(reviewed.store, track, frame)

    @router.delete(path, status_code=204, response_model=None, responses=OUTLINE_CONFLICT)
    def withdraw(
        id: Id,
        track: TrackNumber,
        frame: FrameNumber,
        reader: ReaderQuery,
        replace: Replace = False,
    ) -> JSONResponse | None:
        """Remove a reader's outline of a track in one frame, and those carried from it."""
        reviewed = _Reviewed(files_of(id).results)
        reviewed.known_track(track)
        try:
            reviewed.store.withdraw(track, frame, _checked(reader), replace)
        except ReviewConflict as error:
            return _refused(error, OutlineConflict, _stored(reviewed.store, track, frame))
        return None


def _add_frames(router: APIRouter, files_of: FilesOf, frames: FrameChild) -> None:
    @router.get("/api/recordings/{id}/frames/{frame}.jpg", response_class=Response, responses=UNFINISHED | JPEG)
    def picture(id: Id, frame: FrameNumber) -> Response:
        """A frame of the recording, without markers. It is neither rotated nor stretched: as outlines count pixels."""
        files = files_of(id)
        _Reviewed(files.results).check_frame(frame)
        return Response(_read(frames, files, read_jpeg, frame), media_type="image/jpeg")


def _add_carrying(router: APIRouter, files_of: FilesOf, carrier: FrameChild) -> None:
    path = "/api/recordings/{id}/review/tracks/{track}/frames/{frame}/carry"

    @router.post(path, responses=BODY | TOO_LARGE | UNFINISHED)
    def carry(id: Id, track: TrackNumber, frame: FrameNumber, what: CarryRequest) -> Carried:
        """Carry a reader's outline along the motion of the image to the frames around it, as far as it fits.

        Frames in which a reader has drawn the polyp, or in which another reader's outline was carried, keep that.
        If the outline changes meanwhile, nothing is stored.
        """
        files, name = files_of(id), _checked(what.reader)
        reviewed = _Reviewed(files.results)
        reviewed.known_track(track)
        reviewed.check_frame(frame)
        if isinstance(reviewed.run, Stills):
            raise HTTPException(409, "images have no frames around them to which an outline could be carried")
        correction = reviewed.review.corrections.get((track, frame))
        if correction is None or correction.carried_from is not None or not correction.polygons:
            raise HTTPException(409, f"no reader has drawn polyp {track} in frame {frame}: draw it first")
        outlines = _read(carrier, files, follow, frame, correction.polygons, what.seconds)
        try:
            return Carried(frames=reviewed.store.carry(track, frame, correction.time, outlines, name))
        except ReviewConflict as error:
            raise HTTPException(409, str(error)) from None

    @router.delete(path, status_code=204, response_model=None, responses=UNFINISHED)
    def leave(id: Id, track: TrackNumber, frame: FrameNumber, reader: ReaderQuery) -> None:
        """Remove the outlines that were carried from a frame, or are being carried. The drawn one stays."""
        reviewed = _Reviewed(files_of(id).results)
        reviewed.known_track(track)
        reviewed.store.leave(track, frame, _checked(reader))


def matrix_of(frames: FrameChild, files: RecordingFiles) -> dict[str, Any]:
    """How the frames of a recording are displayed, for the page: the six numbers of a matrix, and the displayed size.

    Args:
        frames: reads frames.
        files: of the recording.

    Raises:
        HTTPException: the recording cannot be read.
    """
    run = _run_in(files.results)
    width, height = run.picture_size
    if isinstance(run, Stills):  # the images are upright
        return {"matrix": [1, 0, 0, 1, 0, 0], "width": width, "height": height}
    orientation = _read(frames, files, read_orientation)
    corner, right, below = orientation.points(np.array([(0, 0), (width, 0), (0, height)], float), width, height)
    shown = orientation.size(width, height)
    numbers = [*((right - corner) / width), *((below - corner) / height), *corner]
    return {"matrix": [float(number) for number in numbers], "width": shown[0], "height": shown[1]}


def _read(frames: FrameChild, files: RecordingFiles, question: Question, *arguments: object) -> Any:
    """Ask for something of the frames of a recording.

    Raises:
        HTTPException: the recording cannot be read.
    """
    try:
        return frames.ask(str(files.recording), files.results, question, *arguments)
    except PolypstreamError as error:
        logging.getLogger("uvicorn.error").warning("frames of a recording: %s", error)
        raise HTTPException(409, "the frames of the recording cannot be read again") from None


def _stored(store: ReviewStore, track: int, frame: int) -> OutlineInfo:
    return outline_info(frame, store.read().corrections[track, frame])
