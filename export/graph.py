"""Changes to the graph of an ONNX model that need no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Tensors with fewer elements stay in fp32. Biases and depthwise kernels are a tenth of the file only, and in fp16 they
# changed probabilities by two grey levels.
MIN_HALF_ELEMENTS = 32768
# Operations that turn logits into grey levels.
LAST_OPERATIONS = frozenset({"Cast", "Round", "Mul", "Sigmoid"})
# Inputs of an operation that are fp32 whatever its other inputs are: `roi` and `scales` of Resize.
ALWAYS_FLOAT = {"Resize": (1, 2)}


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return next(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))


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


def widen_weights(model: onnx.ModelProto) -> None:
    """Undo `halve_weights`: weights in fp32, though with the precision of half floats.

    Args:
        model: the model; changed in place.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in tensors]:
        values = numpy_helper.to_array(tensors[node.input[0]]).astype(np.float32)
        tensors[node.input[0]].CopyFrom(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)


def compute_in_half(model: onnx.ModelProto) -> None:
    """Change a float graph so that it computes in fp16. Its uint8 input and output stay as they are.

    Sigmoid, scaling to 255 and rounding, the end of the graph, stay in fp32.

    Args:
        model: the model; changed in place.
    """
    graph = model.graph
    end = _end_of(graph)
    floats = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    halves: dict[str, onnx.TensorProto] = {}
    for node in (each for each in graph.node if each not in end):
        for place, name in enumerate(node.input):
            if name in floats and place not in ALWAYS_FLOAT.get(node.op_type, ()):
                values = numpy_helper.to_array(floats[name]).astype(np.float16)
                halves[name] = numpy_helper.from_array(values, f"{name}.half")
                node.input[place] = halves[name].name
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    graph.initializer.extend(halves.values())
    used = {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(tensor)
    begin = end[-1]
    cast = helper.make_node("Cast", [begin.input[0]], [f"{begin.input[0]}.float"], to=TensorProto.FLOAT)
    graph.node.insert(list(graph.node).index(begin), cast)
    begin.input[0] = cast.output[0]
    del graph.value_info[:]  # the types of feature maps, which are other ones now


def _end_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes at the end of a graph that turn logits into grey levels, the last one first."""
    makers = {name: node for node in graph.node for name in node.output}
    end: list[onnx.NodeProto] = []
    node = makers[graph.output[0].name]
    while node.op_type in LAST_OPERATIONS:
        end.append(node)
        node = makers[node.input[0]]
    return end


def remove_unused(model: onnx.ModelProto) -> None:
    """Remove the nodes and the weights on which no output depends."""
    graph = model.graph
    wanted, needed = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(_names_used([node]))
    weights = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(needed))
    graph.initializer.extend(weights)


def _names_used(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """The tensors that nodes take, also inside of loops and branches."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _names_used(graph.node)
                yield from (output.name for output in graph.output)
