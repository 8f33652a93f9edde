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
