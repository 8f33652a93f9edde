"""The command compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polypstream.cli.figures import as_lines
from polypstream.cli.options import Commands, JsonFile, importing, write_json
from polypstream.core.extras import extra
from polypstream.errors import SettingsError

if TYPE_CHECKING:
    from polypstream.models.comparison import Figure

app = Commands()
MODEL = "Checkpoint (.pt), ONNX file, or shipped, shipped-float or shipped-int8"


@app.command("compare")
def compare_models(
    first: Annotated[str, typer.Argument(metavar="A", help=f"One model: {MODEL}")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other model")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder with images/ and masks/, or a recording")],
    names: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the names of the images to use; default: all images")
    ] = None,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Of a recording, use each Nth frame")] = 10,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Write a PNG of the pictures in which the models differ most"
        ),
    ] = None,
    json_file: JsonFile = None,
    provider: Annotated[str, typer.Option(metavar="NAME", help="Execution provider of ONNX models")] = "auto",
) -> None:
    """Compare two models on the same pictures.

    With masks: accuracy, false alarms and speed of both, and the differences
    with 95 % intervals. With a recording: how far their findings agree.
    """
    with importing():
        from polypstream.cli.progress import ProgressBar
        from polypstream.core.config import load_settings
        from polypstream.models.comparison import (
            Comparison,
            pictures_of,
            pictures_of_recording,
            summarise_agreement,
            summarise_comparison,
        )
        from polypstream.models.data import find_pairs
        from polypstream.models.evaluation import load_model
        from polypstream.stages.findings import choose_rules
    with extra("train"):  # a checkpoint needs torch, an ONNX model does not
        models = [load_model(name, provider) for name in (first, second)]
    findings = load_settings(None, []).findings
    a, b = ((model, choose_rules(findings, model.threshold, model.peak)) for model in models)
    with_truth = Path(data).is_dir()
    if names and not with_truth:
        raise SettingsError(f"--names: {data} is no folder with images/ and masks/")
    pairs = find_pairs(Path(data), names) if with_truth else []
    comparison = Comparison(a, b)
    with ProgressBar(data, "images") as progress:
        pictures = pictures_of(pairs) if with_truth else pictures_of_recording(data, every)
        comparison.run(pictures, lambda done: progress.show(done, len(pairs)))
    figures = summarise_comparison(comparison.compared, with_truth)
    agreement = summarise_agreement(comparison.compared)
    typer.echo(f"A: {first}, runs on {a[0].runs_on}\nB: {second}, runs on {b[0].runs_on}")
    for line in (*_table(figures), "", *as_lines(agreement)):
        typer.echo(line)
    if json_file:
        write_json(json_file, {"a": first, "b": second, "figures": figures, "agreement": agreement})
    if output:
        comparison.draw(output / "differences.png")
        typer.echo(f"{output / 'differences.png'}: written")


def _table(figures: Mapping[str, Figure]) -> Iterator[str]:
    yield f"{'':26}{'images':>6}{'A':>9}{'B':>9}{'B - A':>10}  95 % interval"
    for name, figure in figures.items():
        edges = figure.difference_95
        shown = "" if edges is None else f"{edges[0]:.4f} to {edges[1]:.4f}"
        numbers = f"{figure.images:6}{figure.a:9.4f}{figure.b:9.4f}{figure.difference:10.4f}"
        yield f"{name.replace('_', ' '):26}{numbers}  {shown}".rstrip()
