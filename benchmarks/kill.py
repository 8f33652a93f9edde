"""SIGKILL at random moments of `process`, `serve`, a live recording and `archive`.

    python benchmarks/kill.py FOLDER [--cases 100] [--first 0] [--seed 1] [--kinds process,serve,live,archive]

The cases take turns. Each starts a command, kills it at a random moment of about its run time, and checks what is left:

- process: the command, the process that reads the recording, or both are killed. annotated.mp4 plays to its end, which
  is at most two seconds and a group of pictures before the last row of frames.csv. The same command finishes later.
- serve: the server is killed while recordings are uploaded and processed. Every recording that it had accepted is there
  after a new start and is finished; an upload in pieces goes on where it was.
- live: a recording of a session plays to its end, as for process. A new session records.
- archive: results that have appeared are complete, and the same command finishes. It needs Ray, and is left
  out without.

In all cases the other processes of a killed command must end by themselves in 20 seconds, those of Ray in 90 seconds:
its helpers that have just begun wait so long for its server, which no option of Ray changes. FOLDER gets results.jsonl,
with one line for each case; a run that was interrupted goes on. A case takes about 15 seconds, one of archive about 60.
"""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass, field
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
    started,
    times_of,
    until,
)

from tests.conftest import Clip
from tests.web.serving import Served

GROUP_S = 1.0
LOST_S = 2.0 + GROUP_S
FRAMES = 800
# A command that is repeated must end in this time.
REPEATED_S = 240.0
# A command is killed in this time, which is about the time that it takes. Ray alone takes five seconds to start.
LATEST_S = {"process": 4.0, "serve": 12.0, "live": 10.0, "archive": 14.0}
# Two helpers of Ray that have just begun wait a minute for its server, which is dead, before they end.
RAY_ORPHAN_S = 90.0


@dataclass
class Campaign:
    """What all cases share.

    Attributes:
        recording: some seconds with a red disc, in groups of pictures of one second.
        options: of the commands that process video.
    """

    recording: Path
    options: tuple[object, ...]


def main() -> None:
    """Run the cases that are left."""
    cases = Cases(__doc__, 100, KINDS)
    clip = Clip(name="long.mp4", frames=FRAMES, audio=("aac",), options={"g": "25"})
    campaign = Campaign(cases.recording(clip), ("--model", cases.model(), *FAST))
    cases.run_each(lambda kind, chance, folder: KINDS[kind](campaign, chance, folder))


def kill_after(running: Running, seconds: float, whom: str) -> bool:
    """Kill some processes of a command after a time; whether the command still ran.

    Args:
        running: the command.
        seconds: until then.
        whom: "command", "child" (its first child, or itself if it has none) or "all".
    """
    if running.wait(seconds) is not None:
        return False
    running.look()
    if whom == "child" and running.family:
        running.family[0].kill()
    else:
        running.kill(running.family if whom == "all" else None)
    return True


# process


def process_command(campaign: Campaign) -> tuple[object, ...]:
    return ("process", campaign.recording, "--output", "results", "--masks", *campaign.options)


def kill_process(campaign: Campaign, chance: Random, folder: Path) -> dict[str, object]:
    """Kill `process`."""
    whom, seconds = chance.choice(["command", "child", "all"]), chance.random() * LATEST_S["process"]
    results = folder / "results" / campaign.recording.stem
    with started(folder, *process_command(campaign)) as running:
        killed = kill_after(running, seconds, whom)
        code = running.wait(REPEATED_S)
        faults = faults_of_messages(running.said) + running.orphans()
        if killed and whom == "child" and running.family and code != 1:
            faults.append(f"exit code {code} after the death of its child: {running.said}")
    rows, finished = len(rows_of(results / "frames.csv")), (results / "summary.json").exists()
    if not finished:
        faults += faults_of_unfinished(results / "annotated.mp4", results / "frames.csv", LOST_S)
        make_older(results)
        faults += faults_of_repeated(folder, process_command(campaign), REPEATED_S)
    faults += faults_of_results(results, complete=True)
    ending = f"{whom} killed{', results finished' if finished else ''}" if killed else "finished before"
    return {"ending": ending, "frames": rows, "faults": faults}


# archive


def archive_command(campaign: Campaign) -> tuple[object, ...]:
    options = ("--output", "archive", "--segment-seconds", 5, "--workers", 1)
    return ("archive", "run", "recordings", *options, *campaign.options)


def archive_folder(campaign: Campaign, folder: Path) -> None:
    """Two recordings of an archive."""
    (folder / "recordings").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / "recordings" / name).symlink_to(campaign.recording)


def kill_archive(campaign: Campaign, chance: Random, folder: Path) -> dict[str, object]:
    """Kill `archive`."""
    archive_folder(campaign, folder)
    whom, seconds = chance.choice(["command", "all"]), chance.random() * LATEST_S["archive"]
    results = [folder / "archive" / name for name in "ab"]
    with started(folder, *archive_command(campaign)) as running:
        killed = kill_after(running, seconds, whom)
        faults = faults_of_messages(running.said) + running.orphans(RAY_ORPHAN_S)
    appeared = [path for path in results if path.exists()]
    faults += [fault for path in appeared for fault in faults_of_results(path, complete=True)]
    faults += faults_of_repeated(folder, archive_command(campaign), REPEATED_S)
    faults += [fault for path in results for fault in faults_of_results(path, complete=True)]
    ending = f"{whom} killed" if killed else "finished before"
    return {"ending": ending, "appeared": len(appeared), "faults": faults}


# serve


@dataclass
class Sent:
    """What a server has accepted, for as long as it answered.

    Attributes:
        whole: ids of recordings that were sent completely.
        begun, received: id of a recording that is sent in pieces, and how many bytes of it the server confirmed.
    """

    app: Served
    recording: Path
    whole: list[str] = field(default_factory=list)
    begun: str = ""
    received: int = 0

    def send(self) -> None:
        """Send recordings, one of them in pieces, until the server does not answer."""
        content = self.recording.read_bytes()
        try:
            self.whole.append(self.app.send(self.recording))
            announced = self.app.post("/api/uploads", json={"name": "pieces.mp4", "size": len(content)})
            self.begun = announced.json()["id"]
            for piece in range(10):
                self._append(content[: len(content) * (piece + 1) // 10])
                time.sleep(0.1)
            self.whole.append(self.app.send(self.recording))
        except requests.RequestException:
            return

    def go_on(self) -> None:
        """Send the rest of the recording in pieces, if it was begun and is not whole."""
        if self.begun and self.app.info(self.begun)["state"] == "uploading":
            received = self.app.info(self.begun)["received"]
            assert received >= self.received, f"{received} bytes are there; {self.received} were confirmed"
            self.received = received
            self._append(self.recording.read_bytes())

    def _append(self, content: bytes) -> None:
        address = f"{self.app.address}/api/uploads/{self.begun}?offset={self.received}"
        answer = requests.patch(address, data=content[self.received :], timeout=30)
        assert answer.status_code == 200, answer.text
        self.received = len(content)


def serve_command(campaign: Campaign) -> tuple[object, ...]:
    return ("serve", "--port", 0, "--folder", "kept", *campaign.options)


def kill_serve(campaign: Campaign, chance: Random, folder: Path) -> dict[str, object]:
    """Kill `serve` while it receives and processes recordings."""
    whom, seconds = chance.choice(["command", "all"]), chance.random() * LATEST_S["serve"]
    with started(folder, *serve_command(campaign)) as running:
        sent = Sent(Served(address_of(running), folder / "kept"), campaign.recording)
        sender = threading.Thread(target=sent.send)
        sender.start()
        kill_after(running, seconds, whom)
        sender.join()
        faults = faults_of_messages(running.said) + running.orphans()
    with started(folder, *serve_command(campaign)) as running:
        try:
            sent.app = Served(address_of(running), folder / "kept")
            sent.go_on()
            for id_ in filter(None, (*sent.whole, sent.begun)):
                state = sent.app.wait_for(id_, "finished", "failed", "cancelled", seconds=REPEATED_S)
                if state["state"] != "finished":
                    faults.append(f"{id_} is {state['state']}: {state['message']}")
                newest = max(
                    (folder / "kept" / "recordings" / id_).glob("*/upload"), key=lambda path: path.stat().st_mtime
                )
                faults += faults_of_results(newest, complete=True)
        except AssertionError as error:
            faults.append(f"a recording is lost: {error}; the server: {running.said[-600:]}")
        faults += faults_of_messages(running.said)
    return {"ending": f"{whom} killed", "accepted": len(sent.whole), "pieces": sent.received, "faults": faults}


# live


def live_command(campaign: Campaign, name: str) -> tuple[object, ...]:
    return ("live", f"room=loop:{campaign.recording}", "--record", name, *campaign.options)


def kill_live(campaign: Campaign, chance: Random, folder: Path) -> dict[str, object]:
    """Kill a live recording."""
    with started(folder, *live_command(campaign, "a.mp4")) as running:
        kill_after(running, chance.random() * LATEST_S["live"], "all")
        faults = faults_of_messages(running.said) + running.orphans()
    faults += faults_of_unfinished(folder / "a.mp4", folder / "a" / "frames.csv", LOST_S)
    frames = len(rows_of(folder / "a" / "frames.csv"))
    with started(folder, *live_command(campaign, "b.mp4")) as running:
        until(lambda: len(rows_of(folder / "b" / "frames.csv")) > 30, 60)
        running.process.send_signal(signal.SIGINT)
        code = running.wait(30)
        faults += [*faults_of_messages(running.said), *([] if code == 130 else [f"exit code {code} after Ctrl-C"])]
    if len(times_of(folder / "b.mp4")) != len(rows_of(folder / "b" / "frames.csv")):
        faults.append("the second recording has other frames than its frames.csv")
    return {"ending": "all killed", "frames": frames, "faults": faults}


KINDS = {"process": kill_process, "serve": kill_serve, "live": kill_live, "archive": kill_archive}

if __name__ == "__main__":
    main()
