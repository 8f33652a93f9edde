"""Checkpoints: one file with a trained SA-UNet and its metadata, loadable with ``weights_only=True``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from polypstream.core.files import write_atomically
from polypstream.errors import ModelError, OutputError
from polypstream.models.sa_unet import SEED, SEED_SIZE, SAUNet

FORMAT = "polypstream-checkpoint-1"
# Key in a checkpoint's `training` that lists the images of the validation split.
VALIDATION_NAMES = "validation_names"


def save_atomically(content: Any, path: Path) -> None:
    """Save with torch.save, so that the path holds either the old file or the complete new one.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with write_atomically(path) as unfinished:
            torch.save(content, unfinished)
    except RuntimeError as error:  # torch raises this for a full disk
        raise OutputError(f"{path}: cannot be written ({error})") from error


def pack(
    network: SAUNet, size: int, views: int, threshold: float, peak: float, training: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of a checkpoint file.

    Args:
        network: the trained model.
        size: side in pixels of the model's input. It is the training size until `polypstream tune` sets another one.
        views: how often the model looks at each image, 1 or 2; see PictureNet.
        threshold: probability from which a pixel counts as polyp, 0..1.
        peak: probability that a finding must reach at one pixel or more, 0..1.
        training: the training data and settings, plain values only.
    """
    return {
        "format": FORMAT,
        "architecture": network.architecture,
        "state_dict": network.state_dict(),
        "size": size,
        "views": views,
        "threshold": threshold,
        "peak": peak,
        "training": training,
    }


def is_checkpoint(path: Path) -> bool:
    """Return whether `polypstream train` wrote this file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # for a damaged file torch's unpickler may raise any exception
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def load_checkpoint(path: Path) -> tuple[SAUNet, dict[str, Any]]:
    """Load a model and its metadata.

    Args:
        path: a checkpoint of `polypstream train`, or the seed project's ``saunet128.pt``, which is a bare state dict.

    Returns:
        The model in evaluation mode, and the checkpoint's content without the weights.

    Raises:
        ModelError: the file is missing, cannot be read, or is neither of the two.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for a damaged file torch's unpickler may raise any exception
        raise ModelError(f"{path}: not a checkpoint that can be loaded with weights_only=True") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds {type(content).__name__}, not a checkpoint of SA-UNet")
    if content.get("format") != FORMAT:
        content = _from_seed(content, path)
    try:
        network = SAUNet(**content["architecture"])
        network.load_state_dict(content.pop("state_dict"))
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ModelError(f"{path}: its weights do not fit the architecture that it names") from error
    missing = [key for key in ("size", "threshold", "peak", "training") if key not in content]
    if missing:
        raise ModelError(f"{path}: lacks {', '.join(missing)}")
    return network.eval(), {"views": 1} | content  # older checkpoints have no views


def _from_seed(state_dict: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert the seed project's state dict to the content of a checkpoint."""
    expected = {name: tensor.shape for name, tensor in _seed_without_weights().state_dict().items()}
    found = {name: getattr(tensor, "shape", None) for name, tensor in state_dict.items()}
    if found != expected:
        raise ModelError(
            f"{path}: neither a checkpoint of `polypstream train` nor the seed's saunet128.pt "
            f"({len(expected.items() - found.items())} of its {len(expected)} tensors are missing or of another shape)"
        )
    training = {"data": "Kvasir-SEG (the seed's own training)", "terms": "research and education"}
    return {
        "format": FORMAT,
        "architecture": SEED,
        "state_dict": state_dict,
        "size": SEED_SIZE,
        "threshold": 0.5,
        "peak": 0.5,
        "training": training,
    }


def _seed_without_weights() -> SAUNet:
    with torch.device("meta"):
        return SAUNet(**SEED)
