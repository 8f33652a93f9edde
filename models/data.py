"""Folders of pictures and masks: reading, splitting without leaks, augmentation. Never imports torch.

A data set is a folder with ``images/`` and ``masks/``; a picture and its mask share a name, whatever their
endings. Masks are thresholded at 127 of 255.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from polypstream.errors import DataError, SettingsError
from polypstream.jobs.image import resize_for_model, view_of_image
from polypstream.media.pictures import read_image, read_mask
from polypstream.stages.field_of_view import LIT

PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
# Two pictures are near-duplicates when their 256-bit difference hashes differ in at most so many bits.
NEAR_DUPLICATE_BITS = 12
# Sides of healthy crops, as shares of the field of view's short side.
CROP_SHARES = (0.2, 0.3, 0.45, 0.65, 0.9)
# A crop must show something: this share of its pixels is lit. So many places are tried.
MOSTLY, CROP_TRIES = 0.9, 20
# The parts of a random view that can be left out; place, rotation, flip and shear always vary.
AUGMENTATIONS = ("scale", "close-ups", "palette", "colour", "spoiling")
# Share of random views that are close-ups.
CLOSE_UPS = 0.3
# Close-ups enlarge the picture by a factor between these.
NEAREST = (1.5, 4.0)
# Share of random views in another picture's palette, and how far contrasts may be stretched for it.
IN_ANOTHERS_PALETTE = 0.5
STRETCH = (0.6, 1.6)
# What surrounds the view is not brighter and stays as black as it is.
BLACK = 12
# Close-ups look for their place on a grid of so many cells a side.
CELLS = 64


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
        names = read_names(names_file)
    for name in names:
        for part, files in (("images", images), ("masks", masks)):
            if name not in files:
                raise DataError(f"{folder / part}: no picture is named {name}")
    if not names:
        raise DataError(f"{names_file or folder / 'images'}: holds no pictures")
    return [Pair(name, images[name], masks[name]) for name in names]


def read_names(file: Path) -> list[str]:
    """The names in a file, one a line, without the endings of pictures.

    Raises:
        DataError: it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a list of names") from error
    lines = (line.strip() for line in text.splitlines())
    return [line.removesuffix(_ending_of(line)) for line in lines if line]


def _ending_of(name: str) -> str:
    ending = Path(name).suffix
    return ending if ending.lower() in PICTURE_ENDINGS else ""


def named_pairs(folders: Sequence[Path], names_file: Path | None = None, every: bool = False) -> list[tuple[str, Pair]]:
    """The pictures of several data sets, each with the name `folder/picture`.

    Args:
        folders: each holds images/ and masks/, and train.txt if not all of them are meant.
        names_file: takes the place of train.txt where there is one folder.
        every: take every picture, whatever a train.txt says.

    Raises:
        DataError: as of find_pairs, or two folders are called the same.
        SettingsError: there are several folders and a file of names.
    """
    if names_file is not None and len(folders) > 1:
        raise SettingsError("--names: says which names of one folder; give each of several folders a train.txt")
    titles = [folder.resolve().name for folder in folders]
    if len(set(titles)) < len(titles):
        raise DataError(f"{', '.join(map(str, folders))}: two folders are called the same; rename one")
    return [
        (f"{title}/{pair.name}", pair)
        for title, folder in zip(titles, folders, strict=True)
        for pair in find_pairs(folder, None if every else names_file or names_file_of(folder))
    ]


def names_file_of(folder: Path) -> Path | None:
    """A data set's own list of the names to train on: train.txt, if it is there."""
    names = folder / "train.txt"
    return names if names.is_file() else None


def spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most so many of them, evenly from the first to the last."""
    indices = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [pairs[index] for index in indices]


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; a data set has images/ and masks/")
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    files: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() in PICTURE_ENDINGS and files.setdefault(path.stem, path) != path:
            raise DataError(f"{path}: {files[path.stem].name} has the same name; keep one")
    return files


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 RGB [H, W, 3], and its mask, uint8 [H, W] of 0 and 255.

    Raises:
        DataError: a file cannot be decoded, the two differ in size, or the mask is none.
    """
    picture = read_image(pair.image, cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise DataError(f"{pair.image}: cannot be read as a picture")
    mask = read_mask(pair.mask)
    if picture.shape[:2] != mask.shape:
        raise DataError(f"{pair.mask}: its size {mask.shape[::-1]} is not its picture's {picture.shape[1::-1]}")
    return picture, mask


def healthy_crops(picture: np.ndarray, mask: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Square parts of a picture that show no polyp, one of each size that fits.

    Args:
        picture: uint8 RGB [H, W, 3].
        mask: uint8 [H, W] of 0 and 255.

    Returns:
        Each part's side as a share of the field of view's short side, and the part; always the same ones.
    """
    view, random = view_of_image(picture), np.random.default_rng(0)
    picture, mask = view.crop(picture), view.crop(mask)
    # Pixels to the nearest polyp or edge, diagonals counting as one: half the side of the largest square around each.
    free = cv2.copyMakeBorder(cv2.compare(mask, 0, cv2.CMP_EQ), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    room = cv2.distanceTransform(free, cv2.DIST_C, 3)[1:-1, 1:-1]
    crops = []
    for share in CROP_SHARES:
        side = round(share * min(picture.shape[:2]))
        places = np.flatnonzero(room > side / 2 + 1)
        for place in random.choice(places, CROP_TRIES) if len(places) else ():
            row, column = divmod(place, room.shape[1])
            crop = picture[row - side // 2 :, column - side // 2 :][:side, :side]
            if (crop.max(axis=2) > LIT).mean() > MOSTLY:
                crops.append((share, crop))
                break
    return crops


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
    return _all_but(validation, len(pictures)), sorted(validation)


def hold_out(pictures: Sequence[np.ndarray], chosen: Collection[int]) -> tuple[list[int], list[int]]:
    """Indices for training and for validation: those chosen, and their near-duplicates with them.

    Args:
        pictures: uint8 RGB [H, W, 3], any size.
        chosen: indices of pictures for validation.
    """
    groups = _group_near_duplicates([_difference_hash(picture) for picture in pictures])
    validation = [index for group in groups if not set(group).isdisjoint(chosen) for index in group]
    return _all_but(validation, len(pictures)), sorted(validation)


def _all_but(some: Sequence[int], count: int) -> list[int]:
    return sorted(set(range(count)) - set(some))


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


@dataclass(frozen=True, slots=True)
class Levels:
    """A square picture and its mask, uint8 [S, S, 3] and [S, S], at two sizes.

    Attributes:
        large: both.
        small: both, half as large.
        palette: float [2, 3], mean and standard deviation of what is lit, in CIELAB as OpenCV scales it to bytes.
    """

    large: tuple[np.ndarray, np.ndarray]
    small: tuple[np.ndarray, np.ndarray]
    palette: np.ndarray


def levels_of(picture: np.ndarray, mask: np.ndarray, size: int) -> Levels:
    """A picture and its mask at sides of 2 * size and size, so that a random view needs one cheap resampling.

    Args:
        picture: uint8 RGB [H, W, 3].
        mask: uint8 [H, W] of 0 and 255.
        size: side of the views that will be taken.
    """
    large = resize_for_model(picture, 2 * size), resize_for_model(mask, 2 * size)
    small = resize_for_model(large[0], size), resize_for_model(large[1], size)
    return Levels(large, small, _palette_of(small[0]))


def _palette_of(picture: np.ndarray) -> np.ndarray:
    lit = cv2.compare(picture.max(axis=2), LIT, cv2.CMP_GT)
    return np.stack([part[:, 0] for part in cv2.meanStdDev(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB), mask=lit)])


def augment(
    levels: Levels, palette: np.ndarray, size: int, random: np.random.Generator, without: Collection[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """A random view of a picture and its mask, each resampled once.

    Most views show the whole picture, more or less. Of the rest half are close-ups of a polyp and half close-ups of
    wall without any: a picture of nothing but healthy wall must be nothing new, and closeness must not tell which.

    Args:
        levels: the picture and its mask.
        palette: another picture's, which the view may take on.
        size: side of the view in pixels.
        random: decides.
        without: parts of AUGMENTATIONS to leave out, to measure what they are worth.

    Returns:
        uint8 [size, size, 3] and uint8 [size, size] of 0 and 255.
    """
    zoom, centre = random.uniform(0.5, 1.5), 0.5 + random.uniform(-0.125, 0.125, 2)
    if "scale" in without:
        zoom = 1.0
    if random.random() < CLOSE_UPS and "close-ups" not in without:
        zoom, centre = _close_up(levels.small[1], random.random() < 0.5, random)
    picture, mask = levels.large if zoom > 1 else levels.small
    transform = _random_affine(picture.shape[0], size, zoom, centre, random)
    picture = cv2.warpAffine(picture, transform, (size, size), flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(mask, transform, (size, size), flags=cv2.INTER_LINEAR)
    if random.random() < IN_ANOTHERS_PALETTE and "palette" not in without:
        picture = _repaint(picture, levels.palette, palette)
    if "colour" not in without:
        picture = _random_colour(picture, random)
    if "spoiling" not in without:
        picture = _spoil(picture, random)
    return picture, cv2.compare(mask, 127, cv2.CMP_GT)


def _close_up(mask: np.ndarray, healthy: bool, random: np.random.Generator) -> tuple[float, np.ndarray]:
    """How near and where to look (shares of width and height): at a polyp, or where the window shows none.

    What the picture does not have (a polyp, enough healthy wall) is replaced by any place.
    """
    cells = cv2.resize(mask, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    line = np.minimum(np.arange(CELLS), np.arange(CELLS)[::-1]) + 0.5
    # So near that little of the window lies outside the picture.
    least = np.maximum(NEAREST[0], 0.4 * CELLS / np.minimum(line[:, None], line))
    if healthy:
        # The nearest polyp must be farther than a corner of the window, whatever its rotation, stretch and shear.
        away = cv2.distanceTransform(cv2.compare(cells, 0, cv2.CMP_EQ), cv2.DIST_L2, cv2.DIST_MASK_5)
        wanted = np.maximum(least, 0.9 * CELLS / np.maximum(away - 1.5, 0.1))
    else:
        wanted = np.where(cells > 127, least, np.inf)
    if wanted.min() >= NEAREST[1]:
        wanted = least
    row, column = random.choice(np.argwhere(wanted < NEAREST[1]))
    zoom = np.exp(random.uniform(np.log(wanted[row, column]), np.log(NEAREST[1])))
    return zoom, (np.array([column, row]) + random.random(2)) / CELLS


def _random_affine(side: int, size: int, zoom: float, centre: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Any rotation and flip, aspect and shear up to a seventh, about a place of a square picture."""
    angle = random.uniform(0, 2 * np.pi)
    stretch = np.exp(random.uniform(-0.15, 0.15))
    flip = random.choice([-1.0, 1.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, random.uniform(-0.15, 0.15)], [0, 1]])
    linear = rotation @ shear @ np.diag([flip * stretch, 1 / stretch]) * (zoom * size / side)
    return np.column_stack([linear, (size - 1) / 2 - linear @ (centre * side - 0.5)])


def _repaint(picture: np.ndarray, own: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The picture as another endoscope and another colon might colour it.

    Mean and spread of each channel of CIELAB become the other's: Reinhard et al., "Color Transfer between Images",
    2001; for polyps Wei et al., "Shallow Attention Network for Polyp Segmentation", MICCAI 2021.
    """
    stretch = np.clip(palette[1] / np.maximum(own[1], 1), *STRETCH)
    table = np.clip((np.arange(256)[:, None] - own[0]) * stretch + palette[0], 0, 255).astype(np.uint8)
    repainted = cv2.LUT(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB), table[None])
    black = cv2.compare(picture.max(axis=2), BLACK, cv2.CMP_LE)
    return cv2.copyTo(picture, black, cv2.cvtColor(repainted, cv2.COLOR_LAB2RGB))


def _random_colour(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """White balance, brightness, contrast, gamma and saturation."""
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    curve = levels ** np.exp(random.uniform(-0.35, 0.35)) * np.exp(random.uniform(-0.3, 0.3))
    curve = (curve - 0.5) * np.exp(random.uniform(-0.2, 0.2)) + 0.5
    balance = np.exp(random.uniform(-0.12, 0.12, 3))
    table = np.clip(curve[:, None] * balance * 255, 0, 255).astype(np.uint8)
    picture = cv2.LUT(picture, table[None])
    saturation = np.exp(random.uniform(-0.4, 0.3))
    grey = np.full((3, 3), 1 / 3, np.float32)
    return cv2.transform(picture, grey + (np.eye(3, dtype=np.float32) - grey) * np.float32(saturation))


def _spoil(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sometimes blur, sensor noise, JPEG blocks, reflections, burnt-in text or cut-outs."""
    if random.random() < 0.15:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.5, 1.8))
    if random.random() < 0.1:
        noise = random.standard_normal(picture.shape, np.float32) * random.uniform(2, 10)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    if random.random() < 0.1:
        quality = int(random.integers(25, 70))
        _, packed = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB))
    for draw, share in ((_specular_spots, 0.15), (_burnt_in_text, 0.1), (_cut_outs, 0.1)):
        if random.random() < share:
            draw(picture, random)
    return picture


def _specular_spots(picture: np.ndarray, random: np.random.Generator) -> None:
    """Reflections of the lamp: small white ellipses with soft edges."""
    size = picture.shape[0]
    for _ in range(random.integers(2, 15)):
        axes = tuple(int(axis) for axis in random.integers(1, max(2, size // 24), 2))
        centre = tuple(int(place) for place in random.integers(0, size, 2))
        cv2.ellipse(picture, centre, axes, random.uniform(0, 180), 0, 360, (255, 255, 255), -1, cv2.LINE_AA)


def _burnt_in_text(picture: np.ndarray, random: np.random.Generator) -> None:
    """A few lines of figures, as devices write them over the picture."""
    size = picture.shape[0]
    scale = size / 256 * random.uniform(0.25, 0.6)
    x, y = random.integers(0, size // 2), random.integers(size // 16, size)
    colour = tuple(int(part) for part in random.choice([(255, 255, 255), (255, 255, 0), (0, 255, 0)]))
    for line in range(random.integers(1, 5)):
        text = "".join(random.choice(list("0123456789:/- ABCDEFNRT"), random.integers(4, 14)))
        place = int(x), int(y + line * 30 * scale)
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def _cut_outs(picture: np.ndarray, random: np.random.Generator) -> None:
    """Black rectangles, as masked corners and picture-in-picture windows: DeVries and Taylor, "Cutout", 2017."""
    size = picture.shape[0]
    for _ in range(random.integers(1, 4)):
        width, height = random.integers(size // 16, size // 4, 2)
        x, y = random.integers(-width // 2, size - width // 2), random.integers(-height // 2, size - height // 2)
        cv2.rectangle(picture, (int(x), int(y)), (int(x + width), int(y + height)), (0, 0, 0), -1)
