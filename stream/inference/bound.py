"""A session whose input and output stay at the same place in the memory of a GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from polypstream.inference.model_card import INPUT, OUTPUT


class _Buffers(NamedTuple):
    """Buffers for one batch size.

    Attributes:
        pictures: uint8 [N, size, size, 3].
        maps: uint8 [N, size, size].
        binding: binds both to the session.
    """

    pictures: ort.OrtValue
    maps: ort.OrtValue
    binding: ort.IOBinding


class BoundModel:
    """Runs a model in buffers that are allocated once for each of a few batch sizes.

    A batch of another size is filled up to the next larger one. The first run of each size is slow: cuDNN searches
    algorithms for about a second.

    Nothing is read before it is written: `update_inplace` waits until the pictures are in the buffer
    (cudaStreamSynchronize of the default stream), and a run of a session waits for its own stream before it returns.

    Args:
        session: session of a polypstream model.
        memory: "cuda" or "cpu", where the session computes.
        device: number of the GPU, from 0.
        sizes: the batch sizes, in increasing order.
        cuda_graph: the session records CUDA graphs; each batch size is one graph.
    """

    def __init__(
        self, session: ort.InferenceSession, memory: str, device: int, sizes: Sequence[int], cuda_graph: bool = False
    ) -> None:
        self._session, self._memory, self._device, self._cuda_graph = session, memory, device, cuda_graph
        self._sizes = sizes
        self._buffers: dict[int, _Buffers] = {}
        # Several threads may share a model. They take turns with its buffers.
        self._lock = threading.Lock()

    def run(self, pictures: np.ndarray) -> np.ndarray:
        """Run the model on one batch.

        Args:
            pictures: uint8 RGB [N, size, size, 3]; N is at most the largest batch size.

        Returns:
            uint8 [N, size, size], 0..255 meaning 0..1.
        """
        count = len(pictures)
        batch = next(each for each in self._sizes if each >= count)
        if count < batch:
            pictures = np.concatenate([pictures, np.zeros((batch - count, *pictures.shape[1:]), np.uint8)])
        with self._lock:
            if batch not in self._buffers:
                self._buffers[batch] = self._allocate(pictures.shape)
            buffers = self._buffers[batch]
            buffers.pictures.update_inplace(np.ascontiguousarray(pictures))
            self._session.run_with_iobinding(buffers.binding, self._run_options(batch))
            maps: np.ndarray = buffers.maps.numpy()[:count]
        # In the CPU's memory, `numpy` returns the buffer itself, which the next run overwrites.
        return maps.copy() if self._memory == "cpu" else maps

    def _allocate(self, shape: tuple[int, ...]) -> _Buffers:
        def buffer(size: tuple[int, ...]) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_numpy(np.zeros(size, np.uint8), self._memory, self._device)

        buffers = _Buffers(buffer(shape), buffer(shape[:-1]), self._session.io_binding())
        buffers.binding.bind_ortvalue_input(INPUT, buffers.pictures)
        buffers.binding.bind_ortvalue_output(OUTPUT, buffers.maps)
        return buffers

    def _run_options(self, count: int) -> ort.RunOptions | None:
        if not self._cuda_graph:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(count))
        return options
