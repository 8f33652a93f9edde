"""Networks of other programs become model files: handmade ones against torch, those of packages against the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from polypstream.errors import ModelError, OutputError, SettingsError
from polypstream.export import by_hand, proof
from polypstream.export.int8 import calibration_images
from polypstream.export.network import WrapSettings, parse_size
from polypstream.export.prototypes import MOST
from polypstream.export.wrap import wrap
from polypstream.inference.providers import open_session
from polypstream.inference.segmenter import Segmenter
from tests.conftest import Clip, call, make_clip, summary_of
from tests.inference import fake_cuda
from tests.models.test_data import make_data
from tests.web.serving import served, settings_for

NETWORKS = Path(sys.prefix) / "networks" / "exported"
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(autouse=True)
def few_demo_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "DEMO_STEP", 125)


@dataclass(frozen=True)
class Net:
    """A network of one convolution, in as many shapes as programs write.

    Attributes:
        maps: for each output its number of channels, and the fraction of the picture's size at which it is.
        batch: 1 or a name. fixed: a Reshape in the graph, too, fixes a batch of one.
        size: height and width, numbers or names.
        ends_in: the operator that makes probabilities.
        flat: the map has no axis for its channel.
    """

    maps: tuple[tuple[int, int], ...] = ((1, 1),)
    layout: str = "NCHW"
    channels: int | str = 3
    batch: int | str = "batch"
    fixed: bool = False
    size: tuple[int | str, int | str] = (64, 64)
    dtype: str = "FLOAT"
    ends_in: str = ""
    flat: bool = False
    opset: int = 17

    def weights(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the convolution of an output."""
        random = np.random.default_rng(number)
        channels = self.channels if isinstance(self.channels, int) else 3
        count = self.maps[number][0]
        return random.normal(0, 1, (count, channels, 3, 3)).astype(np.float32), np.zeros(count, np.float32)


def make_network(path: Path, net: Net) -> Path:
    """Write the network as an ONNX file."""
    elements = getattr(TensorProto, net.dtype)
    nodes, tensors, outputs = [helper.make_node("Cast", ["picture"], ["x0"], to=TensorProto.FLOAT)], [], []
    perm = [0, 3, 1, 2] if net.layout == "NHWC" else [0, 1, 2, 3]
    nodes.append(helper.make_node("Transpose", ["x0"], ["x1"], perm=perm))
    if net.fixed:
        shape = np.array([1, net.channels, *net.size], np.int64)
        tensors.append(numpy_helper.from_array(shape, "shape"))
    nodes.append(helper.make_node(*("Reshape", ["x1", "shape"]) if net.fixed else ("Identity", ["x1"]), ["x2"]))
    for number, (_, fraction) in enumerate(net.maps):
        weights, bias = net.weights(number)
        tensors += [numpy_helper.from_array(weights, f"w{number}"), numpy_helper.from_array(bias, f"b{number}")]
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Conv", [f"w{number}", f"b{number}"], {"pads": [1, 1, 1, 1]}),
            ("AveragePool", [], {"kernel_shape": [fraction] * 2, "strides": [fraction] * 2}),
            *([(net.ends_in, [], {"axis": 1} if net.ends_in == "Softmax" else {})] if net.ends_in else []),
            *([("Squeeze", ["one"], {})] if net.flat else []),
            *([("Transpose", [], {"perm": [0, 2, 3, 1]})] if net.layout == "NHWC" else []),
            ("Cast", [], {"to": TensorProto.FLOAT16 if net.dtype == "FLOAT16" else TensorProto.FLOAT}),
        ]
        last = "x2"
        for step, (kind, more, attributes) in enumerate(steps):
            name = f"map{number}" if step == len(steps) - 1 else f"y{number}_{step}"
            nodes.append(helper.make_node(kind, [last, *more], [name], **attributes))
            last = name
        kind = TensorProto.FLOAT16 if net.dtype == "FLOAT16" else TensorProto.FLOAT
        outputs.append(helper.make_tensor_value_info(last, kind, [None] * (3 if net.flat else 4)))
    tensors.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    axes = [net.channels, *net.size] if net.layout == "NCHW" else [*net.size, net.channels]
    picture = helper.make_tensor_value_info("picture", elements, [net.batch, *axes])
    graph = helper.make_graph(nodes, "net", [picture], outputs, tensors)
    opset = [helper.make_opsetid("", net.opset)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="hand"), path)
    return path


def by_torch(net: Net, pictures: np.ndarray, prepare: Callable[[Tensor], Tensor], number: int, channel: int) -> Tensor:
    """What the network says of the pictures, in 0..255."""
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    height, width = (length if isinstance(length, int) else 64 for length in net.size)
    values = F.interpolate(values, (height, width), mode="bilinear", antialias=True)
    logits = F.conv2d(prepare(values), *map(torch.from_numpy, net.weights(number)), padding=1)
    logits = F.avg_pool2d(logits, net.maps[number][1])
    as_probability = (lambda maps: maps.softmax(1)) if logits.shape[1] > 1 else torch.sigmoid
    logits = as_probability(logits) if net.ends_in else logits
    maps = F.interpolate(logits, pictures.shape[1:3], mode="bilinear", align_corners=False)
    maps = maps if net.ends_in else as_probability(maps)
    return 255 * maps[:, channel]


def as_unit(values: Tensor) -> Tensor:
    return values / 255


def as_imagenet(values: Tensor) -> Tensor:
    mean, std = (torch.tensor(each)[:, None, None] for each in IMAGENET)
    return (values / 255 - mean) / std


def as_grey(values: Tensor) -> Tensor:
    return (values * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True) / 255


def as_zscore(values: Tensor) -> Tensor:
    return (values - values.mean((2, 3), keepdim=True)) / values.std((2, 3), correction=0, keepdim=True)


UNIT = WrapSettings(normalize="unit")
# For each case the network, the settings, what the network wants, and the output and the channel that count.
CASES: dict[str, tuple[Net, WrapSettings, Callable[[Tensor], Tensor], int, int]] = {
    "one map of logits": (Net(), WrapSettings(normalize="imagenet"), as_imagenet, 0, 0),
    "two channels, as ColonSegNet": (Net(((2, 1),)), replace(UNIT, activation="softmax"), as_unit, 0, 1),
    "four maps, as PraNet": (
        Net(((1, 8), (1, 4), (1, 2), (1, 1)), batch=1),
        *(replace(UNIT, normalize="imagenet", map="map3"), as_imagenet, 3, 0),
    ),
    "softmax inside, as nnU-Net": (Net(((2, 1),), ends_in="Softmax"), WrapSettings("zscore"), as_zscore, 0, 1),
    "a channel of five": (Net(((5, 2),)), replace(UNIT, channel=3, activation="softmax"), as_unit, 0, 3),
    "sigmoid inside, as Keras": (Net(layout="NHWC", ends_in="Sigmoid", batch="None"), UNIT, as_unit, 0, 0),
    "logits at a quarter, of any size": (Net(((1, 4),), size=("h", "w")), replace(UNIT, size=(64, 64)), as_unit, 0, 0),
    "wide": (Net(((1, 4),), size=(64, 96)), replace(UNIT, normalize="0.5,0.5"), lambda x: x / 127.5 - 1, 0, 0),
    "half floats": (Net(dtype="FLOAT16"), UNIT, lambda x: (x / 255).half().float(), 0, 0),
    "bytes": (Net(dtype="UINT8"), WrapSettings(), lambda x: x, 0, 0),
    "grey": (Net(channels=1), UNIT, as_grey, 0, 0),
    "blue first": (Net(), WrapSettings("none", bgr=True), lambda x: x.flip(1), 0, 0),
    "no axis of channels": (Net(flat=True), UNIT, as_unit, 0, 0),
    "an old opset": (Net(opset=11), UNIT, as_unit, 0, 0),
    "a batch of one in the graph": (Net(batch=1, fixed=True), UNIT, as_unit, 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrapped_network_computes_what_torch_computes(case: str, tmp_path: Path) -> None:
    net, settings, prepare, number, channel = CASES[case]
    output = tmp_path / "new" / "mine.onnx"
    result = wrap(make_network(tmp_path / "net.onnx", net), output, settings)
    assert f"map{number}" in result
    segmenter = Segmenter(output, "cpu")
    side = max(length for length in net.size if isinstance(length, int)) if net.size != ("h", "w") else 64
    assert segmenter.size == side
    small = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pictures = np.kron(small, np.ones((1, side // 8, side // 8, 1), np.uint8))
    expected = by_torch(net, pictures, prepare, number, channel).numpy()
    assert expected.std() > 5
    # Half floats: both computed in single precision, but the output is rounded to half.
    assert np.abs(segmenter.run(pictures) - expected).max() < (0.7 if net.dtype == "FLOAT16" else 0.51)


WRONG: dict[str, tuple[Net, WrapSettings, type[Exception], str]] = {
    "no colours": (Net(), WrapSettings(), SettingsError, "--normalize: give"),
    "unknown colours": (Net(), WrapSettings("rgb"), SettingsError, "--normalize rgb: must be imagenet"),
    "colours for 0..255": (Net(), WrapSettings("123.7,58.4"), SettingsError, "divide those for 0..255"),
    "colours of bytes": (Net(dtype="UINT8"), UNIT, SettingsError, "takes the values 0..255"),
    "imagenet in grey": (Net(channels=1), WrapSettings("imagenet"), SettingsError, "takes grey pictures"),
    "no size": (Net(size=("h", "w")), UNIT, SettingsError, "--size WIDTHxHEIGHT"),
    "another size": (Net(), replace(UNIT, size=(96, 96)), SettingsError, "--size 96x96: .* takes 64x64 only"),
    "no channels": (Net(channels="c", size=("h", "w")), UNIT, SettingsError, "--layout nchw or nhwc"),
    "four channels": (Net(channels=4), UNIT, ModelError, "a picture has 3 channels, or 1"),
    "another layout": (Net(), replace(UNIT, layout="NHWC"), ModelError, "has 64 channels"),
    "several maps": (
        Net(((1, 1), (1, 2))),
        UNIT,
        SettingsError,
        r"--map NAME: .*map0 \[1, 64, 64\], map1 \[1, 32, 32\]",
    ),
    "no such map": (Net(), replace(UNIT, map="out"), SettingsError, "--map out: .* it has map0"),
    "several channels": (Net(((5, 1),)), UNIT, SettingsError, "--channel N: map0 .* has 5 channels"),
    "no such channel": (Net(((5, 1),)), replace(UNIT, channel=5), SettingsError, "--channel 5"),
    "no activation": (Net(((2, 1),)), UNIT, SettingsError, "--activation softmax or sigmoid"),
    "softmax of one": (Net(), replace(UNIT, activation="softmax"), SettingsError, "has one channel"),
    "logits": (Net(), replace(UNIT, activation="none"), ModelError, "which are no probabilities; give --activation"),
    "several pictures": (Net(batch=4), UNIT, ModelError, "takes 4 pictures at once"),
    "threshold": (Net(), replace(UNIT, threshold=1.0), SettingsError, "--threshold 1: must be between"),
    "int8 without pictures": (Net(), replace(UNIT, precision="int8"), SettingsError, "--calibration"),
    "integers": (Net(dtype="INT32"), UNIT, ModelError, r"its input is a tensor\(int32\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_must_be_given_is_said(case: str, tmp_path: Path) -> None:
    net, settings, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        wrap(make_network(tmp_path / "net.onnx", net), tmp_path / "mine.onnx", settings)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_files_that_are_no_networks_are_refused(tmp_path: Path, red_model: Path) -> None:
    (tmp_path / "net.onnx").write_text("nothing")
    with pytest.raises(ModelError, match=r"net\.onnx: not a model"):
        wrap(tmp_path / "net.onnx", tmp_path / "mine.onnx", UNIT)
    with pytest.raises(ModelError, match="no such model file"):
        wrap(tmp_path / "no.onnx", tmp_path / "mine.onnx", UNIT)
    with pytest.raises(ModelError, match="holds classes; export the network without its argmax"):
        wrap(red_model, tmp_path / "mine.onnx", WrapSettings())
    with pytest.raises(OutputError, match="cannot be written"):
        wrap(make_network(tmp_path / "n.onnx", Net()), tmp_path / "n.onnx" / "mine.onnx", UNIT)


def test_a_file_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand with another filter, as if the graph resized wrongly."""
    resize = by_hand._resize
    monkeypatch.setattr(by_hand, "_resize", lambda *given: np.roll(resize(*given), 1, axis=2))
    with pytest.raises(ModelError, match=r"not written; differs from .* too much"):
        wrap(make_network(tmp_path / "net.onnx", Net()), tmp_path / "mine.onnx", UNIT)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_network_that_fixes_one_picture_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrap(make_network(tmp_path / "a.onnx", Net(batch=1)), tmp_path / "mine.onnx", UNIT)
    assert not caplog.records
    wrap(make_network(tmp_path / "b.onnx", Net(batch=1, fixed=True)), tmp_path / "mine.onnx", UNIT)
    assert "b.onnx: takes one picture at a time" in caplog.text
    assert [node.op_type for node in onnx.load(tmp_path / "mine.onnx").graph.node] == ["Scan"]


def test_multiplications_are_counted(tmp_path: Path) -> None:
    """A convolution, its transpose, and a product of matrices, by hand."""
    random = np.random.default_rng(0)
    shapes = {"w": (64, 3, 3, 3), "up": (64, 32, 2, 2), "matrix": (128, 128), "last": (1, 32, 1, 1)}
    tensors = [numpy_helper.from_array(random.normal(0, 0.1, s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["picture", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["a", "up"], ["b"], strides=[2, 2]),
        helper.make_node("MatMul", ["b", "matrix"], ["c"]),
        helper.make_node("Conv", ["c", "last"], ["logits"]),
    ]
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["N", 3, 128, 128])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1, 128, 128])
    graph = helper.make_graph(nodes, "net", [picture], [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    wrap(tmp_path / "net.onnx", tmp_path / "mine.onnx", UNIT)
    expected = 64**2 * 64 * 27 + 64**2 * 64 * 32 * 4 + 32 * 128**3 + 128**2 * 32
    assert Segmenter(tmp_path / "mine.onnx", "cpu").card.gmac == round(expected / 1e9, 3)


def test_a_second_sigmoid_is_suspected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrap(make_network(tmp_path / "a.onnx", Net(ends_in="Sigmoid")), tmp_path / "mine.onnx", UNIT)
    assert not caplog.records
    again = replace(UNIT, activation="sigmoid")
    wrap(make_network(tmp_path / "a.onnx", Net(ends_in="Sigmoid")), tmp_path / "mine.onnx", again)
    assert "lie between 0 and 1; if they are probabilities already" in caplog.text


def test_sizes_are_width_and_height() -> None:
    assert parse_size("640x352") == (352, 640)
    assert parse_size("352") == (352, 352)
    for text in ("0x4", "a", "352x", "-3", "3x3x3"):
        with pytest.raises(SettingsError, match="--size"):
            parse_size(text)


def make_yolo(path: Path, classes: int = 1, doubt: float = 4.0) -> Path:
    """A network with outputs as those of YOLO for segmentation, [N, 4 + classes + 4, 84] and [N, 4, 16, 16].

    The more doubt, the lower the scores.
    """
    random = np.random.default_rng(14)
    length = 8 + classes
    tensors = {
        "w": random.normal(0, 2, (length, 3, 1)).astype(np.float32),
        "b": np.array([0, 0, -1, -1] + [-doubt] * classes + [0] * 4, np.float32),
        "wp": random.normal(0, 4, (4, 3, 1, 1)).astype(np.float32),
        "flat": np.array([0, 3, -1], np.int64),
        "parts": np.array([4, classes, 4], np.int64),
        "side": np.array(64, np.float32),
    }
    make = helper.make_node
    pools = [(f"p{side}", {"kernel_shape": [side] * 2, "strides": [side] * 2}) for side in (4, 8, 16, 32)]
    nodes = [make("AveragePool", ["images"], [name], **attributes) for name, attributes in pools]
    nodes += [make("Reshape", [f"p{side}", "flat"], [f"f{side}"]) for side in (8, 16, 32)]
    nodes += [
        make("Concat", ["f8", "f16", "f32"], ["anchors"], axis=2),
        make("Conv", ["anchors", "w", "b"], ["d"]),
        make("Split", ["d", "parts"], ["d0", "d1", "d2"], axis=1),
        make("Sigmoid", ["d0"], ["d3"]),
        make("Mul", ["d3", "side"], ["boxes"]),
        make("Sigmoid", ["d1"], ["scores"]),
        make("Concat", ["boxes", "scores", "d2"], ["output0"], axis=1),
        make("Conv", ["p4", "wp"], ["output1"]),
    ]
    graph = helper.make_graph(
        nodes,
        "yolo",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info(f"output{n}", TensorProto.FLOAT, [None] * (3 + n)) for n in (0, 1)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("threshold", [0.4, 0.6])
def test_boxes_and_prototypes_become_a_map(threshold: float, tmp_path: Path) -> None:
    """Above any threshold it is the union of the masks of all detections above it, as YOLO's own code makes them."""
    network = make_yolo(tmp_path / "yolo.onnx")
    result = wrap(network, tmp_path / "mine.onnx", UNIT)
    assert "output output0 and output1 1x64x64" in result
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    found = Segmenter(tmp_path / "mine.onnx", "cpu").run(pictures)
    given = {"images": (pictures / np.float32(255)).transpose(0, 3, 1, 2).astype(np.float32)}
    detections, prototypes = map(torch.from_numpy, open_session(network, "cpu").run(None, given))
    places = torch.arange(64)
    for picture, boxes, maps in zip(found, detections, prototypes, strict=True):
        enlarged = F.interpolate(maps[None], (64, 64), mode="bilinear")[0]
        union = torch.zeros(64, 64, dtype=torch.bool)
        assert 3 < (boxes[4] >= threshold).sum() <= MOST
        for x, y, width, height, _, *coefficients in boxes.T[boxes[4] >= threshold]:
            x1, x2, y1, y2 = x - width / 2, x + width / 2, y - height / 2, y + height / 2
            box = ((places >= y1) & (places < y2))[:, None] & ((places >= x1) & (places < x2))[None]
            union |= (torch.einsum("k,khw->hw", torch.stack(coefficients), enlarged) > 0) & box
        assert ((torch.from_numpy(picture) >= 255 * threshold) == union).float().mean() > 0.99
        assert 0.05 < union.float().mean() < 0.95


def test_of_several_classes_one_is_polyp(tmp_path: Path) -> None:
    network = make_yolo(tmp_path / "yolo.onnx", classes=3)
    with pytest.raises(SettingsError, match=r"--channel N: .* objects of 3 classes"):
        wrap(network, tmp_path / "mine.onnx", UNIT)
    with pytest.raises(SettingsError, match="--channel 3"):
        wrap(network, tmp_path / "mine.onnx", replace(UNIT, channel=3))
    assert "channel 2" in wrap(network, tmp_path / "mine.onnx", replace(UNIT, channel=2))


def redness(path: Path) -> Path:
    """A network whose logit is how much redder than green a pixel is, for values 0..1."""
    weights = np.array([20, -20, 0], np.float32).reshape(1, 3, 1, 1)
    nodes = [helper.make_node("Conv", ["picture", "w", "b"], ["logits"])]
    shape = ["N", 3, 128, 128]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1, 128, 128])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([-5], np.float32), "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.slow
def test_everything_works_with_a_wrapped_network(tmp_path: Path) -> None:
    mine, data = tmp_path / "mine.onnx", make_data(tmp_path / "d", size=(320, 200))
    words = ("--normalize", "unit", "--threshold", "0.4", "--peak", "0.6", "--name", "Red", "--terms", "free")
    done = call("wrap", redness(tmp_path / "red.onnx"), "--output", mine, *words, "--trained-on", "discs")
    assert "mine.onnx: written; input 3x128x128 (NCHW), output logits 1x128x128, channel 0" in done.stdout
    card = json.loads(call("inspect", mine, "--json").stdout)
    assert (card["model_name"], card["input_size"], card["threshold"], card["peak"]) == ("Red", 128, 0.4, 0.6)
    assert (card["terms"], card["trained_on"], card["precision"], card["scores"]) == ("free", "discs", "fp32", {})
    assert card["gmac"] == 0.001
    clip = make_clip(tmp_path, Clip())
    call("process", clip, "--output", tmp_path / "results", "--model", mine)
    assert summary_of(tmp_path / "results" / "clip")["polyps"] == 1
    call("archive", clip, "--output", tmp_path / "archive", "--model", mine, "--workers", 1)
    assert findings_of(tmp_path / "archive" / "clip") == findings_of(tmp_path / "results" / "clip")
    live = ("--record", tmp_path / "live.mp4", "--set", "live.max_staleness=60.0")
    call("live", f"replay:{clip}", *live, "--model", mine)
    assert len(findings_of(tmp_path / "live")) == 1
    with served(tmp_path / "served", settings_for(mine)) as app:
        id_ = app.send(clip)
        assert len(app.wait_for(id_, "finished", "failed")["tracks"]) == 1
        picture = next((data / "images").iterdir()).read_bytes()
        assert len(app.post("/api/segment", files={"file": picture}).json()["findings"]) == 1

    call("evaluate", mine, data, "--json", tmp_path / "e.json", "--provider", "cpu")
    assert json.loads((tmp_path / "e.json").read_text())["mean_dice"] > 0.9
    done = call("tune", mine, data)
    peak = json.loads(call("inspect", mine, "--json").stdout)["peak"]
    assert f"a finding must reach {peak:g} at one pixel" in done.stdout
    assert peak == 0.5  # the disc is certain, and healthy crops are quiet: the first peak is as good as any
    assert Segmenter(mine, "cpu").card.model_name == "Red"
    assert "--views" in call("tune", mine, data, "--views", 2, check=False).stderr


def findings_of(folder: Path) -> list[dict[str, Any]]:
    """The tracks of a run."""
    return list(json.loads((folder / "findings.json").read_text())["tracks"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "boxes"])
def test_int8_finds_the_same(kind: str, tmp_path: Path) -> None:
    """Also where one tensor holds boxes in pixels and scores of 0..1."""
    data, network = make_data(tmp_path / "d", count=4, size=(128, 128)), tmp_path / "net.onnx"
    network = redness(network) if kind == "map" else make_yolo(network, doubt=0.0)
    settings = replace(UNIT, threshold=0.1)
    wrap(network, tmp_path / "mine.onnx", settings)
    result = wrap(network, tmp_path / "int8.onnx", replace(settings, precision="int8", calibration=data))
    assert "masks like those of" in result
    segmenter = Segmenter(tmp_path / "int8.onnx", "cpu")
    assert segmenter.card.precision == "int8"
    pictures = np.stack(calibration_images("int8", data, segmenter.size))
    found, expected = segmenter.run(pictures) >= 26, Segmenter(tmp_path / "mine.onnx", "cpu").run(pictures) >= 26
    assert 0.01 < expected.mean() < 0.99
    assert (found == expected).mean() > 0.95


def test_int8_needs_pictures_with_findings(tmp_path: Path) -> None:
    data = make_data(tmp_path / "d", count=2, size=(128, 128))
    settings = replace(UNIT, precision="int8", calibration=data, bgr=True)
    with pytest.raises(ModelError, match="finds nothing in the calibration images"):
        wrap(redness(tmp_path / "red.onnx"), tmp_path / "mine.onnx", settings)


@pytest.mark.slow
def test_wrap_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from polypstream.__main__ import main\n"
        f"sys.argv = ['polypstream', 'wrap', {str(redness(tmp_path / 'red.onnx'))!r}, '--normalize', 'unit',"
        f" '--output', {str(tmp_path / 'mine.onnx')!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "written" in done.stdout, done.stderr


def make_shaped(path: Path, kind: str) -> Path:
    """A network that computes shapes from the number of pictures, as torch writes them.

    Args:
        path: the file to write.
        kind: "as_strided" gathers all elements in their order; "token" repeats a weight for each picture.
    """
    make = helper.make_node
    tensors = {
        "w": np.random.default_rng(3).normal(0, 1, (1, 3, 3, 3)).astype(np.float32),
        "token": np.array(0.5, np.float32).reshape(1, 1, 1, 1),
        "start": np.array(0, np.int64),
        "step": np.array(1, np.int64),
        "all": np.array([-1], np.int64),
        "rest": np.array([1, 64, 64], np.int64),
        "first": np.array([0], np.int64),
        "area": np.array(64 * 64, np.int64),
    }
    nodes = [
        make("Conv", ["picture", "w"], ["map"], pads=[1, 1, 1, 1]),
        make("Shape", ["map"], ["shape"], start=0, end=1),
        make("Concat", ["shape", "rest"], ["whole"], axis=0),
    ]
    if kind == "as_strided":
        nodes += [
            make("Squeeze", ["shape", "first"], ["count"]),
            make("Mul", ["count", "area"], ["end"]),
            make("Range", ["start", "end", "step"], ["order"]),
            make("Reshape", ["order", "whole"], ["places"]),
            make("Reshape", ["map", "all"], ["flat"]),
            make("Gather", ["flat", "places"], ["logits"]),
        ]
    else:
        nodes += [make("Expand", ["token", "whole"], ["tokens"]), make("Add", ["map", "tokens"], ["logits"])]
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["N", 3, 64, 64])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1, 64, 64])
    weights = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "shaped", [picture], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_shapes_that_depend_on_the_number_of_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They become constants. Where that is not possible, the model runs one picture after another."""
    wrap(make_shaped(tmp_path / "a.onnx", "as_strided"), tmp_path / "mine.onnx", UNIT)
    assert not caplog.records
    kinds = {node.op_type for node in onnx.load(tmp_path / "mine.onnx").graph.node}
    assert not kinds & {"Shape", "Range", "Gather", "Scan"}
    wrap(make_shaped(tmp_path / "b.onnx", "token"), tmp_path / "mine.onnx", UNIT)
    assert "GPUs do not compute shapes from the number of pictures, as it does for Add" in caplog.text
    assert [node.op_type for node in onnx.load(tmp_path / "mine.onnx").graph.node] == ["Scan"]


@pytest.mark.slow
@pytest.mark.skipif(not fake_cuda.POSSIBLE, reason="gcc, objdump or ONNX Runtime's CUDA provider is missing")
def test_a_gpu_takes_what_is_added(tmp_path: Path) -> None:
    """Nothing is left to the CPU, also not in a loop."""
    fake_cuda.build(tmp_path)
    files = []
    for case in (
        "two channels, as ColonSegNet",
        "wide",
        "grey",
        "softmax inside, as nnU-Net",
        "a batch of one in the graph",
    ):
        net, settings, *_ = CASES[case]
        files.append(str(tmp_path / f"{len(files)}.onnx"))
        wrap(make_network(tmp_path / "net.onnx", net), Path(files[-1]), settings)
    for number, network in enumerate(
        (
            make_yolo(tmp_path / "yolo.onnx"),
            *(make_shaped(tmp_path / f"{kind}.onnx", kind) for kind in ("as_strided", "token")),
        )
    ):
        files.append(str(tmp_path / f"shaped{number}.onnx"))
        wrap(network, Path(files[-1]), UNIT)
    assert_taken_whole(files, tmp_path)


def assert_taken_whole(files: list[str], libraries: Path) -> None:
    """The CUDA provider takes each model whole."""
    program = f"from polypstream.inference.providers import *\nfor f in {files}: open_session(Path(f), 'cuda')"
    found = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    run = subprocess.run([sys.executable, "-c", program], env=found, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# The options that docs/your-own-model.md gives for each package.
PACKAGES = {
    "smp_unet": WrapSettings("imagenet"),
    "smp_fpn": WrapSettings("imagenet"),
    "smp_segformer": WrapSettings("imagenet"),
    "torchvision_deeplab": WrapSettings("imagenet", map="out", activation="softmax"),
    "monai_unet": WrapSettings("unit"),
    "transformers_segformer": WrapSettings("imagenet", activation="softmax"),
    "nnunet": WrapSettings("zscore", activation="softmax"),
    "ultralytics_yolo": WrapSettings("unit"),
}
# The share of pixels that may differ by more than one grey level: at the edges of YOLO's masks, which are sharp.
EDGES = {"ultralytics_yolo": 0.001}


@pytest.fixture(scope="module")
def of_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the wrapped networks of packages."""
    return tmp_path_factory.mktemp("packages")


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_wrapped_network_says_what_its_package_says(name: str, of_packages: Path) -> None:
    """tests/export/networks.py wrote the network, and the probabilities that its package computes."""
    if not (NETWORKS / f"{name}.npz").is_file():
        pytest.skip("needs networks of public packages: make .venv/.networks")
    wrap(NETWORKS / f"{name}.onnx", of_packages / f"{name}.onnx", PACKAGES[name])
    answer = np.load(NETWORKS / f"{name}.npz")
    found = Segmenter(of_packages / f"{name}.onnx", "cpu").run(answer["pictures"])
    assert found.std() > 5
    assert (np.abs(found - 255 * answer["maps"]) > 1).mean() <= EDGES.get(name, 0)


@pytest.mark.slow
@pytest.mark.skipif(not fake_cuda.POSSIBLE, reason="gcc, objdump or ONNX Runtime's CUDA provider is missing")
def test_a_gpu_takes_the_networks_of_packages(of_packages: Path, tmp_path: Path) -> None:
    """Those that the tests above have written."""
    files = sorted(map(str, of_packages.iterdir()))
    if not files:
        pytest.skip("needs networks of public packages: make .venv/.networks")
    fake_cuda.build(tmp_path)
    assert_taken_whole(files, tmp_path)
