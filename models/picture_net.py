"""SA-UNet with the input and output of the ONNX file: uint8 images in, uint8 probability maps out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polypstream.models.sa_unet import SAUNet


class PictureNet(nn.Module):
    """uint8 RGB images [N, H, W, 3] -> uint8 probability maps [N, H, W], 0..255 meaning 0..1.

    Normalisation, memory layout, sigmoid and rounding are part of the module, so that callers cannot do them wrong.

    Args:
        network: computes the logits.
        views: 1, or 2 for test-time augmentation: each image is also processed rotated by 180 degrees, and the mean of
            both logits is taken (Krizhevsky et al., NIPS 2012). Healthy wall is seldom taken for a polyp both times.
    """

    def __init__(self, network: SAUNet, views: int) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, frames: Tensor) -> Tensor:
        return (self.logits(frames).sigmoid() * 255).round().byte()

    def logits(self, frames: Tensor) -> Tensor:
        """Compute logits: uint8 images [N, H, W, 3] -> float32 [N, H, W]."""
        if self.views == 1:
            return self._logits_of_view(frames)
        upright, rotated = self._logits_of_view(torch.cat([frames, frames.flip(1, 2)])).unflatten(0, (2, -1))
        return (upright + rotated.flip(1, 2)) / 2

    def _logits_of_view(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.network(frames.permute(0, 3, 1, 2).float() / 255)
        return logits.squeeze(1)


def gmac_of(network: SAUNet, size: int, views: int) -> float:
    """Count the multiply-accumulate operations for one image with this side in pixels, in billions."""
    frames = torch.zeros((1, size, size, 3), dtype=torch.uint8, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        PictureNet(network, views)(frames)
    return counter.get_total_flops() / 2e9
