"""Weights of an ONNX file that `polypstream export` wrote, for further training. The shipped weights are such a file.

The export folds most batch normalisations into the convolutions before them. They become identities here. Their
statistics are those of no data, so they must not be trained: see `freeze_norms`.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from polypstream.errors import ModelError
from polypstream.models.sa_unet import SAUNet

PREFIX, HALF, FOLDED_BIAS = "network.", ".half", "_bias"


def load_exported(path: Path, network: SAUNet) -> None:
    """Load the weights of an exported model in floating point, so that the network computes the same maps.

    Args:
        path: ONNX file with the precision fp32 or fp16.
        network: of the architecture that was exported.

    Raises:
        ModelError: the file is missing, is no such model, or has another architecture.
    """
    weights = _initialisers(path)
    state = network.state_dict()
    found = {name: tensor for name, tensor in weights.items() if name in state}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and f"{name}.running_mean" not in weights:
            found |= _identity(name, module, weights)
    counts = {name: tensor for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(counts | found)
    except RuntimeError as error:
        raise ModelError(
            f"{path}: its weights do not fit the architecture that is trained here; give a model that "
            "`polypstream export` wrote with --precision fp32 or fp16"
        ) from error


def freeze_norms(network: nn.Module) -> None:
    """Let all batch normalisations use their stored statistics, also in training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _initialisers(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: no such model")
    try:
        graph = onnx.load(path).graph
        bodies = [attribute.g for node in graph.node if node.op_type == "Loop" for attribute in node.attribute]
        # With an early exit the weights are in the body of a loop.
        tensors = [tensor for each in (graph, *bodies) for tensor in each.initializer]
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    except Exception as error:  # for a damaged file protobuf and numpy may raise any exception
        raise ModelError(f"{path}: cannot be read as an ONNX file") from error
    return {
        name.removeprefix(PREFIX).removesuffix(HALF): torch.from_numpy(array.copy()).float()
        for name, array in arrays.items()
        if name.startswith(PREFIX)
    }


def _identity(name: str, norm: nn.BatchNorm2d, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a normalisation that changes nothing, but adds the bias of a convolution without one."""
    folded = f"{name.rpartition('.')[0]}.0.weight{FOLDED_BIAS}"
    zeros = torch.zeros(norm.num_features)
    state = {
        "weight": torch.full_like(zeros, math.sqrt(1 + norm.eps)),
        "bias": weights.get(folded, zeros),
        "running_mean": zeros,
        "running_var": torch.ones_like(zeros),
    }
    return {f"{name}.{part}": tensor for part, tensor in state.items()}
