"""The commands export and inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from polypstream.cli.figures import as_lines
from polypstream.cli.options import Commands, importing
from polypstream.core.extras import extra
from polypstream.errors import DataError

app = Commands()


@app.command("export")
def export_model(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="checkpoint.pt of a training, or saunet128.pt of the seed project"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.onnx", help="The ONNX file to write")],
    size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Side of the model's input in pixels; default: as in the checkpoint"),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "fp16-weights", "int8"],
        typer.Option(
            metavar="fp32|fp16|fp16-weights|int8",
            help="fp16-weights halves the file; fp16 computes in half floats, for GPUs; int8 computes in 8-bit "
            "integers, faster on CPUs and slightly less accurate",
        ),
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="For int8: folder with images/ and masks/, on which value ranges are measured"
        ),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="JSON of `polypstream evaluate`, for the metadata")
    ] = None,
) -> None:
    """Write an ONNX model from a checkpoint.

    The model is written only if its output is the same as that of PyTorch.
    """
    with importing(), extra("train"):
        from polypstream.export.onnx_file import ExportSettings, export
    result = export(checkpoint, output, ExportSettings(size, precision, calibration), _read_scores(scores))
    typer.echo(f"{output}: written; {result}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="ONNX file, or shipped, shipped-float or shipped-int8")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Print the metadata of a model."""
    # Not in importing(): this command needs no OpenCV.
    from polypstream.inference.model_card import model_file
    from polypstream.inference.segmenter import inspect_model

    card = inspect_model(model_file(model)).model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(card, indent=2))
        return
    for line in as_lines(card):
        typer.echo(line)


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
