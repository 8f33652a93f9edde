"""How a picture as it is stored becomes the one that people see: turned, mirrored, and with square pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

# FFmpeg's display matrix has 16 bits behind the point.
ONE = 1 << 16
# How far, of 1, an entry of the matrix may be from that of a quarter turn.
NEARLY = 0.02


@dataclass(frozen=True, slots=True)
class Orientation:
    """What is done to a stored picture to show it: rows and columns are swapped, then it is mirrored, then stretched.

    Attributes:
        swapped: rows become columns.
        mirrored: then left and right change places.
        upside_down: then top and bottom change places.
        pixel_shape: width of a stored pixel over its height.
    """

    swapped: bool = False
    mirrored: bool = False
    upside_down: bool = False
    pixel_shape: Fraction = Fraction(1)

    @classmethod
    def of(cls, display_matrix: tuple[int, ...] | None, sample_aspect_ratio: Fraction) -> Orientation:
        """From FFmpeg's nine integers (libavutil/display.h) and the shape of a pixel, 0 if unknown.

        Angles that are no quarter turn are not shown by most players, and are not here.
        """
        shape = sample_aspect_ratio or Fraction(1)
        a, b, c, d = (display_matrix[place] / ONE for place in (0, 1, 3, 4)) if display_matrix else (1, 0, 0, 1)
        quarter = [round(entry) for entry in (a, b, c, d)]
        if any(abs(entry - whole) > NEARLY for entry, whole in zip((a, b, c, d), quarter, strict=True)):
            return cls(pixel_shape=shape)
        # A stored point (x, y) is shown at (a x + c y, b x + d y).
        if quarter[0] and quarter[3]:
            return cls(False, quarter[0] < 0, quarter[3] < 0, shape)
        if quarter[1] and quarter[2]:
            return cls(True, quarter[2] < 0, quarter[1] < 0, shape)
        return cls(pixel_shape=shape)

    @property
    def turned_only(self) -> Orientation:
        """The same with pixels as they are stored."""
        return replace(self, pixel_shape=Fraction(1))

    @property
    def turns(self) -> bool:
        """Whether a picture is turned or mirrored at all."""
        return self.swapped or self.mirrored or self.upside_down

    def stretched(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a stored picture with square pixels, before it is turned; none of its detail is lost."""
        if self.pixel_shape >= 1:
            return round(width * self.pixel_shape), height
        return width, round(height / self.pixel_shape)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture as shown, from those of the stored one."""
        width, height = self.stretched(width, height)
        return (height, width) if self.swapped else (width, height)

    def filters(self) -> list[tuple[str, str]]:
        """FFmpeg's filters, each with its arguments, that turn a picture whose pixels are square already."""
        return [
            *([("transpose", "cclock_flip")] if self.swapped else []),
            *([("hflip", "")] if self.mirrored else []),
            *([("vflip", "")] if self.upside_down else []),
        ]

    def points(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """Points of a stored picture of that size where they are shown.

        Args:
            points: float [n, 2], x and y in pixels from the picture's left top corner (0, 0).
        """
        shown = points * np.divide(self.stretched(width, height), (width, height))
        if self.swapped:
            shown = shown[:, ::-1]
        across, down = self.size(width, height)
        x, y = shown[:, 0], shown[:, 1]
        return np.stack([across - x if self.mirrored else x, down - y if self.upside_down else y], axis=1)

    def plane(self, plane: np.ndarray) -> np.ndarray:
        """A plane or mask [height, width] as shown, but with pixels as they are stored."""
        turned = plane.T if self.swapped else plane
        return np.ascontiguousarray(turned[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1])

    def stored(self, plane: np.ndarray) -> np.ndarray:
        """The reverse of `plane`."""
        turned = plane[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]
        return np.ascontiguousarray(turned.T if self.swapped else turned)


AS_STORED = Orientation()
