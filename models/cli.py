"""Commands of models/: train and evaluate. Importing this is cheap; torch comes in when a command needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from models.data import find_pairs
from models.evaluation import draw_samples, load_model, summarise, write_output
from models.evaluation import evaluate as measure
from stream.errors import MissingExtra
from stream.progress import ProgressBar

MOST_SAMPLES = 12


@contextmanager
def train_extra() -> Iterator[None]:
    """Answer a missing optional package with the pip line that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"this command needs {error.name}, which is not installed; in the checkout of polypstream: "
            "pip install -e '.[train]' -c constraints.txt"
        ) from error


def train(
    data: Annotated[Path, typer.Argument(help="Folder with images/ and masks/")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run in it goes on")],
    names: Annotated[
        Path | None, typer.Option(help="File with the names to train on; else DATA/train.txt if there, else all")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures")] = 75,
    size: Annotated[int, typer.Option(min=32, help="Side of the square pictures in pixels")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0, help="Highest learning rate")] = 2e-3,
    dice: Annotated[float, typer.Option(min=0, help="Weight of the Dice loss; 0: maximum likelihood alone")] = 1.0,
    validation: Annotated[float, typer.Option(min=0.01, max=0.5, help="Share held out for validation")] = 0.08,
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights, order and augmentation")] = 0,
    start: Annotated[Path | None, typer.Option(help="Checkpoint whose weights to start from")] = None,
    terms: Annotated[str, typer.Option(help="Terms of use of the data, kept in the model's metadata")] = "not stated",
) -> None:
    """Train an SA-UNet; writes checkpoint.pt, history.csv and curves.png."""
    with train_extra():
        from models.training import Recipe
        from models.training import train as run_training
    if names is None and (data / "train.txt").is_file():
        names = data / "train.txt"
        typer.echo(f"training on the names in {names}")
    recipe = Recipe(
        epochs=epochs,
        size=size,
        batch=batch,
        learning_rate=learning_rate,
        dice=dice,
        validation=validation,
        seed=seed,
    )
    with ProgressBar(str(out), "steps") as progress:
        checkpoint = run_training(data, names, out, recipe, terms, start, typer.echo, progress.show)
    typer.echo(f"best weights: {checkpoint}")


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.pt) or ONNX model")],
    data: Annotated[Path, typer.Argument(help="Folder with images/ and masks/")],
    names: Annotated[Path | None, typer.Option(help="File with the names to measure; all without it")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too")] = None,
    samples: Annotated[
        Path | None, typer.Option(help="PNG with input, heat map, probability, mask and truth of some pictures")
    ] = None,
    provider: Annotated[str, typer.Option(help="Execution provider of an ONNX model")] = "auto",
) -> None:
    """Measure Dice, IoU and pixel figures at each picture's own size."""
    with train_extra():
        loaded = load_model(model, provider)
    pairs = find_pairs(data, names)
    with ProgressBar(str(data), "pictures") as progress:
        figures = summarise(measure(loaded, pairs, progress.show))
    for name, value in figures.items():
        if isinstance(value, list):
            typer.echo(f"  95 % interval  {value[0]:.4f} to {value[1]:.4f}")
        else:
            typer.echo(f"{name:16} {value}" if isinstance(value, int) else f"{name:16} {value:.4f}")
    if json_file:
        write_output(json_file, (json.dumps(figures, indent=2) + "\n").encode())
    if samples:
        draw_samples(loaded, pairs[:: max(1, len(pairs) // MOST_SAMPLES)][:MOST_SAMPLES], samples)
