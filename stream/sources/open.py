"""From what the user wrote to a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polypstream.core.protocols import Source
from polypstream.sources.demo import SCHEME, demo_stem, open_demo, parse_demo
from polypstream.sources.dicom import DicomVideo, is_dicom
from polypstream.sources.recording import Recording, results_stem


def open_source(uri: str, on_progress: Callable[[int, int], None] = lambda *_: None) -> Source:
    """Open a recording's path, a DICOM video's too, or a demo such as ``demo:?seconds=10&seed=1``.

    Args:
        uri: what to open.
        on_progress: while a demo is rendered, told the frames done and all frames.

    Raises:
        SourceError: it cannot be opened, or holds no picture that can be decoded.
        MissingExtra: it is a DICOM file, and what reads those is not installed.
    """
    if uri.startswith(SCHEME):
        return open_demo(uri, on_progress)
    path = Path(uri)
    return DicomVideo(path) if is_dicom(path) else Recording(path)


def stem_of(uri: str) -> str:
    """The name of the folder for a source's results.

    Raises:
        SourceError: a demo's address is wrong.
    """
    return demo_stem(parse_demo(uri)) if uri.startswith(SCHEME) else results_stem(Path(uri))
