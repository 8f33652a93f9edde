"""Checkpoint to ONNX: the contract, the metadata, the proof, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from polypstream.errors import ModelError, OutputError, SettingsError
from polypstream.export import graph, onnx_file, proof
from polypstream.export.int8 import Precision
from polypstream.export.onnx_file import ExportSettings, computed_by
from polypstream.inference.model_card import shipped_weights
from polypstream.inference.segmenter import Segmenter
from polypstream.models import training
from polypstream.models.checkpoint import load_checkpoint, pack
from polypstream.models.data import find_pairs, read_pair
from polypstream.models.picture_net import SECOND_VIEW_FROM_LOGIT, PictureNet
from polypstream.models.sa_unet import SEED, Architecture, SAUNet
from polypstream.sources.demo_colon import DemoColon, DemoSettings
from tests.conftest import call
from tests.models.test_data import make_data

SMALL = Architecture(encoder="residual", widths=[8, 12, 16], decoder=[8, 12], shortcut_kernel=1, narrow=True)
SIZE = 96  # another one than that of the checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "c.pt"
    torch.manual_seed(3)
    network = SAUNet(**SMALL)
    network.train()
    for _ in range(3):  # so that the normalisations have seen something
        network(torch.rand(4, 3, 64, 64))
    training = {"data": "tests", "terms": "free", "validation_dice": 0.5}
    torch.save(pack(network.eval(), 64, 2, 0.45, 0.7, training), path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of the checkpoint. torch's exporter takes seconds, so several tests share it."""
    output = tmp_path_factory.mktemp("exported") / "m.onnx"
    scores = checkpoint.with_name("s.json")
    scores.write_text(json.dumps({"mean_dice": 0.9, "images": 120}))
    call("export", checkpoint, "--output", output, "--size", SIZE, "--scores", scores)
    return output


@pytest.fixture(scope="module")
def converted(exported: Path) -> onnx.ModelProto:
    """The checkpoint's network as torch's exporter writes it."""
    return onnx.load(str(exported))


@pytest.fixture(scope="module")
def one_view(checkpoint: Path) -> onnx.ModelProto:
    """The same network with one view."""
    return onnx_file.to_onnx(PictureNet(load_checkpoint(checkpoint)[0], 1).eval(), SIZE)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def with_shifted_bias(model: onnx.ModelProto, shift: float) -> onnx.ModelProto:
    """A model with another last bias."""
    shifted = copy_of(model)
    bias = next(tensor for tensor in shifted.graph.initializer if tensor.name.endswith("last_blocks.1.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(shift), bias.name))
    return shifted


def assert_says_what_torch_says(model: Path, checkpoint: Path) -> Segmenter:
    segmenter = Segmenter(model, "cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (7, segmenter.size, segmenter.size, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = PictureNet(load_checkpoint(checkpoint)[0], 2).eval()(torch.from_numpy(pictures)).numpy()
    assert np.abs(segmenter.run(pictures).astype(int) - expected).max() <= 1
    return segmenter


@pytest.mark.slow
def test_the_exported_model_says_what_torch_says(checkpoint: Path, exported: Path) -> None:
    card = assert_says_what_torch_says(exported, checkpoint).card
    assert (card.input_size, card.views, card.threshold, card.peak, card.precision) == (SIZE, 2, 0.45, 0.7, "fp32")
    assert (card.trained_on, card.terms, card.scores["mean_dice"]) == ("tests", "free", 0.9)
    assert card.checkpoint_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert "torch 2" in card.exported_with
    assert "Research use only" in card.notice

    shown = call("inspect", exported).stdout
    assert "SA-UNet" in shown
    assert json.loads(call("inspect", exported, "--json").stdout) == card.model_dump(mode="json")
    assert [path.name for path in exported.parent.iterdir()] == ["m.onnx"]  # weights inside, nothing left over
    assert str(Path(onnx_file.__file__).parents[1]).encode() not in exported.read_bytes()  # no path of the machine


@pytest.mark.slow
def test_fp16_stores_every_large_tensor_in_half_and_says_the_same(
    checkpoint: Path, converted: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "MIN_HALF_ELEMENTS", 1024)  # the test's network has none as large as ours
    monkeypatch.setattr(proof, "DEMO_STEP", 125)
    monkeypatch.setattr(onnx_file, "to_onnx", lambda *_: copy_of(converted))
    onnx_file.export(checkpoint, tmp_path / "m.onnx", ExportSettings(SIZE, "fp16-weights"))
    tensors = onnx.load(str(tmp_path / "m.onnx")).graph.initializer
    large = [tensor for tensor in tensors if np.prod(tensor.dims) >= 1024]
    assert len(large) >= 4
    assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in large)
    assert assert_says_what_torch_says(tmp_path / "m.onnx", checkpoint).card.precision == "fp16-weights"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16-weights"])
def test_an_early_exit_leaves_out_the_second_view_of_images_that_show_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_view: onnx.ModelProto, precision: Precision
) -> None:
    """Which images of noise show something is chosen by the last bias: two of six here."""
    monkeypatch.setattr(graph, "MIN_HALF_ELEMENTS", 1024)
    monkeypatch.setattr(proof, "DEMO_STEP", 125)
    images = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    network, card = load_checkpoint(checkpoint)
    with torch.inference_mode():
        highest = PictureNet(network, 1).logits(torch.from_numpy(images))[0].amax((1, 2))
        shift = SECOND_VIEW_FROM_LOGIT - float(highest.sort().values[3:5].mean())
        network.last_blocks[-1].bias += shift
    shows = [bool(each) for each in highest + shift >= SECOND_VIEW_FROM_LOGIT]
    assert sum(shows) == 2
    torch.save(pack(network, SIZE, 2, 0.4, 0.8, card["training"]), tmp_path / "c.pt")
    shifted = with_shifted_bias(one_view, shift)
    monkeypatch.setattr(onnx_file, "to_onnx", lambda *_: shifted)
    file = tmp_path / "m.onnx"
    onnx_file.export(tmp_path / "c.pt", file, ExportSettings(SIZE, precision, early_exit=True))

    with torch.inference_mode():
        expected = PictureNet(network, 2).eval()(torch.from_numpy(images)).numpy()
    segmenter = Segmenter(file, "cpu")
    assert (segmenter.card.early_exit, segmenter.card.views) == (True, 2)
    most = 2 if precision == "fp16" else 1
    assert np.abs(segmenter.run(images).astype(int) - expected).max() <= most
    model = onnx.load(str(file))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("views.all"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    views = [len(session.run(["views.all"], {"frames": image[None]})[0]) for image in images]
    assert views == [2 if each else 1 for each in shows]


def test_an_early_exit_needs_two_views(tmp_path: Path) -> None:
    torch.save(pack(SAUNet(**SMALL), SIZE, 1, 0.4, 0.8, {"data": "d", "terms": "t"}), tmp_path / "c.pt")
    with pytest.raises(SettingsError, match=r"--early-exit: .* has one view only"):
        onnx_file.export(tmp_path / "c.pt", tmp_path / "m.onnx", ExportSettings(early_exit=True))
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.slow
def test_fp16_computes_in_half(
    checkpoint: Path, converted: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "DEMO_STEP", 125)
    monkeypatch.setattr(onnx_file, "to_onnx", lambda *_: copy_of(converted))
    onnx_file.export(checkpoint, tmp_path / "m.onnx", ExportSettings(SIZE, "fp16"))
    assert_computes_in_half(onnx.load(str(tmp_path / "m.onnx")))
    assert Segmenter(tmp_path / "m.onnx", "cpu").card.precision == "fp16"


def assert_computes_in_half(model: onnx.ModelProto) -> None:
    """All convolutions take and give half floats."""
    typed = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in typed.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        assert {types[name] for name in (*node.input, *node.output)} == {onnx.TensorProto.FLOAT16}


def test_the_shipped_network_computes_the_same_in_half(tmp_path: Path) -> None:
    """Without optimisation ONNX Runtime rounds each feature map to half floats, as a GPU does."""
    model = onnx.load(str(shipped_weights()))
    graph.widen_weights(model)
    graph.compute_in_half(model)
    assert_computes_in_half(model)
    onnx.save(model, tmp_path / "half.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    half = onnxruntime.InferenceSession(str(tmp_path / "half.onnx"), options, providers=["CPUExecutionProvider"])
    whole = Segmenter(shipped_weights(), "cpu")
    colon = DemoColon(DemoSettings(width=256, height=256))
    pictures = np.stack([colon.render(index)[0] for index in (20, 40, 120)])
    [found], expected = half.run(None, {"frames": pictures}), np.stack(whole.segment([*pictures]))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2
    assert (expected >= 128).any()


@pytest.mark.slow
def test_int8_finds_what_torch_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "OURS", SMALL)
    monkeypatch.setattr(training, "draw_curves", lambda *_: None)  # takes longer than the epochs
    data, output = make_data(tmp_path / "d", count=15, size=(96, 96)), tmp_path / "m.onnx"
    recipe = training.Recipe(epochs=6, size=64, batch=4, learning_rate=1e-2)
    checkpoint = training.train(training.TrainingData([data]), tmp_path / "run", recipe, print)
    onnx_file.export(checkpoint, output, ExportSettings(precision="int8", calibration=data))
    kinds = {node.op_type for node in onnx.load(str(output)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert Segmenter(output, "cpu").card.precision == "int8"
    pictures = [cv2.resize(read_pair(pair)[0], (64, 64)) for pair in find_pairs(data)]
    network = load_checkpoint(checkpoint)[0]
    net = PictureNet(network, 1).eval()
    assert proof.mask_dice(computed_by(net), output, pictures, 128) >= proof.MIN_DICE
    network.last_blocks[1].weight.data.neg_()  # another network finds other pixels
    assert proof.mask_dice(computed_by(net), output, pictures, 128) < proof.MIN_DICE


def test_int8_needs_pictures(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--calibration"):
        onnx_file.export(checkpoint, tmp_path / "m.onnx", ExportSettings(precision="int8"))
    assert not list(tmp_path.glob("*.onnx*"))


@pytest.mark.slow
def test_the_seeds_checkpoint_exports_with_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "VERIFIED_BATCHES", (2,))  # a large network: other tests verify the other batches
    monkeypatch.setattr(proof, "DEMO_STEP", 125)
    torch.manual_seed(0)
    network = SAUNet(**SEED).eval()
    torch.save(network.state_dict(), tmp_path / "saunet128.pt")
    onnx_file.export(tmp_path / "saunet128.pt", tmp_path / "seed.onnx", ExportSettings(precision="fp16-weights"))
    segmenter = Segmenter(tmp_path / "seed.onnx", "cpu")
    assert segmenter.size == 128
    pictures = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = PictureNet(network, 1)(torch.from_numpy(pictures)).numpy()
    assert np.abs(segmenter.run(pictures).astype(int) - expected).max() <= 1
    assert expected.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "shift"), [("fp32", 0.1), ("int8", -5.0)])
def test_a_model_that_disagrees_is_not_written(
    checkpoint: Path,
    converted: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    shift: float,
) -> None:
    """With another bias in the file than in torch, as a broken exporter would write it."""

    monkeypatch.setattr(proof, "DEMO_STEP", 125)
    monkeypatch.setattr(onnx_file, "to_onnx", lambda *_: with_shifted_bias(converted, shift))
    pictures = make_data(tmp_path / "d", count=4) if precision == "int8" else None
    with pytest.raises(ModelError, match="too much"):
        onnx_file.export(checkpoint, tmp_path / "m.onnx", ExportSettings(SIZE, precision, pictures))
    assert not list(tmp_path.glob("*.onnx*"))


@pytest.mark.slow
def test_what_cannot_be_exported_is_said(checkpoint: Path, tmp_path: Path) -> None:
    for size in (98, 0, -8):
        with pytest.raises(SettingsError, match="multiple of 4"):
            onnx_file.export(checkpoint, tmp_path / "m.onnx", ExportSettings(size))
    with pytest.raises(OutputError, match="cannot be written"):
        onnx_file.export(checkpoint, checkpoint / "m.onnx", ExportSettings())
    (tmp_path / "bad.pt").write_text("nothing")
    done = call("export", tmp_path / "bad.pt", "--output", tmp_path / "m.onnx", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.onnx*"))
