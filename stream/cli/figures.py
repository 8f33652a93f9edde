"""Formats figures for a terminal of 80 columns, or fewer."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

LABEL, WIDTH, COLUMN = 28, 80, 26


def as_lines(figures: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Format figures, one per line. An interval follows the figure to which it belongs.

    Args:
        figures: values by name; a value may hold figures of its own.
        indent: what each line begins with.
    """
    width = max(min(WIDTH, shutil.get_terminal_size().columns), 2 * LABEL)
    for label, text in _rows(figures, indent):
        yield textwrap.fill(text, width, initial_indent=label.ljust(LABEL), subsequent_indent=" " * LABEL) or label


def side_by_side(columns: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Format the same figures of several models, one column per model, without the reliability diagrams.

    Args:
        columns: for each model its title and its figures, all with the same names.
    """
    parts = [
        list(_rows({key: value for key, value in figures.items() if key != "reliability"}, ""))
        for _, figures in columns
    ]
    titles = [("", title if len(title) < COLUMN else f"...{title[4 - COLUMN :]}") for title, _ in columns]
    for cells in (titles, *zip(*parts, strict=True)):
        yield (cells[0][0].ljust(LABEL) + "".join(text.ljust(COLUMN) for _, text in cells)).rstrip()


def _rows(figures: dict[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        label = indent + name.replace("_", " ")
        if name.endswith("_95"):
            yield f"{indent}  95 % interval", f"{value[0]:.4f} to {value[1]:.4f}"
        elif name == "reliability":
            yield f"{label} (probability: fraction that is polyp)", ""
            yield "", ", ".join(f"{each['probability']:.2f}: {each['polyp']:.2f}" for each in value)
        elif isinstance(value, dict):
            yield label, ""
            yield from _rows(value, indent + "  ")
        else:
            yield label, f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)
