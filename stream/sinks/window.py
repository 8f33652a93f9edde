"""Live video in windows on this machine's screens."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from polypstream.core.config import WindowSettings
from polypstream.core.frame import Frame
from polypstream.core.orientation import Orientation
from polypstream.errors import OutputError
from polypstream.media.jpeg import snapshot
from polypstream.media.scaling import Scaler, shown
from polypstream.sinks.rolling import RollingRecording
from polypstream.stages.status_overlay import draw_recording

ESCAPE = 27
# Updates of the windows per second: twice the frame rate of the fastest source.
REFRESH_RATE = 120


class Windows:
    """A sink that shows each source in a separate window, which has the name of the source.

    `write` keeps frames and may be called from any thread. `pump` shows them. The main thread must call it, since
    desktop systems allow only the main thread to handle windows.

    Args:
        settings: position of the windows, and whether they fill the screen.

    Attributes:
        keys: function to call for each key.
        recordings: returns the recording of a source; None if it is not recorded.

    Raises:
        OutputError: there is no screen, or this OpenCV has no windows.
    """

    queue_size = 1

    def __init__(self, settings: WindowSettings) -> None:
        if not cv2.currentUIFramework():
            raise OutputError(
                "--window: this OpenCV has no windows (opencv-python-headless). Use --serve, or run: pip uninstall "
                "opencv-python opencv-python-headless; pip install opencv-python"
            )
        # Qt ends the program if it finds no screen.
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise OutputError("--window: there is no screen here (DISPLAY is not set); use --serve instead")
        self._settings = settings
        self.keys: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._newest: dict[str, Frame] = {}
        self._shown: dict[str, Frame] = {}
        self._forgotten: set[str] = set()
        self.recordings: Callable[[str], RollingRecording | None] = lambda _: None
        self._to_bgr: dict[str, tuple[Orientation, Scaler]] = {}

    def write(self, frame: Frame) -> None:
        """Keep the newest frame of each source."""
        with self._lock:
            self._newest[frame.source] = frame

    def forget(self, source: str) -> None:
        """Close the window of a source that was removed.

        Args:
            source: its name. No frame of it comes any more.
        """
        with self._lock:
            self._newest.pop(source, None)
            self._forgotten.add(source)

    def close(self) -> None:
        """Do nothing: the windows belong to the main thread and close with the program."""

    def pump(self) -> None:
        """Show new frames and handle pressed keys.

        Raises:
            KeyboardInterrupt: q or Escape was pressed, or a window was closed.
            OutputError: a snapshot cannot be written.
        """
        with self._lock:
            newest, forgotten, self._forgotten = dict(self._newest), self._forgotten, set()
        for source in forgotten & self._shown.keys():
            del self._shown[source]
            cv2.destroyWindow(source)
        for source, frame in newest.items():
            if self._shown.get(source) is not frame:
                self._show(source, frame)
        if self._shown:
            self._handle_key(cv2.pollKey() & 0xFF)

    def _show(self, source: str, frame: Frame) -> None:
        if source not in self._shown:
            self._open(source, frame)
        elif cv2.getWindowProperty(source, cv2.WND_PROP_VISIBLE) < 1:
            raise KeyboardInterrupt
        picture = self._displayed(source, frame)
        recording = self.recordings(source)
        if recording is not None:
            draw_recording(picture, recording.caption, recording.on)
        cv2.imshow(source, picture)
        self._shown[source] = frame

    def _displayed(self, source: str, frame: Frame) -> np.ndarray:
        """Convert a frame for display: rotated, with square pixels.

        Returns:
            uint8 BGR [height, width, 3].
        """
        known, scaler = self._to_bgr.get(source, (None, None))
        if scaler is None or known != frame.orientation:
            scaler = shown("bgr24", frame.orientation)
            self._to_bgr[source] = frame.orientation, scaler
        return np.ascontiguousarray(scaler(frame.in_memory()).to_ndarray())

    def _open(self, source: str, frame: Frame) -> None:
        cv2.namedWindow(source, cv2.WINDOW_NORMAL | cv2.WINDOW_GUI_NORMAL)
        cv2.moveWindow(source, self._settings.left, self._settings.top)
        cv2.resizeWindow(source, *frame.orientation.size(frame.picture.width, frame.picture.height))
        if self._settings.full_screen:
            cv2.setWindowProperty(source, cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN)

    def _handle_key(self, key: int) -> None:
        if key in (ord("q"), ESCAPE):
            raise KeyboardInterrupt
        if chr(key) in self.keys:
            self.keys[chr(key)]()

    def save_snapshots(self) -> None:
        """Save the frames that are shown as SOURCE-FRAME.jpg in the current folder.

        Raises:
            OutputError: a file cannot be written.
        """
        for source, frame in self._shown.items():
            name = "".join(letter if letter.isalnum() else "-" for letter in source)
            path = Path(f"{name}-{frame.index}.jpg")
            try:
                path.write_bytes(snapshot(frame))
            except OSError as error:
                raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
