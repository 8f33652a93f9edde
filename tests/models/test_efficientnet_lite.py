"""The encoder, and ImageNet weights under the names that others gave them."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polypstream.errors import ModelError
from polypstream.models.efficientnet_lite import MEAN, SCALE, WIDTHS, Variant, encoder_stages, load_imagenet

# EfficientNet-Lite0's repeats, kernel, expansion and channels of each row, which Lite1 and Lite2 scale up.
LITE0 = [(1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192), (1, 3, 6, 320)]
WIDER_AND_DEEPER: dict[Variant, tuple[float, float]] = {
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}
VARIANTS = pytest.mark.parametrize("variant", WIDER_AND_DEEPER)


def published(path: Path, variant: Variant) -> dict[str, Tensor]:
    """A file of random weights with the names and shapes of the published one, made from its description.

    Channels are scaled to the nearest multiple of 8 (not more than a tenth below), repeats are rounded up; the first
    and the last row are not repeated more often.
    """
    wider, deeper = WIDER_AND_DEEPER[variant]
    rows, channels = [], 32
    for index, (repeats, kernel, expansion, wanted) in enumerate(LITE0):
        out = int(wider * wanted + 4) // 8 * 8
        out += 8 * (out < 0.9 * wider * wanted)
        rows.append((repeats if index in (0, 6) else ceil(repeats * deeper), kernel, expansion, channels, out))
        channels = out
    torch.manual_seed(1)
    weights: dict[str, Tensor] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean"):
            weights[f"{name}.{part}"] = torch.randn(channels)
        weights[f"{name}.running_var"] = torch.rand(channels) + 0.5

    weights["_conv_stem.weight"] = torch.randn(32, 3, 3, 3)
    norm("_bn0", 32)
    block = 0
    for repeats, kernel, expansion, channels, out in rows:
        for _ in range(repeats):
            inner = channels * expansion
            if expansion > 1:
                weights[f"_blocks.{block}._expand_conv.weight"] = torch.randn(inner, channels, 1, 1)
                norm(f"_blocks.{block}._bn0", inner)
            weights[f"_blocks.{block}._depthwise_conv.weight"] = torch.randn(inner, 1, kernel, kernel)
            norm(f"_blocks.{block}._bn1", inner)
            weights[f"_blocks.{block}._project_conv.weight"] = torch.randn(out, inner, 1, 1)
            norm(f"_blocks.{block}._bn2", out)
            channels, block = out, block + 1
    weights["_fc.weight"] = torch.randn(1000, 1280)  # the classifier, which is left behind
    torch.save(weights, path)
    return weights


@VARIANTS
def test_stages_halve_the_picture_and_have_the_published_widths(variant: Variant) -> None:
    x, shapes = torch.rand(1, 3, 64, 96), []
    for stage in encoder_stages(variant).eval():
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    expected = zip(WIDTHS[variant], (4, 8, 16, 32), strict=True)
    assert shapes == [(width, 64 // stride, 96 // stride) for width, stride in expected]


@VARIANTS
def test_imagenet_weights_find_their_places(tmp_path: Path, variant: Variant) -> None:
    theirs = published(tmp_path / "w.pth", variant)
    stages = encoder_stages(variant)
    load_imagenet(stages, tmp_path / "w.pth")
    ours = stages.state_dict()
    assert torch.equal(ours["0.1.depthwise.0.weight"], theirs["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(ours["1.2.expand.0.weight"], theirs["_blocks.6._expand_conv.weight"])
    assert torch.equal(ours["3.5.project.1.running_var"], theirs["_blocks.20._bn2.running_var"])


def test_the_first_convolution_takes_pictures_from_0_to_1(tmp_path: Path) -> None:
    """Away from the edge, what it gives is what theirs gives for (255 x - 127) / 128."""
    theirs = published(tmp_path / "w.pth", "efficientnet-lite2")
    stages = encoder_stages("efficientnet-lite2").eval()
    load_imagenet(stages, tmp_path / "w.pth")
    x = torch.rand(1, 3, 32, 32)
    first: nn.Module = stages[0][0]  # type: ignore[index]
    norm = [theirs[f"_bn0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    conv = nn.functional.conv2d((x - MEAN) * SCALE, theirs["_conv_stem.weight"], stride=2, padding=1)
    expected = nn.functional.batch_norm(conv, *norm, eps=1e-3).clamp(0, 6)
    assert torch.allclose(first(x)[..., 1:, 1:], expected[..., 1:, 1:], atol=1e-3)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    published(tmp_path / "smaller.pth", "efficientnet-lite1")
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("smaller.pth", "other.pth", "text.pth", "missing.pth"):
        with pytest.raises(ModelError, match=name):
            load_imagenet(encoder_stages("efficientnet-lite2"), tmp_path / name)
