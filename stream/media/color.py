"""How a picture's YUV relates to RGB: ITU-R BT.601, BT.709 and BT.2020, limited or full range, 8 or 10 bits."""

from __future__ import annotations

import av
from av.video.reformatter import ColorRange, Colorspace

UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED, AVCOL_PRI_ and AVCOL_TRC_ likewise, which PyAV has no name for
HD_LINES = 720
# What FFmpeg's scaler takes (libswscale/utils.c). Recordings have other numbers, too: rare systems', and reserved ones.
KNOWN_MATRICES = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
KNOWN_PRIMARIES = frozenset({1, 2, *range(4, 13), 22})
KNOWN_TRANSFERS = frozenset({1, 2, *range(4, 19)})

_FFMPEG_NAMES = {
    int(Colorspace.ITU709): "bt709",
    int(Colorspace.FCC): "fcc",
    int(Colorspace.SMPTE240M): "smpte240m",
    int(Colorspace.BT2020): "bt2020",
}
# Weights of red and blue in luma; green has the rest.
_LUMA_WEIGHTS = {"bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
_BT601_WEIGHTS = (0.299, 0.114)


def forget_unknown_tags(picture: av.VideoFrame) -> None:
    """Colour tags that FFmpeg's scaler refuses count as none at all, as players have it."""
    if picture.colorspace not in KNOWN_MATRICES:
        picture.colorspace = UNSPECIFIED
    if picture.color_primaries not in KNOWN_PRIMARIES:
        picture.color_primaries = UNSPECIFIED
    if picture.color_trc not in KNOWN_TRANSFERS:
        picture.color_trc = UNSPECIFIED


def matrix_name(picture: av.VideoFrame) -> str:
    """FFmpeg's name of a picture's YUV matrix. HD capture is usually untagged: 720 lines and more mean BT.709."""
    return name_of_matrix(int(picture.colorspace), picture.height)


def name_of_matrix(colorspace: int, height: int) -> str:
    """The same from the number of its tag and the number of lines."""
    if colorspace == UNSPECIFIED:
        return "bt709" if height >= HD_LINES else "bt601"
    return _FFMPEG_NAMES.get(colorspace, "bt601")


def is_full_range(picture: av.VideoFrame) -> bool:
    """Whether luma uses all grey levels (0..255 of 8 bits) instead of 16..235."""
    return says_full_range(int(picture.color_range), picture.format.name)


def says_full_range(color_range: int, pixel_format: str) -> bool:
    """The same from the number of its tag and the name of its pixel format."""
    return color_range == ColorRange.JPEG or pixel_format.startswith("yuvj")


def bits_of(picture: av.VideoFrame) -> int:
    """Bits per sample: 8 or 10."""
    return int(picture.format.components[0].bits)


def to_yuv(rgb: tuple[int, int, int], picture: av.VideoFrame) -> tuple[float, float, float]:
    """An 8-bit RGB colour as Y, U, V sample values of a picture.

    Source: ITU-R BT.601-7 section 2.5, BT.709-6 section 3, BT.2020-2 table 4 (non-constant luminance).
    """
    red_weight, blue_weight = _LUMA_WEIGHTS.get(matrix_name(picture), _BT601_WEIGHTS)
    red, green, blue = (channel / 255 for channel in rgb)
    y = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    u = (blue - y) / (2 * (1 - blue_weight))
    v = (red - y) / (2 * (1 - red_weight))
    scale = 2 ** (bits_of(picture) - 8)
    if is_full_range(picture):
        return y * 255 * scale, (u * 255 + 128) * scale, (v * 255 + 128) * scale
    return (y * 219 + 16) * scale, (u * 224 + 128) * scale, (v * 224 + 128) * scale
