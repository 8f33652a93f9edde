"""Curves as SVG paths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# A point of a curve: x and y.
Point = tuple[float, float]
# Steps between ticks are these numbers times a power of ten.
STEPS, MAX_TICKS = (1, 2, 2.5, 5, 10), 5


@dataclass(frozen=True, slots=True)
class Chart:
    """A diagram with one curve for each setting.

    Attributes:
        title, across, up: title, and labels of the axes with their units.
        curves: points of each setting, in the order of the settings.
        right, top: largest values of the axes. The smallest are 0.
        diagonal: draw the line from the smallest to the largest values, on which a perfect curve lies.
    """

    title: str
    across: str
    up: str
    curves: Sequence[Sequence[Point]]
    right: float
    top: float = 1.0
    diagonal: bool = False

    @classmethod
    def of(
        cls,
        title: str,
        across: str,
        up: str,
        curves: Iterable[Sequence[Point]],
        top: float | None = 1.0,
        right: float | None = None,
        diagonal: bool = False,
    ) -> Chart:
        """Make a chart whose axes hold all points.

        Args:
            title, across, up, curves, diagonal: as above.
            top, right: as above; None: from the points.
        """
        kept = [[point for point in curve if all(map(math.isfinite, point))] for curve in curves]
        points = [point for curve in kept for point in curve]
        return cls(
            title,
            across,
            up,
            kept,
            right or round_up(max((x for x, _ in points), default=0)),
            top or round_up(max((y for _, y in points), default=0)),
            diagonal,
        )

    def path(self, curve: Sequence[Point]) -> str:
        """SVG path of a curve; x and y are between 0 and 1000.

        Args:
            curve: one of `curves`.
        """
        return " ".join(
            f"{'L' if place else 'M'}{1000 * x / self.right:.1f} {1000 - 1000 * y / self.top:.1f}"
            for place, (x, y) in enumerate(curve)
        )

    def ticks(self, largest: float) -> Iterator[tuple[float, str]]:
        """Yield the place of each tick of an axis in per cent, and its label.

        Args:
            largest: largest value of the axis.
        """
        step = tick_step(largest)
        for number in range(math.floor(largest / step + 1e-9) + 1):
            yield 100 * number * step / largest, f"{number * step:.6g}"


def tick_step(largest: float) -> float:
    """Choose the distance between ticks of an axis.

    Args:
        largest: largest value of the axis, above 0.
    """
    power = 10 ** math.floor(math.log10(largest / MAX_TICKS))
    return next(step * power for step in STEPS if largest / (step * power) <= MAX_TICKS + 1e-9)


def round_up(largest: float) -> float:
    """Choose the end of an axis: a multiple of the distance between ticks.

    Args:
        largest: largest value; 1 is used for 0.
    """
    step = tick_step(largest or 1.0)
    return step * math.ceil((largest or 1.0) / step - 1e-9)
