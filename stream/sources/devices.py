"""Capture devices of this machine and their formats, as FFmpeg lists them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError
from av.logging import Capture

from polypstream.errors import SourceError

# For each system: FFmpeg's device reader, the address of a device for `live`, the option that lists its formats.
# AVFoundation has no such option.
READERS = {
    "linux": ("v4l2", "{}", {"list_formats": "all"}),
    "win32": ("dshow", "dshow:{}", {"list_options": "true"}),
    "darwin": ("avfoundation", "avfoundation:{}", {}),
}
# What the names of V4L2's devices start with. Those in /dev/v4l/by-id stay the same when a card is plugged in again.
V4L2_PATHS = ("/dev/video", "/dev/v4l/")
# v4l2 logs `Raw : yuyv422 : YUYV 4:2:2 : 640x480 1280x720`;
# dshow logs `vcodec=mjpeg min s=… fps=… max s=1920x1080 fps=60`.
V4L2_FORMAT = re.compile(r"(?:Raw|Compressed)\s*:\s*(\S+)\s*:\s*(.*\S)\s*:\s*([^:\n]*)$", re.MULTILINE)
DSHOW_FORMAT = re.compile(r"(?:pixel_format|vcodec)=(\S+).*?max s=(\S+) fps=([\d.]+)")


# What the user is told where there is no device.
HINTS = {
    "linux": "It must appear as /dev/video0 or a similar name (V4L2), and the user must be allowed to read it.",
    "win32": "It must appear as a DirectShow device, as in other video programs.",
    "darwin": "Allow this terminal to use the camera: System Settings, Privacy & Security, Camera.",
}
NO_DEVICE = (
    "No capture device was found. Check that the capture card or camera is connected and that its driver is installed. "
    + HINTS.get(sys.platform, "")
)


@dataclass(frozen=True, slots=True)
class Device:
    """A capture device.

    Attributes:
        address: address that `live` accepts.
        description: description for the user.
        formats: formats that it offers, one line each; a line starts with the name that `?format=` accepts.
    """

    address: str
    description: str
    formats: list[str]


def list_devices() -> list[Device]:
    """List the capture devices of this machine.

    Returns:
        The devices, sorted by name.

    Raises:
        SourceError: devices of this system cannot be listed.
    """
    if sys.platform not in READERS:
        raise SourceError(f"capture devices of {sys.platform} cannot be listed")
    reader, address, listing = READERS[sys.platform]
    try:
        listed = av.enumerate_input_devices(reader)
    except (ValueError, FFmpegError) as error:
        raise SourceError(f"capture devices cannot be listed ({error})") from error
    devices = [
        Device(address.format(each.name), each.description, _formats_of(reader, each.name, listing))
        for each in sorted(listed, key=lambda each: each.name)
        if "video" in each.media_types or not each.media_types
    ]
    # V4L2 does not say which of its devices capture video, but only those offer formats.
    return [device for device in devices if device.formats or reader != "v4l2"]


def check_device(uri: str) -> None:
    """Check that a capture device of Linux exists, before it is waited for. Other sources are not checked.

    Args:
        uri: address of a live source.

    Raises:
        SourceError: there is no such device.
    """
    path = uri.partition("?")[0]
    if not path.startswith(V4L2_PATHS) or Path(path).exists():
        return
    present = ", ".join(device.address for device in list_devices())
    raise SourceError(f"{path}: there is no such device. " + (f"This machine has {present}" if present else NO_DEVICE))


def _formats_of(reader: str, name: str, listing: dict[str, str]) -> list[str]:
    """Formats of a device. FFmpeg writes them to its log, then fails to open the device."""
    if not listing:
        return []
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with Capture() as lines:
            av.open(f"video={name}" if reader == "dshow" else name, format=reader, options=listing).close()
    except FFmpegError:
        pass
    finally:
        av.logging.set_level(level)
    return parse_formats("".join(message for _, _, message in lines))


def parse_formats(log: str) -> list[str]:
    """Extract the formats from the log of FFmpeg's v4l2 or dshow reader.

    Args:
        log: the logged text.

    Returns:
        The formats, one line each, without duplicates.
    """
    listed = V4L2_FORMAT.findall(log)
    v4l2 = [f"{name} ({words}): {sizes.strip()}" for name, words, sizes in listed if name != "Unsupported"]
    dshow = [f"{name}: {size} at {rate} per second" for name, size, rate in DSHOW_FORMAT.findall(log)]
    return list(dict.fromkeys(v4l2 + dshow))
