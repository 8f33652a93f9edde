"""NVDEC, the video decoder of NVIDIA's GPUs. Its pictures stay in the GPU's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer

from polypstream.errors import SourceError
from polypstream.media.container import open_container

# Decoded pictures that the pipeline may hold: those that wait for the stage `crop`, which copies them. NVDEC has at
# most 32 surfaces, and the decoder needs up to 17 of them for itself.
HELD_SURFACES = 8


class GpuDecoder(Protocol):
    """Decodes on a GPU.

    Attributes:
        name: for the user.
        surface_format: FFmpeg's name of the pixel format of pictures in the GPU's memory.
    """

    name: str
    surface_format: str

    def open(self, path: Path) -> InputContainer:
        """Open a recording so that its decoder is on the GPU.

        Args:
            path: the recording.

        Raises:
            SourceError: the GPU, its driver or FFmpeg cannot do this; the message is the reason alone.
        """
        ...

    def surface(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Take a decoded picture.

        Args:
            picture: what the decoder returned.

        Returns:
            The picture, in the GPU's memory, or in that of the CPU if the GPU could not decode it.
        """
        ...


class Nvdec:
    """NVDEC of one GPU.

    Args:
        device: number of the GPU, from 0.
    """

    name = "nvdec"
    surface_format = "cuda"

    def __init__(self, device: int) -> None:
        self._device = device

    def open(self, path: Path) -> InputContainer:
        """Open a recording; see GpuDecoder.

        With `is_hw_owned` PyAV makes FFmpeg use the primary context of the GPU, which ONNX Runtime uses, too. Where
        NVDEC cannot decode a part of the recording, FFmpeg decodes it on the CPU. This is counted by the format of each
        picture, since it also happens where it is forbidden (PyAV issue 1690).
        """
        accelerator = HWAccel("cuda", device=self._device, allow_software_fallback=True, is_hw_owned=True)
        try:
            return open_container(path, accelerator, {"extra_hw_frames": str(HELD_SURFACES)})
        except (SourceError, NotImplementedError) as error:
            # The CPU has opened the recording before, so the GPU is the cause.
            cause = error.__cause__ or error
            raise SourceError(f"NVDEC cannot be used ({getattr(cause, 'strerror', None) or cause})") from error

    def surface(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Take a decoded picture; see GpuDecoder."""
        return picture
