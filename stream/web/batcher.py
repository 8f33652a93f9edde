"""Single pictures from many callers, given to the network together."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from polypstream.core.pipeline import Channel
from polypstream.inference.segmenter import Segmenter

# So many callers' pictures wait; more callers wait themselves.
QUEUE = 64


class Batcher:
    """Segments the pictures of callers in threads of their own, as many at once as are waiting and the batch takes.

    Args:
        segmenter: that does it.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._waiting = Channel[tuple[np.ndarray, Future[np.ndarray]]](QUEUE)

    def segment(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB [size, size, 3] -> uint8 probability [size, size], once it is its turn.

        Raises:
            Closed: the server ends.
        """
        answer: Future[np.ndarray] = Future()
        self._waiting.put((picture, answer))
        return answer.result()

    def run(self) -> None:
        """Work until `close`."""
        while jobs := self._waiting.take(self._segmenter.batch_size):
            try:
                maps = self._segmenter.segment([picture for picture, _ in jobs])
            except Exception as error:  # those who wait must be told; the next ones may have more luck
                for _, answer in jobs:
                    answer.set_exception(error)
            else:
                for (_, answer), found in zip(jobs, maps, strict=True):
                    answer.set_result(found)

    def close(self) -> None:
        """Take no more, and end when the waiting ones are done."""
        self._waiting.abandon()
        self._waiting.end()
