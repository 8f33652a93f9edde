"""Collects single images of many callers into batches for the model."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from polypstream.core.pipeline import Channel
from polypstream.inference.segmenter import Segmenter

# Number of images in the queue. When it is full, further callers wait until there is space.
QUEUE = 64


class Batcher:
    """Segments images of callers. A batch holds all images that wait, up to the batch size of the model.

    Args:
        segmenter: the model.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._waiting = Channel[tuple[np.ndarray, Future[np.ndarray]]](QUEUE)

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Wait for the probability map of an image.

        Args:
            image: uint8 RGB [size, size, 3].

        Returns:
            uint8 [size, size], 255 meaning 1.

        Raises:
            Closed: the server is stopping.
        """
        answer: Future[np.ndarray] = Future()
        self._waiting.put((image, answer))
        return answer.result()

    def run(self) -> None:
        """Process batches until `close`. Several threads may call this at the same time."""
        while jobs := self._waiting.take(self._segmenter.batch_size):
            try:
                maps = self._segmenter.segment([image for image, _ in jobs])
            except Exception as error:  # callers must get the error; the next batch may succeed
                for _, answer in jobs:
                    answer.set_exception(error)
            else:
                for (_, answer), found in zip(jobs, maps, strict=True):
                    answer.set_result(found)

    def close(self) -> None:
        """Take no further images, and let `run` end when those in the queue are done."""
        self._waiting.abandon()
        self._waiting.end()
