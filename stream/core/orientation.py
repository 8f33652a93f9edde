"""How a stored frame is displayed: rotated, mirrored, and with square pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

# FFmpeg's display matrix contains fixed-point numbers with 16 fractional bits.
ONE = 1 << 16
# Tolerance of a matrix entry: its difference from that of a rotation by a multiple of 90 degrees.
NEARLY = 0.02


@dataclass(frozen=True, slots=True)
class Orientation:
    """The transformation from a stored frame to the displayed one: swap rows and columns, then mirror, then stretch.

    Attributes:
        swapped: rows become columns.
        mirrored: after the swap, left and right are exchanged.
        upside_down: after the swap, top and bottom are exchanged.
        pixel_shape: width of a stored pixel divided by its height.
    """

    swapped: bool = False
    mirrored: bool = False
    upside_down: bool = False
    pixel_shape: Fraction = Fraction(1)

    @classmethod
    def of(cls, display_matrix: tuple[int, ...] | None, sample_aspect_ratio: Fraction) -> Orientation:
        """Build the orientation from a file's tags.

        Angles that are not a multiple of 90 degrees are ignored, as most players do.

        Args:
            display_matrix: FFmpeg's nine integers (libavutil/display.h), or None.
            sample_aspect_ratio: width of a pixel divided by its height; 0 if unknown.

        Returns:
            The orientation.
        """
        shape = sample_aspect_ratio or Fraction(1)
        a, b, c, d = (display_matrix[place] / ONE for place in (0, 1, 3, 4)) if display_matrix else (1, 0, 0, 1)
        quarter = [round(entry) for entry in (a, b, c, d)]
        if any(abs(entry - whole) > NEARLY for entry, whole in zip((a, b, c, d), quarter, strict=True)):
            return cls(pixel_shape=shape)
        # A stored point (x, y) is displayed at (a x + c y, b x + d y).
        if quarter[0] and quarter[3]:
            return cls(False, quarter[0] < 0, quarter[3] < 0, shape)
        if quarter[1] and quarter[2]:
            return cls(True, quarter[2] < 0, quarter[1] < 0, shape)
        return cls(pixel_shape=shape)

    @property
    def turned_only(self) -> Orientation:
        """The same orientation with pixels as they are stored."""
        return replace(self, pixel_shape=Fraction(1))

    @property
    def turns(self) -> bool:
        """Whether the frame is rotated or mirrored."""
        return self.swapped or self.mirrored or self.upside_down

    def stretched(self, width: int, height: int) -> tuple[int, int]:
        """Compute the size of a stored frame with square pixels, before rotation.

        The frame is only enlarged, so that no detail is lost.

        Args:
            width, height: size of the stored frame in pixels.

        Returns:
            Width and height in square pixels.
        """
        if self.pixel_shape >= 1:
            return round(width * self.pixel_shape), height
        return width, round(height / self.pixel_shape)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Compute the size of a frame as displayed.

        Args:
            width, height: size of the stored frame in pixels.

        Returns:
            Width and height in square pixels.
        """
        width, height = self.stretched(width, height)
        return (height, width) if self.swapped else (width, height)

    def filters(self) -> list[tuple[str, str]]:
        """List FFmpeg's filters that rotate and mirror a frame whose pixels are already square.

        Returns:
            Name and arguments of each filter.
        """
        return [
            *([("transpose", "cclock_flip")] if self.swapped else []),
            *([("hflip", "")] if self.mirrored else []),
            *([("vflip", "")] if self.upside_down else []),
        ]

    def points(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """Map points from the stored frame to the displayed one.

        Args:
            points: float [n, 2], x and y in pixels; (0, 0) is the frame's left top corner.
            width, height: size of the stored frame in pixels.

        Returns:
            float [n, 2], x and y in pixels of the displayed frame.
        """
        shown = points * np.divide(self.stretched(width, height), (width, height))
        if self.swapped:
            shown = shown[:, ::-1]
        across, down = self.size(width, height)
        x, y = shown[:, 0], shown[:, 1]
        return np.stack([across - x if self.mirrored else x, down - y if self.upside_down else y], axis=1)

    def plane(self, plane: np.ndarray) -> np.ndarray:
        """Rotate and mirror a plane or mask for display, without stretching its pixels.

        Args:
            plane: [height, width], as stored.

        Returns:
            The plane as displayed, [height, width] or, if swapped, [width, height].
        """
        turned = plane.T if self.swapped else plane
        return np.ascontiguousarray(turned[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1])

    def stored(self, plane: np.ndarray) -> np.ndarray:
        """Undo `plane`.

        Args:
            plane: a plane or mask as displayed.

        Returns:
            The plane as stored.
        """
        turned = plane[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]
        return np.ascontiguousarray(turned.T if self.swapped else turned)


AS_STORED = Orientation()
