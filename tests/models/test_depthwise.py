"""Our gradients of depthwise convolutions are those of torch."""

from __future__ import annotations

import pytest
import torch

from polypstream.models.depthwise import DepthwiseConv2d


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (24, 10)])
def test_gradients_agree_with_torch(kernel: int, stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv2d(32, kernel, stride)
    x = torch.randn(2, 32, *size).to(memory_format=torch.channels_last).requires_grad_()
    expected = torch.nn.functional.conv2d(x, conv.weight, None, stride, kernel // 2, 1, 32)
    towards = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, (x, conv.weight), towards)
    with torch.autocast("cpu", torch.bfloat16):
        convolved = conv.train()(x)
    assert convolved.dtype is torch.bfloat16  # it took our path
    assert (convolved - expected).norm() < 0.01 * expected.norm()
    ours = torch.autograd.grad(convolved, (x, conv.weight), towards.bfloat16())
    for found, true in zip(ours, theirs, strict=True):
        assert (found - true).norm() < 0.01 * true.norm()
