"""`polypstream masks`: what a run found, as pre-annotations that annotation tools open."""

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
# A frame this little before its time, in seconds, counts as on time.
EARLY_S = 1e-4
# Says what annotations were made of, and that a folder is ours to replace.
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
    """Write the findings of a finished run in a format of annotation tools, with the pictures that it needs.

    Args:
        recording: that was processed: its path, or a demo's address.
        results: the folder that was given to `process --output`, or that of this one run.
        name: of FORMATS.
        output: folder to write; None: annotations-<name>/ among the run's results.
        every: seconds from one annotated picture to the next; 0: every picture. A track that would be missed is
            annotated where it is seen best.
        overwrite: replace what an earlier call wrote there.
        on_progress: told the frames done and the frames expected (None: unknown).

    Returns:
        The folder, the pictures annotated and the findings in them.

    Raises:
        DataError: there is no such run, or this is not its recording.
        SourceError: the recording cannot be read.
        OutputError: the folder cannot be written, or holds something.
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
            there = [outline.shown(orientation, *run.picture_size) for outline in outlines]
            ends = [stretches[outline.track_id, frame.index] for outline in outlines]
            with writing(target):
                if writer.images:
                    (writer.images / f"{name_of_files}.jpg").write_bytes(encode(frame.picture))
                writer.write(Annotated(name_of_files, frame.index, there, ends))
            pictures, findings = pictures + 1, findings + len(outlines)
        with writing(target):
            writer.close()
            (folder / ABOUT).write_text(json.dumps({"notice": NOTICE, **run.about}, indent=2) + "\n")
    return target, pictures, findings


def _sampled(times: Sequence[float], every: float) -> set[int]:
    """Numbers of the first frame, and from there of the first one in each `every` seconds; 0: of all."""
    numbers = [int((time - times[0] + EARLY_S) / every) if every else index for index, time in enumerate(times)]
    return {index for index, (before, number) in enumerate(pairwise([-1, *numbers])) if number > before}


def _unseen(run: Run, chosen: Collection[int]) -> set[int]:
    """Of each track that none of the chosen frames shows, the number of the frame that shows it best."""
    seen = {outline.track_id for frame, outlines in run.outlines().items() if frame in chosen for outline in outlines}
    best = best_outlines(run)
    return {frame for frame, outlines in best.items() if any(outline.track_id not in seen for outline in outlines)}


def _jpeg_encoder(orientation: Orientation) -> Callable[[VideoFrame], bytes]:
    """Pictures of any size, odd ones too, as JPEG."""
    scale = shown("bgr24", orientation)

    def encode(picture: VideoFrame) -> bytes:
        _, jpeg = cv2.imencode(".jpg", scale(picture).to_ndarray(), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return bytes(jpeg)

    return encode


@contextmanager
def _replacing(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that becomes `target` when all is well, and else goes away.

    Raises:
        OutputError: `target` holds something and may not be replaced, or it cannot be made.
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
