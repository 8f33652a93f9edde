"""The network and its checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from polypstream.errors import ModelError
from polypstream.models.checkpoint import load_checkpoint, pack
from polypstream.models.picture_net import PictureNet, gmac_of, mean_of_views
from polypstream.models.sa_unet import (
    OURS,
    SEED,
    Architecture,
    ResidualBlock,
    SAUNet,
    SpatialAttention,
    Up,
    size_multiple,
)

SMALL = Architecture(encoder="residual", widths=[4, 8, 8], decoder=[4, 8], shortcut_kernel=1, narrow=True)


def test_the_seeds_network_has_the_seeds_tensors() -> None:
    with torch.device("meta"):
        tensors = SAUNet(**SEED).state_dict()
    assert len(tensors) == 153
    assert (
        round(
            sum(tensor.numel() for name, tensor in tensors.items() if "running" not in name and "num_" not in name)
            / 1e6,
            1,
        )
        == 47.1
    )
    for name, shape in {
        "downsample.0.res_conv.weight": [64, 3, 3, 3],
        "downsample.4.res_block.conv_block_1.norm.running_mean": [1024],
        "upsample.1.res_block.conv_2.weight": [512, 512, 3, 3],
        "upsample.1.res_block.conv_block_1.conv.weight": [512, 1536, 3, 3],
        "last_blocks.0.norm_2.bias": [64],
        "last_blocks.1.weight": [1, 64, 3, 3],
        "sa.sa.0.weight": [1, 2, 7, 7],
        "sa.sa.0.bias": [1],
        "sa.sa.1.running_var": [1],
    }.items():
        assert list(tensors[name].shape) == shape
    assert not any(name.startswith("upsample.0") for name in tensors)


@pytest.mark.parametrize("architecture", [OURS, SMALL])
def test_logits_have_the_pictures_size(architecture: Architecture) -> None:
    network = SAUNet(**architecture).eval()
    side = 2 * size_multiple(architecture)
    assert network(torch.zeros(2, 3, side, side + size_multiple(architecture))).shape == (
        2,
        1,
        side,
        side + size_multiple(architecture),
    )


@pytest.mark.slow
def test_our_network_is_real_time_sized() -> None:
    assert 1 < gmac_of(SAUNet(**OURS).eval(), 352, views=2) <= 10


def test_narrowing_before_enlarging_gives_what_narrowing_after_would() -> None:
    torch.manual_seed(0)
    narrow, x, skip = torch.nn.Conv2d(8, 4, 1), torch.rand(1, 8, 5, 7), torch.rand(1, 3, 10, 14)
    enlarged = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    with FlopCounterMode(display=False) as counter:
        found = Up(None, narrow)(x, skip)
    assert torch.allclose(found, torch.cat([narrow(enlarged), skip], dim=1), atol=1e-6)
    assert counter.get_total_flops() == 2 * 8 * 4 * 5 * 7  # of the small map, a quarter of the large one's


def test_the_residual_block_comes_before_the_narrowing() -> None:
    torch.manual_seed(0)
    block, narrow = ResidualBlock(8, 6, 1).eval(), torch.nn.Conv2d(6, 4, 1)
    x, skip = torch.rand(1, 8, 5, 7), torch.rand(1, 3, 10, 14)
    expected = Up(None, narrow)(block(x), skip)
    assert torch.equal(Up(block, narrow)(x, skip), expected)
    assert Up(block, None)(x, skip).shape == (1, 6 + 3, 10, 14)


def test_attention_weighs_places_by_maximum_then_mean() -> None:
    attention = SpatialAttention().eval()
    torch.nn.init.zeros_(attention.sa[0].weight)
    torch.nn.init.zeros_(attention.sa[0].bias)
    attention.sa[0].weight.data[0, 0, 3, 3] = 1.0  # only the maximum at the place itself
    x = torch.rand(1, 6, 9, 9)
    weight = torch.sigmoid(x.amax(1, keepdim=True) / (1 + 1e-5) ** 0.5)
    assert torch.allclose(attention(x), x * weight, atol=1e-5)


def test_pictures_in_pictures_out() -> None:
    """Colours in 0..1, channels first, the sigmoid of the logits in 255 levels, and each picture by itself."""
    torch.manual_seed(0)
    network, pictures = SAUNet(**SMALL).eval(), torch.randint(0, 256, (3, 32, 48, 3), dtype=torch.uint8)
    with torch.no_grad():  # around 0 and 2 wide, so that every level occurs
        [logits] = PictureNet(network, views=1).logits(pictures)
        network.last_blocks[-1].bias -= logits.mean()
        network.divide_logits(float(logits.std()) / 2)
    maps = PictureNet(network, views=1)(pictures)
    assert maps.shape == (3, 32, 48)
    assert maps.dtype == torch.uint8
    for picture, found in zip(pictures.numpy(), maps.numpy(), strict=True):
        x = torch.from_numpy(np.moveaxis(picture, 2, 0)[None].astype(np.float32) / 255)
        probability = 1 / (1 + np.exp(-network(x)[0, 0].detach().numpy()))
        assert np.abs(found - 255 * probability).max() < 0.51  # rounded to the nearest level
        assert found.std() > 30


def test_two_views_do_not_care_which_way_up_a_picture_is() -> None:
    network = SAUNet(**SMALL).eval()
    pictures = torch.randint(0, 256, (3, 32, 48, 3), dtype=torch.uint8)
    both = PictureNet(network, views=2).logits(pictures)
    turned = PictureNet(network, views=2).logits(pictures.flip(1, 2))
    assert torch.allclose(both, turned.flip(0, 2, 3), atol=1e-4)
    once = PictureNet(network, views=1)
    assert torch.allclose(both[:1], once.logits(pictures), atol=1e-4)
    assert torch.allclose(both[1:], once.logits(pictures.flip(1, 2)).flip(2, 3), atol=1e-4)
    assert gmac_of(network, 32, views=2) == pytest.approx(2 * gmac_of(network, 32, views=1))


def test_the_second_view_counts_only_where_the_first_one_shows_something() -> None:
    first = torch.full((3, 4, 5), -9.0)
    first[0, 1, 2], first[1, 3, 4] = -2.1, -2.3  # probabilities of 0.11 and 0.09
    logits = torch.stack([first, torch.full_like(first, 6.0)])
    combined = mean_of_views(logits)
    assert torch.equal(combined[0], (first[0] + 6) / 2)
    assert torch.equal(combined[1:], first[1:])
    assert torch.equal(mean_of_views(first[None]), first)


def test_a_checkpoint_comes_back_as_it_went(tmp_path: Path) -> None:
    network = SAUNet(**SMALL).eval()
    torch.save(pack(network, 64, 2, 0.4, 0.8, {"data": "d", "terms": "t"}), tmp_path / "c.pt")
    loaded, card = load_checkpoint(tmp_path / "c.pt")
    assert (card["size"], card["views"], card["threshold"], card["peak"]) == (64, 2, 0.4, 0.8)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(x), network(x))


def test_the_seeds_bare_state_dict_is_recognised(tmp_path: Path) -> None:
    network = SAUNet(**SEED).eval()
    torch.save(network.state_dict(), tmp_path / "saunet128.pt")
    loaded, card = load_checkpoint(tmp_path / "saunet128.pt")
    assert card["size"] == 128
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(x), network(x))


def without(content: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in content.items() if key not in keys}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint"),
        (b"no checkpoint at all", "not a checkpoint"),
        ({"a": torch.zeros(1)}, "153 of its 153 tensors"),
        ([1, 2], "holds list"),
        (pack(SAUNet(**SMALL), 64, 1, 0.5, 0.5, {}) | {"architecture": OURS}, "do not fit"),
        (pack(SAUNet(**SMALL), 64, 1, 0.5, 0.5, {}) | {"architecture": {"depth": 3}}, "do not fit"),
        (pack(SAUNet(**SMALL), 64, 1, 0.5, 0.5, {}) | {"architecture": SMALL | {"widths": []}}, "do not fit"),
        (without(pack(SAUNet(**SMALL), 64, 1, 0.5, 0.5, {}), "size", "training"), "lacks size, training"),
    ],
    ids=["empty", "text", "other-tensors", "list", "other-architecture", "no-architecture", "no-widths", "incomplete"],
)
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "bad.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
