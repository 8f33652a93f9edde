"""Make a polypstream model from any segmentation network in an ONNX file. No torch is needed."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from polypstream.core.files import writing
from polypstream.core.notice import NOTICE
from polypstream.errors import SettingsError
from polypstream.export.by_hand import ByHand
from polypstream.export.colours import choose_colours
from polypstream.export.graph import halve_weights, remove_unused
from polypstream.export.int8 import calibration_images, quantise
from polypstream.export.network import Network, WrapSettings, read_network
from polypstream.export.proof import MAX_DIFFERENCE, Reference, write_proven
from polypstream.export.shapes import freeze_shapes, gmac_of, run, side_of
from polypstream.export.wrapped_graph import one_by_one, wrapped
from polypstream.inference.model_card import OUTPUT, digest_of

log = logging.getLogger(__name__)

# Longest message of ONNX Runtime that is repeated, in characters.
MAX_REASON = 200


def wrap(file: Path, output: Path, settings: WrapSettings) -> str:
    """Compose a segmentation network with what comes before and after it, and write it as a polypstream model.

    The file is written only if its output is that of the original network, run step by step.

    Args:
        file: the ONNX file of the network.
        output: the ONNX file to write.
        settings: what the graph of the network does not say.

    Returns:
        What was found out about the network, and the result of the comparison, as text for the user.

    Raises:
        ModelError: the network cannot be loaded or used, or the outputs differ. No file is written.
        SettingsError: a setting is missing, wrong, or does not fit the network.
        DataError: the calibration images cannot be read.
        OutputError: the file cannot be written.
    """
    _check_probabilities(settings)
    network = read_network(file, settings)
    colours = choose_colours(settings.normalize, settings.bgr, network.channels, network.dtype)
    images = calibration_images(settings.precision, settings.calibration, network.side)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    by_hand = ByHand(network, colours)
    model = wrapped(network, colours)
    problem = why_not_in_batches(model, by_hand)
    freeze_shapes(model, (1,) if problem else (1, 2))
    remove_unused(model)
    card = describe(network, settings, gmac_of(model))
    if settings.precision == "fp16-weights":
        halve_weights(model)
    if settings.precision == "int8":
        model = quantise(model, images)
    if problem:
        model = one_by_one(model)
    helper.set_model_props(model, card)
    result = write_proven(model, output, by_hand, str(file), network.side, settings.threshold, images)
    for note in _notes(network, by_hand, problem):
        log.warning(note)
    return f"{network}; {result}"


def _check_probabilities(settings: WrapSettings) -> None:
    for name in ("threshold", "peak"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < 1:
            raise SettingsError(f"--{name} {value:g}: must be between 0 and 1, and neither of them")


def why_not_in_batches(model: onnx.ModelProto, reference: Reference) -> str | None:
    """Try two pictures at once.

    Args:
        model: of `wrapped`.
        reference: computes the original.

    Returns:
        None if the model takes them, also on a GPU; otherwise the reason.
    """
    side = side_of(model)
    pictures = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    try:
        found = run(model, [OUTPUT], pictures)[OUTPUT]
    except Exception as error:  # ONNX Runtime raises its own class for each status code
        return textwrap.shorten(str(error), MAX_REASON, placeholder=" ...")
    expected = reference(pictures).astype(int)
    if found.shape != expected.shape or np.abs(found - expected).max() > MAX_DIFFERENCE:
        return "the result of one picture depends on the other one"
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    if left := freeze_shapes(frozen, (1, 2)):
        return f"GPUs do not compute shapes from the number of pictures, as it does for {left[0]}"
    return None


def describe(network: Network, settings: WrapSettings, gmac: float) -> dict[str, str]:
    """Return the metadata of a wrapped network; see polypstream.inference.model_card.ModelCard.

    Args:
        network: the network.
        settings: as for wrap.
        gmac: its operations for one image, in 10^9.
    """
    producer = f"{network.model.producer_name} {network.model.producer_version}".strip() or "unknown program"
    peak = settings.threshold if settings.peak is None else settings.peak
    return {
        "model_name": settings.name or network.file.stem,
        "model_version": str(max(1, network.model.model_version)),
        "input_size": str(network.side),
        "views": "1",
        "threshold": str(settings.threshold),
        "peak": str(peak),
        "gmac": str(gmac),
        "precision": settings.precision or _precision(network.model),
        "trained_on": settings.trained_on,
        "terms": settings.terms,
        "scores": "{}",
        "checkpoint_sha256": digest_of(network.file),
        "exported_with": ", ".join([producer, *(f"{name} {version(name)}" for name in ("polypstream", "onnx"))]),
        "notice": NOTICE,
    }


def _precision(model: onnx.ModelProto) -> str:
    """The precision of a network, from its operators and from the type of most of its weights."""
    if any(node.op_type in ("QuantizeLinear", "QLinearConv", "ConvInteger") for node in model.graph.node):
        return "int8"
    elements = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in elements:
            elements[tensor.data_type] += int(np.prod(tensor.dims))
    return "fp16" if elements[TensorProto.FLOAT16] > elements[TensorProto.FLOAT] else "fp32"


def _notes(network: Network, by_hand: ByHand, problem: str | None) -> Iterator[str]:
    if problem:
        yield (
            f"{network.file}: takes one picture at a time ({problem}). The written model runs any number of "
            "them, one after another; a GPU is faster with a network that takes several at once"
        )
    if network.activation != "none" and by_hand.lowest >= 0 and by_hand.highest <= 1:
        yield (
            f"{network.file}: all values of {network.map} lie between 0 and 1; if they are probabilities already, "
            "give --activation none"
        )
    if network.height != network.width:
        yield (
            f"{network.file}: takes {network.width}x{network.height} pictures. The written model takes "
            f"{network.side}x{network.side} and resizes them"
        )
