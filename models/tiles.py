"""Pictures side by side in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from polypstream.core.files import write_output

SAMPLE_SIDE = 224


def draw_title(text: str) -> np.ndarray:
    """Draw the title of a column, uint8 BGR [28, SAMPLE_SIDE, 3]."""
    strip = np.full((28, SAMPLE_SIDE, 3), 32, np.uint8)
    cv2.putText(strip, text, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return strip


def write_tiles(rows: Sequence[np.ndarray], path: Path) -> None:
    """Write rows of tiles, uint8 BGR of one width each, as a PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    _, packed = cv2.imencode(".png", np.vstack(rows))
    write_output(path, packed.tobytes())
