"""Training: it learns, survives interruption, and refuses to mix runs."""

from __future__ import annotations

import csv
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from polypstream.errors import DataError, ModelError, OutputError, SettingsError
from polypstream.inference.model_card import shipped_weights
from polypstream.models import training
from polypstream.models.checkpoint import load_checkpoint, pack
from polypstream.models.data import Levels, levels_of
from polypstream.models.figures import draw_curves
from polypstream.models.residue import RESIDUE
from polypstream.models.sa_unet import OURS, Architecture, SAUNet
from polypstream.models.shipped import load_exported
from polypstream.models.training import AugmentedImages, PaintedImage, Recipe, TrainingData, epoch_orders, train
from tests.conftest import call
from tests.models.test_data import make_data
from tests.models.test_efficientnet_lite import published

SMALL = Architecture(encoder="residual", widths=[8, 16, 24], decoder=[8, 16], shortcut_kernel=1, narrow=True)
RECIPE = Recipe(epochs=3, size=64, batch=4, validation=0.2, learning_rate=5e-3)


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is narrow, and no curves are drawn but in one test, so that two cores need seconds."""
    monkeypatch.setattr(training, "OURS", SMALL)
    monkeypatch.setattr(training, "draw_curves", lambda *_: None)


class Interrupted(Exception):
    """Stands for the power cut."""


def of(*folders: Path, **more: Any) -> TrainingData:
    """Training data of these folders."""
    return TrainingData(folders, terms="free", **more)


def children() -> set[int | None]:
    """Processes that this one has started. Other tests may have left some, for instance in a fixture for all tests."""
    return {process.pid for process in multiprocessing.active_children()}


def stop_after(epochs: int) -> Callable[[str], None]:
    def report(line: str) -> None:
        if line.startswith(f"epoch {epochs}/"):
            raise Interrupted

    return report


def history_of(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_it_learns_and_an_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "draw_curves", draw_curves)
    data = make_data(tmp_path / "data", 15)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    lines: list[str] = []
    checkpoint = train(of(data), whole, RECIPE, lines.append)
    with pytest.raises(Interrupted):
        train(of(data), broken, RECIPE, stop_after(1))
    assert len(history_of(broken)) == 1
    train(of(data), broken, RECIPE, lines.append)

    rows = history_of(whole)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    resumed = history_of(broken)
    for row, other in zip(rows, resumed, strict=True):
        for key in row.keys() - {"seconds"}:
            assert float(other[key]) == pytest.approx(float(row[key]), rel=0.05, abs=0.02), key
    curves = cv2.imread(str(whole / "curves.png"))
    assert curves is not None
    assert curves.std() > 10

    _, card = load_checkpoint(checkpoint)
    assert card["size"] == 64
    assert card["training"]["terms"] == "free"
    assert len(card["training"]["validation_names"]) == 3
    assert torch.load(checkpoint, weights_only=True)["format"].startswith("polypstream")


def test_a_run_has_the_order_of_earlier_versions_also_when_it_is_resumed() -> None:
    recipe = replace(RECIPE, seed=5)
    whole = list(epoch_orders(11, recipe, 0))
    assert whole[-4:] == list(epoch_orders(11, recipe, 1))
    for epoch in range(recipe.epochs):
        seed = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        shuffled = DataLoader(list(range(11)), recipe.batch, shuffle=True, drop_last=True, generator=seed)
        batches = [[(epoch, int(index)) for index in batch] for batch in shuffled]
        assert whole[2 * epoch :][:2] == batches


def test_all_epochs_have_the_same_worker_processes_which_end_with_the_run(tmp_path: Path) -> None:
    data, before, workers = make_data(tmp_path / "data", 12), children(), set[int | None]()

    def note(*_: int) -> None:
        workers.update(children() - before)

    train(of(data), tmp_path / "run", RECIPE, print, on_progress=note)
    assert len(workers) == training.WORKERS
    assert children() <= before


def test_teachers_are_a_part_of_the_target(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 12)
    teachers = [constant_model(tmp_path / f"teacher{bias}" / "checkpoint.pt", bias) for bias in (-20.0, -18.0)]
    alone, taught = (
        train(of(data), tmp_path / name, replace(RECIPE, epochs=1), print, teachers=some)
        for name, some in (("alone", []), ("taught", teachers))
    )
    losses = [float(history_of(path.parent)[0]["train_loss"]) for path in (alone, taught)]
    assert losses[0] != losses[1]
    names = load_checkpoint(taught)[1]["training"]["teachers"]
    assert names == ["teacher-20.0/checkpoint.pt", "teacher-18.0/checkpoint.pt"]
    images, masks = torch.zeros((2, 64, 64, 3), dtype=torch.uint8), torch.full((2, 64, 64), 255, dtype=torch.uint8)
    run = training.Run(tmp_path / "run", RECIPE, {}, 8, None, teachers)
    _, target, _ = run._loss(run.network, images, masks, run.teachers)
    assert torch.allclose(target, torch.tensor(1 - training.TEACHERS_SHARE), atol=1e-4)
    convinced = [training._load_teacher(constant_model(tmp_path / "convinced" / "checkpoint.pt", 20.0))]
    masks[0, :32], masks[0, 32:48], masks[1] = 0, RESIDUE, 0
    _, target, _ = run._loss(run.network, images, masks, convinced)
    assert torch.allclose(target[0, 0, :32], torch.tensor(training.TEACHERS_SHARE))
    assert not target[0, 0, 32:48].any()  # they are not asked about residue
    assert torch.allclose(target[0, 0, 48:], torch.tensor(1.0))
    assert not target[1].any()  # nor about views without a polyp
    (tmp_path / "imagenet.pth").write_bytes(b"no model")
    with pytest.raises(ModelError, match="--teacher"):
        train(of(data), tmp_path / "wrong", RECIPE, print, teachers=[tmp_path / "imagenet.pth"])


def test_a_frozen_encoder_stays_as_it_is(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 12)
    start = train(of(data), tmp_path / "start", replace(RECIPE, epochs=1), print)
    recipe = replace(RECIPE, epochs=1, freeze_encoder=True)
    trained = train(of(data), tmp_path / "run", recipe, print, start)
    before, after = (load_checkpoint(path)[0].state_dict() for path in (start, trained))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith("downsample.")]
    assert {name.split(".")[0] for name in changed} == {"sa", "upsample", "last_blocks"}
    with pytest.raises(SettingsError, match="--freeze-encoder: needs --start"):
        train(of(data), tmp_path / "wrong", recipe, print)


def constant_model(path: Path, logit: float) -> Path:
    """A checkpoint whose logit is the same everywhere."""
    network = SAUNet(**SMALL)
    with torch.no_grad():
        network.last_blocks[-1].weight.zero_()
        network.last_blocks[-1].bias.fill_(logit)
    path.parent.mkdir()
    torch.save(pack(network, 64, 1, 0.5, 0.5, {}), path)
    return path


def test_some_views_are_painted_and_some_are_mosaics(monkeypatch: pytest.MonkeyPatch) -> None:

    def upright(levels: Levels, _: np.ndarray, size: int, *__: Any) -> tuple[np.ndarray, np.ndarray]:
        return levels.small[0][:size, :size], levels.small[1][:size, :size]

    monkeypatch.setattr(training, "augment", upright)
    nothing = np.zeros((64, 64), np.uint8)
    levels = [levels_of(np.full((64, 64, 3), grey, np.uint8), nothing, 64) for grey in (50, 90, 200)]
    images = [PaintedImage(levels[0], levels[1:])]
    views = [AugmentedImages(images, [], replace(RECIPE, seed=seed))[0, 0][0].numpy() for seed in range(600)]
    assert {view.shape for view in views} == {(64, 64, 3)}
    whole = [int(view[0, 0, 0]) for view in views if view.min() == view.max()]
    for grey in (90, 200):
        assert 0.11 < whole.count(grey) / len(whole) < 0.2
    mosaics = len(views) - len(whole)
    assert 0.03 < mosaics / len(views) < 0.15, "most mosaics show that they are four views"


@pytest.mark.slow
def test_it_starts_from_given_weights(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 12)
    first = train(of(data), tmp_path / "first", replace(RECIPE, epochs=2), print)
    slow = replace(RECIPE, epochs=1, learning_rate=1e-9)
    second = train(of(data), tmp_path / "second", slow, print, start=first)
    (before, _), (after, card) = load_checkpoint(first), load_checkpoint(second)
    for name, weights in before.named_parameters():
        assert torch.allclose(after.get_parameter(name), weights, atol=1e-6)
    assert card["training"]["started_from"] == "first/checkpoint.pt"
    other_split = replace(slow, seed=7, size=32, validation=0.4)
    third = train(of(data), tmp_path / "same", other_split, print, start=first)
    held_out = [load_checkpoint(path)[1]["training"]["validation_names"] for path in (first, third)]
    assert held_out[0] == held_out[1]
    torch.save(pack(SAUNet(**SMALL | {"widths": [4, 8], "decoder": [4]}), 64, 1, 0.5, 0.5, {}), tmp_path / "other.pt")
    with pytest.raises(ModelError, match="another architecture"):
        train(of(data), tmp_path / "third", slow, print, start=tmp_path / "other.pt")


def test_what_is_held_out_can_be_named(tmp_path: Path) -> None:
    """A hospital's pictures, for instance. A near-duplicate of one of them is not trained on either."""
    data = make_data(tmp_path / "data", 12)
    for part in ("images", "masks"):
        shutil.copy(data / part / "p3.png", data / part / "again.png")
    names = tmp_path / "held_out.txt"
    names.write_text("data/p3\n\ndata/p5.jpg\n")
    once = replace(RECIPE, epochs=1)
    checkpoint = train(of(data, held_out=names), tmp_path / "run", once, print)
    assert load_checkpoint(checkpoint)[1]["training"]["validation_names"] == ["data/again", "data/p3", "data/p5"]
    with pytest.raises(SettingsError, match="held out other images"):
        train(of(data, held_out=names), tmp_path / "next", once, print, start=checkpoint)
    names.write_text("p3\n")
    with pytest.raises(DataError, match="write each name as folder/image"):
        train(of(data, held_out=names), tmp_path / "other", once, print)
    names.write_text("\n")
    with pytest.raises(DataError, match="holds no names"):
        train(of(data, held_out=names), tmp_path / "other", once, print)
    with pytest.raises(DataError, match=r"missing\.txt: cannot be read"):
        train(of(data, held_out=tmp_path / "missing.txt"), tmp_path / "other", once, print)


@pytest.mark.slow
def test_pictures_held_out_before_that_are_not_here_are_said(tmp_path: Path) -> None:
    data, lines = make_data(tmp_path / "data", 12), list[str]()
    once = replace(RECIPE, epochs=1)
    first = train(of(data), tmp_path / "first", once, print)
    train(of(data.rename(tmp_path / "other")), tmp_path / "next", once, lines.append, start=first)
    assert lines[0].startswith("2 of the 2 images that the run of")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    data, wild, before = make_data(tmp_path / "data", 12), replace(RECIPE, learning_rate=1e30), children()
    with pytest.raises(SettingsError, match="lower --learning-rate") as failure:
        train(of(data), tmp_path / "run", wild, print)
    assert failure.tb  # holds all that the run held
    assert children() <= before


@pytest.mark.slow
def test_it_starts_from_imagenet_weights_which_learn_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "OURS", OURS)
    theirs = published(tmp_path / "imagenet.pth", "efficientnet-lite2")
    data = make_data(tmp_path / "data", 6)
    still = replace(RECIPE, epochs=1, learning_rate=1e-9)
    checkpoint = train(of(data), tmp_path / "run", still, print, start=tmp_path / "imagenet.pth")
    network, card = load_checkpoint(checkpoint)
    kernel = network.state_dict()["downsample.1.0.depthwise.0.weight"]
    assert torch.allclose(kernel, theirs["_blocks.4._depthwise_conv.weight"], atol=1e-6)
    assert card["training"]["started_from"].endswith("/imagenet.pth")
    groups = torch.load(tmp_path / "run" / "run.pt", weights_only=True)["optimizer"]["param_groups"]
    assert groups[0]["lr"] > groups[1]["lr"] > 0
    with pytest.raises(ModelError, match=r"nothing\.pth: no such checkpoint"):
        train(of(data), tmp_path / "other", still, print, start=tmp_path / "nothing.pth")


def test_several_folders_are_one_data_set_and_a_folders_own_names_count(tmp_path: Path) -> None:
    one, two = make_data(tmp_path / "one", 8), make_data(tmp_path / "two", 8)
    (one / "train.txt").write_text("p0\np1\np2\np3\np4\n")
    lines: list[str] = []
    checkpoint = train(of(one, two), tmp_path / "run", replace(RECIPE, epochs=1), lines.append)
    training_pictures, held_out = (int(part.split()[0]) for part in lines[0].split(", ")[:2])
    assert training_pictures + held_out == 13
    assert load_checkpoint(checkpoint)[1]["training"]["data"].startswith("one and two")
    held_out_names = load_checkpoint(checkpoint)[1]["training"]["validation_names"]
    assert {name.split("/")[0] for name in held_out_names} <= {"one", "two"}


@pytest.mark.slow
def test_healthy_pictures_can_be_shown_more_often(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 15)
    for index in range(10):  # without a polyp
        cv2.imwrite(str(data / "masks" / f"p{index}.png"), np.zeros((48, 64), np.uint8))
    steps = []
    for views in (1, 4):
        out = tmp_path / str(views)
        train(of(data), out, replace(RECIPE, epochs=1, healthy_views=views), print)
        steps.append(torch.load(out / "run.pt", weights_only=True)["step"])
    assert steps[0] == 3
    assert steps[1] >= 3 * 2


@pytest.mark.slow
def test_without_averaging_the_last_weights_are_kept(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 12)
    for without, equal in (((), False), (("averaging",), True)):
        out = tmp_path / ("-".join(without) or "whole")
        train(of(data), out, replace(RECIPE, epochs=1, without=without), print)
        state = torch.load(out / "run.pt", weights_only=True)
        weights = state["network"]["last_blocks.1.weight"]
        assert torch.equal(state["averaged"]["last_blocks.1.weight"], weights) is equal


@pytest.mark.slow
def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 12)
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(of(data), run, RECIPE, stop_after(1))
    with pytest.raises(SettingsError, match="another learning_rate"):
        train(of(data), run, replace(RECIPE, learning_rate=1e-3), print)


@pytest.mark.slow
def test_other_data_in_the_same_folder_and_a_broken_state_are_refused(tmp_path: Path) -> None:
    data, run = make_data(tmp_path / "data", 12), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(of(data), run, RECIPE, stop_after(1))
    with pytest.raises(SettingsError, match="another data"):
        train(of(make_data(tmp_path / "other", 12)), run, RECIPE, print)
    state = torch.load(run / "run.pt", weights_only=True)
    torch.save(state | {"network": {}}, run / "run.pt")
    with pytest.raises(ModelError, match="cannot be resumed"):
        train(of(data), run, RECIPE, print)
    (run / "run.pt").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot be resumed"):
        train(of(data), run, RECIPE, print)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be created"):
        train(of(data), tmp_path / "file" / "run", RECIPE, print)


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 2)
    with pytest.raises(SettingsError, match="multiple of 4, at least 8"):
        train(of(data), tmp_path / "run", replace(RECIPE, size=70), print)
    with pytest.raises(SettingsError, match="--without sleep: must be one of painting"):
        train(of(data), tmp_path / "run", replace(RECIPE, without=("sleep",)), print)
    with pytest.raises(DataError, match="too few"):
        train(of(data), tmp_path / "run", RECIPE, print)


@pytest.mark.slow
def test_a_few_pictures_make_a_smaller_batch_and_it_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = replace(RECIPE, epochs=1, batch=16)
    train(of(make_data(tmp_path / "data", 4)), tmp_path / "run", recipe, lines.append)
    assert any("batch size is 3" in line for line in lines)


@pytest.mark.slow
def test_the_shipped_weights_are_trained_with_frozen_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "OURS", OURS)
    data, recipe = make_data(tmp_path / "data", 6), replace(RECIPE, epochs=1, learning_rate=1e-4)
    first = train(of(data), tmp_path / "first", recipe, print, start=shipped_weights())
    second = train(of(data), tmp_path / "second", recipe, print, start=first)
    shipped = SAUNet(**OURS)
    load_exported(shipped_weights(), shipped)
    for checkpoint in (first, second):
        network, card = load_checkpoint(checkpoint)
        assert card["training"]["norms"] == "frozen"
        assert all(torch.equal(tensor, shipped.get_buffer(name)) for name, tensor in network.named_buffers())
        assert any(not torch.equal(tensor, shipped.get_parameter(name)) for name, tensor in network.named_parameters())
    with pytest.raises(ModelError, match="do not fit the architecture"):
        monkeypatch.setattr(training, "OURS", SMALL)
        train(of(data), tmp_path / "third", recipe, print, start=shipped_weights())


@pytest.mark.slow
def test_the_command_knows_the_shipped_weights_by_name(tmp_path: Path) -> None:
    data, run = make_data(tmp_path / "data", 5), tmp_path / "run"
    call("train", data, "--output", run, "--start", "shipped", "--epochs", 1, "--size", 64, "--batch", 2)
    assert load_checkpoint(run / "checkpoint.pt")[1]["training"]["started_from"] == "weights/sa_unet.onnx"
