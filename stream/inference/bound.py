"""A model whose input and output stay at the same place in the memory of a GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from polypstream.inference.model_card import INPUT, OUTPUT


class _Buffers(NamedTuple):
    """Session and buffers for one batch size.

    Attributes:
        session: the session.
        gathered: uint8 [N, size, size, 3] in the memory of the CPU.
        pictures: the same in the memory of the session.
        maps: uint8 [N, size, size] there.
        binding: binds both to the session.
    """

    session: ort.InferenceSession
    gathered: np.ndarray
    pictures: ort.OrtValue
    maps: ort.OrtValue
    binding: ort.IOBinding


class BoundModel:
    """Runs a model in batches of a few sizes. Each size has a session and buffers of its own.

    ONNX Runtime's CUDA provider keeps one plan for each convolution: that of the latest shape. If a session gets a
    batch of another size, it plans all of them again, for up to a second, also if it had that size before (onnxruntime
    #23006). So a session gets batches of one size only. Other batches are filled up to the next larger size.

    Nothing is read before it is written: `update_inplace` waits until the pictures are in the buffer
    (cudaStreamSynchronize of the default stream), and a run of a session waits for its own stream before it returns.

    Args:
        memory: "cuda" or "cpu", where the sessions compute.
        device: number of the GPU, from 0.
    """

    def __init__(self, memory: str, device: int) -> None:
        self._memory, self._device = memory, device
        # By batch size, the smallest first.
        self._sizes: dict[int, _Buffers] = {}
        # Several threads may share a model. They take turns with its buffers.
        self._lock = threading.Lock()

    def add(self, batch: int, size: int, session: ort.InferenceSession) -> None:
        """Run batches of a size from now on. The first run is slow.

        Args:
            batch: number of images.
            size: height and width of the model's input in pixels.
            session: session of the model. It gets batches of this size only.
        """

        def buffer(values: np.ndarray) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_numpy(values, self._memory, self._device)

        gathered = np.zeros((batch, size, size, 3), np.uint8)
        maps = buffer(np.zeros((batch, size, size), np.uint8))
        # In the memory of the CPU an OrtValue would share that of the array.
        buffers = _Buffers(session, gathered, buffer(gathered.copy()), maps, session.io_binding())
        buffers.binding.bind_ortvalue_input(INPUT, buffers.pictures)
        buffers.binding.bind_ortvalue_output(OUTPUT, buffers.maps)
        with self._lock:
            self._sizes = dict(sorted({**self._sizes, batch: buffers}.items()))

    def run(self, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Run the model on one batch.

        Args:
            pictures: uint8 RGB [size, size, 3] each; at most as many as the largest batch.

        Returns:
            uint8 [N, size, size], 0..255 meaning 0..1.
        """
        count = len(pictures)
        with self._lock:
            buffers = next(each for batch, each in self._sizes.items() if batch >= count)
            # What an earlier batch left behind them is segmented again, and not returned.
            np.stack(list(pictures), out=buffers.gathered[:count])
            buffers.pictures.update_inplace(buffers.gathered)
            buffers.session.run_with_iobinding(buffers.binding)
            maps: np.ndarray = buffers.maps.numpy()[:count]
        # In the CPU's memory, `numpy` returns the buffer itself, which the next run overwrites.
        return maps.copy() if self._memory == "cpu" else maps
