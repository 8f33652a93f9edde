"""Crop, scale and convert pictures in one pass over their pixels.

FFmpeg's crop filter moves a pointer and its scaler converts while it shrinks, so a full-resolution picture is read once
and never written. Unlike PyAV's `reformat`, a graph does not touch the source picture's tags, not even briefly: several
threads may scale the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import av
from av.filter import Graph

from polypstream.core.orientation import Orientation
from polypstream.media.color import is_full_range, matrix_name

Size = tuple[int, int]


def own_size(picture: av.VideoFrame) -> Size:
    """For a Scaler that only converts."""
    return picture.width, picture.height


class Scaler:
    """A graph of FFmpeg's filters, built anew when pictures of another kind come.

    Args:
        pixel_format: of the scaled pictures, FFmpeg's name.
        size_of: width and height to which a picture is scaled.
        crop: left, top, width and height of the part to scale; None: the whole picture.
        colours: further options of FFmpeg's scale filter, such as the matrix and range to convert to.
        then: filters that the scaled pictures go through, each with its arguments.
    """

    def __init__(
        self,
        pixel_format: str,
        size_of: Callable[[av.VideoFrame], Size],
        crop: tuple[int, int, int, int] | None = None,
        colours: str = "",
        then: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._pixel_format, self._size_of, self._crop, self._colours = pixel_format, size_of, crop, colours
        self._then = then
        self._graph: Graph | None = None
        self._graph_for: tuple[object, ...] = ()

    def __call__(self, picture: av.VideoFrame) -> av.VideoFrame:
        """The scaled picture; the source is only read."""
        kind = (picture.format.name, picture.width, picture.height, picture.colorspace, picture.color_range)
        if self._graph is None or kind != self._graph_for:
            self._graph, self._graph_for = self._build(picture), kind
        self._graph.vpush(picture)
        return self._graph.vpull()

    def _build(self, picture: av.VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = 1
        width, height = self._size_of(picture)
        left, top, across, down = self._crop or (0, 0, picture.width, picture.height)
        colours = f"in_color_matrix={matrix_name(picture)}:in_range={'full' if is_full_range(picture) else 'limited'}"
        nodes = [
            graph.add("buffer", buffer_of(picture)),
            graph.add("crop", f"{across}:{down}:{left}:{top}:exact=1"),
            # The mean over each pixel's area, as evaluation takes it; where nothing shrinks, bilinear.
            graph.add("scale", f"{width}:{height}:flags=area:{colours}{self._colours}"),
            graph.add("format", f"pix_fmts={self._pixel_format}"),
            *(graph.add(name, arguments) for name, arguments in self._then),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def shown(pixel_format: str, orientation: Orientation) -> Scaler:
    """A Scaler that converts pictures to what people see: turned, and with square pixels."""
    return Scaler(
        pixel_format, lambda picture: orientation.stretched(picture.width, picture.height), then=orientation.filters()
    )


class Filtered:
    """Pictures through one of FFmpeg's filters that keeps their size, format and time.

    Args:
        name: of the filter.
        arguments: of the filter.
    """

    def __init__(self, name: str, arguments: str) -> None:
        self._name, self._arguments = name, arguments
        self._graph: Graph | None = None
        self._graph_for: tuple[object, ...] = ()

    def __call__(self, picture: av.VideoFrame) -> av.VideoFrame:
        """The picture, on the same memory if the filter allows."""
        kind = (picture.format.name, picture.width, picture.height, picture.colorspace, picture.color_range)
        if self._graph is None or kind != self._graph_for:
            self._graph, self._graph_for = self._build(picture), kind
        self._graph.vpush(picture)
        filtered = self._graph.vpull()
        filtered.pts, filtered.time_base, filtered.duration = picture.pts, picture.time_base, picture.duration
        return filtered

    def _build(self, picture: av.VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = 1
        nodes = [
            graph.add("buffer", buffer_of(picture)),
            graph.add(self._name, self._arguments),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def buffer_of(picture: av.VideoFrame) -> str:
    """What a graph must know of the pictures that come."""
    return (
        f"video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:time_base=1/1000:"
        f"colorspace={int(picture.colorspace)}:range={int(picture.color_range)}"
    )
