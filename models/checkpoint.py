"""Checkpoints: a trained SA-UNet and what is known about it, in one file loadable with ``weights_only=True``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from polypstream.core.files import write_atomically
from polypstream.errors import ModelError, OutputError
from polypstream.models.sa_unet import SEED, SEED_SIZE, SAUNet

FORMAT = "polypstream-checkpoint-1"
# Where a checkpoint's training says which pictures were held out.
VALIDATION_NAMES = "validation_names"


def save_atomically(content: Any, path: Path) -> None:
    """torch.save that leaves the old file or the new one, never half of one.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with write_atomically(path) as unfinished:
            torch.save(content, unfinished)
    except RuntimeError as error:  # torch reports a full disk so
        raise OutputError(f"{path}: cannot be written ({error})") from error


def pack(
    network: SAUNet, size: int, views: int, threshold: float, peak: float, training: dict[str, Any]
) -> dict[str, Any]:
    """The content of a checkpoint file.

    Args:
        network: the trained network.
        size: side in pixels of the pictures that it is meant for: those it was trained on, until `tune` says more.
        views: of each picture that it looks at; see PictureNet.
        threshold: probability from which a pixel counts as polyp.
        peak: probability that a finding must reach somewhere.
        training: what it was trained on and how, plain values only.
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
    """Is this a file of `polypstream train`, and not some other network's weights?"""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch's unpickler raises whatever garbage leads it to
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def load_checkpoint(path: Path) -> tuple[SAUNet, dict[str, Any]]:
    """A network in evaluation mode, and its checkpoint without the weights.

    Takes our checkpoints and the seed's bare ``saunet128.pt`` state dict.

    Raises:
        ModelError: the file is missing, unreadable, or holds neither.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises whatever garbage leads it to
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
    return network.eval(), {"views": 1} | content  # older ones do not speak of views


def _from_seed(state_dict: dict[str, Any], path: Path) -> dict[str, Any]:
    """The seed's checkpoint in our shape."""
    expected = {name: tensor.shape for name, tensor in _seed_on_no_device().state_dict().items()}
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


def _seed_on_no_device() -> SAUNet:
    with torch.device("meta"):
        return SAUNet(**SEED)
