"""An early exit from the views of an image (as BranchyNet's, Teerapittayanon et al., ICPR 2016), for CPUs.

A model with two views runs its network twice for each image. If the first view shows nothing, the second one does not
count (`polypstream.models.picture_net.mean_of_views`). Here the views are the iterations of an ONNX `Loop`, which ends
after the first one if no image of the batch shows anything. Most of a colonoscopy shows nothing, so this halves the
work. On a GPU it was not measured; a CUDA graph cannot hold a loop.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from polypstream.inference.model_card import INPUT
from polypstream.models.picture_net import SECOND_VIEW_FROM_LOGIT

VIEWS = 2
# Slice takes everything up to here, in either direction.
EVERYTHING = 2**62


def add_early_exit(model: onnx.ModelProto) -> None:
    """Change a model of one view into one of two views with an early exit.

    The weights are in the file once: they move into the body of the loop, where ONNX Runtime optimises them like those
    of other graphs.

    Args:
        model: a model of one view, with uint8 images [N, H, W, 3] as input; changed in place. Its last Sigmoid turns
            the logits float32 [N, H, W] into probabilities.
    """
    graph = model.graph
    nodes = list(graph.node)
    begin_of_end = max(place for place, node in enumerate(nodes) if node.op_type == "Sigmoid")
    network, end = nodes[:begin_of_end], nodes[begin_of_end:]
    logits = end[0].input[0]
    for node in network:
        node.input[:] = ["views.turned" if name == INPUT else name for name in node.input]
    body = _body(network, logits, _constants_of(network, graph))
    combined, constants = _combine(body)
    end[0].input[0] = combined[-1].output[0]
    constants += _constants_of(end, graph)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend([*combined, *end])
    graph.initializer.extend(constants)


def _constants_of(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    used = {name for node in nodes for name in node.input}
    return [tensor for tensor in graph.initializer if tensor.name in used]


def _body(network: list[onnx.NodeProto], logits: str, weights: list[onnx.TensorProto]) -> onnx.GraphProto:
    """The body of the loop: one view, and whether the next one is needed.

    Iteration 0 slices the image with step 1, iteration 1 with step -1, which rotates it by 180 degrees.
    """
    constants = [
        _constant("views.minus_one", np.array([-1, -1])),
        _constant("views.minus_two", np.array([-2, -2])),
        _constant("views.one", np.array([1, 1])),
        _constant("views.everything", np.array([EVERYTHING, EVERYTHING])),
        _constant("views.axes", np.array([1, 2])),
        _constant("views.shown_from", np.array(SECOND_VIEW_FROM_LOGIT, np.float32)),
    ]
    place = ["views.start", "views.end", "views.axes", "views.step"]
    nodes = [
        helper.make_node("Mul", ["views.iteration", "views.minus_one"], ["views.start"]),
        helper.make_node("Mul", ["views.iteration", "views.minus_two"], ["views.change"]),
        helper.make_node("Add", ["views.one", "views.change"], ["views.step"]),
        helper.make_node("Mul", ["views.step", "views.everything"], ["views.end"]),
        helper.make_node("Slice", [INPUT, *place], ["views.turned"]),
        *network,
        helper.make_node("Slice", [logits, *place], ["views.logits"]),
        helper.make_node("ReduceMax", [logits], ["views.highest_of_all"], keepdims=0),
        helper.make_node("GreaterOrEqual", ["views.highest_of_all", "views.shown_from"], ["views.go_on"]),
    ]
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes,
        "view",
        [value("views.iteration", TensorProto.INT64, []), value("views.going_on", TensorProto.BOOL, [])],
        [value("views.go_on", TensorProto.BOOL, []), value("views.logits", TensorProto.FLOAT, None)],
        [*constants, *weights],
    )


def _combine(body: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants that run the loop, and compute what `mean_of_views` computes."""
    constants = [
        _constant("views.most", np.array(VIEWS)),
        _constant("views.begin", np.array(True)),
        _constant("views.first_one", np.array(0)),
        _constant("views.over_views", np.array([0])),
        _constant("views.over_pixels", np.array([1, 2])),
        _constant("views.counts_from", np.array(SECOND_VIEW_FROM_LOGIT, np.float32)),
    ]
    nodes = [
        helper.make_node("Loop", ["views.most", "views.begin"], ["views.all"], body=body),
        helper.make_node("Gather", ["views.all", "views.first_one"], ["views.first"], axis=0),
        helper.make_node("ReduceMax", ["views.first", "views.over_pixels"], ["views.highest"], keepdims=1),
        helper.make_node("GreaterOrEqual", ["views.highest", "views.counts_from"], ["views.shows"]),
        helper.make_node("ReduceMean", ["views.all", "views.over_views"], ["views.mean"], keepdims=0),
        helper.make_node("Where", ["views.shows", "views.mean", "views.first"], ["views.combined"]),
    ]
    return nodes, constants


def _constant(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)
