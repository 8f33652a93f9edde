"""Write a trained SA-UNet as a self-describing ONNX file, after proof that both say the same."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from polypstream.core.files import write_atomically, writing
from polypstream.core.geometry import grey_level
from polypstream.errors import ModelError, SettingsError
from polypstream.export.int8 import quantise
from polypstream.inference.model_card import INPUT, NOTICE, OUTPUT
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import prepare_image
from polypstream.models.checkpoint import load_checkpoint
from polypstream.models.data import find_pairs, names_file_of, read_pair, spread
from polypstream.models.picture_net import PictureNet, gmac_of
from polypstream.models.sa_unet import check_size
from polypstream.sources.demo_colon import DemoColon, DemoSettings

Precision = Literal["fp32", "fp16", "int8"]
# Of the model's interface and architecture, in its metadata.
VERSION = "1"
# Executed by every ONNX Runtime that we allow, and by those of some years before.
OPSET = 20
PROVEN_BATCHES = (1, 2, 5)
# Floating point may differ from torch by so many grey levels anywhere; integers must find the same pixels.
ALLOWED_GREY_LEVELS = 1
LEAST_AGREEMENT = 0.95
CALIBRATION_PICTURES = 64
# Smaller tensors (biases, depthwise kernels) are a tenth of the file; halving them moved probabilities by two levels.
WORTH_HALVING = 32768
# Every so many frames of the demo source are used for the proof.
DEMO_STEP = 25


def export(
    checkpoint: Path,
    output: Path,
    size: int | None,
    precision: Precision,
    scores: dict[str, Any],
    calibration: Path | None = None,
) -> str:
    """Export a checkpoint, prove it, and only then put it in its place.

    Args:
        checkpoint: of `polypstream train`, or the seed's saunet128.pt.
        output: the ONNX file to write.
        size: side in pixels of the pictures it will take; None: the size that it was trained at.
        precision: fp32, or fp16 to store the weights as half floats, which halves the file. They are widened
            when the file is loaded, so each provider computes as it does with fp32. int8 computes in 8-bit
            integers, which is faster on CPUs and a little less exact.
        scores: measured scores for the metadata.
        calibration: for int8, folder with images/ and masks/ on which the ranges are measured; those in its
            train.txt, or all.

    Returns:
        What the proof found, for people.

    Raises:
        ModelError: the checkpoint is neither, or the ONNX file does not say the same as torch.
        SettingsError: the network cannot take pictures of this size, or int8 lacks pictures.
        DataError: the pictures cannot be read.
        OutputError: the file cannot be written.
    """
    network, card = load_checkpoint(checkpoint)
    size = int(card["size"]) if size is None else size
    check_size(network.architecture, size)
    shown = _calibration_pictures(precision, calibration, size)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    net = PictureNet(network, int(card["views"])).eval()
    model = to_onnx(net, size)
    if precision == "fp16":
        halve_weights(model)
    if precision == "int8":
        model = quantise(model, shown)
    helper.set_model_props(model, describe(net, card, checkpoint, size, precision, scores))
    onnx.checker.check_model(model, full_check=True)
    with write_atomically(output) as unfinished:
        onnx.save(model, unfinished)
        if precision == "int8":
            agreement = agree(net, unfinished, shown, grey_level(card["threshold"]))
            proof, too_far = f"its masks and torch's have a Dice of {agreement:.4f}", agreement < LEAST_AGREEMENT
        else:
            largest = prove(net, unfinished, size)
            proof, too_far = f"at most {largest} of 255 grey levels from torch", largest > ALLOWED_GREY_LEVELS
        if too_far:
            raise ModelError(f"{output}: {proof}, which is too far; nothing was written")
    return proof


def to_onnx(net: PictureNet, size: int) -> onnx.ModelProto:
    """The network behind the picture contract, batch dimension dynamic."""
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's exporter
        program = torch.onnx.export(
            net,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return without_traces(program.model_proto)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's notes on where in which source file each part came from, full paths included."""
    parts = (model.graph.node, model.graph.initializer, model.graph.value_info, model.graph.input, model.graph.output)
    for part in (model.graph, *itertools.chain.from_iterable(parts)):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return model


def halve_weights(model: onnx.ModelProto) -> None:
    """Store large float weights as fp16 followed by a Cast, which ONNX Runtime folds away at load."""
    casts = []
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or weights.size < WORTH_HALVING:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def describe(
    net: PictureNet, card: dict[str, Any], checkpoint: Path, size: int, precision: Precision, scores: dict[str, Any]
) -> dict[str, str]:
    """The file's metadata; see polypstream.inference.model_card.ModelCard."""
    training = card["training"]
    made_with = ("polypstream", "torch", "onnx", "onnxscript")
    return {
        "model_name": "SA-UNet",
        "model_version": VERSION,
        "input_size": str(size),
        "views": str(net.views),
        "threshold": str(card["threshold"]),
        "peak": str(card["peak"]),
        "gmac": str(round(gmac_of(net.network, size, net.views), 3)),
        "precision": precision,
        "trained_on": str(training["data"]),
        "terms": str(training["terms"]),
        "scores": json.dumps(scores),
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "exported_with": ", ".join(f"{name} {version(name)}" for name in made_with),
        "notice": NOTICE,
    }


def prove(net: PictureNet, model: Path, size: int) -> int:
    """Run torch and ONNX Runtime on pictures of the demo source and on noise, in batches of several sizes.

    Returns:
        The largest difference, in grey levels of probability.
    """
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(3)]
    colon = DemoColon(DemoSettings(width=size, height=size))
    shown = [*(colon.render(index)[0] for index in range(0, len(colon), DEMO_STEP)), *noise]
    segmenter = Segmenter(model, provider="cpu")
    largest = 0
    with torch.inference_mode():
        for batch in PROVEN_BATCHES:
            for start in range(0, len(shown), batch):
                stacked = np.stack(shown[start : start + batch])
                expected = net(torch.from_numpy(stacked)).numpy().astype(int)
                found = segmenter.run(stacked)
                largest = max(largest, int(np.abs(found - expected).max()))
    return largest


def agree(net: PictureNet, model: Path, pictures: Sequence[np.ndarray], level: int) -> float:
    """The Dice of the pixels that torch and ONNX Runtime find, those of all pictures pooled.

    Args:
        net: in torch.
        model: the ONNX file.
        pictures: uint8 [size, size, 3].
        level: grey level of probability, 1..255, from which a pixel is found.
    """
    segmenter = Segmenter(model, provider="cpu")
    both = either = 0
    with torch.inference_mode():
        for picture in pictures:
            expected = net(torch.from_numpy(picture[None])).numpy() >= level
            found = segmenter.run(picture[None]) >= level
            both, either = both + 2 * int((expected & found).sum()), either + int(expected.sum() + found.sum())
    return both / either if either else 1.0


def _calibration_pictures(precision: Precision, folder: Path | None, size: int) -> list[np.ndarray]:
    if (precision == "int8") != (folder is not None):
        raise SettingsError("--calibration FOLDER: int8 needs it to measure ranges on, the other precisions do not")
    if folder is None:
        return []
    pictures = [read_pair(pair)[0] for pair in spread(find_pairs(folder, names_file_of(folder)), CALIBRATION_PICTURES)]
    return [prepare_image(picture, size)[1] for picture in pictures]
