"""Static quantisation of a network to 8-bit integers, calibrated on pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from polypstream.inference.model_card import INPUT

# What convolutions hand to each other; the attention's summary over channels stays in floating point.
QUANTISED = ["Conv", "Clip", "LeakyRelu", "Add", "Concat", "Resize"]
# The first convolutions stay in floating point: their channels' ranges differ too much for one scale a map. With the
# stem and the first block of EfficientNet-Lite1 so, the masks' Dice with torch's rose from 0.974 to 0.989.
FLOAT_CONVOLUTIONS = 3


def quantise(model: onnx.ModelProto, pictures: Sequence[np.ndarray]) -> onnx.ModelProto:
    """The model with 8-bit weights, one scale a channel, and 8-bit maps between them (QDQ format of ONNX Runtime).

    Weights use 7 of the 8 bits: without VNNI a processor adds pairs of products in 16 bits, which 8 would overflow
    (ONNX Runtime, "Quantize ONNX models", when to use reduce-range).

    Args:
        model: with uint8 pictures [N, size, size, 3] as input.
        pictures: uint8 [size, size, 3], from which the range of each map is measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, prepared, quantised = (Path(folder) / f"{step}.onnx" for step in ("given", "prepared", "quantised"))
        onnx.save(model, given)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
        quantize_static(
            prepared,
            quantised,
            _Pictures(pictures),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=convolutions[:FLOAT_CONVOLUTIONS],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(quantised)


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Hands ONNX Runtime's calibration one picture after another."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self._pictures = iter(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        picture = next(self._pictures, None)
        return None if picture is None else {INPUT: picture[None]}
