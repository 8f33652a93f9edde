"""Residue for training views: stool, foam and fluid that lie over wall and over parts of polyps. Never imports torch.

Textures of residue are cut out of training images, outside their masks. Foam and fluid are rendered.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from polypstream.stages.field_of_view import LIT

# Residue is brown, yellow or greenish. Lower and upper bound of hue, saturation and value in OpenCV's 8-bit HSV.
COLOURS = (17, 110, 70), (42, 255, 255)
# Residue is yellower than the wall of its image by at least this much: the difference of b and a in 8-bit CIELAB. A
# threshold for the hue alone takes pale wall for residue.
YELLOWER = 12
# Wall that is overexposed in warm light, and glare, have the hue of residue. Their median value is above this one.
BRIGHTEST = 220
# Mean difference to the blurred grey image from which a patch has a texture; an image without one is glare or wall.
TEXTURE, TEXTURE_SIGMA = 1.8, 4.0
# Pixels that separate a patch from a polyp, the smallest side of a patch, and the largest number of one image.
FROM_POLYP, SMALLEST_PATCH, PATCHES_OF_IMAGE = 12, 30, 3
# Fraction of the views with residue, the largest number of pieces in one, and their sides as fractions of the view.
RESIDUE_FRACTION, MOST_PIECES = 0.4, 4
PIECE_SIDES = (0.08, 0.7)
# All pieces together may hide at most this fraction of the polyps in a view. For each piece this many random positions
# are tried.
MOST_HIDDEN, PIECE_TRIES = 0.4, 4
# What a piece is made of, with probabilities: mined texture, foam, or fluid.
MATERIALS = (0.7, 0.15, 0.15)
# Opacity from which a piece hides what is below it, so that the mask ends at its edge.
OPAQUE = 0.6
# Value of a mask where residue hides what is below it. There is certainly no polyp to be seen.
RESIDUE = 1


def residue_patches(image: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Cut square patches of residue out of an image, at some distance from its polyps.

    Args:
        image: uint8 RGB [H, W, 3].
        mask: uint8 [H, W] of 0 and 255.

    Returns:
        The patches, uint8 RGB [h, w, 3], the largest first. Most images have none.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.int16)
    yellow, lit = lab[..., 2] - lab[..., 1], image.max(axis=2) > LIT
    if not lit.any():
        return []
    residue = cv2.inRange(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), *COLOURS)
    residue[yellow < np.median(yellow[lit]) + YELLOWER] = 0
    residue[cv2.distanceTransform(cv2.compare(mask, 127, cv2.CMP_LE), cv2.DIST_L2, 5) <= FROM_POLYP] = 0
    residue = cv2.morphologyEx(residue, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    patches = [image[area] for area in _largest_squares(residue)]
    return [patch for patch in patches if _is_residue(patch)]


def _largest_squares(residue: np.ndarray) -> list[tuple[slice, slice]]:
    """Return up to PATCHES_OF_IMAGE squares inside the white area of a mask, which do not overlap."""
    free = cv2.copyMakeBorder(residue, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    squares: list[tuple[slice, slice]] = []
    while len(squares) < PATCHES_OF_IMAGE:
        distance = cv2.distanceTransform(free, cv2.DIST_C, 3)[1:-1, 1:-1]
        row, column = np.unravel_index(distance.argmax(), distance.shape)
        half = int(distance[row, column]) - 1
        if 2 * half + 1 < SMALLEST_PATCH:
            break
        squares.append((slice(row - half, row + half + 1), slice(column - half, column + half + 1)))
        free[1:-1, 1:-1][squares[-1]] = 0
    return squares


def _is_residue(patch: np.ndarray) -> bool:
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
    texture = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), TEXTURE_SIGMA)).mean()
    return bool(texture >= TEXTURE and np.median(patch.max(axis=2)) <= BRIGHTEST)


def lay_residue(
    image: np.ndarray, mask: np.ndarray, patches: Sequence[np.ndarray], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lay one to four pieces of residue over a view. Where they hide a polyp, its mask ends.

    Their shapes are irregular and their edges soft or sharp, over wall and over polyps, so that they tell nothing.

    Args:
        image: uint8 RGB [S, S, 3].
        mask: uint8 [S, S] of 0 and 255.
        patches: of residue_patches. Without any, all pieces are foam and fluid.
        random: source of the random numbers.

    Returns:
        New image, and new mask of 0, RESIDUE and 255.
    """
    image, mask, size, polyp = image.copy(), mask.copy(), image.shape[0], np.count_nonzero(mask == 255)
    for _ in range(random.integers(1, MOST_PIECES + 1)):
        side = max(4, round(size * random.uniform(*PIECE_SIDES)))
        cover = _irregular_shape(side, random)
        place = _place(mask, cover, (1 - MOST_HIDDEN) * polyp, random)
        if place is None:
            continue
        below = image[place]
        texture, opacity = _material(below, patches, random)
        alpha = cover * opacity
        image[place] = np.rint(below + (texture - below) * alpha[..., None]).astype(np.uint8)
        mask[place][alpha >= OPAQUE] = RESIDUE
    return image, mask


def _irregular_shape(side: int, random: np.random.Generator) -> np.ndarray:
    """Return how much a piece covers: float32 [side, side] of 0..1, a blob with an irregular outline."""
    line = np.linspace(-1, 1, side, dtype=np.float32)
    angle, stretch = random.uniform(0, np.pi), np.exp(random.uniform(0, 0.6))
    along = line * np.cos(angle) + line[:, None] * np.sin(angle)
    across = line[:, None] * np.cos(angle) - line * np.sin(angle)
    grid = int(random.integers(4, 10))
    noise = cv2.resize(random.standard_normal((grid, grid), np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    height = 0.75 - np.hypot(along, across * stretch) + np.float32(random.uniform(0.04, 0.35)) * noise
    height = np.minimum(height, (1 - np.maximum(np.abs(line), np.abs(line[:, None]))) * 2)  # none at the border
    cover: np.ndarray = np.clip(height / np.float32(random.uniform(0.05, 0.4)), 0, 1)
    return cover


def _place(
    mask: np.ndarray, cover: np.ndarray, least: float, random: np.random.Generator
) -> tuple[slice, slice] | None:
    """Choose where a piece lies, so that this many pixels of polyps stay visible; None if no place was found."""
    polyp = mask == 255
    visible = np.count_nonzero(polyp)
    for _ in range(PIECE_TRIES):
        row, column = random.integers(0, mask.shape[0] - cover.shape[0] + 1, 2)
        place = slice(row, row + cover.shape[0]), slice(column, column + cover.shape[0])
        hidden = np.count_nonzero(polyp[place] & (cover > 0))
        if not hidden or visible - hidden >= least:
            return place
    return None


def _material(
    below: np.ndarray, patches: Sequence[np.ndarray], random: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return what a piece looks like, float32 [side, side, 3] of 0..255, and its opacity."""
    mined, foam, _ = np.cumsum(MATERIALS)
    choice = random.random()
    if choice < mined and len(patches):
        texture = _turned(patches[int(random.integers(len(patches)))], below.shape[0], random)
        return _lit_like(below, texture, random), random.uniform(0.85, 1)
    if choice < foam:
        return _foam(below, random), random.uniform(0.5, 0.95)
    return _lit_like(below, _fluid(below.shape[0], random), random), random.uniform(0.35, 0.9)


def _turned(patch: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """Rotate, scale and mirror a patch. It is repeated, mirrored, where the piece is larger than the patch."""
    scale = np.exp(random.uniform(np.log(0.5), np.log(2.0)))
    turn = cv2.getRotationMatrix2D((patch.shape[1] / 2, patch.shape[0] / 2), random.uniform(0, 360), scale)
    turn[:, 2] += side / 2 - np.array(patch.shape[1::-1]) / 2
    turned = cv2.warpAffine(patch, turn, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return turned.astype(np.float32)


def _lit_like(below: np.ndarray, texture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Give a texture the light of the wall below it, and some of the relief of a lump."""
    side = below.shape[0]
    grey = cv2.resize(cv2.cvtColor(below, cv2.COLOR_RGB2GRAY), (4, 4), interpolation=cv2.INTER_AREA).astype(np.float32)
    light = cv2.resize(grey / max(1.0, float(grey.mean())), (side, side), interpolation=cv2.INTER_CUBIC)
    line = np.linspace(-1, 1, side, dtype=np.float32)
    angle, depth = random.uniform(0, 2 * np.pi), random.uniform(0, 0.35)
    light = light * (1 + depth * (line * np.cos(angle) + line[:, None] * np.sin(angle)))
    lit: np.ndarray = np.clip(texture * np.clip(light, 0.4, 1.6)[..., None], 0, 255).astype(np.float32)
    return lit


def _foam(below: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw bubbles over the wall: circles with a bright rim and a reflection."""
    side = below.shape[0]
    foam = cv2.addWeighted(below, 0.6, np.full_like(below, random.integers(150, 230)), 0.4, 0)
    largest = max(2, side // int(random.integers(6, 20)))
    for _ in range(min(150, 6 * (side // largest) ** 2)):
        x, y, radius = (int(value) for value in random.integers((0, 0, 1), (side, side, largest + 1)))
        rim = int(random.integers(170, 256))
        cv2.circle(foam, (x, y), radius, (rim, rim, int(rim * 0.9)), 1, cv2.LINE_AA)
        cv2.circle(foam, (x - radius // 3, y - radius // 3), max(1, radius // 5), (255, 255, 255), -1, cv2.LINE_AA)
    return foam.astype(np.float32)


def _fluid(side: int, random: np.random.Generator) -> np.ndarray:
    """Render turbid fluid: yellow, brown or greenish, a little cloudy, sometimes with reflections."""
    hsv = np.array([[random.uniform((14, 90, 70), (40, 230, 230))]]).astype(np.uint8)
    colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
    clouds = cv2.resize(random.standard_normal((6, 6), np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    fluid = colour * (1 + 0.08 * clouds[..., None])
    for _ in range(random.integers(0, 5)):
        centre = tuple(int(value) for value in random.integers(0, side, 2))
        axes = tuple(int(value) for value in random.integers(1, max(2, side // 12), 2))
        cv2.ellipse(fluid, centre, axes, random.uniform(0, 180), 0, 360, (255, 255, 255), -1, cv2.LINE_AA)
    return fluid.astype(np.float32)
