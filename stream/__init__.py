"""Find polyps in endoscope images and video. Research use only, not a medical device.

    >>> import polypstream as pp
    >>> detector = pp.Detector()
    >>> for frame in detector.track("demo:?seconds=10&seed=1"):
    ...     for finding in frame.findings:
    ...         print(frame.seconds, finding.track_id, finding.box, finding.confidence)

docs/python.md explains the names below. The modules behind them may change without notice.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from polypstream import errors

if TYPE_CHECKING:
    from polypstream.api import Detector, process
    from polypstream.core.config import Settings, load_settings
    from polypstream.jobs.predictions import Finding, FrameResult, ImageResult
    from polypstream.jobs.results import Run, TrackSummary, load_run
    from polypstream.jobs.reviewed import load_reviewed
    from polypstream.jobs.track import FrameResults

    __version__: str

# ONNX Runtime's wheels send names and hashes of models to their maker unless this is set before they are loaded.
# Nothing of this program leaves the machine that it runs on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Detector",
    "Finding",
    "FrameResult",
    "FrameResults",
    "ImageResult",
    "Run",
    "Settings",
    "TrackSummary",
    "__version__",
    "errors",
    "load_reviewed",
    "load_run",
    "load_settings",
    "process",
]

# Loaded when they are used: the command must start quickly, and must load OpenCV before PyAV.
_MODULES = {
    "Detector": "polypstream.api",
    "process": "polypstream.api",
    "Settings": "polypstream.core.config",
    "load_settings": "polypstream.core.config",
    "Finding": "polypstream.jobs.predictions",
    "FrameResult": "polypstream.jobs.predictions",
    "ImageResult": "polypstream.jobs.predictions",
    "Run": "polypstream.jobs.results",
    "TrackSummary": "polypstream.jobs.results",
    "load_run": "polypstream.jobs.results",
    "load_reviewed": "polypstream.jobs.reviewed",
    "FrameResults": "polypstream.jobs.track",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("polypstream")
    if name not in _MODULES:
        raise AttributeError(f"module 'polypstream' has no attribute {name!r}")
    import_module("polypstream.core.extras").load_opencv()
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
