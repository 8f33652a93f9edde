"""Colours in RGB and YUV: ITU-R BT.601, BT.709 and BT.2020, limited or full range, 8 or 10 bits."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED, and also AVCOL_PRI_ and AVCOL_TRC_; PyAV has no name for it
HD_LINES = 720
# Numbers that FFmpeg's scaler accepts (libswscale/utils.c). Recordings also contain reserved numbers and those of rare
# systems.
KNOWN_MATRICES = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
KNOWN_PRIMARIES = frozenset({1, 2, *range(4, 13), 22})
KNOWN_TRANSFERS = frozenset({1, 2, *range(4, 19)})

_FFMPEG_NAMES = {
    int(Colorspace.ITU709): "bt709",
    int(Colorspace.FCC): "fcc",
    int(Colorspace.SMPTE240M): "smpte240m",
    int(Colorspace.BT2020): "bt2020",
}
# Weights of red and blue in luma. Green has the remaining weight.
_LUMA_WEIGHTS = {"bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
_BT601_WEIGHTS = (0.299, 0.114)


def forget_unknown_tags(picture: av.VideoFrame) -> None:
    """Set colour tags that FFmpeg's scaler refuses to unspecified, as players do.

    Args:
        picture: a frame; changed in place.
    """
    if picture.colorspace not in KNOWN_MATRICES:
        picture.colorspace = UNSPECIFIED
    if picture.color_primaries not in KNOWN_PRIMARIES:
        picture.color_primaries = UNSPECIFIED
    if picture.color_trc not in KNOWN_TRANSFERS:
        picture.color_trc = UNSPECIFIED


def matrix_name(picture: av.VideoFrame) -> str:
    """Return FFmpeg's name of a frame's YUV matrix.

    HD capture is usually untagged. Then 720 lines and more mean BT.709.

    Args:
        picture: a frame.

    Returns:
        A name such as `bt709`.
    """
    return name_of_matrix(int(picture.colorspace), picture.height)


def name_of_matrix(colorspace: int, height: int) -> str:
    """Return FFmpeg's name of a YUV matrix, from its tag.

    Args:
        colorspace: number of the tag (AVColorSpace).
        height: height of the frame in pixels, which decides if the tag is unspecified.

    Returns:
        A name such as `bt709`.
    """
    if colorspace == UNSPECIFIED:
        return "bt709" if height >= HD_LINES else "bt601"
    return _FFMPEG_NAMES.get(colorspace, "bt601")


def is_full_range(picture: av.VideoFrame) -> bool:
    """Whether luma uses all grey levels (0..255 for 8 bits) and not 16..235.

    Args:
        picture: a frame.

    Returns:
        Whether the range is full.
    """
    return says_full_range(int(picture.color_range), picture.format.name)


def says_full_range(color_range: int, pixel_format: str) -> bool:
    """Whether tags mean full range.

    Args:
        color_range: number of the tag (AVColorRange).
        pixel_format: FFmpeg's name of the pixel format.

    Returns:
        Whether the range is full.
    """
    return color_range == ColorRange.JPEG or pixel_format.startswith("yuvj")


def bits_of(picture: av.VideoFrame) -> int:
    """Return the bits per sample.

    Args:
        picture: a frame.

    Returns:
        8 or 10.
    """
    return int(picture.format.components[0].bits)


def rgb_matrix(picture: av.VideoFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the conversion of 8-bit samples of a frame to full-range RGB, the reverse of `to_yuv`.

    Args:
        picture: a frame, which gives the matrix and the range.

    Returns:
        float32 [3, 3] and [3]: the red, green and blue of a pixel are `matrix @ (Y, U, V) + offset`, 0..255.
    """
    red, blue = _LUMA_WEIGHTS.get(matrix_name(picture), _BT601_WEIGHTS)
    green = 1 - red - blue
    from_u, from_v = 2 * (1 - blue), 2 * (1 - red)
    matrix = np.array([[1, 0, from_v], [1, -from_u * blue / green, -from_v * red / green], [1, from_u, 0]])
    zero = np.array([0, 128, 128])
    if not is_full_range(picture):
        matrix, zero = matrix * [255 / 219, 255 / 224, 255 / 224], np.array([16, 128, 128])
    return matrix.astype(np.float32), (-matrix @ zero).astype(np.float32)


def to_yuv(rgb: tuple[int, int, int], picture: av.VideoFrame) -> tuple[float, float, float]:
    """Convert an RGB colour to sample values of a frame.

    Source: ITU-R BT.601-7 section 2.5, BT.709-6 section 3, BT.2020-2 table 4 (non-constant luminance).

    Args:
        rgb: red, green and blue, 0..255.
        picture: a frame, which gives the matrix, the range and the bits per sample.

    Returns:
        Y, U and V.
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
