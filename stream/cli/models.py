"""Commands of models/: train, tune and evaluate. Importing this is cheap; torch comes in when a command needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from polypstream.cli.progress import ProgressBar
from polypstream.core.config import load_settings
from polypstream.core.extras import extra
from polypstream.errors import SettingsError
from polypstream.models.data import find_pairs, spread
from polypstream.models.evaluation import evaluate as measure
from polypstream.models.evaluation import (
    load_model,
    look_at_healthy_crops,
    pooled_histogram,
    summarise,
    summarise_healthy,
    write_output,
)
from polypstream.stages.findings import choose_rules

MAX_SAMPLES = 12


def train(
    data: Annotated[
        list[Path], typer.Argument(help="Folders with images/ and masks/; the names in a folder's train.txt, or all")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run in it goes on")],
    names: Annotated[
        Path | None, typer.Option(help="File with the names to train on, for one folder; in place of its train.txt")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures")] = 75,
    size: Annotated[int, typer.Option(min=32, help="Side of the square pictures in pixels")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0, help="Highest learning rate")] = 2e-3,
    dice: Annotated[float, typer.Option(min=0, help="Weight of the Dice loss; 0: maximum likelihood alone")] = 1.0,
    validation: Annotated[float, typer.Option(min=0.01, max=0.5, help="Share held out for validation")] = 0.08,
    healthy_views: Annotated[int, typer.Option(min=1, help="Views an epoch of each picture without a polyp")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights, order and augmentation")] = 0,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out scale, close-ups, palette, colour, spoiling or averaging"),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to start from, or EfficientNet-Lite2's ImageNet weights for the encoder"),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="File with pictures to validate on, folder/picture a line; in place of a random share"),
    ] = None,
    terms: Annotated[str, typer.Option(help="Terms of use of the data, kept in the model's metadata")] = "not stated",
) -> None:
    """Train an SA-UNet; writes checkpoint.pt, history.csv and curves.png."""
    with extra("train"):
        from polypstream.models.training import Recipe
        from polypstream.models.training import train as run_training
    recipe = Recipe(
        epochs=epochs,
        size=size,
        batch=batch,
        learning_rate=learning_rate,
        dice=dice,
        validation=validation,
        healthy_views=healthy_views,
        seed=seed,
        without=tuple(sorted(without or [])),
    )
    with ProgressBar(str(out), "steps") as progress:
        checkpoint = run_training(
            data, names, out, recipe, terms, typer.echo, start=start, held_out=held_out, on_progress=progress.show
        )
    typer.echo(f"best weights: {checkpoint}")


def tune(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint.pt of a training run; it is rewritten")],
    data: Annotated[list[Path], typer.Argument(help="The folders that it was trained on")],
    size: Annotated[
        int | None, typer.Option(min=32, help="Side of the pictures it will run on; as the checkpoint says without it")
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(min=1, max=2, help="2: look at each picture upside down, too; quieter, for twice the work"),
    ] = None,
) -> None:
    """Choose how sure the model must be of a finding, on the pictures held out in training."""
    with extra("train"):
        from polypstream.models.operating_point import choose_operating_point
    with ProgressBar(str(checkpoint), "pictures") as progress:
        point = choose_operating_point(
            checkpoint, data, size, views, load_settings(None, []).findings.smallest, typer.echo, progress.show
        )
    typer.echo(f"{checkpoint}: a finding must reach {point.peak:g} somewhere")


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.pt) or ONNX model")],
    data: Annotated[Path, typer.Argument(help="Folder with images/ and masks/")],
    names: Annotated[Path | None, typer.Option(help="File with the names to measure; all without it")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too")] = None,
    samples: Annotated[
        Path | None, typer.Option(help="PNG with input, heat map, probability, mask and truth of some pictures")
    ] = None,
    reliability: Annotated[
        Path | None, typer.Option(help="PNG of how often the model is right where it says a probability")
    ] = None,
    healthy_crops: Annotated[
        bool, typer.Option("--healthy-crops", help="Also count findings in polyp-free crops of the pictures")
    ] = False,
    provider: Annotated[str, typer.Option(help="Execution provider of an ONNX model")] = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of config.yaml, of `findings`")
    ] = None,
) -> None:
    """Measure accuracy at each picture's own size, false alarms, calibration and speed, under the run-time rules."""
    with extra("train"):
        loaded = load_model(model, provider)
        if samples or reliability:
            from polypstream.models.figures import draw_reliability, draw_samples
    for setting in settings or []:
        if not setting.startswith("findings."):
            raise SettingsError(f"--set {setting}: only the settings of `findings` have a say here")
    rules = choose_rules(load_settings(None, settings or []).findings, loaded.threshold, loaded.peak)
    pairs = find_pairs(data, names)
    with ProgressBar(str(data), "pictures") as progress:
        results = measure(loaded, rules, pairs, progress.show)
    figures = {"runs_on": loaded.runs_on, "gmac": loaded.gmac, **summarise(results)}
    if healthy_crops:
        with ProgressBar("polyp-free crops", "pictures") as progress:
            found = look_at_healthy_crops(loaded, rules, pairs, progress.show)
        if not found:
            typer.echo("no polyp-free crop fits into these pictures")
        else:
            figures["healthy_crops"] = {f"{share:g}": summarise_healthy(found[share]) for share in sorted(found)}
            figures["all_healthy_crops"] = summarise_healthy([count for counts in found.values() for count in counts])
    for line in _as_lines(figures):
        typer.echo(line)
    if json_file:
        write_output(json_file, (json.dumps(figures, indent=2) + "\n").encode())
    if samples:
        draw_samples(loaded, rules, spread(pairs, MAX_SAMPLES), samples)
    if reliability:
        draw_reliability(pooled_histogram(results), reliability)


def _as_lines(figures: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Figures for people, one a line; intervals under what they belong to."""
    for name, value in figures.items():
        label = indent + name.replace("_", " ")
        if name.endswith("_95"):
            yield f"{indent}  95 % interval".ljust(28) + f"{value[0]:.4f} to {value[1]:.4f}"
        elif name == "reliability":
            pairs = ", ".join(f"{each['probability']:.2f}: {each['polyp']:.2f}" for each in value)
            yield f"{label} (probability: share that is polyp)  {pairs}"
        elif isinstance(value, dict):
            yield label
            yield from _as_lines(value, indent + "  ")
        else:
            yield label.ljust(28) + (f"{value:.4f}" if isinstance(value, float) else str(value))
