"""Opens a source from the address that the user gave."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from polypstream.core.addresses import redacted
from polypstream.core.protocols import Source
from polypstream.errors import SourceError
from polypstream.sources.demo import SCHEME, demo_stem, open_demo, parse_demo
from polypstream.sources.dicom import DicomVideo, is_dicom
from polypstream.sources.recording import Recording, results_stem

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
# File endings of recordings in folders.
RECORDING_ENDINGS = {
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dcm", ".dv", ".f4v", ".flv", ".gif", ".gxf", ".h264", ".h265",
    ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mkv", ".mod", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogg", ".ogm", ".ogv", ".rm", ".rmvb", ".tod", ".ts", ".vc1",
    ".vob", ".vro", ".webm", ".wmv", ".wtv", ".y4m",
}  # fmt: skip


def open_source(uri: str, on_progress: Callable[[int, int], None] = lambda *_: None) -> Source:
    """Open a recording or a demo.

    Args:
        uri: path of a recording (also a DICOM video), or a demo such as ``demo:?seconds=10&seed=1``.
        on_progress: called as on_progress(done, total) with frame counts while a demo is rendered.

    Raises:
        SourceError: it cannot be opened, or no frame can be decoded.
        OutputError: a demo or the stream of a DICOM video cannot be written to its temporary place.
        MissingExtra: it is a DICOM file, and the optional package that reads it is not installed.
    """
    if uri.startswith(SCHEME):
        return open_demo(uri, on_progress)
    if problem := address_problem(uri):
        raise SourceError(problem)
    path = Path(uri)
    return DicomVideo(path) if is_dicom(path) else Recording(path)


def address_problem(uri: str) -> str:
    """Say what to do with an address of the web, an object store or a stream, since recordings are files.

    Args:
        uri: path or address.

    Returns:
        Text for the user; empty if it is no such address.
    """
    address = ADDRESS.match(uri)
    if address is None:
        return ""
    scheme, shown = address[1].lower(), redacted(uri)
    if scheme in ("http", "https"):
        return (
            f"{shown}: is a web address. Download a recording first, or give its stream to "
            "`polypstream live ADDRESS --record annotated.mp4`"
        )
    if scheme in ("s3", "gs", "az", "abfs"):
        return f"{shown}: is in an object store; use `polypstream archive`"
    return f"{shown}: is a live stream; use `polypstream live ADDRESS --record annotated.mp4`"


def stem_of(uri: str) -> str:
    """Name of the folder for a source's results.

    Args:
        uri: as for `open_source`.

    Raises:
        SourceError: a demo's address is wrong.
    """
    return demo_stem(parse_demo(uri)) if uri.startswith(SCHEME) else results_stem(Path(uri))
