"""H.264 encoders: their pixel formats, their options for our settings, and whether they work on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import av
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from polypstream.errors import OutputError
from polypstream.media.pictures import KEPT

# Hardware encoders have fewer presets than x264: NVENC has seven, and QSV has the middle ones.
NVENC_PRESETS = {
    "ultrafast": "p1", "superfast": "p1", "veryfast": "p2", "faster": "p3", "fast": "p4", "medium": "p4",
    "slow": "p5", "slower": "p6", "veryslow": "p7", "placebo": "p7",
}  # fmt: skip
QSV_PRESETS = {"ultrafast": "veryfast", "superfast": "veryfast", "placebo": "veryslow"}
# Option for every encoder: frames are not reordered. In x264, B-frames saved 5 to 12 % of the size at veryfast, but
# took a third more CPU time. They delay frames in the encoder, and a killed process loses those. In addition, FFmpeg's
# MP4 muxer drops the last frame of a fragment that ends between B-frames.
NO_B_FRAMES = {"bf": "0"}
PROBE_SIDE = 256


def _x264(preset: str, crf: float) -> dict[str, str]:
    # The macroblock tree's decisions depend on the timing of threads: two runs of PyAV 18.1 gave different files.
    return {"preset": preset, "crf": str(crf), "mbtree": "0"}


def _nvenc(preset: str, crf: float) -> dict[str, str]:
    return {"preset": NVENC_PRESETS[preset], "rc": "vbr", "cq": str(crf), "b": "0", "forced-idr": "1"}


def _qsv(preset: str, crf: float) -> dict[str, str]:
    return {"preset": QSV_PRESETS.get(preset, preset), "global_quality": str(round(crf)), "forced_idr": "1"}


@dataclass(frozen=True, slots=True)
class Encoder:
    """One of FFmpeg's H.264 encoders.

    Attributes:
        codec: FFmpeg's name.
        takes: for each pixel format of frames that it can encode, the pixel format that it is given.
        quality: function from an x264 preset and a CRF to the options that come closest.
        no_delay: options with which it outputs each frame immediately.
        device: the hardware that it needs, as text for the user.
        lower_field_first: options for frames whose bottom field is the earlier one.
        compact: options with which a fast preset needs fewer bits for the same PSNR.
    """

    codec: str
    takes: Mapping[str, str]
    quality: Callable[[str, float], dict[str, str]]
    no_delay: Mapping[str, str]
    device: str
    lower_field_first: Mapping[str, str] = field(default_factory=dict)
    compact: Mapping[str, str] = field(default_factory=dict)


# The order in which "auto" tries them: hardware first.
ENCODERS = {
    encoder.codec: encoder
    for encoder in (
        Encoder(
            "h264_nvenc",
            {"yuv420p": "yuv420p", "yuv444p": "yuv444p"},
            _nvenc,
            {"zerolatency": "1", "delay": "0"},
            "an NVIDIA GPU with an encoder",
        ),
        Encoder("h264_qsv", {"yuv420p": "nv12"}, _qsv, {"async_depth": "1"}, "an Intel GPU with Quick Sync"),
        Encoder(
            "libx264",
            {name: name for name in KEPT},
            _x264,
            {"tune": "zerolatency"},
            "nothing but a CPU",
            {"x264-params": "bff=1"},
            {"aq-mode": "0", "subq": "3", "trellis": "1"},
        ),
    )
}


def choose_encoder(wanted: str, pixel_format: str) -> Encoder:
    """Choose the requested encoder. For "auto" choose the first one that accepts the frames and works on this machine.

    Args:
        wanted: a key of ENCODERS, or "auto".
        pixel_format: FFmpeg's name of the frames' pixel format.

    Returns:
        The encoder.

    Raises:
        OutputError: the requested encoder cannot encode these frames, or does not work on this machine.
    """
    if wanted == "none":
        raise OutputError("output.video.codec none: writes no video; choose libx264 or auto")
    if wanted == "auto":
        return next(each for each in ENCODERS.values() if pixel_format in each.takes and why_not(each.codec) is None)
    encoder = ENCODERS[wanted]
    if pixel_format not in encoder.takes:
        raise OutputError(f"output.video.codec {wanted}: cannot take {pixel_format} pictures; choose libx264 or auto")
    reason = why_not(wanted)
    if reason is not None:
        raise OutputError(f"output.video.codec {wanted}: {reason}; choose libx264 or auto")
    return encoder


@functools.cache
def why_not(codec: str) -> str | None:
    """Test an encoder with one frame. An encoder that FFmpeg contains may still lack its hardware.

    Args:
        codec: a key of ENCODERS.

    Returns:
        None if it works on this machine; otherwise the reason.
    """
    encoder = ENCODERS[codec]
    try:
        context = cast(VideoCodecContext, VideoCodecContext.create(codec, "w"))
        context.width = context.height = PROBE_SIDE
        context.pix_fmt = next(iter(encoder.takes.values()))
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        picture = av.VideoFrame(PROBE_SIDE, PROBE_SIDE, context.pix_fmt)
        picture.pts = 0
        context.encode(picture)
        context.encode(None)
    except (FFmpegError, ValueError) as error:
        return f"does not work on this machine ({getattr(error, 'strerror', error)}); it needs {encoder.device}"
    return None
