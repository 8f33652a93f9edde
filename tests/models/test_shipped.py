"""The shipped ONNX file gives back the network that it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from polypstream.errors import ModelError
from polypstream.inference.model_card import shipped_weights
from polypstream.inference.segmenter import Segmenter
from polypstream.models.picture_net import PictureNet
from polypstream.models.sa_unet import OURS, SAUNet
from polypstream.models.shipped import freeze_norms, load_exported
from polypstream.sources.demo_colon import DemoColon, DemoSettings


def test_the_network_gives_the_same_maps_as_the_file() -> None:
    network = SAUNet(**OURS)
    load_exported(shipped_weights(), network)
    segmenter = Segmenter(shipped_weights(), provider="cpu")
    colon = DemoColon(DemoSettings(width=segmenter.size, height=segmenter.size))
    noise = np.random.default_rng(0).integers(0, 256, (segmenter.size, segmenter.size, 3), np.uint8)
    images = np.stack([colon.render(60)[0], colon.render(200)[0], noise])
    with torch.inference_mode():
        found = PictureNet(network, segmenter.card.views).eval()(torch.from_numpy(images)).numpy()
    expected = segmenter.run(images)
    assert expected.max() > 200
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_frozen_norms_keep_their_statistics_in_training() -> None:
    network = SAUNet(**OURS)
    load_exported(shipped_weights(), network)
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    network.train()
    freeze_norms(network)
    network(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.named_buffers())
    assert all(module.training for module in network.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(("content", "message"), [(None, "no such model"), (b"no model", "ONNX file")])
def test_other_files_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_exported(path, SAUNet(**OURS))


def test_quantised_files_are_refused() -> None:
    with pytest.raises(ModelError, match="--precision fp32 or fp16"):
        load_exported(shipped_weights("shipped-int8"), SAUNet(**OURS))
