"""Compose a network with its preprocessing and postprocessing into one graph, with the contract of a model file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from polypstream.errors import ModelError
from polypstream.export.colours import EPSILON, GREY, Colours
from polypstream.export.graph import opset_of, remove_source_locations, remove_unused
from polypstream.export.network import Network
from polypstream.export.prototypes import add_map
from polypstream.export.shapes import scale, side_of
from polypstream.inference.model_card import INPUT, OUTPUT

PREFIX = "network/"
# Names inside and outside of a loop must differ.
ONE = "one/"
# The operators that are added have their present form since this opset.
MIN_OPSET = 13
MIN_IR_VERSION = 8
BATCH = "N"


class _Chain:
    """Nodes in a row: each takes what the one before it gave.

    Args:
        start: name of the tensor that the first node takes.
        prefix: of all names.

    Attributes:
        nodes: the nodes.
        constants: their constant inputs.
    """

    def __init__(self, start: str, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._last, self._prefix = start, prefix

    def add(self, kind: str, *constants: np.ndarray | None, **attributes: Any) -> None:
        """Add a node. None is an input that is left out."""
        name = f"{self._prefix}{len(self.nodes)}_{kind}"
        inputs = [self._last]
        for number, constant in enumerate(constants):
            if constant is None:
                inputs.append("")
                continue
            self.constants.append(numpy_helper.from_array(constant, f"{name}_{number}"))
            inputs.append(self.constants[-1].name)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self._last = name

    def end(self, name: str) -> None:
        """Give the output of the last node a name."""
        self.nodes[-1].output[0] = name


def wrapped(network: Network, colours: Colours) -> onnx.ModelProto:
    """Compose a network with its preprocessing and postprocessing.

    Args:
        network: the network.
        colours: how it wants its colours.

    Returns:
        A model with the input and output of the contract, with a dynamic batch. Whether the network itself can take
        more than one picture is not known.

    Raises:
        ModelError: the network's opset is too old.
    """
    model = _at_opset(network)
    model = compose.add_prefix(remove_source_locations(model), PREFIX, rename_functions=False)
    if network.prototypes is not None:
        add_map(model, network.prototypes, network.channel, PREFIX)
    before, after = _before(network, colours), _after(network)
    before.end(PREFIX + network.input)
    after.end(OUTPUT)
    nodes = [*before.nodes, *model.graph.node, *after.nodes]
    for number, node in enumerate(nodes):
        node.name = node.name if node.name not in ("", PREFIX) else f"{PREFIX}{number}_{node.op_type}"
    side = network.side
    graph = helper.make_graph(
        nodes,
        "polypstream",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [BATCH, side, side, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.UINT8, [BATCH, side, side])],
        [*before.constants, *model.graph.initializer, *after.constants],
    )
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    model.graph.CopyFrom(graph)
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)
    remove_unused(model)
    return model


def one_by_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """Run a wrapped network on one picture after another, for one whose graph fixes a batch of one.

    Args:
        model: of `wrapped`.

    Returns:
        The same model inside the operator Scan, which takes any number of pictures.
    """
    inner = compose.add_prefix(model, ONE, rename_functions=False)
    side = side_of(model)
    unpack, pack = _Chain("picture", "unpack/"), _Chain(ONE + OUTPUT, "pack/")
    unpack.add("Unsqueeze", np.array([0], np.int64))
    unpack.end(ONE + INPUT)
    pack.add("Squeeze", np.array([0], np.int64))
    body = helper.make_graph(
        [*unpack.nodes, *inner.graph.node, *pack.nodes],
        "picture",
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, [side, side, 3])],
        [helper.make_tensor_value_info(pack.nodes[-1].output[0], TensorProto.UINT8, [side, side])],
        [*unpack.constants, *inner.graph.initializer, *pack.constants],
    )
    body.sparse_initializer.extend(inner.graph.sparse_initializer)
    scan = helper.make_node("Scan", [INPUT], [OUTPUT], name="one_by_one", body=body, num_scan_inputs=1)
    outside = helper.make_graph([scan], "polypstream", list(model.graph.input), list(model.graph.output))
    inner.graph.CopyFrom(outside)
    return inner


def _at_opset(network: Network) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    opset = opset_of(model)
    if opset >= MIN_OPSET:
        return model
    try:
        return version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # the converter raises whatever its C++ code does
        raise ModelError(
            f"{network.file}: has opset {opset}, which cannot be converted; export it with opset {MIN_OPSET} or later"
        ) from error


def _before(network: Network, colours: Colours) -> _Chain:
    """From uint8 RGB [N, side, side, 3] to the input of the network."""
    chain = _Chain(INPUT, "before/")
    chain.add("Cast", to=TensorProto.FLOAT)
    if colours.grey:
        chain.add("MatMul", np.array(GREY, np.float32)[:, None])
    if colours.bgr:
        chain.add("Gather", np.array([2, 1, 0]), axis=3)
    _add_shrinking(chain, network)
    if (colours.scale != 1).any():
        chain.add("Mul", colours.scale[:, None, None])
    if colours.offset.any():
        chain.add("Add", colours.offset[:, None, None])
    if colours.zscore:
        ones = np.ones(network.channels, np.float32)
        chain.add("InstanceNormalization", ones, 0 * ones, epsilon=EPSILON)
    if network.layout == "NHWC":
        chain.add("Transpose", perm=[0, 2, 3, 1])
    if network.dtype is not np.float32:
        chain.add("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(network.dtype)))
    return chain


def _after(network: Network) -> _Chain:
    """From the output of the network to uint8 [N, side, side]."""
    chain = _Chain(PREFIX + network.map, "after/")
    chain.add("Cast", to=TensorProto.FLOAT)
    if network.map_layout == "NHW":
        chain.add("Unsqueeze", np.array([1], np.int64))
    elif network.map_layout == "NHWC":
        chain.add("Transpose", perm=[0, 3, 1, 2])
    channels, height, width = network.map_shape
    channel = np.array([network.channel], np.int64)
    if channels > 1 and network.activation != "softmax":
        chain.add("Gather", channel, axis=1)
    _add_enlarging(chain, (height, width), network.side)
    if network.activation == "sigmoid":
        chain.add("Sigmoid")
    elif network.activation == "softmax":
        chain.add("Softmax", axis=1)
        chain.add("Gather", channel, axis=1)
    chain.add("Squeeze", np.array([1], np.int64))
    chain.add("Mul", np.array(255, np.float32))
    chain.add("Clip", np.array(0, np.float32), np.array(255, np.float32))
    chain.add("Round")
    chain.add("Cast", to=TensorProto.UINT8)
    return chain


def _add_shrinking(chain: _Chain, network: Network) -> None:
    """From [N, side, side, C] to [N, C, height, width], of which one is the side.

    A product of matrices, because not every provider has a correct Resize with a filter.
    """
    if network.height < network.side:
        chain.add("Transpose", perm=[0, 3, 2, 1])
        chain.add("MatMul", _filter(network.side, network.height))
        chain.add("Transpose", perm=[0, 1, 3, 2])
        return
    chain.add("Transpose", perm=[0, 3, 1, 2])
    if network.width < network.side:
        chain.add("MatMul", _filter(network.side, network.width))


def _filter(old: int, new: int) -> np.ndarray:
    """Weights of old pixels (rows) in new ones (columns): a triangle that is two new pixels wide."""
    centres = (np.arange(new) + 0.5) * old / new
    distance = np.abs(np.arange(old)[:, None] + 0.5 - centres) * new / old
    weights = np.maximum(0, 1 - distance)
    return (weights / weights.sum(axis=0)).astype(np.float32)


def _add_enlarging(chain: _Chain, old: tuple[int, int], side: int) -> None:
    """From [N, C, height, width] to [N, C, side, side], bilinearly."""
    if old == (side, side):
        return
    scales = np.array([1, 1, *(scale(length, side) for length in old)], np.float32)
    chain.add("Resize", None, scales, mode="linear", coordinate_transformation_mode="half_pixel")
