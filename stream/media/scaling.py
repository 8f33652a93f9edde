"""Crop, scale and convert frames in one pass over their pixels.

FFmpeg's crop filter only moves a pointer, and its scaler converts while it shrinks. Therefore a full-resolution frame
is read once and never written. Unlike PyAV's `reformat`, a filter graph never changes the tags of the source frame.
Therefore several threads may scale the same frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import av
from av.filter import Graph

from polypstream.core.orientation import Orientation
from polypstream.media.color import is_full_range, matrix_name

Size = tuple[int, int]


def own_size(picture: av.VideoFrame) -> Size:
    """Return the size of a frame. It is the `size_of` of a Scaler that only converts.

    Args:
        picture: a frame.

    Returns:
        Width and height in pixels.
    """
    return picture.width, picture.height


class Scaler:
    """A graph of FFmpeg's filters. It is rebuilt when frames of another size or format arrive.

    Args:
        pixel_format: FFmpeg's name of the output's pixel format.
        size_of: function from a frame to the width and height of the output.
        crop: left, top, width and height of the part to scale; None: the whole frame.
        colours: more options for FFmpeg's scale filter, such as the output's matrix and range.
        then: filters that are applied after scaling, each with its arguments.
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
        """Scale a frame.

        Args:
            picture: the frame; it is only read.

        Returns:
            The scaled frame.
        """
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
            # The mean over each pixel's area, as in the evaluation. Where the frame does not shrink, it is bilinear.
            graph.add("scale", f"{width}:{height}:flags=area:{colours}{self._colours}"),
            graph.add("format", f"pix_fmts={self._pixel_format}"),
            *(graph.add(name, arguments) for name, arguments in self._then),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def shown(pixel_format: str, orientation: Orientation) -> Scaler:
    """Make a Scaler that converts frames for display: rotated, and with square pixels.

    Args:
        pixel_format: FFmpeg's name of the output's pixel format.
        orientation: how the frames are displayed.

    Returns:
        The Scaler.
    """
    return Scaler(
        pixel_format, lambda picture: orientation.stretched(picture.width, picture.height), then=orientation.filters()
    )


def shown_within(width: int, pixel_format: str, orientation: Orientation, colours: str) -> Scaler:
    """Make a Scaler that converts frames for display as `shown` does, and shrinks them to a maximum width.

    Args:
        width: the largest width that is displayed, in pixels.
        pixel_format: FFmpeg's name of the output's pixel format.
        orientation: how the frames are displayed.
        colours: matrix and range of the output, as options of FFmpeg's scale filter.

    Returns:
        The Scaler. Width and height of its frames are even.
    """

    def size_of(picture: av.VideoFrame) -> Size:
        across, down = orientation.stretched(picture.width, picture.height)
        displayed = down if orientation.swapped else across
        share = min(width, displayed) / displayed
        return max(2, round(across * share) & ~1), max(2, round(down * share) & ~1)

    return Scaler(pixel_format, size_of, colours=colours, then=orientation.filters())


class Filtered:
    """Applies one of FFmpeg's filters that keeps the size, pixel format and timestamps of frames.

    Args:
        name: name of the filter.
        arguments: arguments of the filter.
    """

    def __init__(self, name: str, arguments: str) -> None:
        self._name, self._arguments = name, arguments
        self._graph: Graph | None = None
        self._graph_for: tuple[object, ...] = ()

    def __call__(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Filter a frame.

        Args:
            picture: the frame.

        Returns:
            The filtered frame; it shares the memory of the input if the filter allows it.
        """
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
    """Describe frames for the source of a filter graph.

    Args:
        picture: one of the frames.

    Returns:
        Arguments for FFmpeg's buffer filter.
    """
    return (
        f"video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:time_base=1/1000:"
        f"colorspace={int(picture.colorspace)}:range={int(picture.color_range)}"
    )
