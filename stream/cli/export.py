"""The commands export, wrap and inspect."""

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
    early_exit: Annotated[
        bool,
        typer.Option(
            "--early-exit",
            help="For CPUs: compute the second view of an image only if the first one shows something. The result is "
            "the same",
        ),
    ] = False,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="JSON of `polypstream evaluate`, for the metadata")
    ] = None,
) -> None:
    """Write an ONNX model from a checkpoint.

    The model is written only if its output is the same as that of PyTorch.
    """
    with importing(), extra("train"):
        from polypstream.export.onnx_file import ExportSettings, export
    result = export(checkpoint, output, ExportSettings(size, precision, calibration, early_exit), _read_scores(scores))
    typer.echo(f"{output}: written; {result}")


@app.command()
def wrap(
    network: Annotated[
        Path, typer.Argument(metavar="NETWORK.onnx", help="ONNX file of a segmentation network, from any program")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.onnx", help="The ONNX file to write")],
    normalize: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Colours that it wants: imagenet, unit (0..1), none (0..255), zscore, or MEAN,STD of values 0..1",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Width x height of its pictures in pixels; default: as in the file"),
    ] = None,
    layout: Annotated[
        Literal["nchw", "nhwc"] | None,
        typer.Option(metavar="nchw|nhwc", help="Order of the axes of its input; default: as in the file"),
    ] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="The network wants blue first")] = False,
    map_: Annotated[
        str | None, typer.Option("--map", metavar="NAME", help="Output that counts, if it has several maps")
    ] = None,
    channel: Annotated[
        int | None,
        typer.Option(metavar="N", help="Channel that is polyp, from 0; default: the only one, or 1 of two"),
    ] = None,
    activation: Annotated[
        Literal["sigmoid", "softmax", "none"] | None,
        typer.Option(
            metavar="sigmoid|softmax|none",
            help="What makes probabilities of its output; default: none if the network does so itself, sigmoid if it "
            "has one channel",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(metavar="0..1", help="Probability from which a pixel counts as polyp")
    ] = 0.5,
    peak: Annotated[
        float | None,
        typer.Option(metavar="0..1", help="Probability that a finding must reach; default: as --threshold"),
    ] = None,
    precision: Annotated[
        Literal["fp16-weights", "int8"] | None,
        typer.Option(metavar="fp16-weights|int8", help="As for `export`; default: the network is left as it is"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="For int8: folder with images/ and masks/, on which value ranges are measured"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Name of the model, for its metadata; default: that of the file")
    ] = None,
    trained_on: Annotated[str, typer.Option(metavar="TEXT", help="Its training data, for the metadata")] = "not stated",
    terms: Annotated[str, typer.Option(metavar="TEXT", help="Its terms of use, for the metadata")] = "not stated",
) -> None:
    """Make a model from any segmentation network in an ONNX file.

    Colours, size, activation and metadata become a part of the file. It is
    written only if its output is the same as that of the network.
    """
    with importing(), extra("wrap"):
        from polypstream.export.network import WrapSettings, parse_size
        from polypstream.export.wrap import wrap as wrap_network
    settings = WrapSettings(
        normalize=normalize,
        size=None if size is None else parse_size(size),
        layout=None if layout is None else "NCHW" if layout == "nchw" else "NHWC",
        bgr=bgr,
        map=map_,
        channel=channel,
        activation=activation,
        threshold=threshold,
        peak=peak,
        name=name,
        trained_on=trained_on,
        terms=terms,
        precision=precision,
        calibration=calibration,
    )
    typer.echo(f"{output}: written; {wrap_network(network, output, settings)}")


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
