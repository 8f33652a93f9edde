"""`polypstream archive`: processes many recordings with many workers, on one machine or on a cluster.

A second run processes only what is missing. Two runs cannot work on the same results at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from polypstream.archive.driver import Driver, Workers
from polypstream.archive.inputs import Item, assign_names, find_recordings, hash_names
from polypstream.archive.ledger import LEDGER, Ledger, Row, State
from polypstream.archive.storage import HIDDEN, LAST_FILE, PARTS, Store, open_store
from polypstream.archive.worker import ArchiveJob, Engine
from polypstream.core.formatting import counted
from polypstream.errors import OutputError
from polypstream.jobs.inputs import left_out_results
from polypstream.sources.deidentified import hashed_name

log = logging.getLogger(__name__)
# Seconds between copies of the ledger to an object store. The ledger itself is a local file.
COPY_S = 5.0
FINISHED = (State.DONE, State.BROKEN)
# Hashed with the salt. Its hash in the ledger shows whether a later run has the same salt.
SALT_CHECK = "polypstream archive"
# For the user, what differs between two runs, by the key of the facts in the ledger.
DIFFERENCES = {
    "settings": "other settings",
    "masks": "another choice of --masks",
    "version": "another version of polypstream",
    "model": "another model",
}


def archive(
    inputs: Sequence[str],
    job: ArchiveJob,
    make_workers: Callable[[Engine | None], Workers],
    overwrite: bool,
    on_finished: Callable[[Row], None],
    on_progress: Callable[[int, int], None] = lambda *_: None,
    salt: bytes | None = None,
) -> list[Row]:
    """Process all recordings of an archive that are missing or failed.

    Args:
        inputs: as for `find_recordings`.
        job: what to write, and with which settings.
        make_workers: makes the workers, if there is anything to process. Its argument is the engine of earlier results;
            None: there are none.
        overwrite: replace existing results, and make all results again if they were made with other settings.
        on_finished: called with the ledger row of each finished recording.
        on_progress: called as on_progress(done, total) with bytes of recordings.
        salt: results and ledger name each recording by a hash with this salt, as `read_salt` returns it. The settings
            must de-identify. None: names are not hashed.

    Returns:
        Rows of all recordings that the inputs name.

    Raises:
        PolypstreamError: the run cannot start, or there are no workers.
    """
    items, others, results = find_recordings(inputs, job.output)
    if others:
        log.info(f"left out: {counted(others, 'file')} with endings that recordings do not have")
    if results:
        log.info(left_out_results(results))
    if salt:
        items = hash_names(items, salt)
    store = open_store(job.output)
    with store.locked(), store.local_file(LEDGER) as (path, save), closing(Ledger(path)) as ledger:
        facts = _begin_ledger(ledger, store, job, salt, overwrite)
        known = ledger.rows()
        items = assign_names(items, {address: row.item.name for address, row in known.items()})
        todo = list(_missing(items, known, store, ledger, overwrite, on_finished))
        save(0.0)
        if todo:
            log.info(f"{len(todo)} of {counted(len(items), 'recording')} to process")
            with closing(make_workers(Engine(**facts["engine"]) if facts["engine"] else None)) as workers:

                def on_poll(done: int, of: int) -> None:
                    if workers.engine and not facts["engine"]:
                        facts["engine"] = asdict(workers.engine)
                        ledger.set_made_with(facts)
                    save(COPY_S)
                    on_progress(done, of)

                Driver(store, ledger, todo, workers, on_finished, on_poll).run()
        rows = ledger.rows()
        if all(row.state in FINISHED for row in rows.values()):
            store.remove(f"{HIDDEN}/{PARTS}")
        return [replace(rows[item.address], item=item) for item in items]


def _begin_ledger(ledger: Ledger, store: Store, job: ArchiveJob, salt: bytes | None, overwrite: bool) -> dict[str, Any]:
    """Check that all results are made with the same settings.

    Returns:
        The facts that results are made with. `engine` is None until a worker has reported it.
    """
    wanted = job.facts()
    found = ledger.made_with()
    names = hashed_name(SALT_CHECK, salt) if salt else None
    # Names are never mixed, also not with --overwrite: result folders with the other names would stay.
    if found is not None and found.get("names") != names:
        raise OutputError(f"{job.output}: {_about_names(found.get('names'), names)}")
    changed = [key for key in wanted if found is not None and found.get(key) != wanted[key]]
    if changed and not overwrite:
        raise OutputError(
            f"{job.output}: its results were made with {DIFFERENCES[changed[0]]}; give another --output, or "
            "--overwrite to process all recordings again"
        )
    if found is None or changed:
        store.remove(f"{HIDDEN}/{PARTS}")
        if store.has(f"{HIDDEN}/{PARTS}"):
            raise OutputError(f"{job.output}/{HIDDEN}/{PARTS}: cannot be removed; remove it by hand")
        ledger.clear()
        found = {**wanted, "names": names, "engine": None}
        ledger.set_made_with(found)
    return found


def _about_names(found: str | None, wanted: str | None) -> str:
    if found is None:
        return "its results have the names of the recordings; give another --output for --hash-names"
    if wanted is None:
        return "its results have hashed names; give --hash-names with the same salt file, or another --output"
    return "its names were hashed with another salt; give the same salt file, or another --output"


def _missing(
    items: Sequence[Item],
    known: dict[str, Row],
    store: Store,
    ledger: Ledger,
    overwrite: bool,
    on_finished: Callable[[Row], None],
) -> Iterator[Item]:
    """Yield the recordings to process now. Afterwards all recordings are in the ledger."""
    rows = []
    for item in items:
        row = known.get(item.address)
        if row and row.item == item and row.state in FINISHED:
            # A broken recording may have no results. Results that a user has removed are made again.
            if row.state is State.BROKEN or store.has(f"{item.name}/{LAST_FILE}"):
                continue
        elif (row is None or row.state is State.BLOCKED) and not overwrite and store.has(item.name):
            reason = f"{store.root}/{item.name}: exists already; give --overwrite to replace the results of another run"
            rows.append(Row(item, State.BLOCKED, reason))
            on_finished(rows[-1])
            continue
        if row is None or row.state is State.BLOCKED:
            rows.append(Row(item))
        yield item
    ledger.write(rows)


def read_ledger(output: str) -> list[Row]:
    """Read the state of all recordings of an archive, also while it is being processed.

    Args:
        output: path or address of the results' folder.

    Raises:
        OutputError: there is no archive.
    """
    store = open_store(output)
    if not store.has(LEDGER):
        raise OutputError(f"{output}: holds no archive (no {LEDGER})")
    with store.local_folder("", [LEDGER]) as folder, closing(Ledger(folder / LEDGER)) as ledger:
        return list(ledger.rows().values())
