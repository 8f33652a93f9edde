"""Packages that may not work on a machine: optional dependencies, and OpenCV, which needs libraries of the system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polypstream.errors import MissingExtra

NO_OPENCV = (
    "OpenCV cannot be loaded ({}). On Debian or Ubuntu run: apt-get install libgl1 libglib2.0-0 libxcb1. "
    "Or take the OpenCV without windows: pip uninstall opencv-python opencv-python-headless; "
    "pip install opencv-python-headless. Everything but --window works with it"
)


def load_opencv() -> None:
    """Import OpenCV. It must be loaded before PyAV.

    Both wheels contain an XCB library. OpenCV's windows never open if PyAV's library is loaded first.

    Raises:
        MissingExtra: it is not installed, or a library of the system that it needs is not.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise MissingExtra(NO_OPENCV.format(error)) from error


@contextmanager
def extra(name: str, needed_by: str = "this command") -> Iterator[None]:
    """Raise MissingExtra, with the pip command that installs the package, if the block imports a missing package.

    Args:
        name: name of the optional dependency group in pyproject.toml.
        needed_by: what needs it, for the message.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{needed_by} needs {error.name}, which is not installed; in the checkout of polypstream: "
            f"pip install -e '.[{name}]' -c constraints.txt"
        ) from error
