"""How a network wants the colours of its pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polypstream.errors import SettingsError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Weights of red, green and blue in a grey value (ITU-R BT.601, as in OpenCV and Pillow).
GREY = (0.299, 0.587, 0.114)
# Added to the variance, so that a picture of one colour divides by something.
EPSILON = 1e-8
CHOICES = "imagenet, unit (0..1), none (0..255), zscore (each image with mean 0 and standard deviation 1), or MEAN,STD"


@dataclass(frozen=True, slots=True)
class Colours:
    """What is computed from uint8 RGB pictures: ``values * scale + offset`` in each channel.

    Attributes:
        grey: the network has one channel.
        bgr: the network wants blue first.
        scale, offset: float32 [channels].
        zscore: after that each channel of each picture gets mean 0 and standard deviation 1.
    """

    grey: bool
    bgr: bool
    scale: np.ndarray
    offset: np.ndarray
    zscore: bool


def choose_colours(normalize: str | None, bgr: bool, channels: int, dtype: type[np.generic]) -> Colours:
    """Read the option --normalize.

    Args:
        normalize: its value; None is possible for networks that take uint8.
        bgr: the network wants blue first.
        channels: of the network's input, 1 or 3.
        dtype: type of the network's input.

    Raises:
        SettingsError: the value is missing or wrong, or does not fit the network.
    """
    if bgr and channels == 1:
        raise SettingsError("--bgr: the network takes grey pictures")
    if dtype is np.uint8:
        if normalize not in (None, "none"):
            raise SettingsError(f"--normalize {normalize}: the network takes the values 0..255; leave the option out")
        normalize = "none"
    if normalize is None:
        raise SettingsError(f"--normalize: give what the network was trained with: {CHOICES}")
    if normalize == "none":
        mean, std = np.zeros(channels), np.full(channels, 1 / 255)
    else:
        mean, std = _mean_and_std(normalize, channels)
    scale, offset = 1 / (255 * std), -mean / std
    return Colours(channels == 1, bgr, scale.astype(np.float32), offset.astype(np.float32), normalize == "zscore")


def _mean_and_std(normalize: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, for values 0..1."""
    if normalize in ("unit", "zscore"):
        return np.zeros(channels), np.ones(channels)
    if normalize == "imagenet":
        if channels == 1:
            raise SettingsError("--normalize imagenet: the network takes grey pictures; give MEAN,STD")
        return np.array(IMAGENET[0]), np.array(IMAGENET[1])
    try:
        numbers = [float(number) for number in normalize.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 2 * channels):
        raise SettingsError(
            f"--normalize {normalize}: must be {CHOICES}; MEAN,STD are two numbers, or those of all {channels} "
            "channels, first the means"
        )
    mean, std = np.array(numbers).reshape(2, -1)
    if not ((mean >= 0) & (mean <= 1) & (std > 0) & (std <= 1)).all():
        raise SettingsError(f"--normalize {normalize}: MEAN,STD are for values 0..1; divide those for 0..255 by 255")
    return np.broadcast_to(mean, channels), np.broadcast_to(std, channels)
