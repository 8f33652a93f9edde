"""The image page and `/api/segment`: find polyps in an uploaded image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, File, HTTPException, Query, Request, Response, UploadFile
from PIL import Image
from pydantic import BaseModel

from polypstream.core.config import Settings
from polypstream.core.notice import NOTICE
from polypstream.inference.model_card import ModelCard
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import FORMATS, load_image
from polypstream.jobs.predictions import ImageResult, predict
from polypstream.stages.findings import choose_rules
from polypstream.web.accept import quality
from polypstream.web.batcher import Batcher
from polypstream.web.finding_levels import enlarge_finding_levels, finding_levels
from polypstream.web.page import BINARY, BODY, JSON_TYPE, MULTIPART_EXTRA, Described, Render, refusal

SAMPLES = tuple(sorted(path.name for path in (Path(__file__).parent / "static" / "samples").glob("*.jpg")))
# Images that are decoded at the same time. An image of 40 million pixels needs 120 MB.
MAX_DECODED = 8
PNG_TYPE, NPZ_TYPE = "image/png", "application/x-npz"
Layer = Literal["mask", "probability", "thresholds", "picture"]


class FoundPolyp(BaseModel):
    """One finding. Coordinates are pixels of the upright image."""

    box: tuple[int, int, int, int]
    """Left, top, width, height."""
    polygon: list[int]
    """x and y of each point, alternating."""
    probability: float
    """The highest probability in the finding, 0 to 1."""
    polyp_area_fraction: float
    """Fraction of the image that the finding covers."""


class PictureFindings(BaseModel):
    """The findings of one image."""

    width: int
    height: int
    field_of_view: tuple[int, int, int, int]
    """The part that the model saw: left, top, width, height."""
    threshold: float
    """Probability from which a pixel counts as polyp."""
    peak: float
    """Probability that a finding must reach at one pixel or more."""
    findings: list[FoundPolyp]
    model: str
    notice: str = NOTICE


class PicturePage:
    """The page that shows the findings of an uploaded image, with a threshold slider.

    Args:
        segmenter: the model.
        batcher: collects the images of all callers for the model.
        settings: `findings` and `serve` are used.
    """

    title, path = "Image", "/picture"

    def __init__(self, segmenter: Segmenter, batcher: Batcher, settings: Settings) -> None:
        self._card, self._size, self._batcher, self._settings = segmenter.card, segmenter.size, batcher, settings
        self._rules = choose_rules(settings.findings, self._card.threshold, self._card.peak)
        self._limiter = CapacityLimiter(MAX_DECODED)

    def problems(self) -> list[str]:
        """Return an empty list: a problem of this page would keep the server from starting."""
        return []

    def page(self, request: Request, render: Render) -> Response:
        """Render the page."""
        megabytes = self._settings.serve.picture_megabytes
        return render(request, "picture.html", rules=self._rules, samples=SAMPLES, card=self._card, megabytes=megabytes)

    def router(self, render: Render) -> APIRouter:
        """Return the API of the page."""
        router = APIRouter(tags=["pictures"])
        most = self._settings.serve.picture_megabytes * 1_000_000 + MULTIPART_EXTRA

        @router.post(
            "/api/segment",
            response_model=PictureFindings,
            responses=RESPONSES,
            openapi_extra={"requestBody": {"content": {"multipart/form-data": {"encoding": ENCODING}}}},
            max_body_size=most,
        )
        async def segment(
            request: Request,
            file: Annotated[UploadFile, File(description="JPEG, PNG, TIFF, WebP or BMP")],
            layer: Annotated[Layer, Query(description="Content of a PNG")] = "mask",
        ) -> Response:
            """Find polyps in an image.

            The Accept header chooses the format of the response: `application/json` (the default), `image/png`, or
            `application/x-npz` (NumPy: `probability` and `mask`, uint8 [height, width]).

            A PNG has the size of the image. Its content is chosen by `layer`. `mask`: the findings, 0 and 255.
            `probability`: 255 meaning 1. `thresholds`: red is the probability; green is the highest threshold at which
            the pixel belongs to a finding, 255 meaning 1. The header `Finding-Counts` has the number of findings for
            each threshold from 0 to 255. `picture`: the image as it was read.
            """
            wanted = choose_type(request.headers.get("Accept", "*/*"))
            # A separate limit on threads, so that many uploads of images do not block other requests.
            return await to_thread.run_sync(self._respond, file.file, wanted, layer, limiter=self._limiter)

        return router

    def _respond(self, file: IO[bytes], wanted: str, layer: Layer) -> Response:
        image = load_image(file)
        if wanted == PNG_TYPE and layer == "picture":
            return Response(_png(image), media_type=PNG_TYPE)
        result = self._segment(image)
        if wanted == JSON_TYPE:
            return Response(_as_findings(result, self._card).model_dump_json(), media_type=JSON_TYPE)
        return _png_response(result, layer) if wanted == PNG_TYPE else _npz_response(result)

    def _segment(self, image: np.ndarray) -> ImageResult:
        return predict(image, self._size, self._batcher.segment, self._rules)


RESPONSES: Described = BODY | {
    200: {"content": {PNG_TYPE: BINARY, NPZ_TYPE: BINARY}},
    406: refusal("The Accept header names no type that is available"),
    413: refusal("The file or its image is too large"),
    415: refusal("The file is not a readable image"),
}
# FastAPI cannot derive this part of the description.
ENCODING = {"file": {"contentType": ", ".join(f"image/{kind.lower()}" for kind in FORMATS)}}


def choose_type(accept: str) -> str:
    """Choose the available content type that an Accept header (RFC 9110, 12.5.1) prefers.

    Raises:
        HTTPException: the header accepts none of them.
    """
    best, best_quality = "", 0.0
    for offered in (JSON_TYPE, PNG_TYPE, NPZ_TYPE):
        value = quality(accept, offered)
        if value > best_quality:
            best, best_quality = offered, value
    if not best:
        raise HTTPException(406, f"the available types are {JSON_TYPE}, {PNG_TYPE} and {NPZ_TYPE}")
    return best


def _png_response(result: ImageResult, layer: Layer) -> Response:
    view = result.view
    headers = {"Field-Of-View": f"{view.x},{view.y},{view.width},{view.height}"}
    if layer == "mask":
        return Response(_png(_mask(result)), 200, headers, PNG_TYPE)
    probability = result.probability_levels()
    if layer == "probability":
        return Response(_png(probability), 200, headers, PNG_TYPE)
    levels, counts = finding_levels(result.levels, result.rules)
    headers["Finding-Counts"] = ",".join(map(str, counts))
    highest = enlarge_finding_levels(levels, view, probability)
    return Response(_png(np.dstack([probability, highest, np.zeros_like(highest)])), 200, headers, PNG_TYPE)


def _npz_response(result: ImageResult) -> Response:
    packed = io.BytesIO()
    np.savez_compressed(packed, mask=_mask(result), probability=result.probability_levels())
    return Response(packed.getvalue(), media_type=NPZ_TYPE)


def _mask(result: ImageResult) -> np.ndarray:
    """Return the mask as uint8 [H, W], 0 and 255."""
    return result.mask.view(np.uint8) * np.uint8(255)


def _as_findings(result: ImageResult, card: ModelCard) -> PictureFindings:
    view, (height, width) = result.view, result.image.shape[:2]
    found = [
        FoundPolyp(
            box=finding.box,
            polygon=finding.polygon.ravel().tolist(),
            probability=round(finding.confidence, 4),
            polyp_area_fraction=round(result.area_fraction(finding), 6),
        )
        for finding in result.findings
    ]
    return PictureFindings(
        width=width,
        height=height,
        field_of_view=(view.x, view.y, view.width, view.height),
        threshold=result.rules.threshold,
        peak=result.rules.peak,
        findings=found,
        model=f"{card.model_name} {card.model_version}",
    )


def _png(image: np.ndarray) -> bytes:
    """Encode an image with the fastest compression. A higher level would make masks only a little smaller."""
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "PNG", compress_level=1)
    return packed.getvalue()
