"""Formats figures for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

LABEL, WIDTH = 28, 80


def as_lines(figures: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Format figures, one per line. An interval follows the figure to which it belongs.

    Args:
        figures: values by name; a value may hold figures of its own.
        indent: spaces before each name.
    """
    for name, value in figures.items():
        label = indent + name.replace("_", " ")
        if name.endswith("_95"):
            yield f"{indent}  95 % interval".ljust(LABEL) + f"{value[0]:.4f} to {value[1]:.4f}"
        elif name == "reliability":
            yield f"{label} (probability: fraction that is polyp)"
            yield _wrapped("", ", ".join(f"{each['probability']:.2f}: {each['polyp']:.2f}" for each in value))
        elif isinstance(value, dict):
            yield label
            yield from as_lines(value, indent + "  ")
        else:
            yield _wrapped(label, f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value))


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=label.ljust(LABEL), subsequent_indent=" " * LABEL)
