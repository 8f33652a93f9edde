"""The Spatial-Attention U-Net (SA-UNet).

A U-Net with one spatial attention on the deepest feature map. It estimates for each pixel the probability that it
belongs to a polyp: its output is the parameter of a Bernoulli distribution per pixel, as a logit. Its encoder is made
of residual blocks, as the seed's, or is an EfficientNet-Lite, as ours.

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
    """The arguments of SAUNet, as they stand in a checkpoint."""

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
    """Two 3x3 convolutions beside a linear shortcut: [N, in, H, W] -> [N, out, H, W].

    The seed ends its blocks with a dropout of 0.1, which has no weights and does nothing at inference. We train
    without: dropping whole channels so slowed learning (validation Dice 0.539 after 9 epochs against 0.583).
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

    H and W must be multiples of ``size_multiple(architecture)``. The sigmoid of a logit is the probability that the
    pixel belongs to a polyp.

    Args:
        encoder: "residual" keeps the finest map at the picture's size; EfficientNet-Lites start at a quarter of
            it, and the logits are enlarged bilinearly at the end.
        widths: channels of the encoder's maps, from the finest to the deepest, each half as large as the one before.
        decoder: channels of the decoder's maps, from the finest on, one fewer.
        shortcut_kernel: kernel of the residual shortcuts, 3 as in the seed or 1.
        narrow: bring a map down to the next one's channels before it is enlarged.

    Raises:
        ValueError: there is no such network.
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
            # By a factor, not to x's size: arithmetic on shapes would go to the CPU, and a CUDA session be refused.
            logits = F.interpolate(logits, scale_factor=float(self.stride), mode="bilinear", align_corners=False)
        return logits

    @torch.no_grad()
    def divide_logits(self, temperature: float) -> None:
        """Make the network less sure of itself where the temperature is above 1, without changing a mask at 0.5."""
        for weights in self.last_blocks[-1].parameters():
            weights.div_(temperature)


def _encoder(name: Encoder, widths: list[int], shortcut_kernel: int) -> nn.ModuleList:
    if name in WIDTHS and widths == WIDTHS[name]:
        return encoder_stages(name)
    if name != "residual":
        raise ValueError(f"no encoder {name} of widths {widths}")
    stages = nn.ModuleList([ResidualBlock(3, widths[0], shortcut_kernel)])
    for shallow, deep in pairwise(widths):
        stages.append(Down(shallow, deep, shortcut_kernel))
    return stages


def finest_stride(encoder: Encoder) -> int:
    """Pixels of the picture to one of the finest map."""
    return 1 if encoder == "residual" else 4


def size_multiple(architecture: Architecture) -> int:
    """Sides of a network's pictures must be multiples of this many pixels."""
    return int(finest_stride(architecture["encoder"]) * 2 ** (len(architecture["widths"]) - 1))


def check_size(architecture: Architecture, size: int) -> None:
    """See that a network takes square pictures of this side, in pixels.

    Raises:
        SettingsError: it does not; the deepest map must have more than one place, too.
    """
    multiple = size_multiple(architecture)
    if size < 2 * multiple or size % multiple:
        raise SettingsError(f"--size {size}: must be a multiple of {multiple}, at least {2 * multiple}")


# The network we train and ship.
OURS: Architecture = {
    "encoder": "efficientnet-lite2",
    "widths": WIDTHS["efficientnet-lite2"],
    "decoder": [32, 64, 128],
    "shortcut_kernel": 1,
    "narrow": True,
}
# The seed's `saunet128.pt`: 47.1 M parameters, input 128x128.
SEED: Architecture = {
    "encoder": "residual",
    "widths": [64, 128, 256, 512, 1024],
    "decoder": [64, 128, 256, 512],
    "shortcut_kernel": 3,
    "narrow": False,
}
SEED_SIZE = 128
