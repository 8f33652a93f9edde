"""The contract of a model file: input, output and metadata of every polypstream ONNX model.

- input ``frames``: uint8 [N, H, W, 3], RGB; N dynamic, H = W fixed at export;
- output ``probability``: uint8 [N, H, W], 0..255 meaning 0..1;
- ``metadata_props``: the fields of ModelCard, as text.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, Json

if TYPE_CHECKING:
    from polypstream.inference.providers import Provider

INPUT = "frames"
OUTPUT = "probability"


class ModelCard(BaseModel):
    """The metadata of a model file, from its ``metadata_props``.

    Attributes:
        model_name, model_version: name and version of the model.
        input_size: height and width of the input in pixels.
        views: number of orientations of each image that the model averages; the second one is rotated by 180 degrees.
        threshold: probability from which a pixel counts as polyp, 0..1.
        peak: probability that a finding must reach somewhere, 0..1.
        precision: fp32, fp16, fp16-weights (stored as half floats, computed in fp32) or int8.
        early_exit: the second view is computed only if the first one shows something.
        gmac: multiply-accumulate operations for all views of one image, in 10^9.
        trained_on: the training data.
        terms: the terms of use.
        scores: results of the evaluation.
        checkpoint_sha256: SHA-256 of the exported checkpoint.
        exported_with: names and versions of the packages used for the export.
        notice: NOTICE.
    """

    model_config = ConfigDict(protected_namespaces=(), extra="ignore")

    model_name: str
    model_version: str
    input_size: int = Field(gt=0)
    # Files from before this option existed do not contain it.
    views: int = Field(default=1, gt=0)
    threshold: float = Field(gt=0, lt=1)
    peak: float = Field(gt=0, lt=1)
    precision: str
    early_exit: bool = False
    gmac: float = Field(gt=0)
    trained_on: str
    terms: str
    scores: Json[dict[str, Any]]
    checkpoint_sha256: str
    exported_with: str
    notice: str


# The installed weights by their name in the settings. `shipped` selects the faster one for the provider.
SHIPPED, FLOAT, INT8 = "shipped", "shipped-float", "shipped-int8"
WEIGHTS = {FLOAT: "sa_unet.onnx", INT8: "sa_unet_int8.onnx"}
# The same as sa_unet.onnx with an early exit, which halves the time of CPUs.
FLOAT_FOR_CPUS = "sa_unet_cpu.onnx"


def shipped_weights(name: str = FLOAT) -> Path:
    """Return the path of a model that is installed with the program.

    Args:
        name: a key of WEIGHTS.

    Returns:
        The path of the ONNX file.
    """
    return _installed(WEIGHTS[name])


def shipped_for_cpus(name: str) -> dict[Provider, Path]:
    """Return the files that take the place of `model_file(name)` with the providers of CPUs, because they are faster.

    Args:
        name: as for model_file.

    Returns:
        The file of each such provider; none if the name is not that of shipped weights for GPUs.
    """
    if name not in (SHIPPED, FLOAT):
        return {}
    # The int8 model halves the time of the plain CPU provider. With OpenVINO it was not faster.
    floats = _installed(FLOAT_FOR_CPUS)
    return {"cpu": shipped_weights(INT8) if name == SHIPPED else floats, "openvino": floats}


def _installed(name: str) -> Path:
    return Path(str(files("polypstream.models") / "weights" / name))


def model_file(name: str) -> Path:
    """Return the path of the model that a user names.

    Args:
        name: "shipped", a key of WEIGHTS, or the path of an ONNX file.

    Returns:
        The path; for "shipped" that of the floating-point weights.
    """
    name = FLOAT if name == SHIPPED else name
    return shipped_weights(name) if name in WEIGHTS else Path(name)


def digest_of(file: Path) -> str:
    """SHA-256 of a model file's content, as hexadecimal digits.

    Args:
        file: the file.
    """
    return hashlib.sha256(file.read_bytes()).hexdigest()
