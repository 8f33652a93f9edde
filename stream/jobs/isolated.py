"""Processes recordings in a child process, so that a crash of a decoder affects only the current recording.

To cancel a recording, end the child. The child also ends when its parent ends, or after a minute without progress.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import cv2

from polypstream.core.config import Settings
from polypstream.core.protocols import OnProgress
from polypstream.core.watchdog import EXIT_CODE, STALL_TIMEOUT_S, Watchdog
from polypstream.errors import PolypstreamError, SourceError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.images import process_images
from polypstream.jobs.process import Job, ProcessResult, process
from polypstream.jobs.setup import make_segmenter

# Called in the child after a recording; its return value is sent back.
Then = Callable[[Segmenter, Settings], Any]
LOGGER = "polypstream"
_SENDING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a job.

    Attributes:
        run: the results; None: there are none, or they are not complete.
        problem: why; None: no error.
        then: return value of `then`.
    """

    run: ProcessResult | None = None
    problem: PolypstreamError | None = None
    then: Any = None


@dataclass(frozen=True, slots=True)
class _Ready:
    """Message of the child: the model is loaded.

    Attributes:
        notes: what the model's provider reports.
    """

    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Progress:
    """Message of the child: numbers of frames done and expected."""

    done: int
    expected: int | None


@dataclass(frozen=True, slots=True)
class _LogMessage:
    """Message of the child for the parent's logging."""

    logger: str
    level: int
    text: str


class _Interrupted:
    """Message of the child: it was interrupted and has finished its files."""


@dataclass(slots=True)
class IsolatedProcessor:
    """A child process that keeps its model loaded between recordings. `start` replaces a child that crashed.

    Args:
        settings: settings of all runs.
        fork: fork this process, which takes no time. It is allowed only while no other thread runs. False: start a
            new Python process.
        niceness: niceness of the child.

    Attributes:
        notes: what the model's provider reports.
    """

    settings: Settings
    fork: bool = False
    niceness: int = 0
    notes: list[str] = field(default_factory=list)
    _child: BaseProcess | None = None
    _connection: Connection | None = None
    _killed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start the child, unless it runs already, and wait until it has loaded the model.

        Raises:
            PolypstreamError: the model or its provider cannot be used, or `kill` was called.
        """
        if self._child is not None and self._child.is_alive():
            return
        with self._lock:
            if self._killed:
                raise PolypstreamError("the processing was stopped before it began")
            self._connection = self._start_child()
        message = self._receive("the model")
        if isinstance(message, PolypstreamError):
            raise message
        assert isinstance(message, _Ready)
        self.notes = message.notes

    def _start_child(self) -> Connection:
        """Start the child. Returns this end of the connection to it."""
        forks = self.fork and sys.platform == "linux"
        parent_end, child_end = multiprocessing.Pipe()
        level = logging.getLogger(LOGGER).getEffectiveLevel()
        arguments = (child_end, parent_end if forks else None, self.settings, self.niceness, level)
        kind = multiprocessing.context.ForkProcess if forks else multiprocessing.context.SpawnProcess
        self._child = kind(target=_run_child, args=arguments, name="polypstream-recordings", daemon=True)
        self._child.start()
        child_end.close()
        return parent_end

    def process(self, job: Job, on_progress: OnProgress = lambda *_: None, then: Then | None = None) -> Outcome:
        """Process a recording. The child must have been started.

        Args:
            job: the recording.
            on_progress: called as on_progress(done, total) with frame counts, a few times per second; total is None if
                unknown.
            then: called in the child after the recording, also if it failed. It must be picklable. Its return value is
                sent back in `Outcome.then`.

        Raises:
            KeyboardInterrupt: the user interrupted, and the child has finished its files; a second interrupt kills it.
        """
        assert self._connection is not None, "start first"
        try:
            with suppress(BrokenPipeError, ConnectionError):  # the child has died; `_receive` below reports it
                self._connection.send((job, then))
            while isinstance(message := self._receive(job.uri), _Progress):
                on_progress(message.done, message.expected)
        except KeyboardInterrupt:
            self._interrupt()
            raise
        if isinstance(message, _Interrupted):
            raise KeyboardInterrupt
        if isinstance(message, PolypstreamError):
            return Outcome(problem=message)
        assert isinstance(message, Outcome)
        return message

    def _receive(self, what: str) -> Any:
        """Next message of the child; an error if the child has died.

        Args:
            what: what the error message names.
        """
        assert self._child is not None
        assert self._connection is not None
        try:
            while isinstance(message := self._connection.recv(), _LogMessage):
                logging.getLogger(message.logger).log(message.level, "%s", message.text)
            return message
        except (EOFError, ConnectionError):
            self._child.join()
            self._connection.close()
            return SourceError(f"{what}: {_describe_exit(self._child.exitcode)}")

    def _interrupt(self) -> None:
        """Interrupt the child, wait until it has finished its files, then kill it."""
        assert self._child is not None
        assert self._connection is not None
        if self._child.pid is not None:
            os.kill(self._child.pid, signal.SIGINT)
        try:
            while not isinstance(self._receive(""), Outcome | PolypstreamError | _Interrupted):
                pass
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the child, for good; may be called from any thread. Files that it has written stay unfinished."""
        with self._lock:
            self._killed = True
            if self._child is not None and self._child.is_alive():
                self._child.kill()

    def close(self) -> None:
        """Kill the child and free its resources. May be called more than once."""
        self.kill()
        if self._child is not None:
            self._child.join()
        if self._connection is not None:
            self._connection.close()


def _describe_exit(code: int | None) -> str:
    """Describe the exit of a child for the user.

    Args:
        code: its exit code.
    """
    if code == EXIT_CODE:
        return f"nothing moved in it for {STALL_TIMEOUT_S:.0f} seconds, so it was ended"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = ", perhaps because the memory was full" if name == "SIGKILL" else ""
        return f"the process that read it died ({name}{memory})"
    return f"the process that read it died (exit code {code})"


# The functions below run in the child.


def _run_child(
    connection: Connection, parent_end: Connection | None, settings: Settings, niceness: int, log_level: int
) -> None:
    """Process the jobs that arrive through the connection until it is closed.

    Args:
        connection: the child's end.
        parent_end: after a fork, the parent's end, which the child must close.
        settings: settings of all runs.
        niceness: niceness of the child.
        log_level: level from which messages go to the parent.
    """
    if parent_end is not None:
        parent_end.close()  # otherwise the connection would stay open after the parent's death
    _set_up_child(niceness)
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [_Forwarder(connection)]
    logger.setLevel(log_level)
    try:
        segmenter = make_segmenter(settings)
    except PolypstreamError as error:
        _send(connection, error)
        return
    except Exception as error:  # whatever a library raises becomes one line
        _send(connection, PolypstreamError(f"the model cannot be used ({type(error).__name__}: {error})"))
        return
    _send(connection, _Ready(segmenter.notes))
    while True:
        try:
            job, then = connection.recv()
        except EOFError:
            return
        _send(connection, _run_job(job, then, segmenter, settings, connection))


def _set_up_child(niceness: int) -> None:
    """Detach from the terminal and from the service manager: the parent handles Ctrl-C and the end of the service."""
    if hasattr(os, "setsid") and os.getpid() != os.getsid(0):
        os.setsid()
    if niceness and hasattr(os, "nice"):
        os.nice(niceness)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _interrupt_once)
    # Each stage has its own thread already. Threads of OpenCV compete with them: a fifth more CPU time, and not faster.
    cv2.setNumThreads(1)
    if "PYTHONFAULTHANDLER" not in os.environ:
        # Messages of a crashing library do not help the user. The parent reports what happened to the recording.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)


class _Forwarder(logging.Handler):
    """Sends log messages to the parent. The child has no standard error of its own.

    A message that does not fit into the pipe is left out: a stopped parent must not stop the child.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        if _can_send(self._connection):
            _send(self._connection, _LogMessage(record.name, record.levelno, record.getMessage()))


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Signal handler: interrupt, and ignore further interrupts."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run_job(
    job: Job, then: Then | None, segmenter: Segmenter, settings: Settings, connection: Connection
) -> Outcome | _Interrupted:
    """Process a recording. Errors are returned, not raised."""
    with Watchdog() as watchdog:

        def on_progress(done: int, expected: int | None) -> None:
            watchdog.note(done, "frames")
            if _can_send(connection):
                _send(connection, _Progress(done, expected))

        run, problem = None, None
        try:
            one = process_images if job.images else process
            run = one(job, segmenter, settings, on_progress, watchdog.note)
        except PolypstreamError as error:
            problem = error
        except KeyboardInterrupt:
            return _Interrupted()
        except Exception as error:  # the next recordings can go on
            what = f"{type(error).__name__}: {error}"
            problem = PolypstreamError(f"{job.title or job.uri}: a fault of polypstream, please report it ({what})")
    return Outcome(run, problem, then(segmenter, settings) if then else None)


def _can_send(connection: Connection) -> bool:
    """Whether the pipe accepts more data without blocking. A stopped parent (Ctrl-Z) must not stop the child."""
    return sys.platform == "win32" or bool(select.select([], [connection], [], 0)[1])


def _send(connection: Connection, what: object) -> None:
    try:
        with _SENDING:  # threads of the pipeline log, too
            connection.send(what)
    except (BrokenPipeError, ConnectionError):  # the parent is gone, so there is no further work
        os._exit(0)
