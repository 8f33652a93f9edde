"""Frames of finished recordings by number, read in a child process, since a decoder may crash."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from polypstream.core.orientation import Orientation
from polypstream.errors import PolypstreamError
from polypstream.jobs.frame_reader import FrameReader, StillReader, open_reader
from polypstream.jobs.image_results import load_reviewable
from polypstream.web.annotations import NICENESS

# The child ends when nothing was asked for this many seconds, or when one answer takes longer than the other number.
IDLE_S, ANSWER_S = 300.0, 120.0
# A function that the child calls with its reader and the other arguments.
Question = Callable[..., Any]


class FrameChild:
    """Answers questions about the frames of one recording after another, in a child process.

    Readers mostly look at one recording at a time. A question about another one starts another child.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, Path] | None = None
        self._child: BaseProcess | None = None
        self._connection: Connection | None = None

    def ask(self, recording: str, results: Path, question: Question, *arguments: object) -> Any:
        """Let the child call a function with the reader of a recording, see `open_reader`.

        Args:
            recording: path of the recording, or of the folder of the images.
            results: folder of its results.
            question: the function, at the top level of a module.
            arguments: its other arguments.

        Returns:
            What it returned.

        Raises:
            PolypstreamError: it raised one, or the child died.
        """
        with self._lock:
            connection = self._connected(recording, results)
            try:
                connection.send((question, arguments))
                if not connection.poll(ANSWER_S):
                    raise EOFError
                answer = connection.recv()
            except (EOFError, OSError):
                self._end()
                raise PolypstreamError("the process that reads the recording died") from None
        if isinstance(answer, PolypstreamError):
            raise answer
        return answer

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _connected(self, recording: str, results: Path) -> Connection:
        if (
            self._connection is None
            or self._key != (recording, results)
            or not (self._child and self._child.is_alive())
        ):
            self._end()
            self._connection, theirs = get_context("spawn").Pipe()
            arguments = (theirs, recording, results)
            self._child = get_context("spawn").Process(target=_answer, args=arguments, daemon=True)
            self._child.start()
            theirs.close()
            self._key = recording, results
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._child is not None:
            self._child.kill()
            self._child.join()
        self._connection = self._child = self._key = None


def read_jpeg(reader: FrameReader | StillReader, index: int) -> bytes:
    """A question: a frame as JPEG.

    Args:
        reader: of the recording.
        index: number of the frame.
    """
    return reader.jpeg(index)


def read_orientation(reader: FrameReader) -> Orientation:
    """A question: how the frames are displayed.

    Args:
        reader: of the recording.
    """
    return next(reader.frames_from(0)).orientation


def _answer(connection: Connection, recording: str, results: Path) -> None:
    """Answer questions until the server closes the connection, or asks nothing for a while."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the server
        os.nice(NICENESS)
    with suppress(EOFError, OSError), connection, closing(open_reader(load_reviewable(results), recording)) as reader:
        while connection.poll(IDLE_S):
            question, arguments = connection.recv()
            try:
                answer = question(reader, *arguments)
            except PolypstreamError as error:
                answer = error
            connection.send(answer)
