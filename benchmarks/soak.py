"""`live` for hours with four sources that stall, vanish, change size and come back, at random.

    python benchmarks/soak.py FOLDER [--minutes 120] [--seed 1]

Four ffmpeg programs send video to one `polypstream live`, two by UDP and two by TCP, and each one is recorded. At
random moments a program is stopped for up to 6 seconds, or killed and started again with another size. Every 5 seconds
the memory, threads, open files and status of `live` go to FOLDER/results.jsonl. Recorded files are checked and then
deleted.

At the end all programs are killed, and the account of frames is read: frames in = shown + skipped. It is a fault if
`live` ends by itself, says a traceback, or takes more than 20 seconds to show a source that has come back; if the
account is wrong; if a recorded file has other frames than its frames.csv; or if threads or open files grow. A run that
was interrupted is followed by another one, until there are enough minutes.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import av
import psutil
import requests
from av.error import FFmpegError
from campaign import FAST, Cases, Running, address_of, faults_of_messages, rows_of, started, until, working_folder

from tests.conftest import free_port
from tests.jobs.test_live import Peer

SAMPLE_S = 5.0
STEP_S = 0.2
SIZES = ("320x240", "480x360", "640x480", "400x300")
# Address that `live` opens, and where the program sends.
LINKS = {
    "udp": ("udp://127.0.0.1:{}", "udp://127.0.0.1:{}?pkt_size=1316"),
    "tcp": ("tcp://127.0.0.1:{}", "tcp://127.0.0.1:{}?listen=1"),
}
# A source that has come back must be shown in this time.
RETURN_S = 20.0
# The slope of the memory is that of later minutes.
WARM_UP_MINUTES = 10.0
# More threads or files at the end than at the begin are faults: one for each return would be many more.
GROWTH = 8


@dataclass
class Room:
    """A source that is sent by a program, which stalls and vanishes.

    Attributes:
        name: name of the source.
        opened: the address that `live` opens.
        waits: seconds until a source was shown after it had come back.
        faults: what was wrong.
    """

    name: str
    opened: str
    _sent: str
    _chance: Random
    waits: list[float] = field(default_factory=list)
    stalls: int = 0
    faults: list[str] = field(default_factory=list)
    _peer: Peer | None = None
    _stopped: bool = False
    _returning: float | None = None
    _next: float = 0.0

    def step(self, now: float, signal_there: bool) -> None:
        """Do what is due.

        Args:
            now: a clock, in seconds.
            signal_there: `live` says that frames of it arrive.
        """
        if self._returning is not None:
            self._wait_for_return(now, signal_there)
        elif now >= self._next:
            self._act(now)

    def end(self) -> None:
        """Kill the program."""
        if self._peer is not None:
            self._peer.kill()
        self._peer, self._stopped = None, False

    def _wait_for_return(self, now: float, signal_there: bool) -> None:
        assert self._returning is not None
        waited = now - self._returning
        if not signal_there and waited < RETURN_S:
            return
        if signal_there:
            self.waits.append(waited)
        else:
            self.faults.append(f"{self.name}: nothing is shown {waited:.0f} s after it came back")
        self._returning = None
        self._next = now + self._chance.uniform(3, 20)

    def _act(self, now: float) -> None:
        if self._peer is not None and any(process.poll() is not None for process in self._peer.processes):
            self.end()  # it was stopped for so long that `live` has closed the connection
        if self._peer is None:
            self._peer = Peer(self._sent, self._chance.choice(SIZES))
            self._peer.start()
            self._returning = now
        elif self._stopped:
            self._signal(signal.SIGCONT)
            self._stopped, self._next = False, now + self._chance.uniform(3, 20)
        elif self._chance.random() < 0.4:
            self._signal(signal.SIGSTOP)
            self.stalls += 1
            self._stopped, self._next = True, now + self._chance.uniform(0.5, 6)
        else:
            self.end()
            self._next = now + self._chance.uniform(3, 8)

    def _signal(self, number: signal.Signals) -> None:
        assert self._peer is not None
        for process in self._peer.processes:
            process.send_signal(number)


@dataclass
class Recorded:
    """Checks the recorded files of a run, and deletes them.

    Attributes:
        files, frames: how many were checked.
    """

    folder: Path
    files: int = 0
    frames: int = 0
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Check the files that are finished: their results have a summary."""
        for summary in self.folder.glob("soak-*/summary.json"):
            results = summary.parent
            video, rows = results.with_suffix(".mp4"), len(rows_of(results / "frames.csv"))
            try:
                with av.open(str(video)) as file:
                    packets = sum(packet.dts is not None for packet in file.demux(video=0))
            except FFmpegError as error:
                self.faults.append(f"{video.name}: {error}")
                continue
            if packets != rows:
                self.faults.append(f"{video.name} has {packets} frames, frames.csv has {rows}")
            self.files, self.frames = self.files + 1, self.frames + rows
            summary.unlink()  # it is checked once
            video.unlink()


def main() -> None:
    """Run until there are enough minutes, and print the figures."""
    minutes = {"type": float, "default": 120.0, "help": "minutes of all runs together"}
    cases = Cases(__doc__, 1, minutes=minutes)
    lines = [line for line in cases.results.lines() if line["seed"] == cases.wanted.seed]
    left = cases.wanted.minutes - sum(SAMPLE_S / 60 for line in lines if "rss_mb" in line)
    if left > 0:
        run = max((line["run"] for line in lines), default=-1) + 1
        with working_folder(cases.folder) as folder:
            soak(cases, run, left, folder)
    summarize([line for line in cases.results.lines() if line["seed"] == cases.wanted.seed])


def soak(cases: Cases, run: int, minutes: float, folder: Path) -> None:
    """One run of `live`."""
    ports = [free_port() for _ in range(5)]
    rooms = [
        Room(f"room{number}", *(link.format(ports[number]) for link in LINKS[kind]), cases.chance(10 * run + number))
        for number, kind in enumerate(("udp", "tcp", "udp", "tcp"))
    ]
    outputs = ("--serve", f"127.0.0.1:{ports[4]}", "--record", "soak.mp4", "--model", cases.model(), *FAST)
    recorded = Recorded(folder)
    with started(folder, "live", *(f"{room.name}={room.opened}" for room in rooms), *outputs) as running:
        try:
            faults = play(cases, run, minutes, rooms, running, recorded)
        finally:
            for room in rooms:
                room.end()
        faults += [fault for room in rooms for fault in room.faults]
        final = final_status(running)
        faults += faults_of_account(final)
        running.process.send_signal(signal.SIGINT)
        code = running.wait(60)
        if code != 130:
            faults.append(f"exit code {code}: {running.said[-600:]}")
        faults += [*faults_of_messages(running.said), *running.orphans()]
        account = [line for line in running.said.splitlines() if "frames shown" in line][-len(rooms) :]
    recorded.check()
    wanted = sum(each["shown"] - each["unrecorded"] for each in final.values())
    if recorded.frames < wanted:  # placeholders of a lost signal are recorded, too
        faults.append(f"{recorded.frames} frames were recorded, and at least {wanted} should be")
    waits = [wait for room in rooms for wait in room.waits]
    cases.add(
        0,
        run=run,
        returns=len(waits),
        longest_return_s=round(max(waits, default=0), 1),
        stalls=sum(room.stalls for room in rooms),
        recorded_files=recorded.files,
        recorded_frames=recorded.frames,
        account=account,
        faults=faults + recorded.faults,
    )


def play(cases: Cases, run: int, minutes: float, rooms: list[Room], running: Running, recorded: Recorded) -> list[str]:
    """Let the rooms stall and vanish, and take samples; what is wrong."""
    address, observed = address_of(running), psutil.Process(running.process.pid)
    begun = next_sample = time.monotonic()
    while (now := time.monotonic()) < begun + 60 * minutes:
        if running.process.poll() is not None:
            return [f"live ended with {running.process.returncode}: {running.said[-600:]}"]
        try:
            status = status_of(address)
        except requests.RequestException as error:
            return [f"live does not answer: {error}; {running.said[-600:]}"]
        for room in rooms:
            room.step(now, status[room.name]["signal"])
        if now >= next_sample:
            next_sample += SAMPLE_S
            recorded.check()
            sample = {
                "minute": round((now - begun) / 60, 3),
                "rss_mb": round(observed.memory_info().rss / 1e6, 2),
                "threads": observed.num_threads(),
                "files": observed.num_fds(),
                "signals": sum(each["signal"] for each in status.values()),
                "frames_in": sum(each["frames_in"] for each in status.values()),
                "shown": sum(each["shown"] for each in status.values()),
            }
            cases.results.add({"seed": cases.wanted.seed, "case": 0, "run": run, **sample})
        time.sleep(STEP_S)
    return []


def status_of(address: str) -> dict[str, dict[str, Any]]:
    """Status of each source, by its name."""
    return {each["source"]: each for each in requests.get(f"{address}/status.json", timeout=30).json()}


def final_status(running: Running) -> dict[str, dict[str, Any]]:
    """Status of each source once no frame is on its way, since no program sends any more; empty: `live` has ended."""
    if running.process.poll() is not None:
        return {}
    address = address_of(running)
    until(lambda: not any(each["signal"] for each in status_of(address).values()), 30)
    return status_of(address)


def faults_of_account(status: dict[str, dict[str, Any]]) -> list[str]:
    """Whether all frames of each source are accounted for."""
    return [
        f"{name}: {each['frames_in']} frames came, {each['shown']} were shown, dropped: {each['dropped']}"
        for name, each in status.items()
        if each["frames_in"] != each["shown"] + sum(each["dropped"].values())
    ]


def summarize(lines: list[dict[str, Any]]) -> None:
    """Print the figures of each run, and end with 1 if there are faults."""
    faults = [fault for line in lines for fault in line.get("faults", [])]
    for run in sorted({line["run"] for line in lines}):
        samples = [line for line in lines if line["run"] == run and "rss_mb" in line]
        ends = [line for line in lines if line["run"] == run and "rss_mb" not in line]
        print(f"run {run}: {len(samples) * SAMPLE_S / 60:.1f} minutes", json.dumps(ends[0] if ends else "interrupted"))
        third = max(1, len(samples) // 3)
        for name in ("threads", "files", "rss_mb"):
            first, last = ([sample[name] for sample in part] for part in (samples[:third], samples[-third:]))
            print(f"  {name}: {min(first)} to {max(first)} in the first third, {min(last)} to {max(last)} in the last")
            if name != "rss_mb" and max(last) > max(first) + GROWTH:
                faults.append(f"run {run}: {name} grew from {max(first)} to {max(last)}")
        late = [sample for sample in samples if sample["minute"] >= WARM_UP_MINUTES]
        if len(late) > 1:
            hours, memory = [each["minute"] / 60 for each in late], [each["rss_mb"] for each in late]
            slope = statistics.linear_regression(hours, memory).slope
            print(f"  memory after the first {WARM_UP_MINUTES:.0f} minutes: {slope:+.1f} MB an hour")
    print(f"{len(faults)} faults", *faults, sep="\n  ")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
