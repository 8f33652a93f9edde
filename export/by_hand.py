"""The original network with its preprocessing and postprocessing in numpy and Pillow, as the reference of `wrap`."""

from __future__ import annotations

import numpy as np
from PIL import Image

from polypstream.errors import ModelError
from polypstream.export.colours import EPSILON, GREY, Colours
from polypstream.export.network import Network
from polypstream.export.prototypes import map_by_hand

# An output that holds probabilities may leave 0..1 by this much, for rounding.
TOLERANCE = 0.01


class ByHand:
    """Runs an original network on pictures, step by step. A `Reference` of polypstream.export.proof.

    Args:
        network: the network.
        colours: how it wants its colours.

    Attributes:
        lowest, highest: the smallest and the largest value of its map so far.
    """

    def __init__(self, network: Network, colours: Colours) -> None:
        self._network, self._colours = network, colours
        self.lowest, self.highest = np.inf, -np.inf

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Compute probability maps: uint8 RGB [N, side, side, 3] -> uint8 [N, side, side].

        Raises:
            ModelError: the output is taken for probabilities and is none.
        """
        return np.stack([self._probability(self._run(picture)) for picture in pictures])

    def _run(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB [side, side, 3] -> the channels of the map, float32 [C, h, w]."""
        network = self._network
        values = self._normalise(_resize(self._channels(picture), network.height, network.width))
        values = values if network.layout == "NCHW" else values.transpose(1, 2, 0)
        outputs = network.session.run(network.outputs, {network.input: values[None].astype(network.dtype)})
        given, *others = (output[0].astype(np.float32) for output in outputs)
        if network.prototypes is not None:
            enlarged = _resize(others[0], network.height, network.width)
            return map_by_hand(network.prototypes, network.channel, given, enlarged)
        if network.map_layout == "NHW":
            return given[None]
        return given if network.map_layout == "NCHW" else given.transpose(2, 0, 1)

    def _channels(self, picture: np.ndarray) -> np.ndarray:
        values = picture.astype(np.float32)
        if self._colours.grey:
            values = values @ np.array(GREY, np.float32)[:, None]
        if self._colours.bgr:
            values = values[..., ::-1]
        return values.transpose(2, 0, 1)

    def _normalise(self, values: np.ndarray) -> np.ndarray:
        values = values * self._colours.scale[:, None, None] + self._colours.offset[:, None, None]
        if self._colours.zscore:
            mean, variance = (each(values, axis=(1, 2), keepdims=True) for each in (np.mean, np.var))
            values = (values - mean) / np.sqrt(variance + EPSILON)
        return values

    def _probability(self, maps: np.ndarray) -> np.ndarray:
        """The channels of the map, float32 [C, h, w] -> uint8 [side, side]."""
        network = self._network
        self.lowest, self.highest = min(self.lowest, maps.min()), max(self.highest, maps.max())
        if not np.isfinite(maps).all():
            raise ModelError(f"{network.file}: its output {network.map} holds values that are not numbers")
        maps = _resize(maps, network.side, network.side)
        if network.activation == "softmax":
            maps = np.exp(maps - maps.max(axis=0))
            maps = maps / maps.sum(axis=0)
        probability = maps[network.channel if len(maps) > 1 else 0]
        if network.activation == "sigmoid":
            probability = np.exp(-np.logaddexp(0, -probability))
        if probability.min() < -TOLERANCE or probability.max() > 1 + TOLERANCE:
            raise ModelError(
                f"{network.file}: its output {network.map} has values from {self.lowest:.3g} to {self.highest:.3g}, "
                "which are no probabilities; give --activation sigmoid or softmax"
            )
        return np.rint(255 * probability.clip(0, 1)).astype(np.uint8)


def _resize(channels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize float32 [C, h, w] bilinearly, with a filter as wide as a new pixel where it shrinks."""
    if channels.shape[1:] == (height, width):
        return channels
    resized = (Image.fromarray(each).resize((width, height), Image.Resampling.BILINEAR) for each in channels)
    return np.stack([np.asarray(each) for each in resized])
