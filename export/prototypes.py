"""Networks that give boxes, coefficients and prototypes of masks, as YOLO's for segmentation: one map from all of them.

A detection has a box, a score for each class, and one coefficient for each prototype. Its mask is where the prototypes'
sum, weighted by the coefficients and enlarged, is above zero, inside the box (Bolya et al., "YOLACT", ICCV 2019). The
probability of a pixel is the highest score of the detections whose masks have it. So a threshold applies to the score,
and detections of the same polyp need not be sorted out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from polypstream.export.graph import opset_of

# Sides in pixels of the cells that have one detection each.
STRIDES = (8, 16, 32)
# The detections with the highest scores are used, at most this many. Each costs a map of the picture's size.
MOST = 50
# How steep the edges of masks and boxes are, for each unit of the sum and for each pixel. With vertical edges the last
# bit of a number would decide on a pixel.
SLOPE = 32.0
# Since this opset ReduceMax takes its axes as an input.
OPSET_OF_AXES = 18


@dataclass(frozen=True, slots=True)
class Prototypes:
    """The two outputs of such a network.

    Attributes:
        detections: name of the output [N, 4 + classes + masks, detections]: centre, width and height of the box in
            pixels of the picture, scores 0..1, coefficients.
        prototypes: name of the output [N, masks, height, width].
        classes, masks, count: number of classes, prototypes and detections.
        height, width: of the picture, in pixels.
        stride: side of a prototype's pixel, in pixels of the picture.
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
    return Prototypes(first, second, classes, maps.shape[1], count, height, width, stride)


def map_by_hand(layout: Prototypes, channel: int, detections: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Compute the map in numpy.

    Args:
        layout: what the outputs are.
        channel: number of the class.
        detections: [4 + classes + masks, detections] of one picture.
        prototypes: [masks, height, width] of the same picture, enlarged to its size.

    Returns:
        float32 [1, height, width], 0..1.
    """
    rows, columns = np.mgrid[: layout.height, : layout.width]
    found = np.zeros((layout.height, layout.width), np.float32)
    for number in np.argsort(-detections[4 + channel], kind="stable")[:MOST]:
        x, y, width, height = detections[:4, number]
        inside = [SLOPE * np.tensordot(detections[4 + layout.classes :, number], prototypes, 1) + 0.5]
        for centre, length, places in ((x, width, columns), (y, height, rows)):
            inside += [SLOPE * (places - (centre - length / 2)) + 1, SLOPE * (centre + length / 2 - places)]
        found = np.maximum(found, np.min(inside, axis=0).clip(0, 1) * detections[4 + channel, number])
    return found[None].astype(np.float32)


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

    scales = constant([1, 1, layout.stride, layout.stride], np.float32)
    (maps,) = add("Resize", maps, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    (flat,) = add("Reshape", maps, constant([0, layout.masks, layout.height * layout.width], np.int64))
    # Everything is multiplied by the score while it is small: the score of a detection times what is inside of it.
    (scores_of_best,) = add("Transpose", score, perm=[0, 2, 1])
    (steepness,) = add("Mul", scores_of_best, constant(SLOPE, np.float32))
    (steep,) = add("Mul", of_the_best(coefficients, layout.masks), steepness)
    (sums,) = add("Reshape", add("MatMul", steep, flat)[0], constant([0, 0, layout.height, layout.width], np.int64))
    beside = constant([0, 0, -1, 1], np.int64)
    whole, slope = (add("Reshape", each, beside)[0] for each in (scores_of_best, steepness))
    (places,) = add("Reshape", of_the_best(boxes, 4), beside)
    x, y, width, height = add("Split", places, constant([1, 1, 1, 1], np.int64), outputs=4, axis=2)
    limits = [add("Add", sums, add("Mul", whole, constant(0.5, np.float32))[0])[0]]
    for centre, length, pixels in (
        (x, width, np.arange(layout.width)[None, None, None]),
        (y, height, np.arange(layout.height)[None, None, :, None]),
    ):
        (half,) = add("Mul", length, constant(0.5, np.float32))
        grid = constant(pixels, np.float32)
        (from_begin,) = add("Sub", grid, add("Sub", centre, half)[0])
        (to_end,) = add("Sub", add("Add", centre, half)[0], grid)
        (rising,) = add("Add", add("Mul", from_begin, slope)[0], whole)
        limits += add("Min", rising, add("Mul", to_end, slope)[0], whole)
    (inside,) = add("Min", *limits)
    if opset_of(model) < OPSET_OF_AXES:
        (largest,) = add("ReduceMax", inside, axes=[1])
    else:
        (largest,) = add("ReduceMax", inside, constant([1], np.int64))
    graph.node.append(helper.make_node("Relu", [largest], [prefix + layout.name], name="prototypes/map"))
