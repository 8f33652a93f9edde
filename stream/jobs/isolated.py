"""Recordings processed in a process beside this one: what brings a decoder down costs the recording at hand alone.

To cancel is to end that process. It outlives neither its parent nor a minute in which nothing moves.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from polypstream.core.config import Settings
from polypstream.core.watchdog import EXIT_CODE, STALL_TIMEOUT_S, Watchdog
from polypstream.errors import PolypstreamError, SourceError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.process import OnProgress, ProcessResult, process
from polypstream.jobs.setup import make_segmenter

# After a recording its process may do more, of which the outcome is sent back.
Then = Callable[[Segmenter, Settings], Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A recording to process, as for `process`.

    Attributes:
        then: called in the child when it is done, whatever came of it.
    """

    uri: str
    output: Path
    masks: bool = False
    overwrite: bool = False
    name: str | None = None
    title: str | None = None
    then: Then | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        run: of the results; None: there are none, or they are not whole.
        problem: why.
        then: what `Job.then` returned.
    """

    run: ProcessResult | None = None
    problem: PolypstreamError | None = None
    then: Any = None


@dataclass(frozen=True, slots=True)
class _Ready:
    """The child has its model."""

    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Done:
    """Frames done and expected."""

    done: int
    of: int | None


class _Interrupted:
    """The child ended its files when it was told to."""


@dataclass(slots=True)
class IsolatedProcessor:
    """A child process that keeps its model between recordings; where one dies, the next recording gets a new one.

    Args:
        settings: of all runs.
        fork: make the child of this process as it is, which takes no time, but may be done only where no other
            thread is at work; otherwise it starts anew.
        niceness: of the child.

    Attributes:
        notes: what the model's provider had to say.
    """

    settings: Settings
    fork: bool = False
    niceness: int = 0
    notes: list[str] = field(default_factory=list)
    _child: BaseProcess | None = None
    _link: Connection | None = None

    def start(self) -> None:
        """Start the child, if there is none, and wait until it has loaded the model.

        Raises:
            PolypstreamError: the model or its provider cannot be used.
        """
        if self._child is not None and self._child.is_alive():
            return
        forks = self.fork and sys.platform == "linux"
        here, there = multiprocessing.Pipe()
        orders = (there, here if forks else None, self.settings, self.niceness)
        kind = multiprocessing.context.ForkProcess if forks else multiprocessing.context.SpawnProcess
        self._child = kind(target=_work, args=orders, name="polypstream-recordings", daemon=True)
        self._child.start()
        there.close()
        self._link = here
        said = self._hear("the model")
        if isinstance(said, PolypstreamError):
            raise said
        assert isinstance(said, _Ready)
        self.notes = said.notes

    def process(self, job: Job, on_progress: OnProgress = lambda *_: None) -> Outcome:
        """Process a recording; the child must have been started.

        Args:
            job: the recording.
            on_progress: told the frames done and the frames expected (None: unknown), a few times a second.

        Raises:
            KeyboardInterrupt: once the child has finished its files; a second one ends it.
        """
        assert self._link is not None, "start first"
        try:
            with suppress(BrokenPipeError, ConnectionError):  # it has died already, which is heard below
                self._link.send(job)
            while isinstance(said := self._hear(job.uri), _Done):
                on_progress(said.done, said.of)
        except KeyboardInterrupt:
            self._interrupt()
            raise
        if isinstance(said, _Interrupted):
            raise KeyboardInterrupt
        if isinstance(said, PolypstreamError):
            return Outcome(problem=said)
        assert isinstance(said, Outcome)
        return said

    def _hear(self, what: str) -> Any:
        """The next thing that the child says; an error if it has died."""
        assert self._child is not None
        assert self._link is not None
        try:
            return self._link.recv()
        except (EOFError, ConnectionError):
            self._child.join()
            self._link.close()
            return SourceError(f"{what}: {_cause_of_death(self._child.exitcode)}")

    def _interrupt(self) -> None:
        """Let the child finish its files."""
        assert self._child is not None
        assert self._link is not None
        if self._child.pid is not None:
            os.kill(self._child.pid, signal.SIGINT)
        try:
            while not isinstance(self._hear(""), Outcome | PolypstreamError | _Interrupted):
                pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End the child at once, from any thread; what it has written stays as it is."""
        if self._child is not None and self._child.is_alive():
            self._child.kill()

    def close(self) -> None:
        """End the child; more than once does no harm."""
        self.kill()
        if self._child is not None:
            self._child.join()
        if self._link is not None:
            self._link.close()


def _cause_of_death(code: int | None) -> str:
    """For people, from the exit code of a child."""
    if code == EXIT_CODE:
        return f"nothing moved in it for {STALL_TIMEOUT_S:.0f} seconds, so it was ended"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"the process that read it died ({name}{memory})"
    return f"the process that read it died (exit code {code})"


# In the child


def _work(link: Connection, other_end: Connection | None, settings: Settings, niceness: int) -> None:
    """Do the jobs that come through the link until it is closed."""
    if other_end is not None:
        other_end.close()  # or the link would never be closed, if the parent dies
    _settle_in(niceness)
    try:
        segmenter = make_segmenter(settings)
    except PolypstreamError as error:
        _say(link, error)
        return
    except Exception as error:  # whatever a library raises is one line
        _say(link, PolypstreamError(f"the model cannot be used ({type(error).__name__}: {error})"))
        return
    _say(link, _Ready(segmenter.notes))
    while True:
        try:
            job = link.recv()
        except EOFError:
            return
        _say(link, _outcome_of(job, segmenter, settings, link))


def _settle_in(niceness: int) -> None:
    """Be a process of its own: a terminal's Ctrl-C and a service manager's end are for the parent, which says so."""
    if hasattr(os, "setsid") and os.getpid() != os.getsid(0):
        os.setsid()
    if niceness and hasattr(os, "nice"):
        os.nice(niceness)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _interrupt_once)
    if "PYTHONFAULTHANDLER" not in os.environ:
        # What a library says before it dies tells a user nothing; the parent says what becomes of the recording.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _outcome_of(job: Job, segmenter: Segmenter, settings: Settings, link: Connection) -> Outcome | _Interrupted:
    """Do a job; what goes wrong is told, not raised."""
    with Watchdog() as watchdog:

        def on_progress(done: int, of: int | None) -> None:
            watchdog.note(done, "frames")
            if _is_read(link):
                _say(link, _Done(done, of))

        run, problem = None, None
        try:
            run = process(
                job.uri,
                job.output,
                segmenter,
                settings,
                job.masks,
                job.overwrite,
                job.name,
                on_progress,
                job.title,
                watchdog.note,
            )
        except PolypstreamError as error:
            problem = error
        except KeyboardInterrupt:
            return _Interrupted()
    return Outcome(run, problem, job.then(segmenter, settings) if job.then else None)


def _is_read(link: Connection) -> bool:
    """Whether the parent has room for more; it may have been stopped (Ctrl-Z), which is no reason to wait."""
    return sys.platform == "win32" or bool(select.select([], [link], [], 0)[1])


def _say(link: Connection, what: object) -> None:
    try:
        link.send(what)
    except (BrokenPipeError, ConnectionError):  # the parent is gone, and nobody is left to work for
        os._exit(0)
