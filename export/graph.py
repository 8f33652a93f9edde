"""Changes to the graph of an ONNX model that need no torch."""

from __future__ import annotations

import itertools

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
