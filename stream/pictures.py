"""What is the same for every picture of a source: size, pixel format, timing, colour tags, orientation."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
from av.video.format import VideoFormat


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """What a sink must know before the first picture.

    Attributes:
        width, height: in pixels, as stored (before rotation).
        pixel_format: FFmpeg's name; planar YUV, 8 or 10 bits.
        time_base: seconds per unit of pts.
        rate: nominal pictures per second.
        start: time of the first picture in seconds.
        sample_aspect_ratio: width of a pixel over its height; 0 if unknown.
        display_matrix: FFmpeg's nine integers that rotate the picture for display, or None.
        colorspace, color_range, color_primaries, color_trc: FFmpeg's numbers of the colour tags (2, or 0 for the
            range: untagged).
        interlaced: pictures hold two fields.
    """

    width: int
    height: int
    pixel_format: str
    time_base: Fraction
    rate: Fraction
    start: Fraction = Fraction(0)
    sample_aspect_ratio: Fraction = Fraction(0)
    display_matrix: tuple[int, ...] | None = None
    colorspace: int = 2
    color_range: int = 0
    color_primaries: int = 2
    color_trc: int = 2
    interlaced: bool = False


# Planar YUV that we draw on and that H.264 encoders take as it is.
KEPT = frozenset(
    f"{prefix}{sampling}p{depth}"
    for prefix, depth in (("yuv", ""), ("yuvj", ""), ("yuv", "10le"))
    for sampling in ("420", "422", "444")
)


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


def in_format(picture: av.VideoFrame, width: int, height: int, pixel_format: str) -> av.VideoFrame:
    """The picture itself if it already fits, else a converted one with the same pts."""
    if (picture.width, picture.height, picture.format.name) == (width, height, pixel_format):
        return picture
    converted = picture.reformat(width, height, pixel_format)
    converted.pts, converted.time_base, converted.duration = picture.pts, picture.time_base, picture.duration
    return converted
