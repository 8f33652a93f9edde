"""The network's picture from a decoder's picture, where that lies: crop, scaling and colours as one small ONNX graph.

A GPU decodes to NV12: a plane of luma, and a plane of half the size with pairs of chroma samples. The graph runs on the
provider of the network, so a full picture stays in the GPU's memory. It computes what FFmpeg's scaler computes on the
CPU: the mean over the area of each pixel. Such a mean over a box is a product with two sparse matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from av import VideoFrame

from polypstream.core.geometry import FieldOfView
from polypstream.inference.cuda import copy_to_cpu, wait_for_default_stream
from polypstream.inference.providers import GPU, Provider, SessionSettings, open_session

# Names of the graph's inputs and outputs; `polypstream.export.nv12` builds the file.
LUMA, CHROMA = "luma", "chroma"
MODEL_INPUT, KEPT_LUMA, KEPT_CHROMA = "model_input", "kept_luma", "kept_chroma"


class RgbMatrix(NamedTuple):
    """Conversion of samples to full-range RGB: `matrix` @ (Y, U, V) + `offset`.

    Attributes:
        matrix: float32 [3, 3].
        offset: float32 [3].
    """

    matrix: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True, slots=True)
class HeldPicture:
    """A copy of a decoded picture in the memory of the provider, so that the decoder gets its surface back at once.

    Attributes:
        luma: uint8 [height, width].
        chroma: uint8 [2, height / 2, width / 2], U and V.
        pts, duration: in units of time_base.
        time_base: seconds per unit.
        tags: FFmpeg's numbers of colorspace, color_range, color_primaries and color_trc.
        device: number of the GPU, from 0.
    """

    luma: ort.OrtValue
    chroma: ort.OrtValue
    pts: int
    duration: int
    time_base: Fraction
    tags: tuple[int, int, int, int]
    device: int = 0

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.luma.shape()[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.luma.shape()[0])

    def download(self) -> VideoFrame:
        """Copy the picture to the memory of the CPU.

        Returns:
            A new frame in yuv420p, with the same samples.
        """
        picture = VideoFrame(self.width, self.height, "yuv420p")
        for plane, samples in zip(picture.planes, (self._samples(self.luma), *self._samples(self.chroma)), strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)  # type: ignore[call-overload]
            rows[:, : plane.width] = samples
        picture.pts, picture.duration, picture.time_base = self.pts, self.duration, self.time_base
        picture.colorspace, picture.color_range, picture.color_primaries, picture.color_trc = self.tags
        return picture

    def _samples(self, value: ort.OrtValue) -> np.ndarray:
        """The samples of a plane in the memory of the CPU."""
        if value.device_name() == "cpu":
            return value.numpy()
        # `numpy` would hold Python's global lock while it waits for the copy, and all other stages with it.
        samples = np.empty(value.shape(), np.uint8)
        copy_to_cpu(value.data_ptr(), samples, self.device)
        return samples


class Nv12Graph:
    """Makes the network's picture of NV12 pictures of one size.

    Args:
        view: the field of view.
        size: height and width of the network's input in pixels.
        provider: provider that runs the graph. The pictures lie in its memory.
        device: number of the GPU, from 0.

    Raises:
        ProviderError: the provider cannot run the graph.

    Example:
        >>> picture = VideoFrame(64, 48, "nv12")
        >>> picture.pts, picture.time_base = 0, Fraction(1, 30)
        >>> graph = Nv12Graph(FieldOfView(0, 0, 64, 48), 32, "cpu", 0)
        >>> model_input, held = graph(picture, RgbMatrix(np.eye(3, dtype=np.float32), np.zeros(3, np.float32)))
        >>> model_input.shape, held.width
        ((32, 32, 3), 64)
    """

    def __init__(self, view: FieldOfView, size: int, provider: Provider, device: int) -> None:
        self._view, self._size, self._device = view, size, device
        self._memory = "cuda" if provider in GPU else "cpu"
        graph = Path(str(files("polypstream.inference") / "nv12.onnx"))
        # TensorRT would build an engine for the graph, which gains nothing from it. CUDA has the same memory.
        # With TF32, 3 % of the samples would differ by a level from those of FFmpeg; without it 0.2 % do.
        settings = SessionSettings(device=device, tf32=False)
        self._session = open_session(graph, "cuda" if provider in GPU else provider, settings)
        self._binding = self._session.io_binding()
        self._bound_for: tuple[object, ...] = ()

    def __call__(self, picture: VideoFrame, colours: RgbMatrix) -> tuple[np.ndarray, HeldPicture]:
        """Make the network's picture, and copy the picture out of the decoder's surface.

        Args:
            picture: NV12, in the provider's memory.
            colours: how its samples are converted.

        Returns:
            uint8 RGB [size, size, 3] in the memory of the CPU, and the copy in the provider's memory.
        """
        luma, chroma = picture.planes
        self._bind_weights(picture, colours)
        bind = self._binding.bind_input
        height, pitch = picture.height, luma.line_size
        bind(LUMA, self._memory, self._device, np.uint8, [height, pitch], luma.buffer_ptr)
        bind(CHROMA, self._memory, self._device, np.uint8, [height // 2, pitch // 2, 2], chroma.buffer_ptr)
        # Outputs that stay bound would be overwritten by the next run.
        self._binding.bind_output(MODEL_INPUT, "cpu")
        for name in (KEPT_LUMA, KEPT_CHROMA):
            self._binding.bind_output(name, self._memory, self._device)
        if self._memory == "cuda":
            wait_for_default_stream(self._device)
        self._session.run_with_iobinding(self._binding)
        model_input, kept_luma, kept_chroma = self._binding.get_outputs()
        tags = picture.colorspace, picture.color_range, picture.color_primaries, picture.color_trc
        assert picture.pts is not None and picture.time_base is not None
        times = picture.pts, picture.duration or 0, picture.time_base
        return model_input.numpy(), HeldPicture(kept_luma, kept_chroma, *times, tags, self._device)

    def _bind_weights(self, picture: VideoFrame, colours: RgbMatrix) -> None:
        """Bind what is the same for all pictures. Padding at the end of a line has the weight 0."""
        pitch, width, height = picture.planes[0].line_size, picture.width, picture.height
        kind = (pitch, width, height, colours.matrix.tobytes(), colours.offset.tobytes())
        if kind == self._bound_for:
            return
        view, size = self._view, self._size
        across, down = -(-view.width // 2), -(-view.height // 2)
        weights = {
            "luma_rows": area_weights(view.y, view.height, height, size),
            "luma_columns": area_weights(view.x, view.width, pitch, size).T,
            "chroma_rows": area_weights(view.y // 2, down, height // 2, size),
            "chroma_columns": area_weights(view.x // 2, across, pitch // 2, size).T,
            "matrix": colours.matrix.T,
            "offset": colours.offset,
        }
        for name, values in weights.items():
            value = ort.OrtValue.ortvalue_from_numpy(
                np.ascontiguousarray(values, np.float32), self._memory, self._device
            )
            self._binding.bind_ortvalue_input(name, value)
        # The ends of slices are read on the CPU by all providers.
        self._binding.bind_cpu_input("width", np.array([width], np.int64))
        self._binding.bind_cpu_input("chroma_width", np.array([width // 2], np.int64))
        self._bound_for = kind


def area_weights(start: int, length: int, total: int, size: int) -> np.ndarray:
    """Weights of the samples of a line for each sample of a scaled part of it.

    A line that shrinks gets the mean over the area of each new sample. A line that grows is interpolated linearly. Both
    are as FFmpeg's scaler does it with `flags=area` (libswscale/utils.c, initFilter), without its rounding.

    Args:
        start: first sample of the part.
        length: number of samples of the part.
        total: number of samples of the line.
        size: number of samples of the result.

    Returns:
        float32 [size, total]; each row sums to 1.

    Example:
        >>> area_weights(1, 4, 6, 2).tolist()
        [[0.0, 0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5, 0.5, 0.0]]
    """
    ratio = length / size
    if ratio >= 1:
        begins, samples = np.arange(size)[:, None] * ratio, np.arange(length)
        part = np.clip(np.minimum(begins + ratio, samples + 1) - np.maximum(begins, samples), 0, None) / ratio
    else:
        centres = np.clip((np.arange(size)[:, None] + 0.5) * ratio - 0.5, 0, length - 1)
        part = np.clip(1 - np.abs(centres - np.arange(length)), 0, None)
    weights = np.zeros((size, total), np.float32)
    weights[:, start : start + length] = part
    return weights
