"""Build polypstream/inference/nv12.onnx: crop, scaling and colours of an NV12 picture; see polypstream.inference.nv12.

    python -m polypstream.export.nv12

writes the file again. A test compares it with what is built here.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from polypstream.inference.nv12 import CHROMA, KEPT_CHROMA, KEPT_LUMA, LUMA, MODEL_INPUT

OPSET = 20
# Version of the file format; ONNX Runtime 1.18 and later read it.
IR_VERSION = 10


def build_nv12_graph() -> onnx.ModelProto:
    """Build the graph.

    Inputs, with the height H and the length P of a line with its padding: `luma` uint8 [H, P] and `chroma` uint8
    [H/2, P/2, 2]; weights float32 `luma_rows` [S, H], `luma_columns` [P, S], `chroma_rows` [S, H/2] and
    `chroma_columns` [P/2, S] for an output of S pixels; float32 `matrix` [3, 3] and `offset` [3], which convert
    a row of Y, U and V by `row @ matrix + offset`;
    int64 `width` [1] and `chroma_width` [1], the length of a line without padding.

    Outputs: `model_input` uint8 RGB [S, S, 3], and the planes without padding, `kept_luma` [H, W] and `kept_chroma`
    [2, H/2, W/2], which is U and V.

    Returns:
        The model.
    """
    float_type, byte, whole = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64
    inputs = [
        helper.make_tensor_value_info(LUMA, byte, ["H", "P"]),
        helper.make_tensor_value_info(CHROMA, byte, ["H2", "P2", 2]),
        helper.make_tensor_value_info("luma_rows", float_type, ["S", "H"]),
        helper.make_tensor_value_info("luma_columns", float_type, ["P", "S"]),
        helper.make_tensor_value_info("chroma_rows", float_type, ["S", "H2"]),
        helper.make_tensor_value_info("chroma_columns", float_type, ["P2", "S"]),
        helper.make_tensor_value_info("matrix", float_type, [3, 3]),
        helper.make_tensor_value_info("offset", float_type, [3]),
        helper.make_tensor_value_info("width", whole, [1]),
        helper.make_tensor_value_info("chroma_width", whole, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info(MODEL_INPUT, byte, ["S", "S", 3]),
        helper.make_tensor_value_info(KEPT_LUMA, byte, ["H", "W"]),
        helper.make_tensor_value_info(KEPT_CHROMA, byte, [2, "H2", "W2"]),
    ]
    constants = [
        helper.make_tensor("zero", whole, [1], [0]),
        helper.make_tensor("one", whole, [1], [1]),
        helper.make_tensor("lowest", float_type, [], [0.0]),
        helper.make_tensor("highest", float_type, [], [255.0]),
    ]
    graph = helper.make_graph(_nodes(), "nv12", inputs, outputs, constants)
    imports = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="polypstream")
    onnx.checker.check_model(model, full_check=True)
    return model


def _nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Slice", [LUMA, "zero", "width", "one"], [KEPT_LUMA]),
        node("Slice", [CHROMA, "zero", "chroma_width", "one"], ["kept_pairs"]),
        node("Transpose", ["kept_pairs"], [KEPT_CHROMA], perm=[2, 0, 1]),
        node("Cast", [LUMA], ["y"], to=TensorProto.FLOAT),
        node("MatMul", ["luma_rows", "y"], ["y_rows"]),
        node("MatMul", ["y_rows", "luma_columns"], ["y_scaled"]),
        node("Unsqueeze", ["y_scaled", "zero"], ["y_plane"]),
        node("Cast", [CHROMA], ["pairs"], to=TensorProto.FLOAT),
        node("Transpose", ["pairs"], ["uv"], perm=[2, 0, 1]),
        node("MatMul", ["chroma_rows", "uv"], ["uv_rows"]),
        node("MatMul", ["uv_rows", "chroma_columns"], ["uv_planes"]),
        node("Concat", ["y_plane", "uv_planes"], ["yuv"], axis=0),
        node("Transpose", ["yuv"], ["samples"], perm=[1, 2, 0]),
        node("MatMul", ["samples", "matrix"], ["rgb_raw"]),
        node("Add", ["rgb_raw", "offset"], ["rgb_float"]),
        node("Clip", ["rgb_float", "lowest", "highest"], ["rgb_clipped"]),
        node("Round", ["rgb_clipped"], ["rgb_round"]),
        node("Cast", ["rgb_round"], [MODEL_INPUT], to=TensorProto.UINT8),
    ]


def nv12_file() -> Path:
    """Return the path of the installed graph."""
    return Path(str(files("polypstream.inference") / "nv12.onnx"))


if __name__ == "__main__":
    nv12_file().write_bytes(build_nv12_graph().SerializeToString(deterministic=True))
