"""Procedural colonoscopy: the withdrawal of a camera through a synthetic colon, with exact masks of all polyps.

The colon is a tube along z. Its radius is a map over the angle around the tube (columns) and z (rows). Folds are ridges
in this map, polyps are bumps. Each pixel's ray is marched to the wall and shaded there. So the colour and the polyp
mask come from the same point on the wall. Every image is a function of the seed and of the time in seconds.

The unit of length is the mean radius of the tube, about 2.5 cm. Angles are in radians unless a name says otherwise.

How a polyp appears and disappears: the camera looks deeper into the tube while it moves out of it, so a polyp enters
large at the rim of the view. It sits just behind a fold that is higher than itself. When the camera leaves along that
side of the wall, the fold hides the polyp before it becomes small in the distance. Two rules decide the other cases. A
polyp that covers less than `MIN_VISIBLE_SHARE` of the view is not in the mask of that frame. The same applies to a
polyp that lies more than `MAX_AHEAD` ahead of the camera, where little light reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import cv2
import numpy as np

# Texels of the maps: around the tube (about 163 per unit on the wall), and per unit along it.
COLUMNS = 1024
ROWS_PER_UNIT = 128
# The wall texture repeats after this many units. Folds and polyps do not repeat.
TILE_UNITS = 8
# A segment of the maps is used while the camera moves by HOP units. It extends BEHIND units behind the camera, and
# REACH units ahead, as far as the light reaches.
HOP, BEHIND, REACH = 4, 1, 8
# Largest height in pixels of the image for which rays are cast. It is enlarged to the recording's size.
RENDER_HEIGHT = 352
# In each direction one ray of this many is marched from the camera. The others start near where these ended.
COARSE = 4
# Largest angle from the optical axis, at the (cut off) corners of the view's box.
CORNER_ANGLE = np.radians(76)
# A polyp that covers a smaller share of the view's pixels is not in the mask.
MIN_VISIBLE_SHARE = 0.001
# Time step of the table of camera positions, at any frame rate.
PATH_STEP_S = 0.01
# A polyp affects the camera's path this long before and after the camera looks at it.
NEAR_S = 4.0
MAX_POLYPS = 255
# Largest shift of the noise between frames, in pixels, in each direction.
NOISE_MARGIN = 256
# Distance of a polyp ahead of the camera when the camera looks at it.
LOOK_AHEAD = 0.66
# A polyp farther ahead of the camera is in the dark and not in the mask.
MAX_AHEAD = 3.0
# Share of a polyp's height above which its surface counts as polyp. Below, it counts as wall.
RAISED = 0.08
# Images at least this wide for their height have a side panel with text, as those of an HD processor have.
PANEL_ASPECT = 1.5


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What to render.

    Attributes:
        seconds: length of the recording.
        seed: determines the colon, its polyps and the camera's path. A longer recording with the same seed begins with
            the same frames as a shorter one.
        width, height: size of the frames in pixels.
        rate: frames per second.
    """

    seconds: float = 10.0
    seed: int = 1
    width: int = 1280
    height: int = 720
    rate: Fraction = Fraction(25)


@dataclass(frozen=True, slots=True)
class _Polyp:
    """A bump on the wall.

    Attributes:
        number: 1..255, its value in the mask.
        seen_at: time in seconds at which the camera looks at it.
        z, angle: position of its centre on the unrolled wall.
        radius, height: half its width, and its height above the wall, in units.
        stretch, turn: ratio of its length to its width, and the direction of its length.
        roundness: exponent of its profile, from 1 (a flat dome) to 3 (nearly the steep sides of a ball).
        tint: factors for the wall's red, green and blue.
        pits: strength of its surface pattern, 0..1.
        lobes: three phases of its outline.
    """

    number: int
    seen_at: float
    z: float
    angle: float
    radius: float
    height: float
    stretch: float
    turn: float
    roundness: float
    tint: np.ndarray
    pits: float
    lobes: np.ndarray


@dataclass(frozen=True, slots=True)
class _Fold:
    """A ridge around the tube.

    Attributes:
        z: its position along the tube.
        height, width: in units.
        angle: direction of its highest part.
        tilt: four coefficients that make it uneven.
        hides_polyp: True for a fold beside a polyp, with one lobe at the polyp's angle. Other folds have three lobes.
    """

    z: float
    height: float
    width: float
    angle: float
    tilt: np.ndarray
    hides_polyp: bool


@dataclass(frozen=True, slots=True)
class _WallTexture:
    """Surface of the wall, periodic in both directions. Arrays are float32 [rows, COLUMNS, ...].

    Attributes:
        colour: RGB [..., 3], 0..255.
        relief: soft unevenness of the wall, in units.
        film: slopes [..., 2] of the wet film, around the tube and along it.
        pits: surface pattern of polyps, about -1..1.
    """

    colour: np.ndarray
    relief: np.ndarray
    film: np.ndarray
    pits: np.ndarray


@dataclass(frozen=True, slots=True)
class _Segment:
    """Maps of a section of the tube, [rows, COLUMNS, ...].

    Attributes:
        first_row: z of row 0, times ROWS_PER_UNIT.
        radius: float32, in units.
        shape: float32 [..., 4]: slopes of the radius around the tube and along it, openness (1 open, less in crevices),
            height as a share of the polyp's height.
        colour: uint8 RGB [..., 3].
        distant_colour: `colour`, blurred for distant parts of the wall.
        number: uint8, number of the polyp whose base is here, or 0.
    """

    first_row: int
    radius: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    distant_colour: np.ndarray
    number: np.ndarray


@dataclass(frozen=True, slots=True)
class _Camera:
    """Pose of the camera.

    Attributes:
        position: float32 [3].
        axes: float32 [3, 3], rows right, down and forward.
    """

    position: np.ndarray
    axes: np.ndarray


class DemoColon:
    """Renders frames and masks of a demo recording, in any order.

    Args:
        settings: what to render.
    """

    def __init__(self, settings: DemoSettings) -> None:
        self._settings = settings
        self._screen = _Screen(settings.width, settings.height)
        self._anatomy = _Anatomy(settings.seed, settings.seconds)
        self._noise = _SensorNoise(settings.seed, self._screen.view_width, self._screen.view_height)
        self._rays = _rays(self._screen.render_width, self._screen.render_height)

    def __len__(self) -> int:
        """Number of frames."""
        return max(1, round(self._settings.seconds * self._settings.rate))

    def render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Render one frame and its mask. The result does not depend on earlier calls.

        The sensor noise depends on the frame's time. So frames at the same time are equal at any frame rate.

        Args:
            index: number of the frame, from 0.

        Returns:
            Image, uint8 RGB [height, width, 3], and mask, uint8 [height, width]: polyp numbers, 0 without a polyp.
        """
        seconds = index / self._settings.rate
        camera = self._anatomy.camera(float(seconds))
        segment = self._anatomy.segment_at(float(camera.position[2]))
        colour, highlight, numbers = _shade(self._rays, camera, segment, self._anatomy)
        numbers[np.isin(numbers, self._anatomy.too_far_ahead(float(camera.position[2])))] = 0
        picture = self._screen.enlarge(colour, highlight)
        picture = self._screen.frame(self._noise.add_to(picture, seconds), seconds)
        return picture, self._screen.truth(numbers)


class _Screen:
    """Position of the field of view in the image, and all operations at the image's full size.

    Args:
        width, height: size of the image in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        panel = width >= PANEL_ASPECT * height
        self.view_height = max(2, round(0.95 * height))
        self.view_width = max(2, round(min(0.97 * width, 1.18 * self.view_height)))
        self._left = round(0.6 * width - self.view_width / 2) if panel else (width - self.view_width) // 2
        self._top = (height - self.view_height) // 2
        self._panel = panel
        scale = min(1.0, RENDER_HEIGHT / self.view_height)
        self.render_width = max(2 * COARSE, round(self.view_width * scale))
        self.render_height = max(2 * COARSE, round(self.view_height * scale))
        self._inside = _octagon(self.view_width, self.view_height)
        self._view_pixels = int(np.count_nonzero(self._inside > 127))

    def enlarge(self, colour: np.ndarray, highlight: np.ndarray) -> np.ndarray:
        """Enlarge the rendered view to full size. Highlights are sharpened there.

        Args:
            colour: uint8 RGB [h, w, 3] at the size of the rays.
            highlight: float32 [h, w] at the size of the rays, above 0 on highlights.
        """
        size = (self.view_width, self.view_height)
        large = cv2.resize(colour, size, interpolation=cv2.INTER_CUBIC)
        highlight = cv2.resize(highlight, size, interpolation=cv2.INTER_LINEAR)
        highlight = cv2.convertScaleAbs(cv2.max(highlight, 0.0), alpha=255)
        return cv2.add(large, cv2.merge([highlight] * 3))

    def frame(self, view: np.ndarray, seconds: Fraction) -> np.ndarray:
        """Put the view into a black image with its side panel.

        Args:
            view: uint8 RGB [view_height, view_width, 3].
            seconds: time shown in the panel.
        """
        picture = np.zeros((self._height, self._width, 3), np.uint8)
        cv2.multiply(view, cv2.merge([self._inside] * 3), dst=picture[self._view_slices], scale=1 / 255)
        if self._panel:
            self._write_panel(picture, seconds)
        return picture

    def truth(self, numbers: np.ndarray) -> np.ndarray:
        """Enlarge the polyp numbers to the full size of the image, without polyps that are too small.

        Each polyp is enlarged like the image and thresholded at half coverage, so numbers are not interpolated.

        Args:
            numbers: uint8 [h, w] at the size of the rays.
        """
        view = np.zeros((self.view_height, self.view_width), np.uint8)
        for number in np.flatnonzero(np.bincount(numbers.ravel())[1:]) + 1:
            covered = cv2.compare(numbers, int(number), cv2.CMP_EQ)
            covered = cv2.resize(covered, view.shape[::-1], interpolation=cv2.INTER_CUBIC)
            visible = (covered > 127) & (self._inside > 127)
            if np.count_nonzero(visible) >= MIN_VISIBLE_SHARE * self._view_pixels:
                view[visible] = number
        picture = np.zeros((self._height, self._width), np.uint8)
        picture[self._view_slices] = view
        return picture

    @property
    def _view_slices(self) -> tuple[slice, slice]:
        return (
            slice(self._top, self._top + self.view_height),
            slice(self._left, self._left + self.view_width),
        )

    def _write_panel(self, picture: np.ndarray, seconds: Fraction) -> None:
        minutes, hundredths = divmod(int(seconds * 100), 6000)
        lines = ("DEMO", "polypstream", "", "no patient", "", f"{minutes:02d}:{hundredths / 100:05.2f}")
        scale = self._height / 1440
        for line, text in enumerate(lines):
            at = (round(0.02 * self._width), round((0.1 + 0.045 * line) * self._height))
            cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (205, 205, 205), 1, cv2.LINE_AA)


def _octagon(width: int, height: int) -> np.ndarray:
    """Draw an octagon with slightly round corners and a smooth edge.

    Returns:
        uint8 [height, width], 255 inside.
    """
    cut = 0.17 * width
    right, bottom = width - 1, height - 1
    corners = [(cut, 0), (right - cut, 0), (right, cut), (right, bottom - cut)]
    corners += [(right - x, bottom - y) for x, y in corners]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 255)
    mask[[0, -1]] = mask[:, [0, -1]] = 0
    return cv2.GaussianBlur(mask, (0, 0), max(0.5, height / 500), borderType=cv2.BORDER_CONSTANT)


class _SensorNoise:
    """Noise that changes from frame to frame: a randomly placed window of a larger noise image."""

    def __init__(self, seed: int, width: int, height: int) -> None:
        self._seed, self._width, self._height = seed, width, height
        random = np.random.default_rng([seed, 1])
        shape = (height + NOISE_MARGIN, width + NOISE_MARGIN)
        grain = random.standard_normal((*shape, 3), np.float32) * 1.3
        grain += cv2.GaussianBlur(random.standard_normal(shape, np.float32), (0, 0), 1.1)[..., None] * 6
        # Positive and negative parts separately: adding and subtracting bytes is several times faster than signed sums.
        self._brighter = np.rint(np.maximum(grain, 0)).astype(np.uint8)
        self._darker = np.rint(np.maximum(-grain, 0)).astype(np.uint8)

    def add_to(self, picture: np.ndarray, seconds: Fraction) -> np.ndarray:
        """Add the noise of a time to an image.

        Args:
            picture: uint8 RGB [height, width, 3].
            seconds: time of the frame.
        """
        random = np.random.default_rng([self._seed, round(seconds * 1_000_000)])
        top, left = (int(place) for place in random.integers(0, NOISE_MARGIN, 2))
        window = (slice(top, top + self._height), slice(left, left + self._width))
        return cv2.subtract(cv2.add(picture, self._brighter[window]), self._darker[window])


class _Anatomy:
    """The tube, its folds and polyps, and the camera's path through it.

    Args:
        seed: determines everything.
        seconds: length of the recording.
    """

    def __init__(self, seed: int, seconds: float) -> None:
        self._seed = seed
        random = np.random.default_rng([seed, 2])
        # Python floats: NumPy's float64 would turn the rays' float32 into float64.
        self._bends: list[float] = random.uniform(0, 2 * np.pi, 4).tolist()
        self._sway = random.uniform(0, 2 * np.pi, 12)
        self._texture = _make_wall_texture(seed)
        self.film = self._texture.film
        times = _look_times(seed, seconds)
        self._path_times = np.arange(0, seconds + 1, PATH_STEP_S)
        attention = np.zeros_like(self._path_times)
        for time in times:
            near = slice(*np.searchsorted(self._path_times, (time - NEAR_S, time + NEAR_S)))
            np.maximum(attention[near], _attention(self._path_times[near] - time), out=attention[near])
        speed = 2.0 - 1.72 * attention
        self._path_z = -np.concatenate([[0.0], np.cumsum(speed[:-1]) * PATH_STEP_S])
        self.polyps = [
            _make_polyp(seed, number, time, float(np.interp(time, self._path_times, self._path_z)) + LOOK_AHEAD)
            for number, time in enumerate(times, 1)
        ]
        self._folds = _make_folds(seed, self.polyps, float(self._path_z[-1]) - BEHIND)
        self._segments: dict[int, _Segment] = {}

    def centre(self, z: np.ndarray) -> np.ndarray:
        """Centre of the tube at z, float32 [..., 2]."""
        a, b, c, d = self._bends
        x = 0.75 * np.sin(0.55 * z + a) + 0.25 * np.sin(1.13 * z + b)
        y = 0.6 * np.sin(0.47 * z + c) + 0.25 * np.sin(1.01 * z + d)
        return np.stack([x, y], axis=-1).astype(np.float32)

    def camera(self, seconds: float) -> _Camera:
        """Pose of the camera at a time in seconds."""
        z = float(np.interp(seconds, self._path_times, self._path_z))
        sway = np.sin(np.array([1.1, 0.7, 1.7, 2.9, 0.9, 1.3, 2.3, 3.7, 0.37, 0.83, 5.1, 4.3]) * seconds + self._sway)
        offset = 0.05 * sway[:2] + 0.015 * sway[2:4]
        near = [polyp for polyp in self.polyps if abs(seconds - polyp.seen_at) < NEAR_S]
        for polyp in near:
            since = seconds - polyp.seen_at
            # First away from the polyp, to see all of it; then along its side of the wall, so that the fold hides it.
            off_axis = -0.12 * _bump(since, -1.0, 0.9) + 0.33 * _bump(since, 0.5, 2.6)
            offset += off_axis * np.array([np.cos(polyp.angle), np.sin(polyp.angle)])
        position = np.array([*(self.centre(np.array(z)) + offset), z])
        ahead = np.array([*self.centre(np.array(z + 1.6)), z + 1.6]) - position
        forward = ahead / np.linalg.norm(ahead)
        forward[:2] += 0.06 * sway[4:6] + 0.02 * sway[6:8] + 0.004 * sway[10:]
        for polyp in near:
            top = 1 - 0.6 * polyp.height
            spot = self.centre(np.array(polyp.z)) + top * np.array([np.cos(polyp.angle), np.sin(polyp.angle)])
            to_polyp = np.array([*spot, polyp.z]) - position
            share = 0.66 * float(_attention(np.float64(seconds - polyp.seen_at)))
            forward += share * (to_polyp / np.linalg.norm(to_polyp) - forward)
        forward /= np.linalg.norm(forward)
        roll = 0.2 * sway[8] + 0.1 * sway[9]
        right = np.cross([np.sin(roll), np.cos(roll), 0.0], forward)
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(forward, right), forward])
        return _Camera(position.astype(np.float32), axes.astype(np.float32))

    def too_far_ahead(self, z: float) -> list[int]:
        """Numbers of the polyps that are too far ahead of a camera at z to be visible."""
        return [polyp.number for polyp in self.polyps if polyp.z - z > MAX_AHEAD]

    def segment_at(self, z: float) -> _Segment:
        """Maps for a camera at z. The last two segments are kept, for callers that do not render in order."""
        hop = int(np.floor(z / HOP))
        if hop not in self._segments:
            self._segments = dict([*self._segments.items()][-1:])
            self._segments[hop] = self._make_segment(hop)
        return self._segments[hop]

    def _make_segment(self, hop: int) -> _Segment:
        first_row = (hop * HOP - BEHIND) * ROWS_PER_UNIT
        rows = np.arange(first_row, first_row + (BEHIND + HOP + REACH) * ROWS_PER_UNIT)
        z = (rows / ROWS_PER_UNIT).astype(np.float32)
        radius = 1 + self._texture.relief[rows % (TILE_UNITS * ROWS_PER_UNIT)]
        for fold in self._folds:
            if z[0] - 1 < fold.z < z[-1] + 1:
                _raise_fold(radius, z, fold)
        radius = 0.4 + _soft_positive(radius - 0.4)
        tile_row = _tile_row(rows[:, None].astype(np.float32), radius)
        columns = np.broadcast_to(np.arange(COLUMNS, dtype=np.float32), radius.shape)
        colour, pits = (
            cv2.remap(tile, columns, tile_row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            for tile in (self._texture.colour, self._texture.pits)
        )
        level = np.zeros_like(radius)
        number = np.zeros(radius.shape, np.uint8)
        for polyp in self.polyps:
            if z[0] - 1 < polyp.z < z[-1] + 1:
                _raise_polyp(polyp, z, pits, radius, colour, level, number)
        colour8 = np.clip(colour, 0, 255).astype(np.uint8)
        return _Segment(
            first_row=first_row,
            radius=radius,
            shape=cv2.merge([*_slopes(radius), _openness(radius), level]),
            colour=colour8,
            distant_colour=_blur(colour8, 4),
            number=number,
        )


def _attention(since: np.ndarray | np.float64) -> np.ndarray:
    """Share of the camera's attention to a polyp, 0..1.

    Args:
        since: seconds since the camera looked straight at it.
    """
    return _smoothstep(-1.0, -0.25, since) * (1 - _smoothstep(0.55, 1.25, since))


def _look_times(seed: int, seconds: float) -> list[float]:
    """Times in seconds at which the camera looks at a polyp."""
    random = np.random.default_rng([seed, 4])
    times = [1.45]
    while len(times) < MAX_POLYPS:
        pause = random.uniform(3.6, 4.3) if len(times) % 4 or random.random() < 0.5 else random.uniform(6, 9)
        times.append(times[-1] + pause)
    return [time for time in times if time < seconds + 1]


def _make_polyp(seed: int, number: int, seen_at: float, z: float) -> _Polyp:
    random = np.random.default_rng([seed, 5, number])
    # The first polyp is large, so that the first seconds of a demo show one.
    radius = 0.44 if number == 1 else random.uniform(0.24, 0.44)
    round_one = number % 2 == 1
    redness = random.uniform(-1, 1)
    return _Polyp(
        number=number,
        seen_at=seen_at,
        z=z,
        angle=random.uniform(0, 2 * np.pi),
        radius=radius,
        height=radius * (random.uniform(0.8, 1.0) if round_one else random.uniform(0.55, 0.75)),
        stretch=random.uniform(1.0, 1.2) if round_one else random.uniform(1.1, 1.4),
        turn=random.uniform(0, np.pi),
        roundness=random.uniform(2.2, 3.0) if round_one else random.uniform(1.5, 2.2),
        tint=np.array([1.05 + 0.01 * redness, 1.0 - 0.13 * redness, 1.02 - 0.1 * redness], np.float32),
        pits=random.uniform(0.2, 1.0),
        lobes=random.uniform(0, 2 * np.pi, 3),
    )


def _make_folds(seed: int, polyps: Sequence[_Polyp], last_z: float) -> list[_Fold]:
    """Folds about every unit, but none on a polyp; and beside each polyp a fold that will hide it."""
    folds = []
    hiding = [_hiding_fold(seed, polyp) for polyp in polyps]
    z, number = float(HOP + REACH), 0
    while z > last_z:
        random = np.random.default_rng([seed, 6, number])
        near = any(s.z - 0.5 < z < p.z + p.radius * p.stretch + 0.35 for p, s in zip(polyps, hiding, strict=True))
        if not near:
            folds.append(_random_fold(random, z))
        z -= random.uniform(0.7, 1.2)
        number += 1
    return folds + hiding


def _random_fold(random: np.random.Generator, z: float) -> _Fold:
    return _Fold(
        z=z,
        height=random.uniform(0.2, 0.42),
        width=random.uniform(0.1, 0.16),
        angle=random.uniform(0, 2 * np.pi),
        tilt=random.uniform(-0.14, 0.14, 4),
        hides_polyp=False,
    )


def _hiding_fold(seed: int, polyp: _Polyp) -> _Fold:
    random = np.random.default_rng([seed, 7, polyp.number])
    return _Fold(
        z=polyp.z - polyp.radius * polyp.stretch - 0.16,
        height=polyp.height + 0.17,
        width=0.13,
        angle=polyp.angle,
        tilt=random.uniform(-0.03, 0.03, 4),
        hides_polyp=True,
    )


def _raise_fold(radius: np.ndarray, z: np.ndarray, fold: _Fold) -> None:
    """Reduce the radius along a fold, in place.

    Args:
        radius: float32 [rows, COLUMNS].
        z: position of each row, in units.
        fold: the fold.
    """
    angle = _angles()
    near = np.abs(z - fold.z) < 0.95
    round_tube = angle - fold.angle
    if fold.hides_polyp:
        height = fold.height * (0.12 + 0.88 * np.exp(0.9 * (np.cos(round_tube) - 1)))
    else:
        height = fold.height * (0.56 + 0.3 * np.cos(3 * round_tube) + 0.14 * np.cos(round_tube + fold.tilt[3] * 9))
    wave = fold.tilt[0] * np.cos(angle) + fold.tilt[1] * np.sin(angle) + 0.3 * fold.tilt[2] * np.sin(4 * angle)
    across = (z[near, None] - (fold.z + wave)[None]) / fold.width
    radius[near] -= (height / (1 + across * across) ** 1.5).astype(np.float32)


def _raise_polyp(
    polyp: _Polyp,
    z: np.ndarray,
    pits: np.ndarray,
    radius: np.ndarray,
    colour: np.ndarray,
    level: np.ndarray,
    number: np.ndarray,
) -> None:
    """Add a polyp to the maps of a segment, in place.

    Args:
        polyp: the polyp.
        z: position of each row, in units.
        pits: surface pattern of polyps, as in _WallTexture.
        radius, colour, level, number: maps to change; `level` is the height as a share of the polyp's height.
    """
    near = np.flatnonzero(np.abs(z - polyp.z) < 1.6 * polyp.radius * polyp.stretch)
    if not len(near):
        return
    rows = slice(near[0], near[-1] + 1)
    round_tube = (_angles() - polyp.angle + np.pi) % (2 * np.pi) - np.pi
    along, across = np.meshgrid(z[rows] - polyp.z, 0.95 * round_tube, indexing="ij")
    u = (np.cos(polyp.turn) * along + np.sin(polyp.turn) * across) / polyp.stretch
    v = np.cos(polyp.turn) * across - np.sin(polyp.turn) * along
    direction = np.arctan2(v, u)
    a, b, c = polyp.lobes
    outline = (
        1 + 0.05 * np.cos(2 * direction + a) + 0.05 * np.cos(3 * direction + b) + 0.025 * np.cos(5 * direction + c)
    )
    distance = np.hypot(u, v) / (polyp.radius * outline)
    dome = np.maximum(1 - distance**polyp.roundness, 0) ** 0.55
    dome = cv2.GaussianBlur(dome.astype(np.float32), (0, 0), 2.2)
    knobs = 1 + 0.1 * np.cos(7 * u / polyp.radius + b) * np.cos(6 * v / polyp.radius + c)
    lift = polyp.height * dome * (1 + (knobs - 1) * dome) + 0.004 * polyp.pits * pits[rows] * dome
    radius[rows] -= lift.astype(np.float32)
    cover = _smoothstep(0.02, 0.35, dome)[..., None].astype(np.float32)
    base_colour = np.array([218, 126, 98], np.float32) * polyp.tint
    pattern = np.maximum(pits[rows], -0.5)[..., None] * np.array([5, 13, 12], np.float32)
    surface = base_colour + 0.3 * (colour[rows] - colour[rows].mean(axis=(0, 1))) - polyp.pits * pattern
    colour[rows] += cover * (surface - colour[rows])
    level[rows] = np.maximum(level[rows], dome)
    number[rows][distance < 1.5] = polyp.number


@lru_cache(maxsize=2)
def _make_wall_texture(seed: int) -> _WallTexture:
    """Generate colour and unevenness of healthy mucosa."""
    random = np.random.default_rng([seed, 3])
    patches, broad, mottle, grain = (_noise(random, scale) for scale in (0.5, 1.1, 0.13, 0.014))
    vessels = _vessels(random) * np.clip(0.8 + 0.45 * patches, 0.3, 1)
    tone = 1 + 0.05 * patches + 0.035 * mottle + 0.03 * grain
    # Colours differ between patients and between the white balances of processors.
    balance = random.uniform(0.95, 1.05, 3).astype(np.float32)
    colour = np.array([200, 118, 93], np.float32) * balance * tone[..., None]
    colour += broad[..., None] * np.array([3, 8, 7], np.float32)
    colour *= 1 - vessels[..., None] * np.array([0.16, 0.36, 0.34], np.float32)
    fluid = _smoothstep(1.4, 2.6, broad + 0.3 * mottle)[..., None]
    colour += fluid * 0.4 * (np.array([206, 150, 62], np.float32) - colour)
    waves = ((0.13, 0.022), (0.055, 0.014), (0.024, 0.005))
    film = np.clip(0.9 + 0.4 * _noise(random, 0.35), 0.3, 1.6)
    film *= np.add.reduce([height * _noise(random, scale) for scale, height in waves])
    return _WallTexture(
        colour=colour.astype(np.float32),
        relief=(0.05 * _noise(random, 0.6) + 0.012 * _noise(random, 0.16)).astype(np.float32),
        film=np.dstack(_slopes(film)),
        pits=(0.7 * _noise(random, 0.035) + 0.7 * _noise(random, 0.014)).astype(np.float32),
    )


def _noise(random: np.random.Generator, scale: float) -> np.ndarray:
    """Smooth periodic noise over the texture.

    Args:
        random: generator.
        scale: size of its features in units.

    Returns:
        float32 of mean 0 and standard deviation 1.
    """
    rows = TILE_UNITS * ROWS_PER_UNIT
    across = np.fft.rfftfreq(COLUMNS, 2 * np.pi / COLUMNS)
    along = np.fft.fftfreq(rows, 1 / ROWS_PER_UNIT)
    power = np.exp(-2 * (np.pi * scale) ** 2 * (along[:, None] ** 2 + across[None] ** 2))
    power = power.astype(np.float32)
    power[0, 0] = 0
    noise = np.fft.irfft2(np.fft.rfft2(random.standard_normal((rows, COLUMNS), np.float32)) * power, s=(rows, COLUMNS))
    return (noise / noise.std()).astype(np.float32)


def _vessels(random: np.random.Generator) -> np.ndarray:
    """Branching vessels over the texture, float32 0..1."""
    rows = TILE_UNITS * ROWS_PER_UNIT
    canvas = np.zeros((rows, COLUMNS), np.float32)
    for _ in range(46):
        layer = np.zeros((rows, COLUMNS), np.uint8)
        _grow_vessel(layer, random, rows / 2, COLUMNS / 2, random.uniform(0, 2 * np.pi), random.uniform(2.6, 4.4))
        shift = (int(random.integers(rows)), int(random.integers(COLUMNS)))
        np.maximum(canvas, np.roll(layer, shift, (0, 1)), out=canvas)
    return cv2.GaussianBlur(canvas, (0, 0), 0.8) / 255


def _grow_vessel(
    layer: np.ndarray, random: np.random.Generator, row: float, column: float, heading: float, width: float
) -> None:
    """Draw a vessel and its branches. Each branch is thinner than its parent."""
    strength = int(70 + 38 * min(width, 4.5))
    while width > 0.7:
        points = [(column, row)]
        for _ in range(int(random.integers(4, 9))):
            heading += random.normal(0, 0.24)
            row, column = row + 7 * np.sin(heading), column + 7 * np.cos(heading)
            points.append((column, row))
        line = np.rint(np.array(points) * 16).astype(np.int32)
        cv2.polylines(layer, [line], False, strength, max(1, round(width)), cv2.LINE_AA, 4)
        if random.random() < 0.85:
            side = random.choice([-1.0, 1.0]) * random.uniform(0.5, 1.0)
            _grow_vessel(layer, random, row, column, heading + side, width * random.uniform(0.5, 0.75))
        width *= random.uniform(0.84, 0.95)


def _slopes(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of a map per radian around the tube, and per unit along it, float32."""
    round_tube = (np.roll(height, -1, 1) - np.roll(height, 1, 1)) * (COLUMNS / (4 * np.pi))
    return round_tube.astype(np.float32), (np.gradient(height, axis=0) * ROWS_PER_UNIT).astype(np.float32)


def _openness(radius: np.ndarray) -> np.ndarray:
    """Share of ambient light that reaches each place: 1 on open wall, less in crevices."""
    depth = sum(weight * np.maximum(radius - _blur(radius, texels), 0) for texels, weight in ((10, 3.0), (30, 1.6)))
    return 1 / (1 + depth).astype(np.float32)


def _blur(image: np.ndarray, texels: float) -> np.ndarray:
    """Blur a map that is closed around the tube, by two box filters. Their cost does not depend on the width."""
    side = round(1.22 * texels) * 2 + 1
    wrapped = cv2.copyMakeBorder(image, 0, 0, side, side, cv2.BORDER_WRAP)
    return np.ascontiguousarray(cv2.blur(cv2.blur(wrapped, (side, side)), (side, side))[:, side:-side])


def _tile_row(row: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Row of the wall texture for a row of the tube.

    The radius counts as length too. Otherwise the texture would be stretched on the visible side of a fold.
    """
    return (row - radius * np.float32(ROWS_PER_UNIT)) % np.float32(TILE_UNITS * ROWS_PER_UNIT)


def _angles() -> np.ndarray:
    return np.arange(COLUMNS) * (2 * np.pi / COLUMNS)


def _smoothstep(low: float, high: float, value: np.ndarray | np.float64) -> np.ndarray:
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def _bump(value: float, start: float, end: float) -> float:
    """A smooth bump: 0 outside start..end, 1 in the middle."""
    return float(np.sin(np.pi * np.clip((value - start) / (end - start), 0, 1)) ** 2)


def _soft_positive(value: np.ndarray) -> np.ndarray:
    """Nearly the value itself where it is well above zero, and never negative."""
    return 0.5 * (value + np.sqrt(value * value + 0.006))


def _rays(width: int, height: int) -> np.ndarray:
    """Unit directions through the pixels of the view.

    The angle from the axis is proportional to the distance from the centre, as with an endoscope's wide-angle lens.

    Returns:
        float32 [height, width, 3]: right, down and forward.
    """
    x = (np.arange(width) + 0.5 - width / 2)[None] + np.zeros((height, 1))
    y = (np.arange(height) + 0.5 - height / 2)[:, None] + np.zeros((1, width))
    distance = np.hypot(x, y)
    angle = distance / np.hypot(width / 2, height / 2) * CORNER_ANGLE
    off_axis = np.sin(angle) / np.maximum(distance, 1e-6)
    return np.dstack([x * off_axis, y * off_axis, np.cos(angle)]).astype(np.float32)


def _march(
    origin: np.ndarray, directions: np.ndarray, start: np.ndarray, anatomy: _Anatomy, segment: _Segment
) -> np.ndarray:
    """Find the distance to the wall along each ray.

    Args:
        origin: float32 [3].
        directions: unit vectors, float32 [n, 3].
        start: distances known to lie inside the tube, float32 [n].

    Returns:
        float32 [n]; REACH - 1 where a ray does not meet the wall before.
    """
    near, far = start.copy(), np.full_like(start, REACH - 1)
    active, rays, before = np.arange(len(start)), directions, start
    clear = clear_before = _clearance(origin, rays, before, anatomy, segment)
    clear_near, clear_far = clear.copy(), np.zeros_like(clear)
    to_wall = np.zeros_like(start)
    while len(active):
        step = np.maximum(0.62 * clear_before, 0.01 + 0.01 * before)
        # Close to the wall, the slope of the last step predicts its distance: step just past it.
        step = np.maximum(step, np.where(to_wall < 0.1, 1.15 * to_wall + 0.003, 0))
        now = before + step
        clear = _clearance(origin, rays, now, anatomy, segment)
        on = (clear > 0) & (now < REACH - 1)
        done, go_on = np.flatnonzero(~on), np.flatnonzero(on)
        ended = active.take(done)
        near[ended], far[ended] = before.take(done), now.take(done)
        clear_near[ended], clear_far[ended] = clear_before.take(done), clear.take(done)
        to_wall = (clear * step / np.maximum(clear_before - clear, np.float32(1e-6))).take(go_on)
        active, rays = active.take(go_on), rays.take(go_on, axis=0)
        before, clear_before = now.take(go_on), clear.take(go_on)
    middle = _crossing(near, far, clear_near, clear_far)
    clear = _clearance(origin, directions, middle, anatomy, segment)
    inside = clear > 0
    near, clear_near = np.where(inside, middle, near), np.where(inside, clear, clear_near)
    far, clear_far = np.where(inside, far, middle), np.where(inside, clear_far, clear)
    return np.minimum(_crossing(near, far, clear_near, clear_far), REACH - 1)


def _crossing(near: np.ndarray, far: np.ndarray, clear_near: np.ndarray, clear_far: np.ndarray) -> np.ndarray:
    """Distance at which the clearance is zero, interpolated between a place in the lumen and one behind the wall."""
    share = clear_near / np.maximum(clear_near - clear_far, np.float32(1e-6))
    return near + (far - near) * np.clip(share, np.float32(0.03), np.float32(0.97))


def _clearance(
    origin: np.ndarray, rays: np.ndarray, distance: np.ndarray, anatomy: _Anatomy, segment: _Segment
) -> np.ndarray:
    """Distance of points on the rays from the wall, towards the tube's centre; negative behind the wall."""
    column, row, off_axis, _ = _on_the_wall(origin + rays * distance[:, None], anatomy, segment)
    return _look_up(segment.radius, column, row) - off_axis


def _on_the_wall(
    points: np.ndarray, anatomy: _Anatomy, segment: _Segment
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Project points onto the wall.

    Args:
        points: float32 [n, 3].

    Returns:
        Columns and rows of the maps, distance from the tube's centre, and angle, [n] each.
    """
    off = points[:, :2] - anatomy.centre(points[:, 2])
    off_axis, angle = (part.ravel() for part in cv2.cartToPolar(off[:, 0], off[:, 1]))
    column = angle * np.float32(COLUMNS / (2 * np.pi))
    row = points[:, 2] * np.float32(ROWS_PER_UNIT) - np.float32(segment.first_row)
    return column, np.clip(row, 0, len(segment.radius) - 2), off_axis, angle


def _look_up(image: np.ndarray, column: np.ndarray, row: np.ndarray, how: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Values of a map at n places, [n, ...]. The places are reshaped to a rectangle, as OpenCV requires."""
    width = 1024
    height = -(-len(column) // width)
    places = np.zeros((2, height * width), np.float32)
    places[0, : len(column)], places[1, : len(column)] = column, row
    columns, rows = places.reshape(2, height, width)
    found = cv2.remap(image, columns, rows, how, borderMode=cv2.BORDER_WRAP)
    return found.reshape(height * width, *image.shape[2:])[: len(column)]


def _distances(rays: np.ndarray, camera: _Camera, anatomy: _Anatomy, segment: _Segment) -> np.ndarray:
    """Distance to the wall for every ray, float32 [height, width].

    Few rays are marched all the way. Every other ray starts slightly before the nearest of its marched neighbours.

    Args:
        rays: directions in the world, float32 [height, width, 3].
    """
    height, width = rays.shape[:2]
    coarse_rays = np.ascontiguousarray(rays[COARSE // 2 :: COARSE, COARSE // 2 :: COARSE])
    zero = np.zeros(coarse_rays[..., 0].size, np.float32)
    coarse = _march(camera.position, coarse_rays.reshape(-1, 3), zero, anatomy, segment)
    nearest = cv2.erode(coarse.reshape(coarse_rays.shape[:2]), np.ones((3, 3), np.uint8))
    start = cv2.resize(nearest, (width, height), interpolation=cv2.INTER_NEAREST) * 0.96 - 0.01
    start = np.maximum(start, 0).ravel()
    return _march(camera.position, rays.reshape(-1, 3), start, anatomy, segment).reshape(height, width)


def _shade(
    rays: np.ndarray, camera: _Camera, segment: _Segment, anatomy: _Anatomy
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cast the rays.

    Args:
        rays: directions relative to the camera, float32 [h, w, 3].

    Returns:
        uint8 RGB [h, w, 3] without highlights; float32 [h, w], above 0 on highlights; uint8 [h, w], polyp numbers.
    """
    height, width = rays.shape[:2]
    world = cv2.transform(rays, camera.axes.T)
    distance = _distances(world, camera, anatomy, segment)
    points = camera.position + world.reshape(-1, 3) * distance.reshape(-1, 1)
    column, row, off_axis, angle = _on_the_wall(points, anatomy, segment)
    shape = _look_up(segment.shape, column, row)
    numbers = _look_up(segment.number, column, row, cv2.INTER_NEAREST)
    numbers = np.where(shape[:, 3] > RAISED, numbers, 0).astype(np.uint8)
    film = _look_up(anatomy.film, column, _tile_row(row + np.float32(segment.first_row), off_axis))

    bend = (anatomy.centre(points[:, 2] + np.float32(0.02)) - anatomy.centre(points[:, 2])) / np.float32(0.02)
    cosine, sine = np.cos(angle), np.sin(angle)
    view = -world.reshape(-1, 3)
    lean = cosine * bend[:, 0] + sine * bend[:, 1]
    facing = _facing(view, cosine, sine, shape[:, 0] / off_axis, shape[:, 1] + lean)
    away = distance.ravel()
    # A distant or slanted texel is smaller than a pixel: only the blurred texture is visible there.
    blur = np.clip((away / np.maximum(facing, 0.15) - 1.2) / 5, 0, 1)
    wet = 1 - blur
    wet_facing = _facing(
        view, cosine, sine, (shape[:, 0] + film[:, 0] * wet) / off_axis, shape[:, 1] + lean + film[:, 1] * wet
    )
    colour = _look_up(segment.colour, column, row).astype(np.float32)
    colour += blur[:, None] * (_look_up(segment.distant_colour, column, row) - colour)

    light = (0.34 + 0.66 * np.maximum(0.8 * facing + 0.2 * wet_facing, 0)) * shape[:, 2]
    light *= np.exp(-np.square(away / 2.8)) / (0.7 + away * away)
    light *= 0.55 + 0.45 * world.reshape(-1, 3) @ camera.axes[2]
    light *= np.square(0.98 / (0.1 + np.sqrt(light).mean()))
    picture = _tone_map(colour, light).reshape(height, width, 3)
    # At a short distance only film that faces the camera exactly is bright: otherwise one droplet would fill the view.
    mirror = 0.983 + 0.03 * np.maximum(0.8 - away, 0)
    # A crest that turns away within a few pixels would show a row of bright dots.
    facing_here = facing.reshape(height, width)
    mirror += 0.4 * np.maximum(facing_here - cv2.erode(facing_here, np.ones((5, 5), np.uint8)) - 0.12, 0).ravel()
    highlight = np.clip((wet_facing - mirror) * 100 * wet / (0.6 + away), -0.6, 1.4).reshape(height, width)
    return _lens_blur(picture, _edges(distance)), highlight, numbers.reshape(height, width)


def _edges(distance: np.ndarray) -> np.ndarray:
    """Pixels at which a near surface hides a far one, uint8 [h, w], 1 or 0."""
    ring = np.ones((3, 3), np.uint8)
    jump = cv2.dilate(distance, ring) > 1.12 * cv2.erode(distance, ring) + 0.02
    return jump.astype(np.uint8)


def _lens_blur(picture: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Blur like a lens. The blur is stronger at edges, where one ray per pixel causes aliasing."""
    soft = cv2.GaussianBlur(picture, (0, 0), 0.5)
    cv2.copyTo(cv2.GaussianBlur(picture, (0, 0), 0.95), edges, soft)
    return soft


def _facing(
    view: np.ndarray, cosine: np.ndarray, sine: np.ndarray, slope_round: np.ndarray, slope_along: np.ndarray
) -> np.ndarray:
    """Cosine between the wall's normal, from the slopes of its radius, and the direction to the camera."""
    inward = -(view[:, 0] * cosine + view[:, 1] * sine)
    round_tube = view[:, 1] * cosine - view[:, 0] * sine
    length = np.sqrt(1 + slope_round * slope_round + slope_along * slope_along)
    return (inward + slope_round * round_tube + slope_along * view[:, 2]) / length


def _tone_map(colour: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Apply light to the wall's colour as a processor shows it: redder in the dark, paler in bright areas.

    Returns:
        uint8 [n, 3].
    """
    grey = np.log(np.maximum(light, 1e-5))[:, None]
    exposed = colour / 255 * np.exp(grey * np.array([0.4, 0.48, 0.52], np.float32))
    return (255 * (1 - np.exp(-1.75 * exposed * exposed - 0.6 * exposed))).astype(np.uint8)
