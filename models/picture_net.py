"""SA-UNet with the input and output of the ONNX file: uint8 images in, uint8 probability maps out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polypstream.models.sa_unet import SAUNet

# The second view of an image counts only if the first one has this probability somewhere. In 1,522 images and crops
# (docs/performance.md) no finding changed with any value up to 0.5.
SECOND_VIEW_FROM = 0.1
SECOND_VIEW_FROM_LOGIT = math.log(SECOND_VIEW_FROM / (1 - SECOND_VIEW_FROM))


class PictureNet(nn.Module):
    """uint8 RGB images [N, H, W, 3] -> uint8 probability maps [N, H, W], 0..255 meaning 0..1.

    Normalisation, memory layout, sigmoid and rounding are part of the module, so that callers cannot do them wrong.

    Args:
        network: computes the logits.
        views: 1, or 2 for test-time augmentation: each image is also processed rotated by 180 degrees, and the mean of
            both logits is taken (Krizhevsky et al., NIPS 2012). Healthy wall is seldom taken for a polyp both times.
            If the first view shows nothing, the second one does not count, so that a CPU need not compute it
            (`polypstream.export.early_exit`).
    """

    def __init__(self, network: SAUNet, views: int) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, frames: Tensor) -> Tensor:
        return (mean_of_views(self.logits(frames)).sigmoid() * 255).round().byte()

    def logits(self, frames: Tensor) -> Tensor:
        """Compute the logits of each view: uint8 images [N, H, W, 3] -> float32 [views, N, H, W], all upright."""
        if self.views == 1:
            return self._logits_of_view(frames)[None]
        upright, rotated = self._logits_of_view(torch.cat([frames, frames.flip(1, 2)])).unflatten(0, (2, -1))
        return torch.stack([upright, rotated.flip(1, 2)])

    def _logits_of_view(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.network(frames.permute(0, 3, 1, 2).float() / 255)
        return logits.squeeze(1)


def mean_of_views(logits: Tensor) -> Tensor:
    """Combine the logits of an image's views.

    Args:
        logits: float32 [views, N, H, W].

    Returns:
        float32 [N, H, W]: their mean, or those of the first view if it shows nothing.
    """
    if len(logits) == 1:
        return logits[0]
    shows = logits[0].amax((1, 2), keepdim=True) >= SECOND_VIEW_FROM_LOGIT
    return torch.where(shows, logits.mean(0), logits[0])


def gmac_of(network: SAUNet, size: int, views: int) -> float:
    """Count the multiply-accumulate operations for one image with this side in pixels, in billions."""
    frames = torch.zeros((1, size, size, 3), dtype=torch.uint8, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        PictureNet(network, views)(frames)
    return counter.get_total_flops() / 2e9
