"""`polypstream masks`: findings of a finished run as pre-annotations for annotation tools."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import cv2
from av import VideoFrame

from polypstream.core.files import writing
from polypstream.core.orientation import Orientation
from polypstream.errors import OutputError
from polypstream.inference.model_card import NOTICE
from polypstream.jobs.annotation_formats import FORMATS, Annotated
from polypstream.jobs.process import ANNOTATIONS, OnProgress
from polypstream.jobs.results import (
    Run,
    best_outlines,
    find_run,
    frames_again,
    open_again,
    shown_until,
)
from polypstream.media.scaling import shown

JPEG_QUALITY = 95
# A frame that is early by at most this many seconds counts as on time.
EARLY_S = 1e-4
# Describes the origin of the annotations. Only folders with this file may be replaced.
ABOUT = "about.json"


def write_annotations(
    recording: str,
    results: Path,
    name: str,
    output: Path | None = None,
    every: float = 0.0,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> tuple[Path, int, int]:
    """Write the findings of a finished run, and the images, in the format of an annotation tool.

    Args:
        recording: the recording that was processed: its path, or a demo's address.
        results: folder that was given to `process --output`, or the folder of this run.
        name: format, a key of FORMATS.
        output: folder to write; None: annotations-<name>/ in the folder of the run.
        every: seconds between annotated frames; 0: every frame. A track that no such frame shows is annotated in the
            frame that shows it best.
        overwrite: replace the output of an earlier call.
        on_progress: called as on_progress(done, total) with frame counts; total is None if unknown.

    Returns:
        The folder, the number of annotated frames, and the number of findings in them.

    Raises:
        DataError: there is no such run, or it is not a run of this recording.
        SourceError: the recording cannot be read.
        OutputError: the folder cannot be written, or is not empty and may not be replaced.
    """
    run = find_run(recording, results)
    target = output or run.folder / f"{ANNOTATIONS}{name}"
    times, stretches = run.frames["pts_s"].tolist(), shown_until(run)
    chosen = _sampled(times, every) | _unseen(run, _sampled(times, every))
    pictures, findings = 0, 0
    with _replacing(target, overwrite) as folder, closing(open_again(run, recording)) as source:
        orientation = FORMATS[name].shown(source.format.orientation)
        writer = FORMATS[name](folder, *orientation.size(*run.picture_size), len(times))
        encode = _jpeg_encoder(orientation)
        for frame, outlines in frames_again(run, source, on_progress):
            if frame.index not in chosen:
                continue
            name_of_files = f"{run.folder.name}_{frame.index:06d}"
            displayed = [outline.shown(orientation, *run.picture_size) for outline in outlines]
            ends = [stretches[outline.track_id, frame.index] for outline in outlines]
            with writing(target):
                if writer.images:
                    (writer.images / f"{name_of_files}.jpg").write_bytes(encode(frame.picture))
                writer.write(Annotated(name_of_files, frame.index, displayed, ends))
            pictures, findings = pictures + 1, findings + len(outlines)
        with writing(target):
            writer.close()
            (folder / ABOUT).write_text(json.dumps({"notice": NOTICE, **run.about}, indent=2) + "\n")
    return target, pictures, findings


def _sampled(times: Sequence[float], every: float) -> set[int]:
    """Numbers of the first frame in each interval of `every` seconds; 0: of all frames."""
    numbers = [int((time - times[0] + EARLY_S) / every) if every else index for index, time in enumerate(times)]
    return {index for index, (before, number) in enumerate(pairwise([-1, *numbers])) if number > before}


def _unseen(run: Run, chosen: Collection[int]) -> set[int]:
    """For each track that none of the chosen frames shows, the number of the frame that shows it best."""
    seen = {outline.track_id for frame, outlines in run.outlines().items() if frame in chosen for outline in outlines}
    best = best_outlines(run)
    return {frame for frame, outlines in best.items() if any(outline.track_id not in seen for outline in outlines)}


def _jpeg_encoder(orientation: Orientation) -> Callable[[VideoFrame], bytes]:
    """Make a function that encodes frames as JPEG, of any size, also an odd one."""
    scale = shown("bgr24", orientation)

    def encode(picture: VideoFrame) -> bytes:
        _, jpeg = cv2.imencode(".jpg", scale(picture).to_ndarray(), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return bytes(jpeg)

    return encode


@contextmanager
def _replacing(target: Path, overwrite: bool) -> Iterator[Path]:
    """Folder to write into. It becomes `target` after success, and is removed after an error.

    Raises:
        OutputError: `target` is not empty and may not be replaced, or it cannot be created.
    """
    with writing(target):
        present = target.exists() and any(target.iterdir())
        if present and not (target / ABOUT).is_file():
            raise OutputError(f"{target}: holds something that is not of `polypstream masks`; choose another --output")
        if present and not overwrite:
            raise OutputError(f"{target}: holds annotations already; give --overwrite to replace them")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield folder
        with writing(target):
            folder.chmod(target.parent.stat().st_mode)
            shutil.rmtree(target, ignore_errors=True)
            folder.replace(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
