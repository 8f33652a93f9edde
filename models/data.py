"""Data sets of images and masks: reading, splitting without near-duplicates, augmentation. Never imports torch.

A data set is a folder with ``images/`` and ``masks/``. An image and its mask have the same name; their file extensions
may differ. Masks are thresholded at 127 of 255.
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
from polypstream.models.residue import RESIDUE_FRACTION, lay_residue
from polypstream.stages.field_of_view import LIT

IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
# Two images are near-duplicates when their 256-bit difference hashes differ in at most this many bits.
NEAR_DUPLICATE_BITS = 12
# Sides of healthy crops, as fractions of the shorter side of the field of view.
CROP_FRACTIONS = (0.2, 0.3, 0.45, 0.65, 0.9)
# At least this fraction of a crop's pixels must be lit. This many random positions are tried for each crop.
MIN_LIT_FRACTION, CROP_TRIES = 0.9, 20
# The parts of the augmentation that can be switched off. Position, rotation, flip and shear are always random.
AUGMENTATIONS = ("scale", "close-ups", "residue", "palette", "colour", "degradation")
# Fraction of random views that are close-ups, and the range of their zoom factors.
CLOSE_UP_FRACTION = 0.3
CLOSE_UP_ZOOM = (1.5, 4.0)
# Fraction of random views that take the palette of another image, and the range of factors for their contrast.
PALETTE_FRACTION = 0.5
PALETTE_CONTRAST = (0.6, 1.6)
# Pixels up to this grey level belong to the black border; a change of the palette leaves them unchanged.
BLACK = 12
# Side of the grid on which the centre of a close-up is chosen.
GRID = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """An image file and its mask file."""

    name: str
    image: Path
    mask: Path


def find_pairs(folder: Path, names_file: Path | None = None) -> list[Pair]:
    """Find the images of a data set and their masks.

    Args:
        folder: the data set, with images/ and masks/.
        names_file: file with one image name per line, with or without the file extension. None: all images.

    Returns:
        The pairs in the order of the file, or sorted by name if there is no file.

    Raises:
        DataError: a folder, an image or a mask is missing, or there are no images.
    """
    images, masks = (_by_name(folder / part) for part in ("images", "masks"))
    if names_file is None:
        names: Sequence[str] = sorted(images)
    else:
        names = read_names(names_file)
    for name in names:
        for part, files in (("images", images), ("masks", masks)):
            if name not in files:
                raise DataError(f"{folder / part}: no image is named {name}")
    if not names:
        raise DataError(f"{names_file or folder / 'images'}: holds no images")
    return [Pair(name, images[name], masks[name]) for name in names]


def read_names(file: Path) -> list[str]:
    """Read a file with one image name per line, and remove the file extensions of images.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a list of names") from error
    lines = (line.strip() for line in text.splitlines())
    return [line.removesuffix(_extension_of(line)) for line in lines if line]


def _extension_of(name: str) -> str:
    extension = Path(name).suffix
    return extension if extension.lower() in IMAGE_EXTENSIONS else ""


def named_pairs(folders: Sequence[Path], names_file: Path | None = None, every: bool = False) -> list[tuple[str, Pair]]:
    """Find the images of several data sets.

    Args:
        folders: the data sets, each with images/ and masks/. A train.txt in a folder lists the images to use.
        names_file: replaces the train.txt of a single folder.
        every: use all images and ignore each train.txt.

    Returns:
        For each image its name `folder/image`, and the pair.

    Raises:
        DataError: as for find_pairs, or two folders have the same name.
        SettingsError: there are several folders and a names_file.
    """
    if names_file is not None and len(folders) > 1:
        raise SettingsError("--names: can be used with one folder only; put a train.txt into each of several folders")
    titles = [folder.resolve().name for folder in folders]
    if len(set(titles)) < len(titles):
        raise DataError(f"{', '.join(map(str, folders))}: two folders have the same name; rename one")
    return [
        (f"{title}/{pair.name}", pair)
        for title, folder in zip(titles, folders, strict=True)
        for pair in find_pairs(folder, None if every else names_file or names_file_of(folder))
    ]


def names_file_of(folder: Path) -> Path | None:
    """Return the path of the data set's train.txt, which lists the images to train on; None if there is none."""
    names = folder / "train.txt"
    return names if names.is_file() else None


def spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return at most `count` pairs at equal distances, the first and the last one included."""
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
        if path.suffix.lower() in IMAGE_EXTENSIONS and files.setdefault(path.stem, path) != path:
            raise DataError(f"{path}: {files[path.stem].name} has the same name; keep one")
    return files


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Read an image and its mask.

    Returns:
        The image, uint8 RGB [H, W, 3], and the mask, uint8 [H, W] of 0 and 255.

    Raises:
        DataError: a file cannot be decoded, the sizes differ, or the second file is not a mask.
    """
    image = read_image(pair.image, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DataError(f"{pair.image}: cannot be read as an image")
    mask = read_mask(pair.mask)
    if image.shape[:2] != mask.shape:
        raise DataError(f"{pair.mask}: its size {mask.shape[::-1]} is not that of its image, {image.shape[1::-1]}")
    return image, mask


def healthy_crops(image: np.ndarray, mask: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Cut square crops without a polyp out of an image: one of each size of CROP_FRACTIONS that fits.

    The result is the same for each call with the same image.

    Args:
        image: uint8 RGB [H, W, 3].
        mask: uint8 [H, W] of 0 and 255.

    Returns:
        For each crop its side as a fraction of the shorter side of the field of view, and the crop.
    """
    view, random = view_of_image(image), np.random.default_rng(0)
    image, mask = view.crop(image), view.crop(mask)
    # Chessboard distance of each pixel to the nearest polyp or border: half the side of the largest square around it.
    free = cv2.copyMakeBorder(cv2.compare(mask, 0, cv2.CMP_EQ), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(free, cv2.DIST_C, 3)[1:-1, 1:-1]
    crops = []
    for fraction in CROP_FRACTIONS:
        side = round(fraction * min(image.shape[:2]))
        positions = np.flatnonzero(distance > side / 2 + 1)
        for position in random.choice(positions, CROP_TRIES) if len(positions) else ():
            row, column = divmod(position, distance.shape[1])
            crop = image[row - side // 2 :, column - side // 2 :][:side, :side]
            if (crop.max(axis=2) > LIT).mean() > MIN_LIT_FRACTION:
                crops.append((fraction, crop))
                break
    return crops


def split_off_validation(images: Sequence[np.ndarray], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split images at random into a training and a validation split. Near-duplicates go to the same split.

    Args:
        images: uint8 RGB [H, W, 3], any size.
        fraction: approximate fraction of the images that goes to the validation split, 0..1.
        seed: of the random choice.

    Returns:
        The indices of the training split and of the validation split.
    """
    groups = _group_near_duplicates([_difference_hash(image) for image in images])
    order = np.random.default_rng(seed).permutation(len(groups))
    validation: list[int] = []
    for index in order:
        if len(validation) >= max(1, round(fraction * len(images))):
            break
        validation += groups[index]
    return _complement(validation, len(images)), sorted(validation)


def hold_out(images: Sequence[np.ndarray], chosen: Collection[int]) -> tuple[list[int], list[int]]:
    """Put the chosen images and their near-duplicates into the validation split, the others into the training split.

    Args:
        images: uint8 RGB [H, W, 3], any size.
        chosen: indices of images for the validation split.

    Returns:
        The indices of the training split and of the validation split.
    """
    groups = _group_near_duplicates([_difference_hash(image) for image in images])
    validation = [index for group in groups if not set(group).isdisjoint(chosen) for index in group]
    return _complement(validation, len(images)), sorted(validation)


def _complement(indices: Sequence[int], count: int) -> list[int]:
    return sorted(set(range(count)) - set(indices))


def _difference_hash(image: np.ndarray) -> np.ndarray:
    """Return 256 bits: for each of 16x16 cells whether it is brighter than the cell to its right."""
    cells = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (17, 16), interpolation=cv2.INTER_AREA)
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
    """A square image and its mask, uint8 [S, S, 3] and [S, S], at two sizes.

    Attributes:
        large: image and mask.
        small: image and mask at half the size.
        palette: float [2, 3], mean and standard deviation of the lit pixels, in OpenCV's 8-bit CIELAB.
    """

    large: tuple[np.ndarray, np.ndarray]
    small: tuple[np.ndarray, np.ndarray]
    palette: np.ndarray


def levels_of(image: np.ndarray, mask: np.ndarray, size: int) -> Levels:
    """Resize an image and its mask to sides of 2 * size and size, so that a random view needs one fast resampling only.

    Args:
        image: uint8 RGB [H, W, 3].
        mask: uint8 [H, W] of 0 and 255.
        size: side in pixels of the random views.
    """
    large = resize_for_model(image, 2 * size), resize_for_model(mask, 2 * size)
    small = resize_for_model(large[0], size), resize_for_model(large[1], size)
    return Levels(large, small, _palette_of(small[0]))


def _palette_of(image: np.ndarray) -> np.ndarray:
    lit = cv2.compare(image.max(axis=2), LIT, cv2.CMP_GT)
    return np.stack([part[:, 0] for part in cv2.meanStdDev(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), mask=lit)])


def augment(
    levels: Levels,
    palette: np.ndarray,
    size: int,
    random: np.random.Generator,
    without: Collection[str] = (),
    patches: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Make a random view of an image and its mask. Both are resampled once.

    Most views show about the whole image. The others are close-ups, half of them of a polyp and half of healthy wall.
    The model is so trained on views of healthy wall only, and the zoom does not tell whether there is a polyp.

    Args:
        levels: the image and its mask.
        palette: palette of another image, which the view may take.
        size: side of the view in pixels.
        random: source of the random numbers.
        without: parts of AUGMENTATIONS to leave out, to measure their effect.
        patches: textures of residue, of residue_patches.

    Returns:
        The view, uint8 RGB [size, size, 3], and its mask, uint8 [size, size] of 0 and 255, and of RESIDUE where residue
        hides what is below it.
    """
    zoom, centre = random.uniform(0.5, 1.5), 0.5 + random.uniform(-0.125, 0.125, 2)
    if "scale" in without:
        zoom = 1.0
    if random.random() < CLOSE_UP_FRACTION and "close-ups" not in without:
        zoom, centre = _close_up(levels.small[1], random.random() < 0.5, random)
    image, mask = levels.large if zoom > 1 else levels.small
    transform = _random_affine(image.shape[0], size, zoom, centre, random)
    image = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR)
    mask = cv2.compare(cv2.warpAffine(mask, transform, (size, size), flags=cv2.INTER_LINEAR), 127, cv2.CMP_GT)
    if random.random() < RESIDUE_FRACTION and "residue" not in without:
        image, mask = lay_residue(image, mask, patches, random)
    if random.random() < PALETTE_FRACTION and "palette" not in without:
        image = _transfer_palette(image, levels.palette, palette)
    if "colour" not in without:
        image = _random_colour(image, random)
    if "degradation" not in without:
        image = _degrade(image, random)
    return image, mask


def _close_up(mask: np.ndarray, healthy: bool, random: np.random.Generator) -> tuple[float, np.ndarray]:
    """Choose the zoom and the centre of a close-up, of a polyp or of healthy wall.

    If the image has no polyp, or not enough healthy wall, any position is chosen.

    Returns:
        The zoom factor, and the centre (x, y) as fractions of width and height.
    """
    cells = cv2.resize(mask, (GRID, GRID), interpolation=cv2.INTER_AREA)
    line = np.minimum(np.arange(GRID), np.arange(GRID)[::-1]) + 0.5
    # With at least this zoom only a small part of the view lies outside the image.
    least = np.maximum(CLOSE_UP_ZOOM[0], 0.4 * GRID / np.minimum(line[:, None], line))
    if healthy:
        # The nearest polyp must be farther than a corner of the view, for any rotation, aspect ratio and shear.
        away = cv2.distanceTransform(cv2.compare(cells, 0, cv2.CMP_EQ), cv2.DIST_L2, cv2.DIST_MASK_5)
        wanted = np.maximum(least, 0.9 * GRID / np.maximum(away - 1.5, 0.1))
    else:
        wanted = np.where(cells > 127, least, np.inf)
    if wanted.min() >= CLOSE_UP_ZOOM[1]:
        wanted = least
    row, column = random.choice(np.argwhere(wanted < CLOSE_UP_ZOOM[1]))
    zoom = np.exp(random.uniform(np.log(wanted[row, column]), np.log(CLOSE_UP_ZOOM[1])))
    return zoom, (np.array([column, row]) + random.random(2)) / GRID


def _random_affine(side: int, size: int, zoom: float, centre: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a random affine transform, float [2, 3]: any rotation and flip, aspect ratio and shear up to a seventh.

    Args:
        side: of the square image in pixels.
        size: side of the view in pixels.
        zoom: factor by which the view enlarges the image; 1 shows the whole image.
        centre: of the view in the image, (x, y) as fractions of the side.
        random: source of the random numbers.
    """
    angle = random.uniform(0, 2 * np.pi)
    stretch = np.exp(random.uniform(-0.15, 0.15))
    flip = random.choice([-1.0, 1.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, random.uniform(-0.15, 0.15)], [0, 1]])
    linear = rotation @ shear @ np.diag([flip * stretch, 1 / stretch]) * (zoom * size / side)
    return np.column_stack([linear, (size - 1) / 2 - linear @ (centre * side - 0.5)])


def _transfer_palette(image: np.ndarray, own: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Give an image the colours of another endoscope and another colon.

    Each channel of CIELAB gets the mean and the standard deviation of the other palette: Reinhard et al., "Color
    Transfer between Images", 2001; for polyps Wei et al., "Shallow Attention Network for Polyp Segmentation", MICCAI
    2021.

    Args:
        image: uint8 RGB [H, W, 3].
        own: palette of the image, as in Levels.
        palette: the other palette.
    """
    contrast = np.clip(palette[1] / np.maximum(own[1], 1), *PALETTE_CONTRAST)
    table = np.clip((np.arange(256)[:, None] - own[0]) * contrast + palette[0], 0, 255).astype(np.uint8)
    transferred = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), table[None])
    black = cv2.compare(image.max(axis=2), BLACK, cv2.CMP_LE)
    return cv2.copyTo(image, black, cv2.cvtColor(transferred, cv2.COLOR_LAB2RGB))


def _random_colour(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change white balance, brightness, contrast, gamma and saturation at random."""
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    curve = levels ** np.exp(random.uniform(-0.35, 0.35)) * np.exp(random.uniform(-0.3, 0.3))
    curve = (curve - 0.5) * np.exp(random.uniform(-0.2, 0.2)) + 0.5
    balance = np.exp(random.uniform(-0.12, 0.12, 3))
    table = np.clip(curve[:, None] * balance * 255, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table[None])
    saturation = np.exp(random.uniform(-0.4, 0.3))
    grey = np.full((3, 3), 1 / 3, np.float32)
    return cv2.transform(image, grey + (np.eye(3, dtype=np.float32) - grey) * np.float32(saturation))


def _degrade(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Add blur, noise, JPEG artefacts, highlights, burnt-in text and cut-outs, each with its own probability."""
    if random.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.5, 1.8))
    if random.random() < 0.1:
        noise = random.standard_normal(image.shape, np.float32) * random.uniform(2, 10)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if random.random() < 0.1:
        quality = int(random.integers(25, 70))
        _, packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB))
    for draw, probability in ((_specular_highlights, 0.15), (_burnt_in_text, 0.1), (_cut_outs, 0.1)):
        if random.random() < probability:
            draw(image, random)
    return image


def _specular_highlights(image: np.ndarray, random: np.random.Generator) -> None:
    """Draw reflections of the light source: small white ellipses with antialiased edges."""
    size = image.shape[0]
    for _ in range(random.integers(2, 15)):
        axes = tuple(int(axis) for axis in random.integers(1, max(2, size // 24), 2))
        centre = tuple(int(place) for place in random.integers(0, size, 2))
        cv2.ellipse(image, centre, axes, random.uniform(0, 180), 0, 360, (255, 255, 255), -1, cv2.LINE_AA)


def _burnt_in_text(image: np.ndarray, random: np.random.Generator) -> None:
    """Draw a few lines of characters, as endoscopy devices overlay them on the image."""
    size = image.shape[0]
    scale = size / 256 * random.uniform(0.25, 0.6)
    x, y = random.integers(0, size // 2), random.integers(size // 16, size)
    colour = tuple(int(part) for part in random.choice([(255, 255, 255), (255, 255, 0), (0, 255, 0)]))
    for line in range(random.integers(1, 5)):
        text = "".join(random.choice(list("0123456789:/- ABCDEFNRT"), random.integers(4, 14)))
        place = int(x), int(y + line * 30 * scale)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def _cut_outs(image: np.ndarray, random: np.random.Generator) -> None:
    """Draw black rectangles, like masked corners and picture-in-picture windows: DeVries and Taylor, "Cutout", 2017."""
    size = image.shape[0]
    for _ in range(random.integers(1, 4)):
        width, height = random.integers(size // 16, size // 4, 2)
        x, y = random.integers(-width // 2, size - width // 2), random.integers(-height // 2, size - height // 2)
        cv2.rectangle(image, (int(x), int(y)), (int(x + width), int(y + height)), (0, 0, 0), -1)
