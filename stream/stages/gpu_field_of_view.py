"""Stage `crop` for pictures that a GPU decoded: the network's picture is made on the GPU, too."""

from __future__ import annotations

import av

from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.inference.nv12 import Nv12Graph, RgbMatrix
from polypstream.media.color import rgb_matrix
from polypstream.stages.field_of_view import ViewCropper


class GpuViewCropper:
    """Crops frames to the field of view, and scales them to the model's input, where their pictures lie.

    A picture on the GPU is copied there, because its decoder has few surfaces. It reaches the CPU only if a later stage
    asks for its pixels.

    Args:
        view: the field of view.
        size: height and width of the model's input in pixels.
        graph: makes the model's input of pictures on the GPU.
        surface_format: FFmpeg's name of the pixel format of such pictures.

    Attributes:
        on_gpu, on_cpu: number of pictures that were decoded on either.
    """

    def __init__(self, view: FieldOfView, size: int, graph: Nv12Graph, surface_format: str) -> None:
        self.view, self._graph, self._surface_format = view, graph, surface_format
        self._on_cpu = ViewCropper(view, size)
        self._colours: RgbMatrix | None = None
        self._colours_for: tuple[object, ...] = ()
        self.on_gpu = self.on_cpu = 0

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `view` and `model_input` of each frame.

        Args:
            frames: frames of one source, in the order of their timestamps.

        Returns:
            The same frames.
        """
        for frame in frames:
            picture = frame.picture
            if isinstance(picture, av.VideoFrame) and picture.format.name == self._surface_format:
                frame.view, self.on_gpu = self.view, self.on_gpu + 1
                frame.model_input, frame.picture = self._graph(picture, self._colours_of(picture))
            else:
                self._on_cpu([frame])
                self.on_cpu += 1
        return frames

    def _colours_of(self, picture: av.VideoFrame) -> RgbMatrix:
        kind = (picture.colorspace, picture.color_range, picture.height)
        if self._colours is None or kind != self._colours_for:
            self._colours, self._colours_for = RgbMatrix(*rgb_matrix(picture)), kind
        return self._colours
