"""What a model computes from the shapes of its tensors: found by running it, and made constant.

A network whose graph was exported for any size computes shapes at run time. ONNX Runtime leaves such arithmetic to the
CPU, and then its providers for GPUs refuse the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from polypstream.inference.model_card import INPUT
from polypstream.inference.providers import open_session

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Operators whose result is known if its shape is.
SHAPED = {"Gather", "Reshape", "Resize"}


def run(model: onnx.ModelProto, outputs: Collection[str], pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Run a model that is not in a file.

    Args:
        model: takes uint8 RGB [N, side, side, 3].
        outputs: names of the outputs to compute.
        pictures: the pictures.

    Returns:
        The outputs by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        found = open_session(path, "cpu").run(list(outputs), {INPUT: pictures})
    return dict(zip(outputs, found, strict=True))


def side_of(model: onnx.ModelProto) -> int:
    """Return height and width of a model's input in pixels."""
    return int(model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)


def shapes_of(
    model: onnx.ModelProto, names: Collection[str], computed: Collection[str], batch: int
) -> dict[str, np.ndarray]:
    """Run a model on black pictures.

    Args:
        model: the model.
        names: tensors whose shape is wanted.
        computed: int64 tensors, for instance shapes that the model computes, whose value is wanted.
        batch: number of pictures.

    Returns:
        The shapes and the values, by the name of the tensor.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in names:
        watched.graph.node.append(helper.make_node("Shape", [name], [f"shape of {name}"]))
    outputs = [*(f"shape of {name}" for name in names), *computed]
    if not outputs:
        return {}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    side = side_of(model)
    found = run(watched, outputs, np.zeros((batch, side, side, 3), np.uint8))
    return {name.removeprefix("shape of "): value for name, value in found.items()}


def gmac_of(model: onnx.ModelProto) -> float:
    """Count the multiply-accumulate operations of convolutions and matrix products for one image, in 10^9."""
    nodes = [node for node in model.graph.node if node.op_type in WEIGHTED]
    shapes = shapes_of(model, {name for node in nodes for name in (*node.input[:2], node.output[0])}, (), 1)
    operations = sum(_operations(node, *(shapes[name] for name in (*node.input[:2], node.output[0]))) for node in nodes)
    return max(0.001, round(operations / 1e9, 3))


def _operations(node: onnx.NodeProto, given: np.ndarray, weights: np.ndarray, result: np.ndarray) -> int:
    """Multiply-accumulate operations of a node, from the shapes of its inputs and its output."""
    if node.op_type == "Conv":
        return int(result.prod() * weights[1:].prod())
    if node.op_type == "ConvTranspose":
        return int(given.prod() * weights[1:].prod())
    transposed = any(each.name == "transA" and each.i for each in node.attribute)
    return int(result.prod() * given[0 if transposed else -1])


def scale(old: int, new: int) -> np.float32:
    """Return the scale of a Resize that gives exactly this length; ONNX Runtime rounds down, in single precision."""
    factor = np.float32(new / old)
    while int(factor * np.float32(old)) < new:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor


def freeze_shapes(model: onnx.ModelProto, batches: tuple[int, ...]) -> list[str]:
    """Replace what a model computes from shapes by constants, as far as it does not depend on the number of pictures.

    Args:
        model: the model. It is changed.
        batches: numbers of pictures with which it is run to find out.

    Returns:
        Operators that still take something computed from the number of pictures.
    """
    arithmetic = _shape_arithmetic(model)
    uses = [
        (node, place, name)
        for node in model.graph.node
        if not arithmetic.issuperset(node.output)
        for place, name in enumerate(node.input)
        if name in arithmetic
    ]
    shaped = {name for node, *_ in uses if node.op_type in SHAPED for name in (node.input[0], node.output[0])}
    runs = [shapes_of(model, shaped, {name for _, _, name in uses}, batch) for batch in batches]
    left = []
    for node, place, name in uses:
        values = [found[name] for found in runs]
        if all(np.array_equal(value, values[0]) for value in values):
            node.input[place] = _constant(model, values[0])
        elif not _freeze_all_but_batch(model, node, place, runs):
            left.append(node.op_type)
    return left


def _freeze_all_but_batch(
    model: onnx.ModelProto, node: onnx.NodeProto, place: int, runs: Sequence[Mapping[str, np.ndarray]]
) -> bool:
    """Replace an input of a node that depends on the number of pictures by one that does not. False: there is none."""
    new_shape = _with_any_batch([found[node.output[0]] for found in runs]) if node.op_type in SHAPED else None
    if node.op_type == "Resize" and place == 3:
        lengths = zip(runs[0][node.input[0]], runs[0][node.output[0]], strict=True)
        scales = np.array([scale(old, new) for old, new in lengths], np.float32)
        del node.input[1:]
        node.input.extend(["", _constant(model, scales)])
    elif node.op_type == "Reshape" and new_shape is not None:
        node.input[place] = _constant(model, new_shape)
    elif new_shape is not None and all(_takes_all_in_order(node, place, found) for found in runs):
        reshaped = [node.input[0], _constant(model, new_shape)]
        node.CopyFrom(helper.make_node("Reshape", reshaped, node.output, node.name))
    else:
        return False
    return True


def _takes_all_in_order(node: onnx.NodeProto, place: int, found: Mapping[str, np.ndarray]) -> bool:
    """Whether a node is a Gather that changes nothing but the shape. torch writes `as_strided` so."""
    if (node.op_type, place) != ("Gather", 1):
        return False
    shape, places = (found[name] for name in node.input)
    return len(shape) == 1 and np.array_equal(places.ravel(), np.arange(shape[0]))


def _shape_arithmetic(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that are computed from shapes and constants alone."""
    constants = {tensor.name for tensor in model.graph.initializer} | {""}
    computed: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update(node.output)
        elif node.op_type == "Shape" or (
            not computed.isdisjoint(node.input) and (computed | constants).issuperset(node.input)
        ):
            computed.update(node.output)
    return computed


def _with_any_batch(values: list[np.ndarray]) -> np.ndarray | None:
    """A shape for Reshape that holds for every number of pictures; None if there is none."""
    differs = np.any(np.stack(values) != values[0], axis=0)
    return np.where(differs, -1, values[0]) if differs.sum() == 1 else None


def _constant(model: onnx.ModelProto, value: np.ndarray) -> str:
    name = f"constant/{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name
