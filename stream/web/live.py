"""The live page: the frames of live sources, and their status."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request, Response, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from polypstream.core.formatting import words_of
from polypstream.core.marks import LONGEST_TEXT, TITLES, MarkKind
from polypstream.core.protocols import STOPPED
from polypstream.errors import OutputError, PolypstreamError
from polypstream.jobs.live import Live
from polypstream.jobs.live_rooms import Rooms
from polypstream.jobs.live_status import Percentiles, Status
from polypstream.sinks.browser import Browser
from polypstream.web.live_video import send_video
from polypstream.web.page import BINARY, BODY, INVALID, Described, Render, refusal

BOUNDARY = "frame"
# Quantiles of Status.latency_ms, for Prometheus.
QUANTILES = ("0.5", "0.95", "0.99", "1")
LOG = logging.getLogger("uvicorn.error")


class NewMark(BaseModel):
    """A mark to be set at the picture that is shown now."""

    kind: MarkKind
    text: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""


class SetMark(BaseModel):
    """A mark that was set."""

    kind: MarkKind
    seconds: float
    """Time of the source in seconds."""
    text: str
    title: str


class SavedClip(BaseModel):
    """A clip that was saved."""

    file: str
    """Name of the file in the folder of the clips. Its findings are in the folder of the same name."""


class ReloadedRooms(BaseModel):
    """Names of rooms, by what the reload has done with them."""

    added: list[str]
    removed: list[str]
    restarted: list[str]
    unchanged: list[str]


class LivePage:
    """The page that shows live sources.

    Args:
        live: the sources. None: there is none, and the page explains how to configure one.
        browser: the sink that has their encoded frames.
        rooms: the file of the sources; None: they come from the command line.
    """

    title, path = "Live", "/live"

    def __init__(self, live: Live | None, browser: Browser, rooms: Rooms | None = None) -> None:
        self._live, self._browser, self._rooms, self._problem = live, browser, rooms, ""

    def run(self) -> None:
        """Run the sources, if the caller does not run them. An error is reported as a problem of this page."""
        if self._live is None:
            return
        try:
            self._live.run(lambda: None)
        except Exception as error:
            self._problem = f"live: ended with an error: {words_of(error)}"
            LOG.exception("live sources")
        else:
            if any(not each.problem.startswith(STOPPED) for each in self._live.status()):
                LOG.warning("live: all sources have ended")

    def close(self) -> None:
        """Let `run` end."""
        if self._live is not None:
            self._live.close()

    def problems(self) -> list[str]:
        """Return the problems of sources, inference and sinks, one line each."""
        if self._live is None:
            return []
        ended = [self._problem] if self._problem else []
        sources = [
            f"{each.source}: {each.problem or 'source ended'}"
            for each in self._live.status()
            if each.problem or each.ended
        ]
        return ended + sources + self._live.sink_problems()

    def page(self, request: Request, render: Render) -> Response:
        """Render the page."""
        kept = self._live.clips.keys() if self._live else ()
        return render(request, "live.html", sources=self._names(), kept=kept, titles=TITLES)

    def _names(self) -> dict[int, str]:
        """Names of the sources by their numbers. A number in an address always means the same source."""
        return {self._live.numbers[each.name]: each.name for each in list(self._live.sources)} if self._live else {}

    def _statuses(self) -> list[Status]:
        return self._live.status() if self._live else []

    def _known(self, number: int) -> str:
        names = self._names()
        if number not in names:
            raise HTTPException(404, "there is no such source")
        return names[number]

    def _source(self, name: str) -> str:
        if name not in self._names().values():
            raise HTTPException(404, "there is no such source")
        return name

    def router(self, render: Render) -> APIRouter:
        """Return the API of the page."""
        router = APIRouter(tags=["live"])
        browser = self._browser

        @router.get("/status.json")
        def status() -> list[dict[str, Any]]:
            """The status of each source, and its latest findings."""
            return [
                asdict(each)
                | {
                    "number": self._live.numbers[each.source],
                    "overlay": self._live.overlay.shown,
                    "overlay_style": self._live.overlay.style,
                    "latency_ms": _named(each.latency_ms),
                    "markers_age_ms": _named(each.markers_age_ms),
                    "sinks": [asdict(sink) for sink in self._live.sinks() if sink.source in ("", each.source)],
                    "viewers": browser.viewers(each.source),
                    "marks": [mark.as_json() for mark in self._live.marks.of(each.source)],
                    "findings": [
                        {"number": found.number, "when": found.when, "probability": found.probability}
                        for found in browser.findings(each.source)
                    ],
                }
                for each in self._statuses()
                if self._live
            ]

        @router.get("/metrics", response_class=PlainTextResponse)
        def metrics() -> str:
            """The status of each source as metrics for Prometheus."""
            return exposition(self._statuses())

        @router.put("/overlay/{state}", status_code=204, response_class=Response, responses=INVALID)
        def overlay(state: Literal["on", "off"]) -> None:
            """Switch the markers of all sources on or off. The video continues."""
            if self._live is not None:
                self._live.overlay.shown = state == "on"

        @router.post("/api/rooms/reload", responses=NO_RELOAD)
        def reload() -> ReloadedRooms:
            """Read the file of the rooms again. Rooms that did not change go on; an invalid file changes nothing."""
            if self._live is None or self._rooms is None:
                raise HTTPException(409, "there is no file of rooms; start `polypstream live --rooms FILE.yaml`")
            try:
                return ReloadedRooms(**asdict(self._rooms.reload(self._live)))
            except PolypstreamError as error:
                raise HTTPException(409, f"{error}; nothing was changed") from error

        # A source without a name is named after its address, which has slashes.
        @router.post(
            "/api/live/{name:path}/clip",
            status_code=201,
            responses=INVALID | NO_SOURCE | NO_CLIP,
            summary="Save a clip",
        )
        def clip(name: str) -> SavedClip:
            """Save the last seconds of a source as a clip with its findings, in the folder of `--clips`."""
            self._source(name)
            clips = self._live.clips.get(name) if self._live else None
            if clips is None:
                raise HTTPException(409, "nothing of this source is kept; see live.keep_seconds")
            try:
                path = clips.save()
            except OutputError as error:
                raise HTTPException(409, f"the clip cannot be saved: {error}") from error
            return SavedClip(file=path.name)

        @router.post("/api/live/{name:path}/marks", status_code=201, responses=BODY | NO_SOURCE | NO_PICTURE)
        def mark(name: str, new: NewMark) -> SetMark:
            """Set a mark at the newest picture of a source."""
            source = self._source(name)
            made = self._live.mark(source, new.kind, new.text.strip()) if self._live else None
            if made is None:
                raise HTTPException(409, "there is no picture yet")
            return SetMark(kind=made.kind, seconds=made.seconds, text=made.text, title=made.title)

        @router.get("/live/{number}/stream", include_in_schema=False)
        async def pictures(number: int) -> Response:
            """Stream the frames of a source as JPEG (multipart/x-mixed-replace), until the source ends."""
            parts = _parts(browser.pictures(self._known(number)))
            return StreamingResponse(parts, media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}")

        async def video(socket: WebSocket) -> None:
            """Send the video of a source as H.264, until either side ends it."""
            number = socket.path_params["number"]
            if number not in self._names():
                await socket.send_denial_response(Response(status_code=404))
                return
            await send_video(socket, browser, self._names()[number])

        # Not FastAPI's own kind of route: the dependency that describes the token is for HTTP only.
        router.add_websocket_route("/live/{number:int}/video", video)

        @router.get("/live/{number}/snapshot.jpg", response_class=Response, responses=JPEG)
        def snapshot(number: int) -> Response:
            """The newest frame, at full size."""
            jpeg = browser.snapshot(self._known(number))
            if jpeg is None:
                raise HTTPException(404, "there is no frame yet")
            return Response(jpeg, media_type="image/jpeg")

        @router.get("/live/{number}/findings/{finding}.jpg", response_class=Response, responses=JPEG)
        def finding_picture(number: int, finding: int) -> Response:
            """The frame in which a finding was first shown."""
            for each in browser.findings(self._known(number)):
                if each.number == finding:
                    return Response(each.jpeg, media_type="image/jpeg")
            raise HTTPException(404, "there is no such finding, or its image is no longer kept")

        return router


def _named(percentiles: Percentiles | None) -> dict[str, float] | None:
    return None if percentiles is None else percentiles._asdict()


NO_SOURCE: Described = {404: refusal("There is no such source")}
NO_PICTURE: Described = {409: refusal("There is no picture yet")}
NO_RELOAD: Described = {409: refusal("There is no file of rooms, or it is not valid; nothing was changed")}
NO_CLIP: Described = {409: refusal("Nothing is kept, or the clip cannot be written")}
JPEG: Described = INVALID | {
    200: {"content": {"image/jpeg": BINARY}},
    404: refusal("There is no such image"),
}


async def _parts(pictures: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for jpeg in pictures:
        yield (
            f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg + b"\r\n"
        )


class _StatusCollector(Collector):
    """Collects the metrics of live sources from their current status."""

    def __init__(self, statuses: Sequence[Status]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        signal = GaugeMetricFamily("polypstream_signal", "1 while frames are received, otherwise 0.", labels=["source"])
        losses = CounterMetricFamily("polypstream_losses", "How often the signal was lost.", labels=["source"])
        frames_in = CounterMetricFamily("polypstream_frames_in", "Frames that were received.", labels=["source"])
        shown = CounterMetricFamily("polypstream_frames_shown", "Frames that were shown.", labels=["source"])
        findings = CounterMetricFamily(
            "polypstream_frames_findings",
            "Shown frames by the frame of their findings: own, earlier or none.",
            labels=["source", "frame"],
        )
        dropped = CounterMetricFamily(
            "polypstream_frames_dropped", "Frames that were not shown.", labels=["source", "reason"]
        )
        unrecorded = CounterMetricFamily(
            "polypstream_frames_unrecorded", "Frames shown but not recorded.", labels=["source"]
        )
        latency = GaugeMetricFamily(
            "polypstream_latency_seconds",
            "Time from receiving a frame to showing it, of the latest frames.",
            labels=["source", "quantile"],
        )
        for each in self._statuses:
            signal.add_metric([each.source], int(each.signal))
            losses.add_metric([each.source], each.losses)
            frames_in.add_metric([each.source], each.frames_in)
            shown.add_metric([each.source], each.shown)
            unrecorded.add_metric([each.source], each.unrecorded)
            for origin, count in each.findings_of.items():
                findings.add_metric([each.source, origin], count)
            for reason, count in each.dropped.items():
                dropped.add_metric([each.source, reason], count)
            for quantile, milliseconds in zip(QUANTILES, each.latency_ms or (), strict=False):
                latency.add_metric([each.source, quantile], milliseconds / 1000)
        yield from (signal, losses, frames_in, shown, findings, dropped, unrecorded, latency)


def exposition(statuses: Sequence[Status]) -> str:
    """Format metrics in the text format of Prometheus, version 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(statuses))
    return generate_latest(registry).decode()
