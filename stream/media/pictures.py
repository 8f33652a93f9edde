"""What is the same for every picture of a source: size, pixel format, timing, colour tags, orientation."""

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

# A picture of 8K has 33 million. A small file may claim billions.
MAX_PIXELS = 40_000_000
# x264 takes no wider or taller ones.
MAX_SIDE = 16_384
# Of 255, above which a mask says polyp.
MASK_THRESHOLD = 127
# MP4 stores the time between two pictures or sound packets in 31 bits; FFmpeg aborts the process over that.
MP4_LONGEST_STEP = 2**31 - 1
# Announced rates above this are no rates but units of time, which some recorders write instead.
MAX_RATE = 300
# FFmpeg's numbers of field orders (AVFieldOrder): stored and shown, the upper field first or the lower one.
FIELD_ORDERS: dict[int, FieldOrder] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
# FFmpeg doubles an MP4's units per second until they are at least so many.
MP4_LEAST_TIMESCALE = 10_000
# Planar YUV that we draw on and that H.264 encoders take as it is.
KEPT = frozenset(
    f"{prefix}{sampling}p{depth}"
    for prefix, depth in (("yuv", ""), ("yuvj", ""), ("yuv", "10le"))
    for sampling in ("420", "422", "444")
)


def picture_format(stream: av.VideoStream, picture: av.VideoFrame) -> PictureFormat:
    """What the pictures of a stream have in common, told by the stream and its first picture.

    What the container says of the shape of pixels and the order of fields goes before what the pictures say, as
    players have it.
    """
    context = stream.codec_context
    assert stream.time_base is not None
    colorspace, color_range = yuv_tags(picture)
    rates = (stream.guessed_rate, stream.average_rate)
    return PictureFormat(
        width=picture.width,
        height=picture.height,
        pixel_format=nearest_kept(picture.format),
        time_base=stream.time_base,
        rate=next((rate for rate in rates if rate and rate <= MAX_RATE), Fraction(25)),
        start=(picture.pts or 0) * stream.time_base,
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
        # PyAV 18.1 cannot list side data of a kind that it has no name for, such as EXIF; it knows the angle, though.
        return _matrix_of(round(picture.rotation / 90) * 90) if picture.rotation else None


def _matrix_of(degrees: int) -> tuple[int, ...]:
    """FFmpeg's display matrix of an angle, counter-clockwise (av_display_rotation_set, libavutil/display.c)."""
    cosine, sine = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    return (cosine * ONE, -sine * ONE, 0, sine * ONE, cosine * ONE, 0, 0, 0, 1 << 30)


def field_order_of(picture: av.VideoFrame) -> FieldOrder:
    """What a picture itself says of its fields."""
    if not picture.interlaced_frame:
        return "progressive"
    # PyAV does not tell which field is the earlier; FFmpeg's select filter lets only those through that are asked for.
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
    """The pixel format we work in for a decoded one; the same wherever possible.

    Others keep their chroma sampling and go to 8 or 10 bits. RGB goes to 4:2:0, which every player shows.
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
    """Makes pictures that are not as a recording's first ones: of their size, format, colours and shape of pixels.

    A picture whose shape differs is fitted between black bars, so that round things stay round.

    Args:
        pictures: what they shall be like.
    """

    def __init__(self, pictures: PictureFormat) -> None:
        self._pictures = pictures
        self._scaler: Scaler | None = None
        self._scaler_for: tuple[object, ...] = ()

    def __call__(self, picture: av.VideoFrame, shape: Fraction = Fraction(1)) -> av.VideoFrame:
        """The picture itself if it already is so, else another one with the same pts.

        Args:
            picture: of any kind.
            shape: width of its pixels, over that of the wanted ones, at the same height.
        """
        wanted = self._pictures
        if (
            shape != 1
            or (picture.width, picture.height) != (wanted.width, wanted.height)
            or not self._is_alike(picture)
        ):
            converted = self._fitted(picture, shape)
        elif picture.format.name == wanted.pixel_format:
            return picture
        else:
            tags: dict[str, int] = {}
            if picture.format.is_rgb:
                tags = {"dst_colorspace": wanted.colorspace, "dst_color_range": wanted.color_range}
            converted = picture.reformat(format=wanted.pixel_format, **tags)
        converted.colorspace, converted.color_range = wanted.colorspace, wanted.color_range
        converted.pts, converted.time_base, converted.duration = picture.pts, picture.time_base, picture.duration
        return converted

    def _is_alike(self, picture: av.VideoFrame) -> bool:
        """Whether its numbers mean the colours that those of the wanted pictures mean."""
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
        # Rounded to whole chroma samples, and whole where that is all that is missing.
        size = [
            whole if abs(whole - side) <= 2 else side
            for whole, side in zip((wanted.width, wanted.height), inside, strict=True)
        ]
        full, matrix = self._colours
        colours = f":out_color_matrix={matrix}:out_range={'full' if full else 'limited'}"
        bars = f"{wanted.width}:{wanted.height}:(ow-iw)/2:(oh-ih)/2:black"
        return Scaler(wanted.pixel_format, lambda _: (size[0], size[1]), colours=colours, then=[("pad", bars)])


def black_picture(width: int, height: int) -> av.VideoFrame:
    """A picture with nothing in it, limited range 4:2:0."""
    picture = av.VideoFrame(width, height, "yuv420p")
    for plane, level in zip(planes_of(picture), (16, 128, 128), strict=True):
        plane[:] = level
    return picture


def copy_of(picture: av.VideoFrame) -> av.VideoFrame:
    """The same picture in memory of its own, with its time and tags."""
    copied = fresh_like(picture)
    for own, theirs in zip(planes_of(copied), planes_of(picture), strict=True):
        own[:] = theirs
    return copied


def fresh_like(picture: av.VideoFrame) -> av.VideoFrame:
    """Another picture of the same kind, time and tags, whose pixels are anything; without side data."""
    fresh = av.VideoFrame(picture.width, picture.height, picture.format.name)
    fresh.colorspace, fresh.color_range = picture.colorspace, picture.color_range
    fresh.pts, fresh.time_base, fresh.duration = picture.pts, picture.time_base, picture.duration
    return fresh


def longest_step(time_base: Fraction) -> int:
    """The longest time between two pictures that MP4 can store, in units of the time base."""
    timescale = time_base.denominator
    while timescale < MP4_LEAST_TIMESCALE:
        timescale *= 2
    return MP4_LONGEST_STEP * time_base.denominator // (timescale * time_base.numerator)


def yuv_tags(picture: av.VideoFrame) -> tuple[int, int]:
    """Matrix and range of a picture's YUV: its own tags, or for RGB those that it is going to be converted with."""
    if picture.format.is_rgb:
        return int(Colorspace.ITU709 if picture.height >= HD_LINES else Colorspace.SMPTE170M), int(ColorRange.MPEG)
    return int(picture.colorspace), int(picture.color_range)


def planes_of(picture: av.VideoFrame) -> list[np.ndarray]:
    """The planes as arrays [height, width] on the picture's own memory, uint8 or, over 8 bits, uint16."""
    kind = np.uint8 if bits_of(picture) == 8 else np.uint16
    planes = []
    for plane in picture.planes:
        lines = np.frombuffer(memoryview(plane), kind).reshape(plane.height, plane.line_size // np.dtype(kind).itemsize)
        planes.append(lines[:, : plane.width])
    return planes


def read_mask(path: Path) -> np.ndarray:
    """A mask's file as uint8 [H, W] of 0 and 255, thresholded at 127 (so that JPEG will do).

    Raises:
        DataError: it is no picture, or no mask of 0 and 255, but of 0 and 1 for instance, and would count as empty.
    """
    mask = read_image(path, cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise DataError(f"{path}: cannot be read as a picture")
    brightest = int(mask.max())
    if 0 < brightest <= MASK_THRESHOLD:
        raise DataError(f"{path}: is no mask of 0 and 255, its highest value is {brightest}")
    return cv2.compare(mask, MASK_THRESHOLD, cv2.CMP_GT)


def read_image(path: Path, flags: int) -> np.ndarray | None:
    """A picture's file, as OpenCV decodes it; None where it cannot.

    Not by OpenCV's own reader, which brings the process down on a file name that is not text.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    decoded: np.ndarray | None = cv2.imdecode(content, flags) if content.size else None
    return decoded
