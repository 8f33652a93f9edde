"""SA-UNet behind the contract of the ONNX file: pictures in, pictures out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.sa_unet import SAUNet


class PictureNet(nn.Module):
    """uint8 RGB pictures [N, H, W, 3] -> uint8 probability maps [N, H, W], 0..255 meaning 0..1.

    Normalisation, layout, sigmoid and rounding are inside, so that no caller can get them wrong.
    """

    def __init__(self, network: SAUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.permute(0, 3, 1, 2).float() / 255
        probability = self.network(x).squeeze(1).sigmoid()
        return (probability * 255).round().byte()


def gmac_of(network: SAUNet, size: int) -> float:
    """Billions of multiplications and additions for one picture of this side in pixels."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros((1, 3, size, size), device=next(network.parameters()).device))
    return counter.get_total_flops() / 2e9
