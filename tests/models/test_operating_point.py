"""The peak that findings must reach is chosen on the pictures held out, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polypstream.models.checkpoint import load_checkpoint, pack
from polypstream.models.operating_point import PEAKS, Point, choose, find_temperature
from polypstream.models.sa_unet import Architecture, SAUNet
from tests.conftest import call
from tests.models.test_data import make_data

SMALL = Architecture(encoder="residual", widths=[4, 8, 8], decoder=[4, 8], shortcut_kernel=1, narrow=True)


def test_the_lowest_quiet_peak_is_taken_unless_it_costs_too_much() -> None:
    points = [Point(0.5, 0.90, 0.20), Point(0.7, 0.895, 0.03), Point(0.9, 0.885, 0.01)]
    assert choose(points).peak == 0.7
    loud = [Point(0.5, 0.90, 0.20), Point(0.7, 0.895, 0.10), Point(0.9, 0.80, 0.0)]
    assert choose(loud).peak == 0.7


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    training = {"data": "tests", "terms": "free", "validation_names": ["d/p1", "d/p4"]}
    torch.save(pack(SAUNet(**SMALL).eval(), 64, 1, 0.5, 0.51, training), tmp_path / "c.pt")
    return tmp_path / "c.pt"


@pytest.mark.slow
def test_the_checkpoint_keeps_the_size_and_the_peak(tmp_path: Path, checkpoint: Path) -> None:
    data = make_data(tmp_path / "d", size=(128, 96))
    weights = load_checkpoint(checkpoint)[0].state_dict()
    done = call("tune", checkpoint, data, "--size", 96, "--views", 2)
    network, card = load_checkpoint(checkpoint)
    assert (card["size"], card["views"]) == (96, 2)
    assert card["peak"] in PEAKS
    assert f"must reach {card['peak']:g}" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith("peak ")]) == len(PEAKS)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert changed == {"last_blocks.1.weight", "last_blocks.1.bias"}
    temperature = float(next(line for line in done.stdout.splitlines() if line.startswith("temperature ")).split()[1])
    last = "last_blocks.1.weight"
    assert torch.allclose(network.state_dict()[last] * temperature, weights[last], rtol=0.02)


def test_the_temperature_makes_probabilities_true() -> None:
    """Logits three times as large as the pixels' true odds."""
    random = np.random.default_rng(1)
    odds = random.normal(-1, 2, (200, 200)).astype(np.float32)
    truth = random.random(odds.shape) < 1 / (1 + np.exp(-odds))
    assert find_temperature([(3 * odds, truth)]) == pytest.approx(3, rel=0.05)
    assert find_temperature([(odds[:100], truth[:100]), (odds[100:], truth[100:])]) == pytest.approx(1, rel=0.05)


@pytest.mark.slow
def test_what_cannot_be_tuned_is_said(tmp_path: Path, checkpoint: Path) -> None:
    data = make_data(tmp_path / "d", count=3)  # p4 is not among them
    done = call("tune", checkpoint, data, check=False)
    assert done.returncode == 1
    assert "lacks d/p4" in done.stderr
    data = make_data(tmp_path / "more" / "d")
    (data / "train.txt").write_text("p0\np2\n")  # `train --names` had others
    call("tune", checkpoint, data)
    assert "multiple of 4" in call("tune", checkpoint, data, "--size", 50, check=False).stderr
