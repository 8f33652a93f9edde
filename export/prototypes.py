"""Networks that give boxes, coefficients and prototypes of masks, as YOLO's for segmentation: one map from all of them.

A detection has a box, a score for each class, and one coefficient for each prototype. Its mask is the sigmoid of the
prototypes' sum, weighted by the coefficients, inside the box (Bolya et al., "YOLACT", ICCV 2019). The probability of a
pixel is the smaller one of mask and score, of the detection for which it is largest. So a threshold applies to both,
and detections of the same polyp need not be sorted out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Sides in pixels of the cells that have one detection each.
STRIDES = (8, 16, 32)
# The detections with the highest scores are used, at most this many.
MOST = 100


@dataclass(frozen=True, slots=True)
class Prototypes:
    """The two outputs of such a network.

    Attributes:
        detections: name of the output [N, 4 + classes + masks, detections]: centre, width and height of the box in
            pixels of the picture, scores 0..1, coefficients.
        prototypes: name of the output [N, masks, height, width].
        classes, masks, count: number of classes, prototypes and detections.
        height, width: of a prototype, in its pixels.
        stride: side of one of these pixels, in pixels of the picture.
    """

    detections: str
    prototypes: str
    classes: int
    masks: int
    count: int
    height: int
    width: int
    stride: int

    @property
    def name(self) -> str:
        """Name of the map that is made from both outputs."""
        return f"{self.detections} and {self.prototypes}"


def find_prototypes(outputs: Mapping[str, np.ndarray], height: int, width: int) -> Prototypes | None:
    """Find the outputs of such a network by their shapes.

    Args:
        outputs: of one picture, by name.
        height, width: of the picture in pixels.

    Returns:
        None if the network is another one.
    """
    if len(outputs) != 2:
        return None
    (first, boxes), (second, maps) = sorted(outputs.items(), key=lambda each: each[1].ndim)
    if (boxes.ndim, maps.ndim) != (3, 4) or height % maps.shape[2]:
        return None
    stride, classes = height // maps.shape[2], boxes.shape[1] - 4 - maps.shape[1]
    count = sum((height // side) * (width // side) for side in STRIDES)
    if classes < 1 or boxes.shape[2] != count or maps.shape[3] * stride != width:
        return None
    return Prototypes(first, second, classes, maps.shape[1], count, maps.shape[2], maps.shape[3], stride)


def map_by_hand(layout: Prototypes, channel: int, detections: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Compute the map in numpy.

    Args:
        layout: what the outputs are.
        channel: number of the class.
        detections: [4 + classes + masks, detections] of one picture.
        prototypes: [masks, height, width] of the same picture.

    Returns:
        float32 [1, height, width], 0..1.
    """
    rows, columns = np.mgrid[: layout.height, : layout.width]
    found = np.zeros((layout.height, layout.width), np.float32)
    for number in np.argsort(-detections[4 + channel], kind="stable")[:MOST]:
        x, y, width, height = detections[:4, number] / layout.stride
        logits = np.tensordot(detections[4 + layout.classes :, number], prototypes, 1)
        mask = np.exp(-np.logaddexp(0, -logits)).astype(np.float32)
        inside = (columns >= x - width / 2) & (columns < x + width / 2)
        inside &= (rows >= y - height / 2) & (rows < y + height / 2)
        found = np.maximum(found, np.minimum(mask, detections[4 + channel, number]) * inside)
    return found[None]


def add_map(model: onnx.ModelProto, layout: Prototypes, channel: int, prefix: str) -> None:
    """Add the nodes that compute the map, [N, 1, height, width], under the name `prefix + layout.name`.

    Args:
        model: the network. It is changed.
        layout: what its outputs are.
        channel: number of the class.
        prefix: of the names in the model.
    """
    graph = model.graph

    def constant(value: object, dtype: type[np.generic]) -> str:
        name = f"prototypes/{len(graph.initializer)}"
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        names = [f"prototypes/{len(graph.node)}_{kind}_{number}" for number in range(outputs)]
        graph.node.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    given, maps = (
        add("Cast", prefix + name, to=TensorProto.FLOAT)[0] for name in (layout.detections, layout.prototypes)
    )
    lengths = constant([4, layout.classes, layout.masks], np.int64)
    boxes, scores, coefficients = add("Split", given, lengths, outputs=3, axis=1)
    (of_class,) = add("Gather", scores, constant([channel], np.int64), axis=1)
    score, best = add("TopK", of_class, constant([min(MOST, layout.count)], np.int64), outputs=2, axis=2)

    def of_the_best(values: str, length: int) -> str:
        (indices,) = add("Expand", best, constant([1, length, 1], np.int64))
        (chosen,) = add("GatherElements", values, indices, axis=2)
        return add("Transpose", chosen, perm=[0, 2, 1])[0]

    (flat,) = add("Reshape", maps, constant([0, layout.masks, layout.height * layout.width], np.int64))
    (logits,) = add("MatMul", of_the_best(coefficients, layout.masks), flat)
    (scaled,) = add("Div", of_the_best(boxes, 4), constant(layout.stride, np.float32))
    x, y, width, height = add("Split", scaled, constant([1, 1, 1, 1], np.int64), outputs=4, axis=2)
    rows, columns = np.mgrid[: layout.height, : layout.width]
    inside = []
    for centre, length, places in ((x, width, columns), (y, height, rows)):
        (half,) = add("Div", length, constant(2, np.float32))
        grid = constant(places.reshape(1, 1, -1), np.float32)
        (before,) = add("Less", grid, add("Sub", centre, half)[0])
        (within,) = add("Less", grid, add("Add", centre, half)[0])
        inside += [add("Not", before)[0], within]
    together = inside[0]
    for each in inside[1:]:
        (together,) = add("And", together, each)
    (scores_of_best,) = add("Transpose", score, perm=[0, 2, 1])
    (smaller,) = add("Min", add("Sigmoid", logits)[0], scores_of_best)
    (kept,) = add("Mul", smaller, add("Cast", together, to=TensorProto.FLOAT)[0])
    # The largest one of each pixel: as ReduceMax, which has another form since opset 18.
    (largest, _) = add("TopK", kept, constant([1], np.int64), outputs=2, axis=1)
    shape = constant([0, 1, layout.height, layout.width], np.int64)
    graph.node.append(helper.make_node("Reshape", [largest, shape], [prefix + layout.name], name="prototypes/map"))
