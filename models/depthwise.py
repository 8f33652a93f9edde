"""Depthwise convolution that also trains fast on CPUs.

In bf16, oneDNN computes most gradients of depthwise convolutions with its slow reference code. This holds for the
gradients of the weights of 5x5 kernels, and of the input of strided convolutions. They take ten times as long as the
convolution itself, and more than half of a training step (docs/performance.md). This module computes them from
convolutions for which oneDNN has fast code.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 3


class DepthwiseConv2d(nn.Conv2d):
    """Convolution with one filter per channel, without bias: [N, C, H, W] -> [N, C, H/stride, W/stride].

    Args:
        channels: C.
        kernel: side of the filters; the input is padded by half of it.
        stride: of the convolution.
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        x, weight = (part.to(torch.get_autocast_dtype("cpu")) for part in (x, self.weight))
        convolved: Tensor = _Depthwise.apply(x, weight, self.stride[0])
        return convolved


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return _input_gradient(gradient, x, weight, ctx.stride), _weight_gradient(gradient, x, weight, ctx.stride), None


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve the output's gradient, dilated by the stride, with the kernel rotated by 180 degrees."""
    if stride > 1:
        dilated = torch.zeros_like(x)
        dilated[:, :, ::stride, ::stride] = gradient
        gradient = dilated
    return F.conv2d(gradient, weight.flip(2, 3), None, 1, weight.shape[-1] // 2, 1, x.shape[1])


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Compute the gradient in blocks of 3x3: each is that of a 3x3 convolution of the correspondingly shifted input."""
    kernel = weight.shape[-1]
    if kernel == BLOCK:
        return _block_gradient(gradient, x, weight, stride, kernel // 2)
    rows, columns = ((size - 1) * stride + BLOCK for size in gradient.shape[2:])
    padded = F.pad(x, (kernel // 2, BLOCK, kernel // 2, BLOCK))
    found = weight.new_zeros(x.shape[1], 1, kernel + BLOCK, kernel + BLOCK)
    for row in range(0, kernel, BLOCK):
        for column in range(0, kernel, BLOCK):
            shifted = padded[:, :, row : row + rows, column : column + columns]
            shifted = shifted.contiguous(memory_format=torch.channels_last)
            block = _block_gradient(gradient, shifted, weight[:, :, :BLOCK, :BLOCK], stride, 0)
            found[:, :, row : row + BLOCK, column : column + BLOCK] = block
    return found[:, :, :kernel, :kernel].contiguous()


def _block_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    outputs = [False, True, False]  # of input, weight and bias the gradient of the weight only
    gradients = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], x.shape[1], outputs
    )
    return cast(Tensor, gradients[1])
