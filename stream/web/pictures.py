"""The picture page: what the network says of a picture that somebody brings."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import IO, Annotated, Literal

import cv2
import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, File, HTTPException, Query, Request, Response, UploadFile
from PIL import Image
from pydantic import BaseModel

from polypstream.core.config import Settings
from polypstream.inference.model_card import NOTICE, ModelCard
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import FORMATS, load_image, prepare_image
from polypstream.jobs.predictions import ImageResult
from polypstream.stages.findings import choose_rules
from polypstream.web.batcher import Batcher
from polypstream.web.page import BINARY, BODY, JSON_TYPE, MULTIPART_EXTRA, Described, Render, refusal

SAMPLES = tuple(sorted(path.name for path in (Path(__file__).parent / "static" / "samples").glob("*.jpg")))
# Pictures that are decoded at the same time; a large one takes 120 MB.
AT_ONCE = 8
# A quality in an Accept header (RFC 9110, 12.4.2).
QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
PNG_TYPE, NPZ_TYPE = "image/png", "application/x-npz"
Layer = Literal["mask", "probability", "picture"]


class FoundPolyp(BaseModel):
    """One finding; places in pixels of the picture as it is looked at."""

    box: tuple[int, int, int, int]
    """Left, top, width, height."""
    polygon: list[int]
    """x and y in turn."""
    probability: float
    """The highest in it, 0 to 1."""
    area_fraction: float
    """Of the picture."""


class PictureFindings(BaseModel):
    """What was found in a picture."""

    width: int
    height: int
    field_of_view: tuple[int, int, int, int]
    """What the network saw: left, top, width, height."""
    threshold: float
    """Probability from which a pixel counts as polyp."""
    peak: float
    """Probability that a finding must reach somewhere."""
    findings: list[FoundPolyp]
    model: str
    notice: str = NOTICE


class PicturePage:
    """Segments pictures.

    Args:
        segmenter: the network.
        batcher: that gives it the pictures of all callers.
        settings: of which `findings` and `serve` have a say here.
    """

    title, path = "Picture", "/picture"

    def __init__(self, segmenter: Segmenter, batcher: Batcher, settings: Settings) -> None:
        self._card, self._size, self._batcher, self._settings = segmenter.card, segmenter.size, batcher, settings
        self._rules = choose_rules(settings.findings, self._card.threshold, self._card.peak)
        self._places = CapacityLimiter(AT_ONCE)

    def problems(self) -> list[str]:
        """None: it works or there is no page."""
        return []

    def page(self, request: Request, render: Render) -> Response:
        """The page itself."""
        megabytes = self._settings.serve.picture_megabytes
        return render(request, "picture.html", rules=self._rules, samples=SAMPLES, card=self._card, megabytes=megabytes)

    def router(self, render: Render) -> APIRouter:
        """What the page asks for, and what scripts may."""
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
            layer: Annotated[Layer, Query(description="What a PNG shows")] = "mask",
        ) -> Response:
            """Find polyps in a picture.

            The Accept header chooses the answer: `application/json` (also without a preference), `image/png` (a mask
            of its size, 0 and 255; `layer=probability` instead: 255 meaning 1; `layer=picture`: the picture as
            it was read), or `application/x-npz` (NumPy: `probability` and `mask`, uint8 [height, width]).
            """
            wanted = choose_type(request.headers.get("Accept", "*/*"))
            # In threads of its own, so that forty who send pictures do not keep everybody else waiting.
            return await to_thread.run_sync(self._answer_to, file.file, wanted, layer, limiter=self._places)

        return router

    def _answer_to(self, file: IO[bytes], wanted: str, layer: Layer) -> Response:
        picture = load_image(file)
        if wanted == PNG_TYPE and layer == "picture":
            return Response(_png(picture), media_type=PNG_TYPE)
        return _answer(self._segment(picture), wanted, layer, self._card)

    def _segment(self, picture: np.ndarray) -> ImageResult:
        view, model_input = prepare_image(picture, self._size)
        return ImageResult(picture, view, self._batcher.segment(model_input), self._rules)


RESPONSES: Described = BODY | {
    200: {"content": {PNG_TYPE: BINARY, NPZ_TYPE: BINARY}},
    406: refusal("None of the types that the Accept header names can be had"),
    413: refusal("The file, or its picture, is too large"),
    415: refusal("It is not a picture that can be read"),
}
# What FastAPI cannot know.
ENCODING = {"file": {"contentType": ", ".join(f"image/{kind.lower()}" for kind in FORMATS)}}


def choose_type(accept: str) -> str:
    """The content type that an Accept header (RFC 9110, 12.5.1) likes best of those that there are.

    Raises:
        HTTPException: it likes none.
    """
    best, best_quality = "", 0.0
    for offered in (JSON_TYPE, PNG_TYPE, NPZ_TYPE):
        quality = _quality(accept, offered)
        if quality > best_quality:
            best, best_quality = offered, quality
    if not best:
        raise HTTPException(406, f"there is {JSON_TYPE}, {PNG_TYPE} and {NPZ_TYPE}")
    return best


def _quality(accept: str, offered: str) -> float:
    """How much a type is liked: what the header says of it itself goes before what it says of its kind, or of all."""
    ranges = _ranges(accept)
    for kind in (offered, offered.split("/")[0] + "/*", "*/*"):
        if kind in ranges:
            return ranges[kind]
    return 0.0


def _ranges(accept: str) -> dict[str, float]:
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        quality = next((each[2:].strip() for each in parameters if each.startswith("q=")), "1")
        ranges[kind] = float(quality) if QUALITY.fullmatch(quality) else 0.0
    return ranges


def _answer(result: ImageResult, wanted: str, layer: Layer, card: ModelCard) -> Response:
    if wanted == JSON_TYPE:
        return Response(_as_findings(result, card).model_dump_json(), media_type=JSON_TYPE)
    if wanted == PNG_TYPE:
        view = result.view
        headers = {"Field-Of-View": f"{view.x},{view.y},{view.width},{view.height}"}
        return Response(_png(_mask(result) if layer == "mask" else result.probability_levels()), 200, headers, PNG_TYPE)
    packed = io.BytesIO()
    np.savez_compressed(packed, mask=_mask(result), probability=result.probability_levels())
    return Response(packed.getvalue(), media_type=NPZ_TYPE)


def _mask(result: ImageResult) -> np.ndarray:
    """uint8 [H, W], 0 and 255."""
    return result.mask.view(np.uint8) * np.uint8(255)


def _as_findings(result: ImageResult, card: ModelCard) -> PictureFindings:
    view, (height, width) = result.view, result.image.shape[:2]
    found = [
        FoundPolyp(
            box=finding.box,
            polygon=finding.polygon.ravel().tolist(),
            probability=round(finding.confidence, 4),
            area_fraction=round(cv2.contourArea(finding.polygon) / (width * height), 6),
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


def _png(picture: np.ndarray) -> bytes:
    """Packed quickly: masks are small however they are packed."""
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "PNG", compress_level=1)
    return packed.getvalue()
