"""A GPU's decoder without a GPU: the CPU decodes, and the pictures become NV12, as NVDEC's are."""

from __future__ import annotations

from pathlib import Path

import av
from av.codec.context import ThreadType
from av.container import InputContainer

from polypstream.media.container import open_container


class Nv12Decoder:
    """A GpuDecoder whose surfaces are in the memory of the CPU.

    Args:
        device: as of Nvdec; unused.
        from_frame, until_frame: only these pictures are surfaces; the others stay as decoded, as where NVDEC fails.
    """

    name = "nvdec"
    surface_format = "nv12"

    def __init__(self, device: int = 0, from_frame: int = 0, until_frame: int = 1 << 30) -> None:
        self._wanted, self._count = range(from_frame, until_frame), 0

    def open(self, path: Path) -> InputContainer:
        self._container = open_container(path)
        return self._container

    def surface(self, picture: av.VideoFrame) -> av.VideoFrame:
        self._count += 1
        # Threads that decode whole frames hold more surfaces than NVDEC has (seen on an H200 with 16 cores).
        threads = self._container.streams.video[0].codec_context.thread_type
        if self._count - 1 not in self._wanted or threads != ThreadType.SLICE:
            return picture
        surface = picture.reformat(format="nv12")
        surface.opaque = picture.opaque
        return surface
