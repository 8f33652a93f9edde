"""`polypstream masks`: what a run found, as pre-annotations that annotation tools open."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import cv2
from av import VideoFrame

from stream.annotation_formats import FORMATS, Annotated
from stream.errors import OutputError
from stream.frame import Frame
from stream.model import NOTICE
from stream.process import ANNOTATIONS, Poll
from stream.results import Outline, find_run, frames_again, open_again
from stream.scale import Scaler, own_size
from stream.sinks.files import writing

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
    poll: Poll = lambda *_: None,
) -> tuple[Path, int, int]:
    """Write the findings of a finished run in a format of annotation tools, with the pictures that it needs.

    Args:
        recording: that was processed: its path, or a demo's address.
        results: the folder that was given to `process --output`, or that of this one run.
        name: of FORMATS.
        output: folder to write; None: annotations-<name>/ among the run's results.
        every: seconds from one annotated picture to the next; 0: every picture.
        overwrite: replace what an earlier call wrote there.
        poll: told the frames done and the frames expected (None: unknown).

    Returns:
        The folder, the pictures annotated and the findings in them.

    Raises:
        DataError: there is no such run, or this is not its recording.
        SourceError: the recording cannot be read.
        OutputError: the folder cannot be written, or holds something.
    """
    run = find_run(recording, results)
    target = output or run.folder / f"{ANNOTATIONS}{name}"
    encode, pictures, findings = _jpeg_encoder(), 0, 0
    with _replacing(target, overwrite) as folder:
        writer = FORMATS[name](folder, *run.picture_size)
        with closing(open_again(run, recording)) as source:
            for frame, outlines in _sampled(frames_again(run, source, poll), every):
                name_of_files = f"{run.folder.name}_{frame.index:06d}"
                with writing(target):
                    if writer.images:
                        (writer.images / f"{name_of_files}.jpg").write_bytes(encode(frame.picture))
                    writer.write(Annotated(name_of_files, frame.index, outlines))
                pictures, findings = pictures + 1, findings + len(outlines)
        with writing(target):
            writer.close()
            (folder / ABOUT).write_text(json.dumps({"notice": NOTICE, **run.about}, indent=2) + "\n")
    return target, pictures, findings


def _sampled(frames: Iterator[tuple[Frame, list[Outline]]], every: float) -> Iterator[tuple[Frame, list[Outline]]]:
    """The first frame, and from there the first one in each `every` seconds."""
    start, last = 0.0, -1
    for frame, outlines in frames:
        if last < 0:
            start = frame.seconds
        number = int((frame.seconds - start + EARLY_S) / every) if every else frame.index
        if number > last:
            yield frame, outlines
            last = number


def _jpeg_encoder() -> Callable[[VideoFrame], bytes]:
    """Pictures of any size, odd ones too, as JPEG."""
    scale = Scaler("bgr24", own_size)

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
