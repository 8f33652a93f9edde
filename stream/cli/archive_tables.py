"""The output of `polypstream archive`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from polypstream.archive.ledger import Row, State


def describe(row: Row) -> str:
    """Describe a finished recording in one line for the user."""
    if row.state is not State.DONE:
        return f"{row.item.address}: {row.state}: {row.reason.removeprefix(f'{row.item.address}: ')}"
    rate = row.frames / row.worker_seconds if row.worker_seconds else 0.0
    parts = f" in {row.parts} parts" if row.parts > 1 else ""
    noted = f" ({row.reason})" if row.reason else ""
    return (
        f"{row.item.address}: {row.frames} frames{parts}, {rate:.1f} per second of a worker -> {row.item.name}{noted}"
    )


def print_archive(rows: Sequence[Row], console: Console) -> None:
    """Print the recordings with errors, and a table with the number of recordings in each state."""
    table = Table("state", "recordings", "gigabytes", "frames", "worker hours")
    for state in State:
        in_state = [row for row in rows if row.state is state]
        if in_state:
            table.add_row(state, *_sums(in_state))
    table.add_section()
    table.add_row("all", *_sums(rows))
    for row in rows:
        if row.state in (State.BROKEN, State.FAILED, State.BLOCKED):
            console.print(describe(row), markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def _sums(rows: Iterable[Row]) -> tuple[str, ...]:
    rows = list(rows)
    return (
        str(len(rows)),
        f"{sum(row.item.size for row in rows) / 1e9:.2f}",
        str(sum(row.frames for row in rows)),
        f"{sum(row.worker_seconds for row in rows) / 3600:.2f}",
    )
