"""`polypstream archive`: many recordings, by many workers, on one machine or a cluster of them.

Puts together what an archive is of (`archive_inputs.py`), the ledger, the storage, and the driver that gives tasks to
workers, so that a second run does what is missing and two at once do not happen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from polypstream.archive.driver import Driver, Workers
from polypstream.archive.inputs import Item, find_recordings, settle_names
from polypstream.archive.ledger import LEDGER, Ledger, Row, State
from polypstream.archive.storage import HIDDEN, LAST_FILE, PARTS, Store, open_store
from polypstream.archive.worker import Engine, Order
from polypstream.errors import OutputError

log = logging.getLogger(__name__)
# The ledger of an object store is kept here, and copied there so often.
COPY_S = 5.0
FINISHED = (State.DONE, State.BROKEN)


def archive(
    inputs: Sequence[str],
    order: Order,
    make_workers: Callable[[Engine | None], Workers],
    overwrite: bool,
    tell: Callable[[Row], None],
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Row]:
    """Process what is missing or failed of an archive.

    Args:
        inputs: as for `find_recordings`.
        order: what the results are made with.
        make_workers: makes the workers, if there is anything to do, such that work with the same as those before.
        overwrite: replace results that exist, and begin anew what was made with other settings.
        tell: is given each row of the ledger that is finished.
        on_progress: told the bytes of recordings done and all bytes.

    Returns:
        The rows of all recordings that the inputs mean.

    Raises:
        PolypstreamError: it cannot be begun, or there are no workers.
    """
    items, others = find_recordings(inputs, order.output)
    if others:
        log.info(f"{others} files with other endings than those of recordings were left out")
    store = open_store(order.output)
    with store.alone(), store.opened(LEDGER) as (path, keep), closing(Ledger(path)) as ledger:
        facts = _begin_ledger(ledger, store, order, overwrite)
        known = ledger.rows()
        items = settle_names(items, {address: row.item.name for address, row in known.items()})
        todo = list(_missing(items, known, store, ledger, overwrite, tell))
        keep(0.0)
        if todo:
            log.info(f"{len(todo)} of {len(items)} recordings to process")
            with closing(make_workers(Engine(**facts["engine"]) if facts["engine"] else None)) as workers:

                def look_up(done: int, of: int) -> None:
                    if workers.engine and not facts["engine"]:
                        facts["engine"] = asdict(workers.engine)
                        ledger.note_made_with(facts)
                    keep(COPY_S)
                    on_progress(done, of)

                Driver(store, ledger, todo, workers, tell, look_up).run()
        rows = ledger.rows()
        if all(row.state in FINISHED for row in rows.values()):
            store.remove(f"{HIDDEN}/{PARTS}")
        return [rows[item.address] for item in items]


def _begin_ledger(ledger: Ledger, store: Store, order: Order, overwrite: bool) -> dict[str, Any]:
    """See that all results are made with the same.

    Returns:
        What that is; its `engine` is None until a worker has told.
    """
    wanted = order.facts()
    found = ledger.made_with()
    changed = [key for key in wanted if found is not None and found.get(key) != wanted[key]]
    if changed and not overwrite:
        raise OutputError(
            f"{order.output}: its results were made with another {changed[0]}; give another --output, "
            "or --overwrite to make them all anew"
        )
    if found is None or changed:
        store.remove(f"{HIDDEN}/{PARTS}")
        if store.has(f"{HIDDEN}/{PARTS}"):
            raise OutputError(f"{order.output}/{HIDDEN}/{PARTS}: cannot be removed; remove it by hand")
        ledger.forget()
        found = {**wanted, "engine": None}
        ledger.note_made_with(found)
    return found


def _missing(
    items: Sequence[Item],
    known: dict[str, Row],
    store: Store,
    ledger: Ledger,
    overwrite: bool,
    tell: Callable[[Row], None],
) -> Iterator[Item]:
    """The recordings that are to be processed now; all are in the ledger afterwards."""
    rows = []
    for item in items:
        row = known.get(item.address)
        if row and row.item == item and row.state in FINISHED:
            # A broken one may have left nothing; results that somebody took away are made again.
            if row.state is State.BROKEN or store.has(f"{item.name}/{LAST_FILE}"):
                continue
        elif (row is None or row.state is State.BLOCKED) and not overwrite and store.has(item.name):
            reason = f"{store.root}/{item.name}: is there already; give --overwrite to replace results of another run"
            rows.append(Row(item, State.BLOCKED, reason))
            tell(rows[-1])
            continue
        if row is None or row.state is State.BLOCKED:
            rows.append(Row(item))
        yield item
    ledger.write(rows)


def read_ledger(output: str) -> list[Row]:
    """Every recording of an archive and what became of it, also while it is being processed.

    Raises:
        OutputError: there is no archive.
    """
    store = open_store(output)
    if not store.has(LEDGER):
        raise OutputError(f"{output}: holds no archive (no {LEDGER})")
    with store.looking("", [LEDGER]) as folder, closing(Ledger(folder / LEDGER)) as ledger:
        return list(ledger.rows().values())
