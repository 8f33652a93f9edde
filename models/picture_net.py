"""SA-UNet behind the contract of the ONNX file: pictures in, pictures out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polypstream.models.sa_unet import SAUNet


class PictureNet(nn.Module):
    """uint8 RGB pictures [N, H, W, 3] -> uint8 probability maps [N, H, W], 0..255 meaning 0..1.

    Normalisation, layout, sigmoid and rounding are inside, so that no caller can get them wrong.

    Args:
        network: gives the logits.
        views: 1, or 2 to look at each picture upside down as well and take the mean of both logits: a place on
            healthy wall is seldom taken for a polyp both ways (test-time augmentation: Krizhevsky et al., NIPS 2012).
    """

    def __init__(self, network: SAUNet, views: int) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, frames: Tensor) -> Tensor:
        return (self.logits(frames).sigmoid() * 255).round().byte()

    def logits(self, frames: Tensor) -> Tensor:
        """Of uint8 pictures [N, H, W, 3]: float32 [N, H, W]."""
        if self.views == 1:
            return self._look(frames)
        upright, turned = self._look(torch.cat([frames, frames.flip(1, 2)])).unflatten(0, (2, -1))
        return (upright + turned.flip(1, 2)) / 2

    def _look(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.network(frames.permute(0, 3, 1, 2).float() / 255)
        return logits.squeeze(1)


def gmac_of(network: SAUNet, size: int, views: int) -> float:
    """Billions of multiplications and additions for one picture of this side in pixels."""
    frames = torch.zeros((1, size, size, 3), dtype=torch.uint8, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        PictureNet(network, views)(frames)
    return counter.get_total_flops() / 2e9
