"""`polypstream process` for images: each one by itself, with masks, annotated copies, a table and a contact sheet."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from polypstream.core.config import Settings
from polypstream.core.files import write_atomically, write_csv, writing
from polypstream.core.frame import Frame
from polypstream.core.notice import NOTICE
from polypstream.core.protocols import OnProgress
from polypstream.errors import SettingsError, SourceError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import load_image
from polypstream.jobs.image_results import load_stills, result_names, reviews_of_images
from polypstream.jobs.predictions import ImageResult, predict
from polypstream.jobs.process import (
    Job,
    OnActivity,
    ProcessResult,
    head_of_results,
    prepare_folder,
    write_summary,
)
from polypstream.jobs.report import inlined, reviewed_since_report, write_page
from polypstream.jobs.reviews import ReviewStore
from polypstream.jobs.setup import make_overlay
from polypstream.media.scaling import Scaler, own_size
from polypstream.sinks.findings import IMAGES_SCHEMA, POLYPS
from polypstream.stages.findings import Rules, choose_rules
from polypstream.stages.overlay import Overlay

# Columns of frames.csv and of polyps.csv.
IMAGE_COLUMNS = ("image", "polyp_count", "polyp_area_fraction", "max_probability")
POLYP_COLUMNS = ("input", "image", "number", "probability", "polyp_area_fraction", "left", "top", "width", "height")
JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Sheet:
    """One image on the contact sheet.

    Attributes:
        name: file name of the image.
        polyps: number of findings.
        highest: highest probability, 0..1.
        annotated: path of the annotated copy, relative to the report.
        reviews: what readers decided about its findings, and what they drew.
    """

    name: str
    polyps: int
    highest: float
    annotated: str
    reviews: Sequence[str] = ()


def process_images(
    job: Job,
    segmenter: Segmenter,
    settings: Settings,
    on_progress: OnProgress = lambda *_: None,
    on_activity: OnActivity = lambda _: None,
) -> ProcessResult:
    """Find polyps in images, each by itself, and write the results to `job.output`/`job.name`/.

    Args:
        job: the images, and where to write.
        segmenter: runs the model.
        settings: settings of the run.
        on_progress: called as on_progress(done, total) with numbers of images.
        on_activity: called with a value that changes while there is progress.

    Returns:
        The results. An image that cannot be read is named in `damage`.

    Raises:
        SettingsError: the settings ask for de-identification, or for a field of view of their own.
        OutputError: results exist already, or cannot be written.
        SourceError: no image can be read.
        KeyboardInterrupt: the user interrupted; the files cover the images that are done.
    """
    if settings.deidentify.enabled:
        raise SettingsError(f"{job.uri}: --deidentify is for recordings; images are not de-identified")
    if settings.view.field_of_view != "auto":
        raise SettingsError(f"{job.uri}: view.field_of_view is for recordings; in images it is found, write `auto`")
    folder = prepare_folder(job.output / (job.name or "images"), None, job.overwrite, deidentified=False)
    run = ImageRun(job, folder, segmenter, settings)
    problem = "interrupted"
    try:
        for number, path in enumerate(job.images, 1):
            run.add(path)
            on_activity(number)
            on_progress(number, len(job.images))
        problem = ""
    finally:
        run.finish(problem or ("" if run.result.frames else "no image can be read"))
    if not run.result.frames:
        raise SourceError(f"{job.uri}: no image can be read: {'; '.join(run.result.damage)}")
    return run.result


@dataclass(slots=True)
class ImageRun:
    """Writes the results of a set of images.

    Args:
        job: the images.
        folder: folder of the results, which exists.
        segmenter, settings: as for `process_images`.

    Attributes:
        result: the results so far.
    """

    job: Job
    folder: Path
    segmenter: Segmenter
    settings: Settings
    result: ProcessResult = field(init=False)
    _names: dict[Path, str] = field(init=False)
    _found: list[dict[str, Any]] = field(default_factory=list)
    _rows: list[dict[str, object]] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _draw: Drawing = field(init=False)
    _rules: Rules = field(init=False)
    _sheets: list[Sheet] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.result = ProcessResult(self.job.title or self.job.uri, self.folder, images_with_polyps=0)
        self._names = result_names(self.job.images)
        self._draw, card = Drawing(make_overlay(self.settings)), self.segmenter.card
        self._rules = choose_rules(self.settings.findings, card.threshold, card.peak)
        # The first file: with it and without a summary, results are those of a run that did not end.
        write_csv(self.folder / "frames.csv", IMAGE_COLUMNS, [])
        with writing(self.folder):
            for name in ("masks", "annotated"):
                (self.folder / name).mkdir(exist_ok=True)

    def add(self, path: Path) -> None:
        """Process one image. Damage is noted in the result.

        Raises:
            OutputError: a file cannot be written.
        """
        try:
            if not path.is_file():
                raise SourceError("no such file")
            rgb = load_image(path)
        except SourceError as error:
            self.result.damage.append(f"{path.name}: {error}")
            return
        name, image = self._names[path], predict(rgb, self.segmenter.size, self.segmenter.segment_one, self._rules)
        _write_image(self.folder / "masks" / f"{name}.png", image.mask.astype(np.uint8) * 255)
        _write_image(self.folder / "annotated" / f"{name}.jpg", self._draw(image))
        self._note(path, image)

    def _note(self, path: Path, image: ImageResult) -> None:
        """Add an image to the table, to findings.json and to the result."""
        height, width = image.mask.shape
        highest, share = int(image.levels.max()) / 255, float(image.mask.mean())
        row = (path.name, len(image.findings), f"{share:.6f}", f"{highest:.4f}")
        self._rows.append(dict(zip(IMAGE_COLUMNS, row, strict=True)))
        self._found.append(
            {
                "image": path.name,
                "width": width,
                "height": height,
                "field_of_view": [image.view.x, image.view.y, image.view.width, image.view.height],
                "findings": [
                    {
                        "number": number,
                        "probability": round(finding.confidence, 4),
                        "polyp_area_fraction": round(image.area_fraction(finding), 6),
                        "box": list(finding.box),
                        "polygon": finding.polygon.ravel().tolist(),
                    }
                    for number, finding in enumerate(image.findings, 1)
                ],
            }
        )
        annotated = f"annotated/{self._names[path]}.jpg"
        self._sheets.append(Sheet(path.name, len(image.findings), highest, annotated))
        self.result.frames += 1
        self.result.polyps += len(image.findings)
        self.result.images_with_polyps = (self.result.images_with_polyps or 0) + bool(image.findings)

    def finish(self, problem: str) -> None:
        """Write the tables and the report.

        Args:
            problem: why the results are not complete; empty: they are.

        Raises:
            OutputError: a file cannot be written.
        """
        self.result.seconds = time.monotonic() - self._started
        write_csv(self.folder / "frames.csv", IMAGE_COLUMNS, self._rows)
        write_csv(self.folder / POLYPS, POLYP_COLUMNS, self._polyps())
        about = head_of_results(self.job.title or self.job.uri, self.segmenter, self.settings)
        with write_atomically(self.folder / "findings.json") as path:
            content = {"schema": IMAGES_SCHEMA, "notice": NOTICE, **about, "images": self._found}
            path.write_text(json.dumps(content, indent=1) + "\n")
        summary = self._summary(about, problem)
        _write_report(self.folder, summary, self._sheets)
        write_summary(self.folder, summary)  # last: results with a summary are finished

    def _polyps(self) -> Iterator[dict[str, object]]:
        """Rows of polyps.csv, one for each finding."""
        for image in self._found:
            for finding in image["findings"]:
                box = zip(("left", "top", "width", "height"), finding["box"], strict=True)
                names = ("number", "probability", "polyp_area_fraction")
                yield {
                    "input": self.job.title or self.job.uri,
                    "image": image["image"],
                    **{name: finding[name] for name in names},
                    **dict(box),
                }

    def _summary(self, about: dict[str, Any], problem: str) -> dict[str, Any]:
        result = self.result
        return {
            **about,
            "complete": not problem and not result.damage,
            "problem": problem or None,
            "damage": result.damage,
            "notes": self.segmenter.notes,
            "provider": self.segmenter.provider,
            "frames_in": len(self.job.images),
            "frames_out": result.frames,
            "polyps": result.polyps,
            "images_with_polyps": result.images_with_polyps,
            "wall_seconds": round(result.seconds, 3),
            "notice": NOTICE,
        }


def _write_report(folder: Path, summary: dict[str, Any], sheets: Sequence[Sheet]) -> None:
    pictures = inlined(folder, [sheet.annotated for sheet in sheets])
    write_page(folder, "images_report.html", summary=summary, sheets=list(zip(sheets, pictures, strict=True)))


def update_images_report(folder: Path) -> None:
    """Write report.html of images again if they were reviewed since.

    Args:
        folder: folder of the results.

    Raises:
        DataError: the folder does not hold finished results of images.
        OutputError: the report cannot be written.
    """
    if not reviewed_since_report(folder):
        return
    run = load_stills(folder)
    reviews = reviews_of_images(run, ReviewStore(folder).read())
    columns = (run.frames[name].tolist() for name in ("polyp_count", "max_probability"))
    paths = [f"annotated/{run.annotated(number)}" for number in range(len(run.names))]
    _write_report(folder, run.summary, list(map(Sheet, run.names, *columns, paths, reviews)))


class Drawing:
    """Draws the findings of images as the overlay draws them on frames.

    Args:
        overlay: the overlay.
    """

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._to_yuv = Scaler("yuvj444p", own_size, colours=":out_color_matrix=bt709:out_range=full")
        self._to_bgr = Scaler("bgr24", own_size)

    def __call__(self, image: ImageResult) -> np.ndarray:
        """Draw the findings on a copy of an image.

        Returns:
            uint8 BGR [H, W, 3].
        """
        frame = Frame(0, self._to_yuv(av.VideoFrame.from_ndarray(image.image, "rgb24")), 0, Fraction(1))
        frame.view, frame.probability, frame.region = image.view, image.levels, image.region
        frame.outlines = [finding.polygon for finding in image.findings]
        frame.tracks = list(range(1, len(frame.outlines) + 1))
        frame.peaks = [round(finding.confidence * 255) for finding in image.findings]
        frame.carried = [False] * len(frame.outlines)
        self._overlay([frame])
        drawn: np.ndarray = self._to_bgr(frame.in_memory()).to_ndarray()
        return drawn


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write an image in the format of its file's ending."""
    _, content = cv2.imencode(
        path.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    )
    with writing(path):
        path.write_bytes(content.tobytes())
