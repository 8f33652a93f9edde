"""Texts and marks on live frames: where the model looks, whether it runs, and the notice about research use."""

from __future__ import annotations

import cv2
import numpy as np

from polypstream.core.frame import Frame
from polypstream.core.notice import NOTICE
from polypstream.media.pictures import planes_of
from polypstream.stages.overlay import FONT, REFERENCE_LINES, SMALLEST_TEXT, paint, text_masks

READY = "looking for polyps"
NO_SIGNAL = "no signal"
# Sizes in pixels on a frame with 1080 rows.
MARGIN, TEXT_SCALE, LINE, LINE_HEIGHT, CORNER = 24, 0.9, 2, 40, 40
# Colours in the order blue, green, red.
RED, WHITE = (60, 60, 255), (255, 255, 255)


class StatusOverlay:
    """Draws the status on each frame, in white with a dark border, on the luma plane only.

    Corner marks show the field of view that the model sees, as on other processors of this class. The text
    "looking for polyps" means that the model runs. Otherwise the text is the reason why it does not.
    """

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Draw in place. A frame that the decoder may still need is copied first.

        Args:
            frames: any frames.

        Returns:
            The same frames.
        """
        for frame in frames:
            picture = frame.in_memory()
            picture.make_writable()
            luma = planes_of(picture)[0]
            scale = picture.height / REFERENCE_LINES
            white = 235 if luma.dtype == np.uint8 else 940
            if frame.has_signal and not frame.problem:
                _mark_corners(luma, frame, scale, white)
            upright = frame.orientation.plane(luma) if frame.orientation.turns else luma
            for row, text in enumerate((NOTICE, _state_of(frame))):
                _write(upright, text, row, upright.shape[0] / REFERENCE_LINES, white)
            if frame.orientation.turns:
                luma[:] = frame.orientation.stored(upright)
        return frames


def draw_recording(picture: np.ndarray, text: str, on: bool) -> None:
    """Write the state of recording into the right top corner of an image.

    Args:
        picture: uint8 BGR [H, W, 3]; changed in place.
        text: the text.
        on: whether the frame is being recorded; the text is then red, otherwise white.
    """
    scale = picture.shape[0] / REFERENCE_LINES
    margin = round(MARGIN * scale)
    letters, ground = _masks(text, scale, picture.shape[1] - 2 * margin)
    x = max(0, picture.shape[1] - margin - letters.shape[1])
    for mask, colour in ((ground, (0, 0, 0)), (letters, RED if on else WHITE)):
        paint(picture, mask, x, margin, colour)


def _state_of(frame: Frame) -> str:
    if not frame.has_signal:
        return NO_SIGNAL
    if frame.problem:
        return f"no markers: {frame.problem}"
    return f"{READY}, markers {1000 * frame.markers_age:.0f} ms old" if frame.markers_age else READY


def _write(luma: np.ndarray, text: str, row: int, scale: float, white: int) -> None:
    """Write a line of text at the left; row 0 is the lowest one."""
    margin = round(MARGIN * scale)
    letters, ground = _masks(text, scale, luma.shape[1] - 2 * margin)
    line = round(LINE_HEIGHT * max(scale, SMALLEST_TEXT / TEXT_SCALE))
    y = max(0, luma.shape[0] - margin - letters.shape[0] - row * line)
    for mask, level in ((ground, white // 15), (letters, white)):
        paint(luma, mask, margin, y, level)


def _masks(text: str, scale: float, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a text, as `text_masks` does. In a small frame it is relatively larger, so that it can be read, if it fits.

    Args:
        text: the text.
        scale: height of the frame relative to REFERENCE_LINES.
        width: pixels that the text may have.
    """
    fitting = SMALLEST_TEXT * width / cv2.getTextSize(text, FONT, SMALLEST_TEXT, 1)[0][0]
    size = max(TEXT_SCALE * scale, min(SMALLEST_TEXT, fitting))
    return text_masks(text, size, max(1, round(LINE * scale)), max(1, round(LINE * scale)))


def _mark_corners(luma: np.ndarray, frame: Frame, scale: float, white: int) -> None:
    view, length, thickness = frame.view, round(CORNER * scale), max(1, round(LINE * scale))
    for x, inwards in ((view.x, 1), (view.x + view.width - 1, -1)):
        for y, down in ((view.y, 1), (view.y + view.height - 1, -1)):
            corner = np.array([[x + inwards * length, y], [x, y], [x, y + down * length]])
            cv2.polylines(luma, [corner], False, white, thickness)
