"""The commands train, tune and evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polypstream.cli.figures import as_lines, side_by_side
from polypstream.cli.options import SET, Commands, JsonFile, importing, write_json
from polypstream.core.extras import extra
from polypstream.core.formatting import quoted
from polypstream.errors import SettingsError

if TYPE_CHECKING:
    from polypstream.models.data import Pair
    from polypstream.models.evaluation import Model, Result
    from polypstream.stages.findings import Rules

MAX_SAMPLES = 12

app = Commands()


@app.command()
def train(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER",
            help="Folders with images/ and masks/; all images are used, or those listed in train.txt in the folder",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for the results of the training; an interrupted training in it is continued",
        ),
    ],
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the names of the images to use, for a single folder; replaces its train.txt"
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the training images")] = 75,
    size: Annotated[int, typer.Option(min=32, metavar="PIXELS", help="Side of the square input in pixels")] = 256,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images per step")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0, metavar="RATE", help="Highest learning rate")] = 2e-3,
    dice: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="WEIGHT",
            help="Weight of the Dice loss, which is added to the cross-entropy; 0: cross-entropy only",
        ),
    ] = 1.0,
    validation: Annotated[
        float,
        typer.Option(min=0.01, max=0.5, metavar="FRACTION", help="Fraction of the images in the validation split"),
    ] = 0.08,
    healthy_views: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often each image without a polyp is used per epoch")
    ] = 1,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Random seed of split, initial weights, order and augmentation")
    ] = 0,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Part of the training to leave out: "
            "painting, mosaic, scale, close-ups, residue, palette, colour, degradation or averaging",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Initial weights: `shipped`, a checkpoint, an exported model, or ImageNet weights of the encoder",
        ),
    ] = None,
    freeze_encoder: Annotated[
        bool,
        typer.Option(
            "--freeze-encoder",
            help="Train the attention and the decoder only, from the weights of --start",
        ),
    ] = False,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Trained model whose probability is a part of the target: `shipped`, a checkpoint or an exported "
            "model; may be given several times, then the mean counts",
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the images of the validation split, one folder/image per line; default: random",
        ),
    ] = None,
    terms: Annotated[
        str, typer.Option(metavar="TEXT", help="Terms of use of the data, for the model's metadata")
    ] = "not stated",
) -> None:
    """Train a model (SA-UNet).

    Writes checkpoint.pt, history.csv and curves.png.
    """
    with importing(), extra("train"):
        from polypstream.cli.progress import ProgressBar
        from polypstream.inference.model_card import model_file
        from polypstream.models.training import Recipe, TrainingData
        from polypstream.models.training import train as run_training
    recipe = Recipe(
        epochs=epochs,
        size=size,
        batch=batch,
        learning_rate=learning_rate,
        dice=dice,
        validation=validation,
        healthy_views=healthy_views,
        freeze_encoder=freeze_encoder,
        seed=seed,
        without=tuple(sorted(without or [])),
    )
    images = TrainingData(data, names, held_out, terms)
    initial = model_file(str(start)) if start else None
    teachers = [model_file(name) for name in teacher or ()]
    with ProgressBar(str(output), "steps") as progress:
        checkpoint = run_training(images, output, recipe, typer.echo, initial, progress.show, teachers)
    typer.echo(f"best weights: {checkpoint}")


@app.command()
def tune(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|RUN",
            help="checkpoint.pt of a training, or an ONNX model; the file is changed. With --false-alarms-per-minute: "
            "a folder with results of `process`",
        ),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER",
            help="The folders that it was trained on; for an ONNX model, others than those; or more folders with "
            "results",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=32, metavar="PIXELS", help="Side of the model's input in pixels; default: as in the checkpoint"
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            metavar="N",
            help="2: process each image also rotated by 180 degrees; fewer false alarms, half the speed",
        ),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            "--false-alarms-per-minute",
            min=0,
            metavar="N",
            help="Choose settings for recordings: the most polyps with at most N false positives per minute",
        ),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Ground truth of the recordings, as for `study`")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File for the settings of the recordings")
    ] = None,
) -> None:
    """Calibrate the probabilities of a trained model.

    Also chooses the peak, the probability that a finding must reach. Both use
    the validation split of the training. Of an ONNX model, only the peak is
    chosen, on all images of the folders. With --false-alarms-per-minute it
    chooses settings for recordings instead, and needs --truth and --output.
    """
    if false_alarms is not None:
        if truth is None or output is None:
            raise typer.BadParameter("--false-alarms-per-minute needs --truth and --output")
        _tune_on_recordings([checkpoint, *(data or [])], truth, false_alarms, output)
        return
    if truth is not None or output is not None:
        raise typer.BadParameter("--truth and --output need --false-alarms-per-minute")
    if not data:
        raise typer.BadParameter("name the folders that the checkpoint was trained on, or others for an ONNX model")
    with importing(), extra("train"):
        from polypstream.cli.progress import ProgressBar
        from polypstream.core.config import load_settings
        from polypstream.models.evaluation import is_checkpoint
        from polypstream.models.operating_point import TuningSettings, choose_operating_point, choose_peak_of_file
    settings = TuningSettings(size, views, load_settings(None, []).findings.smallest)
    with ProgressBar(str(checkpoint), "images") as progress:
        tune_file = choose_operating_point if is_checkpoint(checkpoint) else choose_peak_of_file
        point = tune_file(checkpoint, data, settings, typer.echo, progress.show)
    typer.echo(f"{checkpoint}: a finding must reach {point.peak:g} at one pixel or more")


def _tune_on_recordings(runs: list[Path], truth: Path, most: float, output: Path) -> None:
    with importing():
        from polypstream.cli.progress import ProgressBar
        from polypstream.study.study import observe_runs
        from polypstream.study.tuning import known_peak, write_settings
        from polypstream.study.tuning import tune as choose
    with ProgressBar(str(truth), "frames") as progress:
        found, observations = observe_runs(truth, runs, progress.show)
    lowest = max(known_peak(run) for run in found)
    tuned = choose(observations, most, lowest, all(run.settings.findings.steady for run in found))
    write_settings(output, tuned, most)
    typer.echo(f"peak                        {tuned.choice.peak:g}")
    typer.echo(f"smallest                    {tuned.choice.smallest:g}")
    typer.echo(f"polyps found                {tuned.polyps_found:.4f}")
    typer.echo(f"frame sensitivity           {tuned.frame_sensitivity:.4f}")
    typer.echo(f"false positives per minute  {tuned.false_positives_per_minute:.4f}")
    typer.echo(f"use them with `polypstream process --config {quoted(output)}`")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="`shipped`, a checkpoint (.pt) or an ONNX model")],
    data: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with images/ and masks/")],
    names: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the names of the images to use; default: all images")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Measure this model too, and show both side by side; `shipped`, or as MODEL"
        ),
    ] = None,
    json_file: JsonFile = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Write a PNG with input, heat map, probability, mask and ground truth of some images",
        ),
    ] = None,
    reliability: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Write a PNG with the reliability diagram of the probabilities"),
    ] = None,
    healthy_crops: Annotated[
        bool, typer.Option("--healthy-crops", help="Also count findings in polyp-free crops of the images")
    ] = False,
    provider: Annotated[str, typer.Option(metavar="NAME", help="Execution provider of an ONNX model")] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one setting of `findings`, for instance findings.peak=0.9"
        ),
    ] = None,
) -> None:
    """Measure accuracy, false alarms, calibration and speed.

    Findings follow the same rules as those of `process`.
    """
    with importing(), extra("train"):
        from polypstream.models.data import find_pairs, spread
        from polypstream.models.evaluation import difference, pooled_histogram

        if samples or reliability:
            from polypstream.models.figures import draw_reliability, draw_samples
    pairs = find_pairs(data, names)
    loaded, rules = _load(model, provider, settings or [])
    results, figures = _measure(loaded, rules, pairs, str(data), healthy_crops)
    lines = as_lines(figures)
    if against:
        others, other_figures = _measure(*_load(against, provider, settings or []), pairs, str(against), healthy_crops)
        more = difference(results, others)
        columns = (str(model), figures), (str(against), other_figures)
        lines = chain(side_by_side(columns), as_lines({"difference": more}))
        figures = figures | {"against": other_figures, "difference": more}
    for line in lines:
        typer.echo(line)
    if json_file:
        write_json(json_file, figures)
    if samples:
        draw_samples(loaded, rules, spread(pairs, MAX_SAMPLES), samples)
    if reliability:
        draw_reliability(pooled_histogram(results), reliability)


def _load(model: Path, provider: str, settings: list[str]) -> tuple[Model, Rules]:
    """Load a model and choose its rules for findings."""
    from polypstream.core.config import settings_of
    from polypstream.models.evaluation import load_model
    from polypstream.stages.findings import choose_rules

    for setting in settings:
        if not setting.startswith("findings."):
            raise SettingsError(f"--set {setting}: only the settings of `findings` can be set here")
    with extra("train"):  # a checkpoint needs torch, an ONNX model does not
        loaded = load_model(str(model), provider)
    return loaded, choose_rules(settings_of(None, settings, SET).findings, loaded.threshold, loaded.peak)


def _measure(
    loaded: Model, rules: Rules, pairs: Sequence[Pair], title: str, healthy_crops: bool
) -> tuple[list[Result], dict[str, Any]]:
    """Compare a model's findings with the true masks, and compute the figures."""
    from polypstream.cli.progress import ProgressBar
    from polypstream.models.evaluation import evaluate as measure
    from polypstream.models.evaluation import evaluate_healthy_crops, summarise, summarise_healthy

    with ProgressBar(title, "images") as progress:
        results = measure(loaded, rules, pairs, progress.show)
    figures = {"runs_on": loaded.runs_on, "gmac": loaded.gmac, **summarise(results)}
    if healthy_crops:
        with ProgressBar("polyp-free crops", "images") as progress:
            found = evaluate_healthy_crops(loaded, rules, pairs, progress.show)
        if not found:
            typer.echo("no polyp-free crop fits into these images")
        else:
            figures["healthy_crops"] = {f"{share:g}": summarise_healthy(found[share]) for share in sorted(found)}
            figures["all_healthy_crops"] = summarise_healthy([count for counts in found.values() for count in counts])
    return results, figures
