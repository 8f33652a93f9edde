"""The Spatial-Attention U-Net (SA-UNet).

A residual U-Net with one spatial attention on the deepest feature map. It estimates for each pixel the probability
that it belongs to a polyp: its output is the parameter of a Bernoulli distribution per pixel, as a logit.

Sources: Ronneberger et al., "U-Net", MICCAI 2015; He et al., "Deep Residual Learning", CVPR 2016; Woo et al.,
"CBAM", ECCV 2018 (the spatial attention); Guo et al., "SA-UNet", ICPR 2020 (its place at the bottleneck).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.2


class Architecture(TypedDict):
    """The arguments of SAUNet, as they stand in a checkpoint."""

    widths: list[int]
    stem_stride: int
    shortcut_kernel: int
    narrow: bool


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, LeakyReLU: [N, in, H, W] -> [N, out, H/stride, W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), NEGATIVE_SLOPE)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a linear shortcut: [N, in, H, W] -> [N, out, H/stride, W/stride].

    The seed ends its blocks with a dropout of 0.1, which has no weights and does nothing at inference. We train
    without: dropping whole channels so slowed learning (validation Dice 0.539 after 9 epochs against 0.583).
    """

    def __init__(self, in_channels: int, out_channels: int, shortcut_kernel: int, stride: int = 1) -> None:
        super().__init__()
        padding = shortcut_kernel // 2
        self.res_conv = nn.Conv2d(in_channels, out_channels, shortcut_kernel, stride, padding=padding)
        self.conv_block_1 = ConvBlock(in_channels, out_channels, stride)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm_2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.res_conv(x)
        x = self.conv_2(self.conv_block_1(x)) + skip
        return F.leaky_relu(self.norm_2(x), NEGATIVE_SLOPE)


class Down(nn.Module):
    """Halve the map, then a residual block: [N, in, H, W] -> [N, out, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int, shortcut_kernel: int) -> None:
        super().__init__()
        self.res_block = ResidualBlock(in_channels, out_channels, shortcut_kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_block(F.max_pool2d(x, 2))


class Up(nn.Module):
    """Optional residual block and narrowing, then double the map and append the encoder's skip.

    Shapes: [N, in, H, W] and skip [N, s, 2H, 2W] -> [N, out + s, 2H, 2W].

    A 1x1 convolution and bilinear enlargement commute, so narrowing before instead of after enlarging gives the
    same values for a quarter of the work.
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
    """Weigh each place of a map by what its channels say there: [N, C, H, W] -> [N, C, H, W].

    The maximum and then the mean over channels go through a 7x7 convolution, batch normalisation and a sigmoid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sa = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.sa(summary))


class SAUNet(nn.Module):
    """Spatial-Attention U-Net: pictures [N, 3, H, W] in 0..1 (RGB) -> logits [N, 1, H, W].

    H and W must be multiples of ``stem_stride * 2 ** (len(widths) - 1)``. The sigmoid of a logit is the
    probability that the pixel belongs to a polyp.

    Args:
        widths: channels of each level, from the finest map to the deepest.
        stem_stride: 1 keeps the finest map at the picture's size; 2 halves it for a quarter of the work, and the
            logits are enlarged bilinearly at the end.
        shortcut_kernel: kernel of the residual shortcuts, 3 as in the seed or 1.
        narrow: bring a map down to its skip's channels before it is enlarged.
    """

    def __init__(self, widths: list[int], stem_stride: int, shortcut_kernel: int, narrow: bool) -> None:
        super().__init__()
        self.architecture = Architecture(
            widths=widths, stem_stride=stem_stride, shortcut_kernel=shortcut_kernel, narrow=narrow
        )
        self.stem_stride = stem_stride
        self.downsample = nn.ModuleList([ResidualBlock(3, widths[0], shortcut_kernel, stem_stride)])
        for shallow, deep in pairwise(widths):
            self.downsample.append(Down(shallow, deep, shortcut_kernel))
        self.sa = SpatialAttention()

        self.upsample = nn.ModuleList()
        incoming = 0
        for skip, deep in reversed(list(pairwise(widths))):
            res_block = ResidualBlock(incoming, deep, shortcut_kernel) if incoming else None
            self.upsample.append(Up(res_block, nn.Conv2d(deep, skip, 1) if narrow else None))
            incoming = skip + (skip if narrow else deep)
        self.last_blocks = nn.Sequential(
            ResidualBlock(incoming, widths[0], shortcut_kernel), nn.Conv2d(widths[0], 1, 3, padding=1)
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
        if self.stem_stride > 1:
            logits = F.interpolate(logits, scale_factor=float(self.stem_stride), mode="bilinear", align_corners=False)
        return logits


def size_multiple(architecture: Architecture) -> int:
    """Sides of a network's pictures must be multiples of this many pixels."""
    return int(architecture["stem_stride"] * 2 ** (len(architecture["widths"]) - 1))


# The network we train and ship: sized for about 10 ms per 352x352 picture on two AMX-class CPU cores.
OURS: Architecture = {"widths": [32, 64, 128, 256, 512], "stem_stride": 2, "shortcut_kernel": 1, "narrow": True}
# The seed's `saunet128.pt`: 47.1 M parameters, input 128x128.
SEED: Architecture = {"widths": [64, 128, 256, 512, 1024], "stem_stride": 1, "shortcut_kernel": 3, "narrow": False}
SEED_SIZE = 128
