"""Write a trained SA-UNet as an ONNX file with metadata, and verify that its output equals that of torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from polypstream.core.files import write_atomically, writing
from polypstream.core.geometry import grey_level
from polypstream.core.notice import NOTICE
from polypstream.errors import ModelError, SettingsError
from polypstream.export.int8 import quantise
from polypstream.inference.model_card import INPUT, OUTPUT
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import prepare_image
from polypstream.models.checkpoint import load_checkpoint
from polypstream.models.data import find_pairs, names_file_of, read_pair, spread
from polypstream.models.picture_net import PictureNet, gmac_of
from polypstream.models.sa_unet import check_size
from polypstream.sources.demo_colon import DemoColon, DemoSettings

Precision = Literal["fp32", "fp16", "int8"]
# Version of the model's interface and architecture, for its metadata.
VERSION = "1"
# All supported versions of ONNX Runtime execute this opset, and so do those of some years before.
OPSET = 20
VERIFIED_BATCHES = (1, 2, 5)
# Floating-point models may differ from torch by this many grey levels at each pixel.
MAX_DIFFERENCE = 1
# The masks of an int8 model must have at least this Dice with those of torch.
MIN_DICE = 0.95
CALIBRATION_IMAGES = 64
# Tensors with fewer elements stay in fp32. Biases and depthwise kernels are a tenth of the file only, and in fp16 they
# changed probabilities by two grey levels.
MIN_HALF_ELEMENTS = 32768
# Verification uses one of this many frames of the demo source.
DEMO_STEP = 25


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How a checkpoint is exported.

    Attributes:
        size: side in pixels of the model's input. None: as in the checkpoint.
        precision: "fp32"; "fp16", which stores the weights as half floats and halves the file; or "int8". With fp16 the
            weights are converted to fp32 when the file is loaded, so each provider computes as with fp32. int8 computes
            in 8-bit integers, which is faster on CPUs and slightly less accurate.
        calibration: for int8 the data set on which the ranges of feature maps are measured, with images/ and masks/.
            Images in its train.txt are used, or all images.
    """

    size: int | None = None
    precision: Precision = "fp32"
    calibration: Path | None = None


def export(checkpoint: Path, output: Path, settings: ExportSettings, scores: dict[str, Any] | None = None) -> str:
    """Export a checkpoint to an ONNX file. The file is written only if its output equals that of torch.

    Args:
        checkpoint: of `polypstream train`, or the seed project's saunet128.pt.
        output: the ONNX file to write.
        settings: how to export.
        scores: figures of `polypstream evaluate`, for the metadata.

    Returns:
        The result of the comparison with torch, as text for the user.

    Raises:
        ModelError: the checkpoint cannot be loaded, or the output of the ONNX file differs from that of torch.
        SettingsError: the model cannot take images of this size, or `calibration` is missing or not needed.
        DataError: the calibration images cannot be read.
        OutputError: the file cannot be written.
    """
    network, card = load_checkpoint(checkpoint)
    size = int(card["size"]) if settings.size is None else settings.size
    check_size(network.architecture, size)
    images = _calibration_images(settings, size)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    net = PictureNet(network, int(card["views"])).eval()
    model = to_onnx(net, size)
    if settings.precision == "fp16":
        halve_weights(model)
    if settings.precision == "int8":
        model = quantise(model, images)
    helper.set_model_props(model, describe(net, card, checkpoint, size, settings.precision, scores or {}))
    onnx.checker.check_model(model, full_check=True)
    with write_atomically(output) as unfinished:
        onnx.save(model, unfinished)
        if settings.precision == "int8":
            dice = mask_dice(net, unfinished, images, grey_level(card["threshold"]))
            result, differs = f"masks like those of torch, Dice {dice:.4f}", dice < MIN_DICE
        else:
            largest = largest_difference(net, unfinished, size)
            result, differs = f"differs from torch by at most {largest}/255", largest > MAX_DIFFERENCE
        if differs:
            raise ModelError(f"{output}: not written; {result}, which is too much")
    return result


def to_onnx(net: PictureNet, size: int) -> onnx.ModelProto:
    """Convert a model to ONNX, with a dynamic batch dimension.

    Args:
        net: the model.
        size: side in pixels of its input.
    """
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
    return remove_source_locations(program.model_proto)


def remove_source_locations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's notes about the source code of each node, which hold full paths of this machine."""
    parts = (model.graph.node, model.graph.initializer, model.graph.value_info, model.graph.input, model.graph.output)
    for part in (model.graph, *itertools.chain.from_iterable(parts)):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return model


def halve_weights(model: onnx.ModelProto) -> None:
    """Store large fp32 weights as fp16, each followed by a Cast, which ONNX Runtime removes by constant folding."""
    casts = []
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or weights.size < MIN_HALF_ELEMENTS:
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
    """Return the metadata of an ONNX file; see polypstream.inference.model_card.ModelCard.

    Args:
        net: the model.
        card: content of its checkpoint.
        checkpoint: path of the checkpoint.
        size: side in pixels of its input.
        precision: of the file.
        scores: figures of `polypstream evaluate`.
    """
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


def largest_difference(net: PictureNet, model: Path, size: int) -> int:
    """Run torch and ONNX Runtime on frames of the demo source and on noise, in batches of several sizes.

    Args:
        net: the model in torch.
        model: the ONNX file.
        size: side in pixels of its input.

    Returns:
        The largest difference of the probability maps, in grey levels.
    """
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(3)]
    colon = DemoColon(DemoSettings(width=size, height=size))
    images = [*(colon.render(index)[0] for index in range(0, len(colon), DEMO_STEP)), *noise]
    segmenter = Segmenter(model, provider="cpu")
    largest = 0
    with torch.inference_mode():
        for batch in VERIFIED_BATCHES:
            for start in range(0, len(images), batch):
                stacked = np.stack(images[start : start + batch])
                expected = net(torch.from_numpy(stacked)).numpy().astype(int)
                found = segmenter.run(stacked)
                largest = max(largest, int(np.abs(found - expected).max()))
    return largest


def mask_dice(net: PictureNet, model: Path, images: Sequence[np.ndarray], level: int) -> float:
    """Compute the Dice of the masks of torch and ONNX Runtime, pooled over all images.

    Args:
        net: the model in torch.
        model: the ONNX file.
        images: uint8 [size, size, 3].
        level: grey level of the probability, 1..255, from which a pixel belongs to the mask.
    """
    segmenter = Segmenter(model, provider="cpu")
    both = either = 0
    with torch.inference_mode():
        for image in images:
            expected = net(torch.from_numpy(image[None])).numpy() >= level
            found = segmenter.run(image[None]) >= level
            both, either = both + 2 * int((expected & found).sum()), either + int(expected.sum() + found.sum())
    return both / either if either else 1.0


def _calibration_images(settings: ExportSettings, size: int) -> list[np.ndarray]:
    folder = settings.calibration
    if (settings.precision == "int8") != (folder is not None):
        raise SettingsError("--calibration FOLDER: int8 needs images to measure ranges; the other precisions do not")
    if folder is None:
        return []
    pairs = spread(find_pairs(folder, names_file_of(folder)), CALIBRATION_IMAGES)
    return [prepare_image(read_pair(pair)[0], size)[1] for pair in pairs]
