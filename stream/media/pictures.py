"""Frames and their format: size, pixel format, timing, colour tags, orientation, planes."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange, Colorspace

from polypstream.core.frame import FieldOrder, PictureFormat
from polypstream.core.orientation import ONE
from polypstream.errors import DataError
from polypstream.media.color import HD_LINES, bits_of, is_full_range, matrix_name, name_of_matrix, says_full_range
from polypstream.media.scaling import Scaler

# An 8K frame has 33 million pixels. A small file can announce billions.
MAX_PIXELS = 40_000_000
# x264 does not accept a larger width or height. JPEG, in which annotated images are stored, ends at four times as much.
MAX_SIDE = 16_384
# Grey level (of 255) above which a pixel of a mask counts as polyp.
MASK_THRESHOLD = 127
# MP4 stores the time between two frames or audio packets in 31 bits. FFmpeg aborts the process for a longer time.
MP4_LONGEST_STEP = 2**31 - 1
# Some recorders write their units per second as the frame rate. An announced rate above this is ignored.
MAX_RATE = 300
# Frames per second of a recording that announces no possible rate.
USUAL_RATE = Fraction(25)
# FFmpeg's numbers of field orders (AVFieldOrder), mapped to the field that is displayed first.
FIELD_ORDERS: dict[int, FieldOrder] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
# The smallest number of units per second in an MP4. FFmpeg doubles a smaller number until it is reached.
MP4_LEAST_TIMESCALE = 10_000
# Planar YUV formats that the overlay can draw on and that H.264 encoders accept.
KEPT = frozenset(
    f"{prefix}{sampling}p{depth}"
    for prefix, depth in (("yuv", ""), ("yuvj", ""), ("yuv", "10le"))
    for sampling in ("420", "422", "444")
)


def picture_format(stream: av.VideoStream, picture: av.VideoFrame) -> PictureFormat:
    """Read the format of a stream from its tags and its first frame.

    The container's tags for pixel shape and field order have priority over those of the frames, as in players.

    Args:
        stream: the video stream.
        picture: its first decoded frame.

    Returns:
        The format.
    """
    context = stream.codec_context
    assert stream.time_base is not None
    colorspace, color_range = yuv_tags(picture)
    time_base, rates = stream.time_base, [stream.guessed_rate, stream.average_rate]
    if not longest_step(time_base):  # no MP4 can store a single unit of it
        time_base, rates = 1 / USUAL_RATE, []
    return PictureFormat(
        width=picture.width,
        height=picture.height,
        pixel_format=nearest_kept(picture.format),
        time_base=time_base,
        rate=next((rate for rate in rates if rate and rate <= MAX_RATE), USUAL_RATE),
        start=(picture.pts or 0) * time_base,
        sample_aspect_ratio=stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(0),
        display_matrix=_display_matrix(picture),
        colorspace=colorspace,
        color_range=color_range,
        color_primaries=int(picture.color_primaries),
        color_trc=int(picture.color_trc),
        field_order=FIELD_ORDERS.get(context.field_order) or field_order_of(picture),
    )


def _display_matrix(picture: av.VideoFrame) -> tuple[int, ...] | None:
    try:
        matrix = picture.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]
        return struct.unpack("=9i", bytes(matrix))
    except KeyError:
        return None
    except ValueError:
        # PyAV 18.1 cannot list side data if it has no name for one of them, such as EXIF. It still knows the angle.
        return _matrix_of(round(picture.rotation / 90) * 90) if picture.rotation else None


def _matrix_of(degrees: int) -> tuple[int, ...]:
    """Return FFmpeg's display matrix for an angle, counter-clockwise (av_display_rotation_set, libavutil/display.c)."""
    cosine, sine = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    return (cosine * ONE, -sine * ONE, 0, sine * ONE, cosine * ONE, 0, 0, 0, 1 << 30)


def field_order_of(picture: av.VideoFrame) -> FieldOrder:
    """Read the field order from a frame's own flags.

    Args:
        picture: a frame.

    Returns:
        The field order.
    """
    if not picture.interlaced_frame:
        return "progressive"
    # PyAV does not tell which field is earlier. FFmpeg's select filter outputs only frames with the given field order.
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 1000)
    )
    select, sink = graph.add("select", "eq(interlace_type\\,TOPFIRST)"), graph.add("buffersink")
    graph.link_nodes(source, select, sink).configure()
    graph.vpush(picture)
    try:
        graph.vpull()
    except av.error.BlockingIOError:
        return "bff"
    return "tff"


def nearest_kept(pixel_format: VideoFormat) -> str:
    """Choose the pixel format in which frames are processed. It is the decoded format where possible.

    Other formats keep their chroma subsampling and get 8 or 10 bits. RGB is converted to 4:2:0, which every player
    supports.

    Args:
        pixel_format: the decoded format.

    Returns:
        A format of KEPT.
    """
    if pixel_format.name in KEPT:
        return str(pixel_format.name)
    depth = "10le" if max(component.bits for component in pixel_format.components) > 8 else ""
    if pixel_format.is_rgb or len(pixel_format.components) < 3 or pixel_format.has_palette:
        return f"yuv420p{depth}"
    wide, tall = pixel_format.chroma_width(64), pixel_format.chroma_height(64)
    sampling = "444" if wide == 64 else "420" if tall < 64 else "422"
    return f"yuv{sampling}p{depth}"


class Conformer:
    """Converts frames that differ from the first ones of a recording: in size, pixel format, colours or pixel shape.

    A frame with another aspect ratio is fitted between black bars, so that its content is not distorted.

    Args:
        pictures: the wanted format.
        surface_format: FFmpeg's name of the pixel format of pictures in a GPU's memory. They stay there if they have
            the wanted format but for that. None: there are no such pictures.
    """

    def __init__(self, pictures: PictureFormat, surface_format: str | None = None) -> None:
        self._pictures, self._surface_format = pictures, surface_format
        self._scaler: Scaler | None = None
        self._scaler_for: tuple[object, ...] = ()

    def __call__(self, picture: av.VideoFrame, shape: Fraction = Fraction(1)) -> av.VideoFrame:
        """Convert a frame if necessary.

        Args:
            picture: any frame.
            shape: width of its pixels divided by that of the wanted pixels, at the same height.

        Returns:
            The frame itself if it already has the wanted format; otherwise a converted one with the same pts.
        """
        wanted = self._pictures
        if (
            shape != 1
            or (picture.width, picture.height) != (wanted.width, wanted.height)
            or not self._is_alike(picture)
        ):
            converted = self._fitted(self._in_memory(picture), shape)
        elif picture.format.name in (wanted.pixel_format, self._surface_format):
            return picture
        else:
            tags: dict[str, int] = {}
            if picture.format.is_rgb:
                tags = {"dst_colorspace": wanted.colorspace, "dst_color_range": wanted.color_range}
            converted = picture.reformat(format=wanted.pixel_format, **tags)
        converted.colorspace, converted.color_range = wanted.colorspace, wanted.color_range
        converted.pts, converted.time_base, converted.duration = picture.pts, picture.time_base, picture.duration
        return converted

    def _in_memory(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Copy a picture from the memory of a GPU, if it is there."""
        is_surface = picture.format.name == self._surface_format
        return picture.reformat(format=self._pictures.pixel_format) if is_surface else picture

    def _is_alike(self, picture: av.VideoFrame) -> bool:
        """Whether its sample values mean the same colours as those of the wanted format."""
        return picture.format.is_rgb or (is_full_range(picture), matrix_name(picture)) == self._colours

    @property
    def _colours(self) -> tuple[bool, str]:
        wanted = self._pictures
        return (
            says_full_range(wanted.color_range, wanted.pixel_format),
            name_of_matrix(wanted.colorspace, wanted.height),
        )

    def _fitted(self, picture: av.VideoFrame, shape: Fraction) -> av.VideoFrame:
        kind = (picture.width, picture.height, shape)
        if self._scaler is None or kind != self._scaler_for:
            self._scaler, self._scaler_for = self._build(picture.width, picture.height, shape), kind
        return self._scaler(picture)

    def _build(self, width: int, height: int, shape: Fraction) -> Scaler:
        wanted = self._pictures
        across = float(width * shape)
        scale = min(wanted.width / across, wanted.height / height)
        inside = [max(2, round(side * scale / 2) * 2) for side in (across, height)]
        # The size is rounded to whole chroma samples. The full size is used if only the rounding is missing.
        size = [
            whole if abs(whole - side) <= 2 else side
            for whole, side in zip((wanted.width, wanted.height), inside, strict=True)
        ]
        full, matrix = self._colours
        colours = f":out_color_matrix={matrix}:out_range={'full' if full else 'limited'}"
        bars = f"{wanted.width}:{wanted.height}:(ow-iw)/2:(oh-ih)/2:black"
        return Scaler(wanted.pixel_format, lambda _: (size[0], size[1]), colours=colours, then=[("pad", bars)])


def black_picture(width: int, height: int) -> av.VideoFrame:
    """Make a black frame, limited range 4:2:0.

    Args:
        width, height: size in pixels.

    Returns:
        The frame.
    """
    picture = av.VideoFrame(width, height, "yuv420p")
    for plane, level in zip(planes_of(picture), (16, 128, 128), strict=True):
        plane[:] = level
    return picture


def copy_of(picture: av.VideoFrame) -> av.VideoFrame:
    """Copy a frame with its timestamps and tags into its own memory.

    Args:
        picture: a frame.

    Returns:
        The copy, without side data.
    """
    copied = fresh_like(picture)
    for own, theirs in zip(planes_of(copied), planes_of(picture), strict=True):
        own[:] = theirs
    return copied


def fresh_like(picture: av.VideoFrame) -> av.VideoFrame:
    """Allocate a frame with the size, pixel format, timestamps and tags of another one.

    Args:
        picture: a frame.

    Returns:
        The new frame; its pixels are not initialised, and it has no side data.
    """
    fresh = av.VideoFrame(picture.width, picture.height, picture.format.name)
    fresh.colorspace, fresh.color_range = picture.colorspace, picture.color_range
    fresh.pts, fresh.time_base, fresh.duration = picture.pts, picture.time_base, picture.duration
    return fresh


def longest_step(time_base: Fraction) -> int:
    """Compute the longest time between two frames that MP4 can store.

    Args:
        time_base: seconds per unit.

    Returns:
        The time in units of the time base; 0 if even one unit is too long.
    """
    timescale = time_base.denominator
    while timescale < MP4_LEAST_TIMESCALE:
        timescale *= 2
    return MP4_LONGEST_STEP * time_base.denominator // (timescale * time_base.numerator)


def yuv_tags(picture: av.VideoFrame) -> tuple[int, int]:
    """Return the YUV matrix and range of a frame; for RGB those that it will be converted to.

    Args:
        picture: a frame.

    Returns:
        FFmpeg's numbers of the matrix (AVColorSpace) and the range (AVColorRange).
    """
    if picture.format.is_rgb:
        return int(Colorspace.ITU709 if picture.height >= HD_LINES else Colorspace.SMPTE170M), int(ColorRange.MPEG)
    return int(picture.colorspace), int(picture.color_range)


def planes_of(picture: av.VideoFrame) -> list[np.ndarray]:
    """Return the planes of a frame as arrays on the frame's own memory.

    Args:
        picture: a frame.

    Returns:
        [height, width] for each plane; uint8, or uint16 for more than 8 bits.
    """
    kind = np.uint8 if bits_of(picture) == 8 else np.uint16
    planes = []
    for plane in picture.planes:
        lines = np.frombuffer(memoryview(plane), kind).reshape(plane.height, plane.line_size // np.dtype(kind).itemsize)
        planes.append(lines[:, : plane.width])
    return planes


def read_mask(path: Path) -> np.ndarray:
    """Read a mask file, and threshold it at 127, so that JPEG files can be used as well.

    Args:
        path: path of the file.

    Returns:
        uint8 [H, W] with the values 0 and 255.

    Raises:
        DataError: the file is not an image, or its values are not 0 and 255. A mask of 0 and 1, for example, would
            count as empty.
    """
    mask = read_image(path, cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise DataError(f"{path}: cannot be read as a picture")
    brightest = int(mask.max())
    if 0 < brightest <= MASK_THRESHOLD:
        raise DataError(f"{path}: is not a mask with the values 0 and 255; its highest value is {brightest}")
    return cv2.compare(mask, MASK_THRESHOLD, cv2.CMP_GT)


def read_image(path: Path, flags: int) -> np.ndarray | None:
    """Read an image file with OpenCV's decoder.

    The file is not read by OpenCV's own reader, because a file name that is not text crashes that.

    Args:
        path: path of the file.
        flags: OpenCV's flags, such as cv2.IMREAD_GRAYSCALE.

    Returns:
        The image as OpenCV decodes it; None if it cannot be read or decoded.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    decoded: np.ndarray | None = cv2.imdecode(content, flags) if content.size else None
    return decoded
