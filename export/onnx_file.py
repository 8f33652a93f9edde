"""Write a trained SA-UNet as an ONNX file with metadata, and verify that its output equals that of torch."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from polypstream.core.files import writing
from polypstream.core.notice import NOTICE
from polypstream.errors import SettingsError
from polypstream.export.early_exit import add_early_exit
from polypstream.export.graph import compute_in_half, halve_weights, remove_source_locations
from polypstream.export.int8 import Precision, calibration_images, quantise
from polypstream.export.proof import MAX_DIFFERENCE, MAX_HALF_DIFFERENCE, Reference, write_proven
from polypstream.inference.model_card import INPUT, OUTPUT
from polypstream.models.checkpoint import load_checkpoint
from polypstream.models.picture_net import PictureNet, gmac_of
from polypstream.models.sa_unet import check_size

# Version of the model's interface and architecture, for its metadata.
VERSION = "1"
# All supported versions of ONNX Runtime execute this opset, and so do those of some years before.
OPSET = 20


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How a checkpoint is exported.

    Attributes:
        size: side in pixels of the model's input. None: as in the checkpoint.
        precision: "fp32"; "fp16-weights", which stores the weights as half floats and converts them to fp32 when the
            file is loaded, so the file is half as large and each provider computes as with fp32; "fp16", which computes
            in half floats, for GPUs; or "int8", which computes in 8-bit integers, for the plain CPU provider.
        calibration: for int8 the data set on which the ranges of feature maps are measured, with images/ and masks/.
            Images in its train.txt are used, or all images.
        early_exit: compute the second view of an image only if the first one shows something
            (`polypstream.export.early_exit`). For CPUs.
    """

    size: int | None = None
    precision: Precision = "fp32"
    calibration: Path | None = None
    early_exit: bool = False


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
        SettingsError: the model cannot take images of this size, it has one view and so no early exit, or `calibration`
            is missing or not needed.
        DataError: the calibration images cannot be read.
        OutputError: the file cannot be written.
    """
    network, card = load_checkpoint(checkpoint)
    size = int(card["size"]) if settings.size is None else settings.size
    check_size(network.architecture, size)
    net = PictureNet(network, int(card["views"])).eval()
    if settings.early_exit and net.views == 1:
        raise SettingsError(f"--early-exit: {checkpoint} has one view only; `polypstream tune --views 2` gives it two")
    images = calibration_images(settings.precision, settings.calibration, size)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    model = to_onnx(PictureNet(network, 1).eval() if settings.early_exit else net, size)
    if settings.precision == "fp16-weights":
        halve_weights(model)
    if settings.precision == "fp16":
        compute_in_half(model)
    if settings.precision == "int8":
        model = quantise(model, images)
    if settings.early_exit:
        add_early_exit(model)
    helper.set_model_props(model, describe(net, card, checkpoint, size, settings, scores or {}))
    onnx.checker.check_model(model, full_check=True)
    most = MAX_HALF_DIFFERENCE if settings.precision == "fp16" else MAX_DIFFERENCE
    return write_proven(model, output, computed_by(net), "torch", size, card["threshold"], images, most)


def computed_by(net: PictureNet) -> Reference:
    """Return a function that computes probability maps with torch."""

    def reference(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            maps: np.ndarray = net(torch.from_numpy(images)).numpy()
        return maps

    return reference


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


def describe(
    net: PictureNet, card: dict[str, Any], checkpoint: Path, size: int, settings: ExportSettings, scores: dict[str, Any]
) -> dict[str, str]:
    """Return the metadata of an ONNX file; see polypstream.inference.model_card.ModelCard.

    Args:
        net: the model.
        card: content of its checkpoint.
        checkpoint: path of the checkpoint.
        size: side in pixels of its input.
        settings: how it is exported.
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
        "precision": settings.precision,
        "early_exit": str(settings.early_exit),
        "trained_on": str(training["data"]),
        "terms": str(training["terms"]),
        "scores": json.dumps(scores),
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "exported_with": ", ".join(f"{name} {version(name)}" for name in made_with),
        "notice": NOTICE,
    }
