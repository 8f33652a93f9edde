"""The Spatial-Attention U-Net (SA-UNet).

It is a U-Net with one spatial attention module on the deepest feature map. For each pixel it estimates the probability
that the pixel belongs to a polyp. The output is a logit: the parameter of one Bernoulli distribution per pixel. The
encoder consists of residual blocks (in the seed project) or is an EfficientNet-Lite (in the shipped model).

Sources: Ronneberger et al., "U-Net", MICCAI 2015; He et al., "Deep Residual Learning", CVPR 2016; Woo et al.,
"CBAM", ECCV 2018 (the spatial attention); Guo et al., "SA-UNet", ICPR 2020 (its place at the bottleneck).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polypstream.errors import SettingsError
from polypstream.models.efficientnet_lite import WIDTHS, Variant, encoder_stages

NEGATIVE_SLOPE = 0.2

Encoder = Literal["residual"] | Variant


class Architecture(TypedDict):
    """The arguments of SAUNet, as a checkpoint stores them."""

    encoder: Encoder
    widths: list[int]
    decoder: list[int]
    shortcut_kernel: int
    narrow: bool


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, LeakyReLU: [N, in, H, W] -> [N, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), NEGATIVE_SLOPE)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a linear shortcut: [N, in, H, W] -> [N, out, H, W].

    The blocks of the seed project end with a dropout of 0.1 on whole channels. It has no weights and no effect at
    inference. We train without it, since it slowed training: validation Dice after 9 epochs was 0.539 with it and 0.583
    without it.
    """

    def __init__(self, in_channels: int, out_channels: int, shortcut_kernel: int) -> None:
        super().__init__()
        self.res_conv = nn.Conv2d(in_channels, out_channels, shortcut_kernel, padding=shortcut_kernel // 2)
        self.conv_block_1 = ConvBlock(in_channels, out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm_2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.res_conv(x)
        x = self.conv_2(self.conv_block_1(x)) + skip
        return F.leaky_relu(self.norm_2(x), NEGATIVE_SLOPE)


class Down(nn.Module):
    """Max pooling and a residual block: [N, in, H, W] -> [N, out, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int, shortcut_kernel: int) -> None:
        super().__init__()
        self.res_block = ResidualBlock(in_channels, out_channels, shortcut_kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_block(F.max_pool2d(x, 2))


class Up(nn.Module):
    """Upsample a feature map by 2 and concatenate the encoder's skip connection.

    Shapes: [N, in, H, W] and skip [N, s, 2H, 2W] -> [N, out + s, 2H, 2W].

    A 1x1 convolution and bilinear upsampling commute. So reducing the channels before the upsampling gives the same
    values as after it, for a quarter of the multiplications.

    Args:
        res_block: applied first; None: no block.
        narrow: 1x1 convolution that reduces the channels, applied next; None: no convolution.
    """

    def __init__(self, res_block: nn.Module | None, narrow: nn.Module | None) -> None:
        super().__init__()
        self.res_block = res_block
        self.narrow = narrow

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.res_block is not None:
            x = self.res_block(x)
        if self.narrow is not None:
            x = self.narrow(x)
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.cat([x, skip], dim=1)


class SpatialAttention(nn.Module):
    """Multiply each position of a feature map by a weight computed from its channels: [N, C, H, W] -> [N, C, H, W].

    The weight is computed from the maximum and the mean over the channels, by a 7x7 convolution, batch normalisation
    and a sigmoid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sa = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.sa(summary))


class SAUNet(nn.Module):
    """Spatial-Attention U-Net: RGB images [N, 3, H, W] in 0..1 -> logits [N, 1, H, W].

    H and W must be multiples of ``size_multiple(architecture)``. The sigmoid of a logit is the probability that the
    pixel belongs to a polyp.

    Args:
        encoder: "residual" has its finest feature map at the size of the image. The EfficientNet-Lites start at a
            quarter of it, and the logits are upsampled bilinearly at the end.
        widths: channels of the encoder's feature maps, from the finest to the deepest. Each map has half the size of
            the one before it.
        decoder: channels of the decoder's feature maps, from the finest on. There is one fewer than in the encoder.
        shortcut_kernel: kernel size of the residual shortcuts: 3 as in the seed project, or 1.
        narrow: reduce a map to the channels of the next one before it is upsampled.

    Raises:
        ValueError: there is no such encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        widths: list[int],
        decoder: list[int],
        shortcut_kernel: int,
        narrow: bool,
    ) -> None:
        super().__init__()
        self.architecture = Architecture(
            encoder=encoder, widths=widths, decoder=decoder, shortcut_kernel=shortcut_kernel, narrow=narrow
        )
        self.stride = finest_stride(encoder)
        self.downsample = _encoder(encoder, widths, shortcut_kernel)
        self.sa = SpatialAttention()

        self.upsample = nn.ModuleList()
        incoming, outgoing = widths[-1], widths[-1]
        for skip, width in zip(reversed(widths[:-1]), reversed(decoder), strict=True):
            res_block = ResidualBlock(incoming, outgoing, shortcut_kernel) if len(self.upsample) else None
            self.upsample.append(Up(res_block, nn.Conv2d(outgoing, width, 1) if narrow else None))
            incoming, outgoing = skip + (width if narrow else outgoing), width
        self.last_blocks = nn.Sequential(
            ResidualBlock(incoming, outgoing, shortcut_kernel), nn.Conv2d(outgoing, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.downsample:
            x = block(x)
            skips.append(x)
        x = self.sa(skips.pop())
        for up in self.upsample:
            x = up(x, skips.pop())
        logits: Tensor = self.last_blocks(x)
        if self.stride > 1:
            # A factor, not a target size: ONNX Runtime would compute shapes on the CPU, and then refuse a CUDA session.
            logits = F.interpolate(logits, scale_factor=float(self.stride), mode="bilinear", align_corners=False)
        return logits

    @torch.no_grad()
    def divide_logits(self, temperature: float) -> None:
        """Divide all logits by a temperature (calibration). Masks at a threshold of 0.5 do not change."""
        for weights in self.last_blocks[-1].parameters():
            weights.div_(temperature)


def _encoder(name: Encoder, widths: list[int], shortcut_kernel: int) -> nn.ModuleList:
    if name in WIDTHS and widths == WIDTHS[name]:
        return encoder_stages(name)
    if name != "residual":
        raise ValueError(f"there is no encoder {name} with widths {widths}")
    stages = nn.ModuleList([ResidualBlock(3, widths[0], shortcut_kernel)])
    for shallow, deep in pairwise(widths):
        stages.append(Down(shallow, deep, shortcut_kernel))
    return stages


def finest_stride(encoder: Encoder) -> int:
    """Return the stride of the finest feature map, in pixels of the image."""
    return 1 if encoder == "residual" else 4


def size_multiple(architecture: Architecture) -> int:
    """Return the number of pixels of which each side of an input image must be a multiple."""
    return int(finest_stride(architecture["encoder"]) * 2 ** (len(architecture["widths"]) - 1))


def check_size(architecture: Architecture, size: int) -> None:
    """Check that a model of this architecture can take square images with this side, in pixels.

    Raises:
        SettingsError: it cannot. The deepest feature map must also have more than one position.
    """
    multiple = size_multiple(architecture)
    if size < 2 * multiple or size % multiple:
        raise SettingsError(f"--size {size}: must be a multiple of {multiple}, at least {2 * multiple}")


# The architecture that is trained and shipped.
OURS: Architecture = {
    "encoder": "efficientnet-lite2",
    "widths": WIDTHS["efficientnet-lite2"],
    "decoder": [32, 64, 128],
    "shortcut_kernel": 1,
    "narrow": True,
}
# The seed project's `saunet128.pt`: 47.1 M parameters, input 128x128.
SEED: Architecture = {
    "encoder": "residual",
    "widths": [64, 128, 256, 512, 1024],
    "decoder": [64, 128, 256, 512],
    "shortcut_kernel": 3,
    "narrow": False,
}
SEED_SIZE = 128
