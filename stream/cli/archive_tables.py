"""The output of `polypstream archive`: lines, tables as plain text, CSV and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.filesize import decimal

from polypstream.archive.ledger import Row, State
from polypstream.core.formatting import clock, counted

PROBLEMS = (State.BROKEN, State.FAILED, State.BLOCKED)
FIELDS = ("recording", "results", "state", "frames", "polyps", "parts", "bytes", "worker_seconds", "reason")


def describe(row: Row) -> str:
    """Describe a finished recording in one line for the user.

    The line begins with the address of the recording, as in `process`, also if names are hashed. It begins with the
    hash if the row was read from the ledger, which does not hold the address then.
    """
    name = row.item.hidden_address or row.item.label
    if row.state is not State.DONE:
        return f"{name}: {row.state}: {_reason_of(row)}"
    rate = row.frames / row.worker_seconds if row.worker_seconds else 0.0
    parts = f" in {row.parts} parts" if row.parts > 1 else ""
    noted = f" ({row.reason})" if row.reason else ""
    frames, polyps = counted(row.frames, "frame"), _polyps_of(row)
    return f"{name}: {frames}{parts}, {polyps}, {rate:.1f} frames per second -> {row.item.name}{noted}"


def _polyps_of(row: Row) -> str:
    """Number of polyps. Ledgers of earlier versions do not know it."""
    return "number of polyps unknown" if row.tracks is None else counted(row.tracks, "polyp")


def _reason_of(row: Row) -> str:
    return row.reason.removeprefix(f"{row.item.label}: ")


def lines_of_recordings(rows: Sequence[Row]) -> Iterator[str]:
    """A table with a line for each recording. It ends with the reason if there is a problem."""
    head = ["state", "frames", "polyps", "worker seconds", "recording"]
    cells = [
        [
            row.state,
            str(row.frames),
            "-" if row.tracks is None else str(row.tracks),
            f"{row.worker_seconds:.1f}",
            f"{row.item.label}: {_reason_of(row)}" if row.state in PROBLEMS else row.item.label,
        ]
        for row in rows
    ]
    return _aligned([head, *cells], "<>>><")


def lines_of_totals(rows: Sequence[Row]) -> Iterator[str]:
    """A table with a line for each state: the number of recordings, their sizes, and what was found."""
    head = ["state", "recordings", "size", "frames", "polyps", "worker time"]
    states = [(state, [row for row in rows if row.state is state]) for state in State]
    cells = [[name, *_sums_of(some)] for name, some in [*states, ("all", rows)] if some or name == "all"]
    return _aligned([head, *cells], "<>>>>>")


def _sums_of(rows: Sequence[Row]) -> list[str]:
    return [
        str(len(rows)),
        decimal(sum(row.item.size for row in rows)),
        str(sum(row.frames for row in rows)),
        str(sum(row.tracks or 0 for row in rows)),
        clock(sum(row.worker_seconds for row in rows), decimals=0),
    ]


def _aligned(lines: Sequence[Sequence[str]], alignments: str) -> Iterator[str]:
    """Lines of text with aligned columns.

    Args:
        lines: the cells.
        alignments: for each column `<` or `>`.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        aligned = (f"{cell:{side}{width}}" for cell, side, width in zip(cells, alignments, widths, strict=True))
        yield "  ".join(aligned).rstrip()


def records_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The recordings as plain values, with the keys FIELDS. `polyps` is None if it is not known."""
    return [
        dict(
            zip(
                FIELDS,
                (
                    row.item.label,
                    row.item.name,
                    str(row.state),
                    row.frames,
                    row.tracks,
                    row.parts,
                    row.item.size,
                    round(row.worker_seconds, 3),
                    row.reason,
                ),
                strict=True,
            )
        )
        for row in rows
    ]
