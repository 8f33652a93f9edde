"""What an ONNX file of any segmentation network takes and gives, found from its graph or asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

from polypstream.errors import ModelError, SettingsError
from polypstream.export.prototypes import Prototypes, find_prototypes
from polypstream.inference.providers import open_session

Layout = Literal["NCHW", "NHWC"]
MapLayout = Literal["NCHW", "NHWC", "NHW"]
Activation = Literal["sigmoid", "softmax", "none"]

# Types of the input that are supported, by their name in ONNX Runtime.
DTYPES: dict[str, type[np.generic]] = {
    "tensor(uint8)": np.uint8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
# Operators that turn logits into probabilities, and those that may follow them without a change of the values.
ACTIVATIONS = {"Sigmoid", "HardSigmoid", "Softmax"}
AFTER_ACTIVATION = {"Cast", "Gather", "Identity", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class WrapSettings:
    """What the graph of a network does not say. None: it is found from the graph.

    Attributes:
        normalize: how the network wants its colours: "imagenet", "unit" (0..1), "none" (0..255), "zscore" (each image
            with mean 0 and standard deviation 1), or mean and standard deviation as numbers ("0.5,0.5").
        size: height and width of the network's input in pixels.
        layout: order of the axes of its input.
        bgr: the network wants blue first.
        map: name of the output that is used.
        channel: number of the channel that is polyp, from 0.
        activation: what turns the output into probabilities.
        threshold: probability from which a pixel counts as polyp, 0..1.
        peak: probability that a finding must reach at one pixel or more, 0..1. None: as the threshold.
        name, trained_on, terms: for the metadata. The name None: that of the file.
        precision: None leaves the network as it is. "fp16-weights" and "int8": see ExportSettings.
        calibration: for int8 the data set on which the ranges of feature maps are measured.
    """

    normalize: str | None = None
    size: tuple[int, int] | None = None
    layout: Layout | None = None
    bgr: bool = False
    map: str | None = None
    channel: int | None = None
    activation: Activation | None = None
    threshold: float = 0.5
    peak: float | None = None
    name: str | None = None
    trained_on: str = "not stated"
    terms: str = "not stated"
    precision: Literal["fp16-weights", "int8"] | None = None
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """A segmentation network in an ONNX file.

    Attributes:
        file: path of the file.
        model: its content.
        session: ONNX Runtime's session of the file, on the CPU.
        input: name of the input.
        dtype: type of the input.
        layout: order of the axes of the input.
        channels: of the input, 1 (grey) or 3.
        height, width: of the input, in pixels.
        map: name of the output that is used.
        map_layout: order of its axes. "NHW" has one channel.
        map_shape: its channels, height and width.
        channel: number of the channel that is polyp.
        activation: what turns the output into probabilities.
        prototypes: how the map is made from two outputs; None for a network whose output is the map.
    """

    file: Path
    model: onnx.ModelProto
    session: ort.InferenceSession
    input: str
    dtype: type[np.generic]
    layout: Layout
    channels: int
    height: int
    width: int
    map: str
    map_layout: MapLayout
    map_shape: tuple[int, int, int]
    channel: int
    activation: Activation
    prototypes: Prototypes | None = None

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs that are needed."""
        made = self.prototypes
        return [self.map] if made is None else [made.detections, made.prototypes]

    @property
    def side(self) -> int:
        """Height and width of the wrapped network's input, in pixels."""
        return max(self.height, self.width)

    def __str__(self) -> str:
        channels, height, width = self.map_shape
        return (
            f"input {self.channels}x{self.height}x{self.width} ({self.layout}), "
            f"output {self.map} {channels}x{height}x{width}, channel {self.channel}, activation {self.activation}"
        )


def read_network(file: Path, settings: WrapSettings) -> Network:
    """Open an ONNX file and find out what the network takes and gives.

    Args:
        file: the ONNX file.
        settings: what the graph does not say.

    Raises:
        ModelError: the file cannot be loaded, or the network does not take pictures and give maps of them.
        SettingsError: something must be given, or what was given does not fit the network.
    """
    if not file.is_file():
        raise ModelError(f"{file}: no such model file")
    session = open_session(file, "cpu")
    model = _load(file)
    name, dtype, shape = _input(file, session)
    layout = settings.layout or _layout(file, shape)
    axes = (1, 2, 3) if layout == "NCHW" else (3, 1, 2)
    channels, height, width = (shape[axis] for axis in axes)
    if isinstance(channels, int) and channels not in (1, 3):
        raise ModelError(f"{file}: its input {_text(shape)} has {channels} channels ({layout}); a picture has 3, or 1")
    height, width = _size(file, height, width, settings)
    channels = channels if isinstance(channels, int) else 3
    blank = np.zeros([1, channels, height, width] if layout == "NCHW" else [1, height, width, channels], dtype)
    outputs = _run(file, session, name, blank, settings)
    prototypes = None if settings.map else find_prototypes(outputs, height, width)
    if prototypes is not None:
        number = _class(file, prototypes, settings)
        map_shape = (1, prototypes.height, prototypes.width)
        return Network(
            *(file, model, session, name, dtype, layout, channels, height, width),
            *(prototypes.name, "NCHW", map_shape, number, "none", prototypes),
        )
    found = _maps(file, outputs, height, width, layout)
    chosen = _choose_map(file, found, settings.map)
    map_layout, map_shape = found[chosen]
    channel = _channel(file, chosen, map_shape[0], settings)
    activation = settings.activation or _activation(model, chosen, map_shape[0])
    if activation == "softmax" and map_shape[0] == 1:
        raise SettingsError(f"--activation softmax: {chosen} has one channel; give sigmoid")
    return Network(
        *(file, model, session, name, dtype, layout, channels, height, width),
        *(chosen, map_layout, map_shape, channel, activation),
    )


def parse_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, or one number for both.

    Returns:
        Height and width.

    Raises:
        SettingsError: the text is neither.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise SettingsError(f"--size {text}: must be WIDTHxHEIGHT in pixels, for instance 352x352")
    width, height = match.groups()
    return int(height or width), int(width)


def _load(file: Path) -> onnx.ModelProto:
    try:
        return onnx.load(file)
    except Exception as error:  # onnx raises classes of several packages
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{file}: cannot be read; weights in a file of their own must lie beside it, not as a link ({reason})"
        ) from error


def _input(file: Path, session: ort.InferenceSession) -> tuple[str, type[np.generic], Sequence[Any]]:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs)
        raise ModelError(f"{file}: has {len(inputs)} inputs ({names}); it must have one, the picture")
    name, kind, shape = inputs[0].name, inputs[0].type, inputs[0].shape
    if kind not in DTYPES:
        raise ModelError(f"{file}: its input is a {kind}; the types are {', '.join(DTYPES)}")
    if len(shape) != 4:
        raise ModelError(
            f"{file}: its input is {_text(shape)}; a picture has four axes: batch, channels, height, width"
        )
    if isinstance(shape[0], int) and shape[0] != 1:
        raise ModelError(f"{file}: takes {shape[0]} pictures at once; export it with a batch of one or of any size")
    return name, DTYPES[kind], shape


def _layout(file: Path, shape: Sequence[Any]) -> Layout:
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first != last:
        return "NCHW" if first else "NHWC"
    if all(isinstance(length, int) for length in (shape[1], shape[3])):
        raise ModelError(f"{file}: its input is {_text(shape)}; a picture has 3 channels, or 1")
    raise SettingsError(
        f"--layout nchw or nhwc: the input of {file}, {_text(shape)}, does not say where its channels are"
    )


def _size(file: Path, height: Any, width: Any, settings: WrapSettings) -> tuple[int, int]:
    fixed = [length if isinstance(length, int) else None for length in (height, width)]
    if settings.size is None:
        if None in fixed:
            raise SettingsError(
                f"--size WIDTHxHEIGHT: {file} takes pictures of any size; give the size that it was trained with, "
                "for instance --size 352x352"
            )
        return height, width
    for given, length in zip(settings.size, fixed, strict=True):
        if length not in (None, given):
            raise SettingsError(f"--size {_size_text(settings.size)}: {file} takes {width}x{height} only")
    return settings.size


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _run(
    file: Path, session: ort.InferenceSession, name: str, picture: np.ndarray, settings: WrapSettings
) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(None, {name: picture}), strict=True))
    except Exception as error:  # ONNX Runtime raises its own class for each status code
        reason = str(error).splitlines()[0]
        if settings.size is not None:
            raise SettingsError(
                f"--size {_size_text(settings.size)}: {file} cannot run at this size; many networks need a multiple of "
                f"32 ({reason})"
            ) from error
        raise ModelError(f"{file}: cannot run on a picture {_text(picture.shape)} ({reason})") from error


Maps = dict[str, tuple[MapLayout, tuple[int, int, int]]]


def _maps(file: Path, outputs: dict[str, np.ndarray], height: int, width: int, layout: Layout) -> Maps:
    """Find the outputs that are maps of the picture: their layout, and their channels, height and width."""
    found: Maps = {}
    classes = []
    for name, output in outputs.items():
        as_map = _as_map(output.shape, height, width, layout)
        if as_map is None:
            continue
        if np.issubdtype(output.dtype, np.floating):
            found[name] = as_map
        else:
            classes.append(name)
    if found:
        return found
    if classes:
        raise ModelError(f"{file}: its output {classes[0]} holds classes; export the network without its argmax")
    shapes = ", ".join(f"{name} {_text(output.shape)}" for name, output in outputs.items())
    raise ModelError(f"{file}: no output is a map of the picture, {height} high and {width} wide: {shapes}")


def _as_map(
    shape: tuple[int, ...], height: int, width: int, layout: Layout
) -> tuple[MapLayout, tuple[int, int, int]] | None:
    if len(shape) == 3:
        return ("NHW", (1, shape[1], shape[2])) if shape[0] == 1 and shape[1] * width == shape[2] * height else None
    if len(shape) != 4 or shape[0] != 1:
        return None
    by_layout: dict[Layout, tuple[int, int, int]] = {
        "NCHW": (shape[1], shape[2], shape[3]),
        "NHWC": (shape[3], shape[1], shape[2]),
    }
    for each in sorted(by_layout, key=lambda each: each != layout):
        _, rows, columns = by_layout[each]
        if rows * width == columns * height and 1 < rows <= height:
            return each, by_layout[each]
    return None


def _choose_map(file: Path, found: Maps, wanted: str | None) -> str:
    if wanted is None and len(found) == 1:
        return next(iter(found))
    if wanted in found:
        return wanted
    names = ", ".join(f"{name} {_text(shape)}" for name, (_, shape) in found.items())
    if wanted is None:
        raise SettingsError(f"--map NAME: {file} has {len(found)} maps; give the one that counts: {names}")
    raise SettingsError(f"--map {wanted}: {file} has no such map; it has {names}")


def _class(file: Path, prototypes: Prototypes, settings: WrapSettings) -> int:
    if settings.channel is None and prototypes.classes > 1:
        raise SettingsError(
            f"--channel N: {file} finds objects of {prototypes.classes} classes; give the number, from 0, of polyp"
        )
    number = settings.channel or 0
    if not 0 <= number < prototypes.classes:
        raise SettingsError(f"--channel {number}: {file} has {prototypes.classes} classes, numbered from 0")
    return number


def _channel(file: Path, name: str, channels: int, settings: WrapSettings) -> int:
    """One channel is polyp. Of two channels the first one is the background."""
    if settings.channel is None:
        if channels > 2:
            raise SettingsError(
                f"--channel N: {name} of {file} has {channels} channels; give the number, from 0, of polyp"
            )
        return channels - 1
    if not 0 <= settings.channel < channels:
        raise SettingsError(f"--channel {settings.channel}: {name} of {file} has {channels} channels, numbered from 0")
    return settings.channel


def _activation(model: onnx.ModelProto, name: str, channels: int) -> Activation:
    """Find out whether an output holds probabilities already. Logits of one channel want a sigmoid."""
    producers = {output: node for node in model.graph.node for output in node.output}
    node = producers.get(name)
    while node is not None and node.op_type in AFTER_ACTIVATION:
        node = producers.get(node.input[0])
    if node is not None and node.op_type in ACTIVATIONS:
        return "none"
    if channels == 1:
        return "sigmoid"
    raise SettingsError(
        f"--activation softmax or sigmoid: {name} has {channels} channels of logits; give softmax if they exclude each "
        "other, else sigmoid"
    )


def _text(shape: Sequence[Any]) -> str:
    return "[" + ", ".join("?" if length is None else str(length) for length in shape) + "]"
