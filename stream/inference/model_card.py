"""The contract of a model file: what every ONNX model of ours eats, returns and says about itself.

- input ``frames``: uint8 [N, H, W, 3], RGB; N dynamic, H = W fixed at export;
- output ``probability``: uint8 [N, H, W], 0..255 meaning 0..1;
- ``metadata_props``: the fields of ModelCard, as text.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, Json

INPUT = "frames"
OUTPUT = "probability"
NOTICE = "Research use only, not a medical device."


class ModelCard(BaseModel):
    """What a model file says about itself, from its ``metadata_props``."""

    model_config = ConfigDict(protected_namespaces=(), extra="ignore")

    model_name: str
    model_version: str
    input_size: int = Field(gt=0)
    # Of each picture, upside down being the second; files from before there was a choice do not say.
    views: int = Field(default=1, gt=0)
    threshold: float = Field(gt=0, lt=1)
    peak: float = Field(gt=0, lt=1)
    precision: str
    gmac: float = Field(gt=0)
    trained_on: str
    terms: str
    scores: Json[dict[str, Any]]
    checkpoint_sha256: str
    exported_with: str
    notice: str


# The weights that come with the program, by the name that settings give them; `shipped` is the faster of the two.
SHIPPED = "shipped"
WEIGHTS = {"shipped-float": "sa_unet.onnx", "shipped-int8": "sa_unet_int8.onnx"}


def shipped_weights(name: str = "shipped-float") -> Path:
    """A model that comes with the program; `name` is a key of WEIGHTS."""
    return Path(str(files("polypstream.models") / "weights" / WEIGHTS[name]))
