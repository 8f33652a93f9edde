"""A disk that becomes full at random moments of `process`, `serve`, a live recording and `archive`.

    python benchmarks/full_disk.py FOLDER [--cases 100] [--first 0] [--seed 1] [--kinds process,serve,live,archive]

The disk is a file system in memory, whose size is set to a little more than its content at a random moment. That needs
the right to mount. Without it the size of files is limited instead, by RLIMIT_FSIZE.

A case is faulty if the command does not say that the disk is full, if it ends with a traceback or not at all, or if a
result that it said to be done is not complete and readable. Afterwards there is room again. The same command must
finish, and keep what was done. A server must answer 503 at /healthz, and finish the recordings that it had accepted or
say that the disk was full. A live recording must play up to where the disk was full. FOLDER gets results.jsonl, with
one line for each case; a run that was interrupted goes on. A case takes about 15 seconds, one of archive about 60.
"""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import requests
from campaign import (
    FAST,
    Cases,
    Running,
    address_of,
    faults_of_messages,
    faults_of_repeated,
    faults_of_results,
    faults_of_unfinished,
    make_older,
    rows_of,
    served_results,
    started,
    until,
)

from tests.conftest import Clip
from tests.web.serving import Served

LARGE, PAGE = 8 << 30, 4096
LOST_S = 3.0
ENDS_S = 240.0


@dataclass
class MountedDisk:
    """A disk of its own.

    Attributes:
        folder: where it is mounted.
        full: what a command says when it is full, as a regular expression.
    """

    folder: Path
    full: str = "disk is full"

    def fill(self, running: Running, spare: int) -> None:
        """Leave some bytes free. What is written at the same time is tried again."""
        while True:
            used = shutil.disk_usage(self.folder).used
            if not self._resize(max(PAGE, used + spare)):
                return

    def free(self, running: Running | None) -> None:
        """Have room again."""
        self._resize(LARGE)

    def _resize(self, size: int) -> int:
        return subprocess.run(
            ["mount", "-o", f"remount,size={size}", self.folder], check=False, stderr=subprocess.DEVNULL
        ).returncode


@dataclass
class LimitedFiles:
    """Files that cannot grow beyond a size: for want of a disk of its own.

    Attributes:
        folder: for the files.
        full: what a command says, as a regular expression.
    """

    folder: Path
    full: str = "cannot be written|File too large|disk is full"

    def fill(self, running: Running, spare: int) -> None:
        """Let the processes of a command write files of this size only."""
        self._limit(running, spare)

    def free(self, running: Running | None) -> None:
        """Remove the limit."""
        if running is not None:
            self._limit(running, resource.RLIM_INFINITY)

    def _limit(self, running: Running, size: int) -> None:
        running.look()
        for pid in (running.process.pid, *(each.pid for each in running.family)):
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


Disk = MountedDisk | LimitedFiles


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A disk for the duration of a block."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield LimitedFiles(folder)
        return
    try:
        yield MountedDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass
class Campaign:
    """What all cases share.

    Attributes:
        recording: some seconds with a red disc.
        options: of the commands that process video.
        seconds: after which the disk becomes full at the latest.
    """

    recording: Path
    options: tuple[object, ...]
    seconds: float


def main() -> None:
    """Run the cases that are left."""
    latest = {"type": float, "default": 8.0, "help": "the disk becomes full in this time"}
    cases = Cases(__doc__, 100, KINDS, seconds=latest)
    clip = Clip(name="long.mp4", frames=300, audio=("aac",), options={"g": "25"})
    campaign = Campaign(cases.recording(clip), ("--model", cases.model(), *FAST), cases.wanted.seconds)

    def one(kind: str, chance: Random, folder: Path) -> dict[str, object]:
        recordings = folder / "recordings"
        recordings.mkdir()
        for name in "abc":
            (recordings / f"{name}.mp4").symlink_to(campaign.recording)
        with small_disk(folder / "disk") as disk:
            return {"disk": type(disk).__name__, **KINDS[kind](campaign, chance, folder, disk)}

    cases.run_each(one)


def fill_later(running: Running, disk: Disk, chance: Random, seconds: float) -> bool:
    """Let the disk become full at a random moment; whether the command still ran."""
    moment, spare = chance.random() * seconds, int(400_000 * chance.random() ** 2)
    if running.wait(moment) is not None:
        return False
    disk.fill(running, spare)
    return True


def faults_of_end(running: Running, disk: Disk) -> tuple[int | None, list[str]]:
    """Exit code of a command whose disk is full, and what is wrong with its end."""
    code, said = running.wait(ENDS_S), running.said
    faults = faults_of_messages(said)
    if code not in (0, 1):
        faults.append("it did not end" if code is None else f"exit code {code}: {said[-600:]}")
    if code and not re.search(disk.full, said):
        faults.append(f"it does not say that the disk is full: {said[-600:]}")
    return code, faults


def run_batch(
    command: tuple[object, ...], campaign: Campaign, chance: Random, folder: Path, disk: Disk, results: list[Path]
) -> dict[str, object]:
    """Let the disk become full while a command processes three recordings, and give it again with room.

    Args:
        command: the command.
        campaign, chance, folder, disk: of the case.
        results: folders of the results, in order.
    """
    with started(folder, *command) as running:
        filled = fill_later(running, disk, chance, campaign.seconds)
        code, faults = faults_of_end(running, disk)
        said = running.said
    done = [path for path in results if re.search(rf"/{path.name}\.mp4: (no|\d+) polyp", said)]
    before = {path: (path / "findings.json").stat().st_mtime_ns for path in done}
    faults += [fault for path in done for fault in faults_of_results(path, complete=True)]
    if code == 0 and len(done) < len(results):
        faults.append(f"exit code 0, but only {len(done)} are done: {said[-600:]}")
    disk.free(None)
    for path in results:
        if path not in done:
            faults += faults_of_unfinished(path / "annotated.mp4", path / "frames.csv", LOST_S)
            make_older(path)
    faults += faults_of_repeated(folder, command, ENDS_S)
    faults += [fault for path in results for fault in faults_of_results(path, complete=True)]
    if again := [path.name for path in done if (path / "findings.json").stat().st_mtime_ns != before[path]]:
        faults.append(f"what was done was done again: {again}")
    ending = "before" if not filled else "full" if code else "there was room enough"
    return {"ending": ending, "done": len(done), "faults": faults}


def fill_process(campaign: Campaign, chance: Random, folder: Path, disk: Disk) -> dict[str, object]:
    """`process` of three recordings."""
    command = ("process", "recordings", "--output", disk.folder / "results", "--masks", *campaign.options)
    results = [disk.folder / "results" / name for name in "abc"]
    return run_batch(command, campaign, chance, folder, disk, results)


def fill_archive(campaign: Campaign, chance: Random, folder: Path, disk: Disk) -> dict[str, object]:
    """`archive` of three recordings."""
    options = ("--output", disk.folder / "archive", "--segment-seconds", 5, "--workers", 1, "--masks")
    command = ("archive", "run", "recordings", *options, *campaign.options)
    results = [disk.folder / "archive" / name for name in "abc"]
    return run_batch(command, campaign, chance, folder, disk, results)


def fill_live(campaign: Campaign, chance: Random, folder: Path, disk: Disk) -> dict[str, object]:
    """A live recording."""
    video, table = disk.folder / "a.mp4", disk.folder / "a" / "frames.csv"
    options = ("--record", video, "--set", "output.video.crf=1", *campaign.options)
    with started(folder, "live", f"room=loop:{campaign.recording}", *options) as running:
        fill_later(running, disk, chance, campaign.seconds)
        said = until(lambda: re.search(disk.full, running.said) or running.process.poll() is not None, 60)
        running.process.send_signal(signal.SIGINT)
        code = running.wait(60)
        faults = faults_of_messages(running.said)
        if not said or code not in (1, 130):
            faults.append(f"exit code {code}: {running.said[-600:]}")
    faults += faults_of_unfinished(video, table, LOST_S)
    return {"ending": "full", "frames": len(rows_of(table)), "faults": faults}


def fill_serve(campaign: Campaign, chance: Random, folder: Path, disk: Disk) -> dict[str, object]:
    """A server with three recordings, one of which is sent while the disk is full or nearly so."""
    kept = disk.folder / "kept"
    faults: list[str] = []
    with started(folder, "serve", "--port", 0, "--folder", kept, *campaign.options) as running:
        app = Served(address_of(running), kept)
        accepted = [app.send(campaign.recording), app.send(campaign.recording)]
        fill_later(running, disk, chance, campaign.seconds)
        refused = _post(app, campaign.recording)
        if refused.status_code == 201:
            accepted.append(refused.json()["id"])
        elif refused.status_code != 507:
            faults.append(f"an upload is answered with {refused.status_code}: {refused.text[:300]}")
        if isinstance(disk, MountedDisk) and app.get("/healthz").status_code != 503:
            faults.append("/healthz does not say that the disk is full")
        until(lambda: all(app.info(id_)["state"] in ("finished", "failed") for id_ in accepted), campaign.seconds)
        finished = [id_ for id_ in accepted if app.info(id_)["state"] == "finished"]
        faults += [fault for id_ in finished for fault in faults_of_results(served_results(kept, id_), complete=True)]
        disk.free(running)
        for id_ in accepted:
            state = app.wait_for(id_, "finished", "failed", seconds=ENDS_S)
            if state["state"] == "finished":
                faults += faults_of_results(served_results(kept, id_), complete=True)
            elif not re.search(disk.full, state["message"]):
                faults.append(f"{id_} failed: {state['message']}")
        if not until(lambda: app.get("/healthz").status_code == 200, 30):
            faults.append(f"/healthz: {app.get('/healthz').text}")
        faults += faults_of_messages(running.said)
    return {"ending": "full", "done": len(finished), "accepted": len(accepted), "faults": faults}


def _post(app: Served, recording: Path) -> requests.Response:
    with recording.open("rb") as file:
        return app.post("/api/recordings", files={"file": (recording.name, file)})


KINDS = {"process": fill_process, "serve": fill_serve, "live": fill_live, "archive": fill_archive}


if __name__ == "__main__":
    main()
