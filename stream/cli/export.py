"""Commands of export/: export and inspect. Importing this is cheap; torch comes in when a command needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from polypstream.core.extras import extra
from polypstream.errors import DataError
from polypstream.inference.segmenter import Segmenter


def export_model(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint.pt of a training run, or the seed's saunet128.pt")],
    output: Annotated[Path, typer.Option(help="The ONNX file to write")],
    size: Annotated[int | None, typer.Option(help="Side of the pictures; as the checkpoint says without it")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(help="fp16 halves the file; int8 computes in integers, faster on CPUs and a little less exact"),
    ] = "fp32",
    calibration: Annotated[
        Path | None, typer.Option(help="For int8: folder with images/ and masks/, on which ranges are measured")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="JSON of `polypstream evaluate`, for the metadata")] = None,
) -> None:
    """Write a self-describing ONNX model, after proof that it says the same as torch."""
    with extra("train"):
        from polypstream.export.onnx_file import export
    proof = export(checkpoint, output, size, precision, _read_scores(scores), calibration)
    typer.echo(f"{output}: {proof}")


def inspect(
    model: Annotated[Path, typer.Argument(help="ONNX model")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Print what a model says about itself."""
    card = Segmenter(model, "cpu").card.model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(card, indent=2))
        return
    for name, value in card.items():
        typer.echo(f"{name:18} {json.dumps(value) if isinstance(value, dict) else value}")


def _read_scores(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON") from error
    if not isinstance(scores, dict):
        raise DataError(f"{path}: holds no figures by name")
    return scores
