"""Folders of pictures and masks: reading, splitting without leaks, augmentation. Never imports torch.

A data set is a folder with ``images/`` and ``masks/``; a picture and its mask share a name, whatever their
endings. Masks are thresholded at 127 of 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stream.errors import DataError
from stream.view import FieldOfView, find_field_of_view, thumbnail_size

PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
# Two pictures are near-duplicates when their 256-bit difference hashes differ in at most so many bits.
NEAR_DUPLICATE_BITS = 12


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture file and its mask file."""

    name: str
    image: Path
    mask: Path


def find_pairs(folder: Path, names_file: Path | None = None) -> list[Pair]:
    """The pictures of a data set with their masks, in the order of their names.

    Args:
        folder: holds images/ and masks/.
        names_file: one name a line, with or without ending; without it, every picture.

    Raises:
        DataError: a folder, a picture or a mask is missing.
    """
    images, masks = (_by_name(folder / part) for part in ("images", "masks"))
    if names_file is None:
        names: Sequence[str] = sorted(images)
    else:
        try:
            text = names_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{names_file}: cannot be read as a list of names") from error
        lines = (line.strip() for line in text.splitlines())
        names = [Path(line).stem if Path(line).suffix.lower() in PICTURE_ENDINGS else line for line in lines if line]
    for name in names:
        for part, files in (("images", images), ("masks", masks)):
            if name not in files:
                raise DataError(f"{folder / part}: no picture is named {name}")
    if not names:
        raise DataError(f"{names_file or folder / 'images'}: holds no pictures")
    return [Pair(name, images[name], masks[name]) for name in names]


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; a data set has images/ and masks/")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_ENDINGS and files.setdefault(path.stem, path) != path:
            raise DataError(f"{path}: {files[path.stem].name} has the same name; keep one")
    return files


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 RGB [H, W, 3], and its mask, uint8 [H, W] of 0 and 255.

    Raises:
        DataError: a file cannot be decoded, or the two differ in size.
    """
    picture = cv2.imread(str(pair.image), cv2.IMREAD_COLOR_RGB)
    mask = cv2.imread(str(pair.mask), cv2.IMREAD_GRAYSCALE)
    if picture is None or mask is None:
        raise DataError(f"{pair.image if picture is None else pair.mask}: cannot be read as a picture")
    if picture.shape[:2] != mask.shape:
        raise DataError(f"{pair.mask}: its size {mask.shape[::-1]} is not its picture's {picture.shape[1::-1]}")
    return picture, cv2.compare(mask, 127, cv2.CMP_GT)


def view_of(picture: np.ndarray) -> FieldOfView:
    """The field of view of one RGB picture, found as the running program finds it."""
    height, width = picture.shape[:2]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, thumbnail_size(width, height), interpolation=cv2.INTER_AREA)
    return find_field_of_view([thumbnail], width, height)


def shrink(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize to [size, size], averaging where the picture shrinks."""
    smaller = min(picture.shape[:2]) >= size
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def split_off_validation(pictures: Sequence[np.ndarray], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and for validation; near-duplicates stay on one side.

    Args:
        pictures: uint8 RGB [H, W, 3], any size.
        share: about this share of the pictures, 0..1, goes to validation.
        seed: decides which.
    """
    groups = _group_near_duplicates([_difference_hash(picture) for picture in pictures])
    order = np.random.default_rng(seed).permutation(len(groups))
    validation: list[int] = []
    for index in order:
        if len(validation) >= max(1, round(share * len(pictures))):
            break
        validation += groups[index]
    held_out = set(validation)
    return [index for index in range(len(pictures)) if index not in held_out], sorted(validation)


def _difference_hash(picture: np.ndarray) -> np.ndarray:
    """256 bits: is each of 16x16 cells brighter than its right neighbour?"""
    cells = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (17, 16), interpolation=cv2.INTER_AREA)
    return (cells[:, 1:] > cells[:, :-1]).ravel()


def _group_near_duplicates(hashes: Sequence[np.ndarray]) -> list[list[int]]:
    bits = np.array(hashes, np.float32) * 2 - 1
    distance = (bits.shape[1] - bits @ bits.T) / 2
    group = list(range(len(hashes)))
    for a, b in np.argwhere(np.triu(distance <= NEAR_DUPLICATE_BITS, k=1)):
        old, new = group[b], group[a]
        group = [new if member == old else member for member in group]
    members: dict[int, list[int]] = {}
    for index, name in enumerate(group):
        members.setdefault(name, []).append(index)
    return list(members.values())


def augment(
    picture: np.ndarray, mask: np.ndarray, size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random view of a picture and its mask, both resampled once.

    Args:
        picture: uint8 RGB [H, W, 3].
        mask: uint8 [H, W], 0 or 255.
        size: side of the result in pixels.

    Returns:
        uint8 [size, size, 3] and uint8 [size, size] of 0 and 255.
    """
    transform = _random_affine(picture.shape[:2], size, random)
    picture = cv2.warpAffine(picture, transform, (size, size), flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(mask, transform, (size, size), flags=cv2.INTER_LINEAR)
    return _random_colour(picture, random), cv2.compare(mask, 127, cv2.CMP_GT)


def _random_affine(shape: tuple[int, int], size: int, random: np.random.Generator) -> np.ndarray:
    """Any rotation and flip, scale 0.7 to 1.5, aspect and shear up to a seventh, shift up to an eighth."""
    height, width = shape
    angle = random.uniform(0, 2 * np.pi)
    scale = np.exp(random.uniform(np.log(0.7), np.log(1.5)))
    stretch = np.exp(random.uniform(-0.15, 0.15))
    flip = random.choice([-1.0, 1.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, random.uniform(-0.15, 0.15)], [0, 1]])
    linear = rotation @ shear @ np.diag([flip * scale * stretch, scale / stretch])
    linear = linear @ np.diag([size / width, size / height])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    target = (size - 1) / 2 + size * random.uniform(-0.125, 0.125, 2)
    return np.column_stack([linear, target - linear @ centre])


def _random_colour(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """White balance, brightness, contrast, gamma and saturation; sometimes blur, sensor noise or JPEG blocks."""
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    curve = levels ** np.exp(random.uniform(-0.35, 0.35)) * np.exp(random.uniform(-0.3, 0.3))
    curve = (curve - 0.5) * np.exp(random.uniform(-0.2, 0.2)) + 0.5
    balance = np.exp(random.uniform(-0.12, 0.12, 3))
    table = np.clip(curve[:, None] * balance * 255, 0, 255).astype(np.uint8)
    picture = cv2.LUT(picture, table[None])
    saturation = np.exp(random.uniform(-0.4, 0.3))
    grey = np.full((3, 3), 1 / 3, np.float32)
    picture = cv2.transform(picture, grey + (np.eye(3, dtype=np.float32) - grey) * np.float32(saturation))
    if random.random() < 0.15:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.5, 1.8))
    if random.random() < 0.1:
        noise = random.standard_normal(picture.shape, np.float32) * random.uniform(2, 10)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    if random.random() < 0.1:
        quality = int(random.integers(25, 70))
        _, packed = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB))
    return picture
