"""Train an SA-UNet by maximising the Bernoulli log-likelihood of the masks.

A run is a folder:

- ``run.pt``: the state after the last complete epoch. A run that is started again continues from it;
- ``checkpoint.pt``: the weights with the lowest loss on the validation split;
- ``history.csv`` and ``curves.png``: the figures of each epoch.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import BinaryStatScores

from polypstream.core.files import write_output
from polypstream.errors import DataError, ModelError, OutputError, SettingsError
from polypstream.inference.cpu import usable_cores
from polypstream.jobs.image import view_of_image
from polypstream.models.checkpoint import VALIDATION_NAMES, is_checkpoint, load_checkpoint, pack, save_atomically
from polypstream.models.data import (
    AUGMENTATIONS,
    Levels,
    Pair,
    augment,
    hold_out,
    levels_of,
    named_pairs,
    read_names,
    read_pair,
    split_off_validation,
)
from polypstream.models.efficientnet_lite import load_imagenet
from polypstream.models.figures import draw_curves
from polypstream.models.painting import paint_over, paint_wall
from polypstream.models.residue import RESIDUE, residue_patches
from polypstream.models.sa_unet import OURS, SAUNet, check_size
from polypstream.models.shipped import freeze_norms, load_exported

# Entry of a checkpoint's `training`: its normalisations keep their statistics, since the export folded some of them.
NORMS, FROZEN = "norms", "frozen"
# Factor of the learning rate for weights that start from ImageNet weights.
PRETRAINED_RATE = 0.3
# Probability from which a pixel counts as polyp. The loss functions make 0.5 the natural threshold.
THRESHOLD = 0.5
AVERAGING_DECAY = 0.995
PARTS = ("painting", "mosaic", *AUGMENTATIONS, "averaging")
# Fraction of the views that are four views of half the side, in which polyps are small: Bochkovskiy et al., "YOLOv4",
# 2020.
MOSAIC_FRACTION = 0.12
# Fraction of the views of an image whose polyps are painted over, and of those with painted wall beside its polyps.
PAINTED_FRACTION = 0.15
# How much of the target is what the teachers say. The rest is the true mask.
TEACHERS_SHARE = 0.6
WARM_UP_SHARE = 0.05
CORES = usable_cores()
# Worker processes that make random views, about 3 ms each. Training on a CPU leaves them at most one core of two.
WORKERS = max(1, min(16, CORES - 1))
GRADIENT_NORM = 5.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """The hyperparameters of a training run.

    Attributes:
        epochs: passes over the training split.
        size: side of the square input in pixels.
        batch: images per step.
        learning_rate: the highest learning rate, which is reached after the warm-up.
        weight_decay: of AdamW.
        dice: weight of the Dice loss, which is added to the cross-entropy. 0: maximum likelihood only.
        validation: fraction of the images in the validation split, 0..1. The split chooses the checkpoint.
        healthy_views: random views per epoch of each image without a polyp. Data sets have few such images, clinical
            video has many.
        freeze_encoder: train the attention and the decoder only.
        seed: of the split, the initial weights, the order and the augmentation.
        without: parts of PARTS to leave out, to measure their effect.
    """

    epochs: int = 75
    size: int = 256
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    dice: float = 1.0
    validation: float = 0.08
    healthy_views: int = 1
    freeze_encoder: bool = False
    seed: int = 0
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The images of a training run.

    Attributes:
        folders: data sets with images/ and masks/.
        names: file with the names of the images to use, for a single folder. None: those in each folder's train.txt, or
            all images of a folder without one.
        held_out: file with the images of the validation split, one `folder/image` per line. None: a random split.
        terms: terms of use of the data, which the checkpoint states.
    """

    folders: Sequence[Path]
    names: Path | None = None
    held_out: Path | None = None
    terms: str = "not stated"


@dataclass(frozen=True, slots=True)
class PaintedImage:
    """An image, and what `polypstream.models.painting` makes of it.

    Attributes:
        original: the image.
        painted: the image without its polyps, and the image with painted wall beside its polyps; as many as there are.
    """

    original: Levels
    painted: list[Levels]

    def choose(self, random: np.random.Generator) -> Levels:
        """Return the image, or more seldom a painted one."""
        if not self.painted:
            return self.original
        number = int(random.random() / PAINTED_FRACTION)
        return self.painted[number] if number < len(self.painted) else self.original


class AugmentedImages(Dataset[tuple[Tensor, Tensor]]):
    """Random views of images, by (epoch, index).

    A view depends on seed, epoch and index only, so a resumed run gets the same views.

    Args:
        content: the images, one entry per random view of an epoch.
        residue: patches of residue, as for `augment`.
        recipe: the hyperparameters.
    """

    def __init__(self, content: list[PaintedImage], residue: list[np.ndarray], recipe: Recipe) -> None:
        self.content, self.residue, self.recipe = content, residue, recipe

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = place
        random = np.random.default_rng((self.recipe.seed, epoch, index))
        if "mosaic" not in self.recipe.without and random.random() < MOSAIC_FRACTION:
            others = random.integers(len(self.content), size=3)
            views = [self._view(each, self.recipe.size // 2, random) for each in (index, *others)]
            image, mask = (np.vstack([np.hstack(part[:2]), np.hstack(part[2:])]) for part in zip(*views, strict=True))
        else:
            image, mask = self._view(index, self.recipe.size, random)
        return torch.from_numpy(image), torch.from_numpy(mask)

    def _view(self, index: int, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        palette = self.content[random.integers(len(self.content))].original.palette
        return augment(self.content[index].choose(random), palette, size, random, self.recipe.without, self.residue)


def train(
    data: TrainingData,
    out: Path,
    recipe: Recipe,
    report: Callable[[str], None],
    start: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    teachers: Sequence[Path] = (),
) -> Path:
    """Train a model, or continue an interrupted run.

    Args:
        data: the images to train on.
        out: folder of the run, which is created if it does not exist.
        recipe: the hyperparameters.
        report: called with one line of text after each epoch.
        start: checkpoint or exported ONNX file with the initial weights, or ImageNet weights of the encoder. None:
            random weights. The validation split of the checkpoint's run is used again.
        on_progress: called after each step with the number of steps done and of all steps.
        teachers: trained models, as for `start`. The target is then a mean of the true mask and the probability that
            the teachers see in the same view, except for residue and for views without a polyp: Hinton et al.,
            "Distilling the Knowledge in a Neural Network", 2015; Beyer et al., "Knowledge distillation: A good teacher
            is patient and consistent", CVPR 2022.

    Returns:
        The path of checkpoint.pt.

    Raises:
        DataError: the data sets are incomplete or too small.
        ModelError: `start` or a teacher is not a model of this architecture.
        OutputError: a file cannot be written.
        SettingsError: `out` holds a run with other settings, the size does not fit the architecture, `recipe.without`
            names an unknown part, both `start` and `data.held_out` set the validation split, or the training diverges.
    """
    check_size(OURS, recipe.size)
    unknown = set(recipe.without) - set(PARTS)
    if unknown:
        raise SettingsError(f"--without {unknown.pop()}: must be one of {', '.join(PARTS)}")
    if start is not None and not start.is_file():
        raise ModelError(f"{start}: no such checkpoint")
    if start is None and recipe.freeze_encoder:
        raise SettingsError("--freeze-encoder: needs --start; an encoder with random weights sees nothing")
    pairs = named_pairs(data.folders, data.names)
    with ThreadPoolExecutor(CORES) as pool:
        content = list(pool.map(lambda pair: _read_levels(pair[1], recipe.size), pairs))
    training, validation = _split([name for name, _ in pairs], content, recipe, data.held_out, start, report)
    if len(training) < 2 or not validation:
        folders = ", ".join(str(folder) for folder in data.folders)
        raise DataError(f"{folders}: {len(pairs)} images are too few for a training split and a validation split")
    if len(training) < recipe.batch:
        recipe = replace(recipe, batch=len(training))
        report(f"the batch size is {recipe.batch}, since there are no more images")
    description = {
        "data": f"{' and '.join(folder.resolve().name for folder in data.folders)} ({len(training)} pictures)",
        "terms": data.terms,
        "architecture": dict(OURS),
        "started_from": _short(start) if start else "random weights",
        **({"teachers": [_short(teacher) for teacher in teachers]} if teachers else {}),
        VALIDATION_NAMES: [pairs[index][0] for index in validation],
        **({NORMS: FROZEN} if _has_folded_norms(start) else {}),
        **{f"recipe_{key}": value for key, value in asdict(recipe).items()},
    }
    shown = [index for index in training for _ in range(1 if content[index].small[1].any() else recipe.healthy_views)]
    run = Run(out, recipe, description, len(shown), start, teachers)
    report(f"{len(training)} images for training, {len(validation)} for validation, on {run.device}")
    held_out = [content[index].small for index in validation]
    residue, painted = _mine([content[index] for index in training], recipe)
    by_index = dict(zip(training, painted, strict=True))
    views = AugmentedImages([by_index[index] for index in shown], residue, recipe)
    with closing(batches_of_views(views, recipe, run.epoch, run.device)) as batches:
        for epoch in range(run.epoch, recipe.epochs):
            row = run.train_epoch(batches, epoch, on_progress) | run.validate(held_out)
            if not math.isfinite(row["train_loss"] + row["validation_loss"]):
                raise SettingsError(
                    f"{out}: the loss is no longer finite; use a lower --learning-rate and another --output"
                )
            run.finish_epoch(row)
            report(
                f"epoch {epoch + 1}/{recipe.epochs}  loss {row['train_loss']:.4f}  "
                f"validation loss {row['validation_loss']:.4f}  F1 {row['validation_f1']:.4f}  "
                f"Dice {row['validation_dice']:.4f}  {row['seconds']:.0f} s"
            )
    return out / "checkpoint.pt"


def batches_of_views(
    views: AugmentedImages, recipe: Recipe, first: int, device: torch.device
) -> Generator[tuple[Tensor, Tensor]]:
    """Make the batches of all epochs in worker processes, which end when the generator is closed.

    Args:
        views: the random views.
        recipe: the hyperparameters.
        first: epoch of the first batch.
        device: to which the batches are copied later.

    Yields:
        Images, uint8 [N, S, S, 3], and masks, uint8 [N, S, S], as `augment` makes them.
    """
    order = epoch_orders(len(views.content), recipe, first)
    yield from DataLoader(views, batch_sampler=order, num_workers=WORKERS, pin_memory=device.type == "cuda")


def epoch_orders(views: int, recipe: Recipe, first: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the batches of all epochs as (epoch, index). Each epoch has its own order, and no incomplete batch.

    Args:
        views: number of random views per epoch.
        recipe: the hyperparameters.
        first: epoch of the first batch.
    """
    for epoch in range(first, recipe.epochs):
        random = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        torch.empty((), dtype=torch.int64).random_(generator=random)  # as DataLoader: earlier versions shuffled with it
        order = torch.randperm(views, generator=random).tolist()
        for start in range(0, views - recipe.batch + 1, recipe.batch):
            yield [(epoch, index) for index in order[start : start + recipe.batch]]


class Run:
    """One training run. Its state is written to disk after each epoch.

    Args:
        out: folder of the run. A run.pt in it is continued.
        recipe: the hyperparameters.
        description: what checkpoint.pt states about the training. A run.pt must have the same one.
        views: random views per epoch.
        start: as for `train`.
        teachers: as for `train`.

    Raises:
        ModelError: `start`, a teacher or run.pt cannot be used.
        OutputError: the folder cannot be created.
        SettingsError: run.pt belongs to a run with other settings.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        description: dict[str, Any],
        views: int,
        start: Path | None,
        teachers: Sequence[Path] = (),
    ) -> None:
        self.out, self.recipe, self.description = out, recipe, description
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.seed)
        self.network = SAUNet(**OURS)
        pretrained = _start_from(start, self.network) if start else nn.ModuleList()
        self.network.downsample.requires_grad_(not recipe.freeze_encoder)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = deepcopy(self.network)
        self.teachers = [_load_teacher(path).to(self.device) for path in teachers]
        self._current, self._kept = _state_by_type(self.network), _state_by_type(self.averaged)
        known = {id(weights) for weights in pretrained.parameters()}
        new = [weights for weights in self.network.parameters() if id(weights) not in known]
        groups = [{"params": new, "share": 1.0}, {"params": list(pretrained.parameters()), "share": PRETRAINED_RATE}]
        cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=cuda
        )
        torch.backends.cudnn.benchmark = cuda  # all steps have the same shapes
        self.steps_per_epoch = views // recipe.batch
        self.steps = recipe.epochs * self.steps_per_epoch
        self.epoch, self.step, self.lowest = 0, 0, math.inf
        self.history: list[dict[str, float]] = []
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{out}: cannot be created ({error.strerror})") from error
        if (out / "run.pt").exists():
            self._resume()

    def _resume(self) -> None:
        path = self.out / "run.pt"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            before = dict(state["description"])
        except Exception as error:  # for a damaged file torch's unpickler may raise any exception
            raise ModelError(f"{path}: cannot be resumed from; delete it or use another --output") from error
        changed = [key.removeprefix("recipe_") for key, value in self.description.items() if before.get(key) != value]
        if changed:
            raise SettingsError(
                f"{self.out}: holds a run with another {', '.join(changed)}; use the same, or another --output"
            )
        try:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.epoch, self.step, self.lowest = state["epoch"], state["step"], state["lowest"]
            self.history = state["history"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: cannot be resumed from; delete it or use another --output") from error

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "averaged": self.averaged, "optimizer": self.optimizer}

    def learning_rate(self) -> float:
        """Return the learning rate of the current step: a linear warm-up, then a cosine decay to 0."""
        done = self.step / self.steps
        if done < WARM_UP_SHARE:
            return self.recipe.learning_rate * max(0.01, done / WARM_UP_SHARE)
        phase = min(1.0, (done - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * phase))

    def train_epoch(
        self, batches: Iterator[tuple[Tensor, Tensor]], epoch: int, on_progress: Callable[[int, int], None]
    ) -> dict[str, float]:
        """Train for one epoch. A GPU is waited for at its end only.

        Args:
            batches: of `batches_of_views`. Those of one epoch are taken.
            epoch: from 0.
            on_progress: as for `train`.

        Returns:
            The training columns of the epoch's row of history.csv.
        """
        started, losses, counts = time.monotonic(), self._zero(), self._new_counts()
        self.network.train()
        if self.description.get(NORMS) == FROZEN:
            freeze_norms(self.network)
        if self.recipe.freeze_encoder:
            freeze_norms(self.network.downsample)
        for images, masks in islice(batches, self.steps_per_epoch):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate() * group["share"]
            logits, target, loss = self._loss(self.network, images, masks, self.teachers)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
            self.optimizer.step()
            self._update_average()
            self.step += 1
            on_progress(self.step, self.steps)
            losses += loss.detach()
            counts.update(logits.detach() > 0, (target > THRESHOLD).int())
        accuracy, f1 = _accuracy_and_f1(counts)
        return {
            "epoch": epoch + 1,
            "learning_rate": self.learning_rate(),
            "seconds": time.monotonic() - started,
            "train_loss": losses.item() / self.steps_per_epoch,
            "train_accuracy": accuracy,
            "train_f1": f1,
        }

    @torch.no_grad()
    def validate(self, content: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Evaluate the averaged weights on the validation split, at the size of the model's input.

        Args:
            content: images and masks, uint8 [S, S, 3] and [S, S] of 0 and 255.

        Returns:
            The validation columns of the epoch's row of history.csv.
        """
        self.averaged.eval()
        losses, dices, counts = self._zero(), self._zero(), self._new_counts()
        for batch in _batches(content, self.recipe.batch):
            images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
            logits, target, loss = self._loss(self.averaged, images, masks)
            found = logits > 0
            losses += loss.double() * len(batch)
            both, either = (found & (target > 0)).sum(dim=(1, 2, 3)), (found + target).sum(dim=(1, 2, 3))
            # As in evaluation, Dice is 1 for an image without a polyp in which none is found.
            dices += torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0).sum()
            counts.update(found, target.int())
        accuracy, f1 = _accuracy_and_f1(counts)
        return {
            "validation_loss": losses.item() / len(content),
            "validation_accuracy": accuracy,
            "validation_f1": f1,
            "validation_dice": dices.item() / len(content),
        }

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def _new_counts(self) -> BinaryStatScores:
        return BinaryStatScores(validate_args=False).to(
            self.device
        )  # the validation of its arguments waits for the GPU

    @torch.no_grad()
    def _update_average(self) -> None:
        """Update the exponential moving average of the weights. Its decay is smaller in the first steps.

        AveragedModel of torch would wait for the GPU at each step.
        """
        decay = min(AVERAGING_DECAY, (1 + self.step) / (10 + self.step))
        if self.step == 0 or "averaging" in self.recipe.without:
            decay = 0.0
        torch._foreach_lerp_(self._kept[0], self._current[0], 1 - decay)
        torch._foreach_copy_(self._kept[1], self._current[1])

    def _loss(
        self, network: nn.Module, images: Tensor, masks: Tensor, teachers: Sequence[nn.Module] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits, target and loss of uint8 images [N, H, W, 3] and masks [N, H, W], as `augment` makes them."""
        x = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        masks = masks.to(self.device, non_blocking=True)[:, None]
        target = (masks > 127).float()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=_has_fast_bf16(self.device)):
            logits = network(x)
            if teachers:
                # Where there is certainly no polyp, teachers may be wrong, and nothing is to be learned from them.
                asked = (masks != RESIDUE) & target.amax(dim=(1, 2, 3), keepdim=True).bool()
                target = target + TEACHERS_SHARE * asked * (_mean_probability(teachers, x) - target)
        logits = logits.float()
        loss = F.binary_cross_entropy_with_logits(logits, target)
        if self.recipe.dice:
            loss = loss + self.recipe.dice * _dice_loss(logits, target)
        return logits, target, loss

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Write the state of the run, and checkpoint.pt if this epoch has the lowest validation loss so far.

        The loss also measures how well the probabilities are calibrated. The Dice of the masks does not, and it changes
        much with single polyps (docs/model-tries.md).

        Args:
            row: of history.csv.
        """
        self.history.append(row)
        self.epoch += 1
        if row["validation_loss"] < self.lowest:
            self.lowest = row["validation_loss"]
            training = self.description | {"epoch": self.epoch, "validation_dice": row["validation_dice"]}
            content = pack(self.averaged, self.recipe.size, 1, THRESHOLD, THRESHOLD, training)
            save_atomically(content, self.out / "checkpoint.pt")
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"description": self.description, "epoch": self.epoch, "step": self.step, "lowest": self.lowest}
        save_atomically(state | {"history": self.history}, self.out / "run.pt")
        self._write_history()

    def _write_history(self) -> None:
        table = io.StringIO()
        writer = csv.DictWriter(table, self.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: round(value, 6) for key, value in row.items()} for row in self.history)
        write_output(self.out / "history.csv", table.getvalue().encode())
        draw_curves(self.history, self.out / "curves.png")


def _split(
    names: Sequence[str],
    content: Sequence[Levels],
    recipe: Recipe,
    held_out: Path | None,
    start: Path | None,
    report: Callable[[str], None],
) -> tuple[list[int], list[int]]:
    """Return the indices of the training split and of the validation split.

    The validation split is that of the run of `start`, or the images in the file `held_out`, or a random one.
    """
    images = [levels.small[0] for levels in content]
    known = _held_out_by(start)
    before = known & set(names)
    if len(before) < len(known):
        report(
            f"{len(known - before)} of the {len(known)} images that the run of {start} held out are missing here. If "
            "they have other names (folder/image) here, this validation split has images that run was trained on"
        )
    if before and held_out:
        raise SettingsError(f"--held-out {held_out}: the run of {start} held out other images; omit --held-out")
    wanted = set(read_names(held_out)) if held_out else before
    missing = sorted(wanted - set(names))
    if held_out and not wanted:
        raise DataError(f"{held_out}: holds no names")
    if held_out and missing:
        raise DataError(f"{held_out}: no image is named {missing[0]}; write each name as folder/image")
    chosen = [index for index, name in enumerate(names) if name in wanted]
    return hold_out(images, chosen) if chosen else split_off_validation(images, recipe.validation, recipe.seed)


def _held_out_by(start: Path | None) -> set[str]:
    """Return the names of the validation split of the run of `start`. Its model was not trained on these images."""
    if start is None or not is_checkpoint(start):
        return set()
    return set(load_checkpoint(start)[1]["training"].get(VALIDATION_NAMES, []))


def _is_exported(start: Path) -> bool:
    return start.suffix == ".onnx"


def _has_folded_norms(start: Path | None) -> bool:
    if start is None:
        return False
    if not is_checkpoint(start):
        return _is_exported(start)
    return load_checkpoint(start)[1]["training"].get(NORMS) == FROZEN


def _start_from(start: Path, network: SAUNet) -> nn.ModuleList:
    """Load weights from a checkpoint or an exported model, or ImageNet weights into the encoder.

    Returns:
        The modules that are trained with the lower learning rate.
    """
    if _is_exported(start):
        load_exported(start, network)
        return nn.ModuleList()
    if not is_checkpoint(start):
        load_imagenet(network.downsample, start)
        return network.downsample
    trained, _ = load_checkpoint(start)
    if trained.architecture != OURS:
        raise ModelError(f"{start}: has another architecture than the one that is trained here")
    network.load_state_dict(trained.state_dict())
    return nn.ModuleList()


def _load_teacher(path: Path) -> SAUNet:
    teacher = SAUNet(**OURS)
    if not (_is_exported(path) or is_checkpoint(path)):
        raise ModelError(f"--teacher {path}: neither a checkpoint of `polypstream train` nor an exported model")
    _start_from(path, teacher)
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def _mean_probability(teachers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Return the probability of the mean of the teachers' logits, float32 [N, 1, H, W]."""
    logits: Tensor = torch.stack([teacher(x).float() for teacher in teachers]).mean(dim=0)
    return logits.sigmoid()


def _short(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _mine(content: list[Levels], recipe: Recipe) -> tuple[list[np.ndarray], list[PaintedImage]]:
    """Return the patches of residue of all images, and each image with what painting makes of it."""

    def paint(index: int) -> PaintedImage:
        if "painting" in recipe.without:
            return PaintedImage(content[index], [])
        random = np.random.default_rng((recipe.seed, index))
        shape = content[random.integers(len(content))].large[1]
        image = content[index].large
        painted = paint_over(*image, random), paint_wall(*image, shape, random)
        return PaintedImage(content[index], [levels_of(*each, recipe.size) for each in painted if each is not None])

    with ThreadPoolExecutor(CORES) as pool:
        patches = pool.map(lambda levels: residue_patches(*levels.large), content)
        return [patch for each in patches for patch in each], list(pool.map(paint, range(len(content))))


def _read_levels(pair: Pair, size: int) -> Levels:
    image, mask = read_pair(pair)
    view = view_of_image(image)
    return levels_of(view.crop(image), view.crop(mask), size)


def _batches(content: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def _dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return one minus the mean soft Dice of the images (Milletari et al., V-Net, 2016), smoothed by one pixel."""
    probability = logits.sigmoid()
    both = (probability * target).sum(dim=(1, 2, 3))
    either = probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3))
    return (1 - (2 * both + 1) / (either + 1)).mean()


def _accuracy_and_f1(counts: BinaryStatScores) -> tuple[float, float]:
    tp, fp, tn, fn, _ = counts.compute().tolist()
    return (tp + tn) / (tp + fp + tn + fn), 2 * tp / max(1, 2 * tp + fp + fn)


def _state_by_type(network: SAUNet) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights and statistics of a network, and the counts of its normalisations, which are integers."""
    weights: list[Tensor] = []
    counts: list[Tensor] = []
    for part in network.state_dict().values():
        (weights if part.is_floating_point() else counts).append(part)
    return weights, counts


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())
