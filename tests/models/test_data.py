"""Data sets on disk: found, split without leaks, augmented."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from polypstream.errors import DataError, SettingsError
from polypstream.models.data import (
    Pair,
    _close_up,
    _random_affine,
    augment,
    find_pairs,
    healthy_crops,
    levels_of,
    named_pairs,
    read_pair,
    split_off_validation,
    spread,
)


def make_data(folder: Path, count: int = 6, size: tuple[int, int] = (64, 48)) -> Path:
    """Grey pictures with a red disc, and its mask; JPEG and PNG as the public sets have them."""
    width, height = size
    random = np.random.default_rng(5)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        picture = random.integers(60, 120, (height, width, 1), np.uint8).repeat(3, axis=2)
        mask = np.zeros((height, width), np.uint8)
        centre = tuple(int(value) for value in random.integers(12, (width - 12, height - 12)))
        cv2.circle(mask, centre, 9, 255, -1)
        picture[mask > 0] = (30, 30, 210)
        cv2.imwrite(str(folder / "images" / f"p{index}.png"), picture)
        cv2.imwrite(str(folder / "masks" / f"p{index}.png"), mask)
    return folder


def test_pairs_are_found_by_name_whatever_their_endings(tmp_path: Path) -> None:
    data = make_data(tmp_path / "d")
    (data / "images" / "p0.png").rename(data / "images" / "p0.JPG")
    names = tmp_path / "names.txt"
    names.write_text("p3\n\np0.png\n")
    assert [pair.name for pair in find_pairs(data, names)] == ["p3", "p0"]
    assert len(find_pairs(data)) == 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "masks" / "p2.png").unlink(), "masks: no image is named p2"),
        (lambda d: [each.unlink() for each in (d / "images").iterdir()], "holds no images"),
        (lambda d: (d / "images" / "p1.jpg").write_bytes(b""), r"p1.png: p1.jpg has the same name"),
        (lambda d: (d / "images").rename(d / "pictures"), "a data set has images/ and masks/"),
    ],
)
def test_a_broken_folder_is_described(tmp_path: Path, spoil: object, message: str) -> None:
    data = make_data(tmp_path / "d")
    spoil(data)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        find_pairs(data)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    data = make_data(tmp_path / "d")
    (data / "images" / "p1.png").write_bytes(b"nothing")
    cv2.imwrite(str(data / "masks" / "p2.png"), np.zeros((5, 5), np.uint8))
    pairs = find_pairs(data)
    with pytest.raises(DataError, match=r"p1\.png: cannot be read"):
        read_pair(pairs[1])
    with pytest.raises(DataError, match=r"p2\.png: its size \(5, 5\)"):
        read_pair(pairs[2])


def test_near_duplicates_stay_on_one_side() -> None:
    random = np.random.default_rng(0)
    scenes = [cv2.resize(random.integers(0, 256, (8, 8, 3), np.uint8), (96, 96)) for _ in range(40)]
    # Every scene twice, the second time a little brighter and noisier.
    again = [
        np.clip(scene.astype(int) + 6 + random.integers(-2, 3, scene.shape), 0, 255).astype(np.uint8)
        for scene in scenes
    ]
    pictures = scenes + again
    training, validation = split_off_validation(pictures, 0.25, seed=1)
    assert sorted(training + validation) == list(range(80))
    assert 18 <= len(validation) <= 22
    assert {index % 40 for index in validation}.isdisjoint(index % 40 for index in training)
    assert split_off_validation(pictures, 0.25, seed=1)[1] == validation
    assert split_off_validation(pictures, 0.25, seed=2)[1] != validation


def test_augmentation_moves_picture_and_mask_together(tmp_path: Path) -> None:
    picture, mask = read_pair(find_pairs(make_data(tmp_path / "d"))[0])
    levels, areas = levels_of(picture, mask, 96), []
    for seed in range(100):
        view, truth = augment(levels, levels.palette, 96, np.random.default_rng(seed), ("residue",))
        assert view.shape == (96, 96, 3)
        assert set(np.unique(truth)) <= {0, 255}
        redness = np.clip(view[..., 0].astype(int) - view[..., 1] + 128, 0, 255).astype(np.uint8)
        _, redder = cv2.threshold(redness, 0, 255, cv2.THRESH_OTSU)
        areas.append(truth.mean())
        # Text, spots and cut-outs may hide some of the disc, never move it.
        if 5 < truth.mean() < 200:
            inside, outside = (redder > 0)[truth > 0].mean(), (redder > 0)[truth == 0].mean()
            assert inside > outside + 0.4
    assert max(areas) > 2 * np.median(areas)  # scale varies
    assert 0.08 < np.mean(np.array(areas) == 0) < 0.4  # some views show healthy wall only


def test_a_random_view_is_a_function_of_its_seed(tmp_path: Path) -> None:
    levels = levels_of(*read_pair(find_pairs(make_data(tmp_path / "d"))[0]), 64)
    for seed in range(20):
        views = [augment(levels, levels.palette, 64, np.random.default_rng(seed)) for _ in range(2)]
        assert np.array_equal(views[0][0], views[1][0])
        assert np.array_equal(views[0][1], views[1][1])


def test_parts_of_a_view_can_be_left_out(tmp_path: Path) -> None:
    levels = levels_of(*read_pair(find_pairs(make_data(tmp_path / "d"))[0]), 96)

    def areas(*without: str) -> np.ndarray:
        return np.array(
            [augment(levels, levels.palette, 96, np.random.default_rng(seed), without)[1].mean() for seed in range(60)]
        )

    def reds(*without: str) -> np.ndarray:
        views = [augment(levels, levels.palette, 96, np.random.default_rng(seed), without)[0] for seed in range(60)]
        return np.array([view.reshape(-1, 3).max(axis=0) for view in views])

    assert areas("scale", "close-ups").std() < areas("close-ups").std() / 2
    assert areas("close-ups").std() < areas().std()
    # In the picture red is 210 on the disc and at most 119 beside it.
    left_out = (("residue", "colour", "degradation"), ("residue", "degradation"))
    plain, coloured = (reds(*without)[:, 0] for without in left_out)
    assert ((plain <= 121) | ((plain >= 205) & (plain <= 211))).all()
    assert ((coloured > 121) & (coloured < 205)).sum() > 10
    assert reds("residue", "colour").max() == 255  # text and spots
    with_residue = reds("colour", "degradation")[:, 0] != reds("residue", "colour", "degradation")[:, 0]
    assert 0.1 < with_residue.mean() < 0.6


def test_a_view_takes_on_anothers_palette(tmp_path: Path) -> None:
    """The other picture is the same one, darker, paler and bluer; what is black around it stays so."""
    picture, mask = read_pair(find_pairs(make_data(tmp_path / "d"))[0])
    picture = cv2.copyMakeBorder(picture, 0, 0, 20, 20, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    mask = cv2.copyMakeBorder(mask, 0, 0, 20, 20, cv2.BORDER_CONSTANT, value=0)
    other = np.where(picture > 0, picture * 0.6 + (20, 25, 60), 0).astype(np.uint8)
    levels, palette = levels_of(picture, mask, 96), levels_of(other, mask, 96).palette

    def views(*without: str) -> list[np.ndarray]:
        without = ("scale", "close-ups", "residue", "colour", "degradation", *without)
        return [augment(levels, palette, 96, np.random.default_rng(seed), without)[0] for seed in range(20)]

    as_it_is = views("palette")
    repainted = [(own, seen) for own, seen in zip(as_it_is, views(), strict=True) if not np.array_equal(own, seen)]
    assert 4 < len(repainted) < 16
    for own, seen in repainted:
        lit = own.min(axis=2) > 60  # away from the rim, where lit and black mix
        expected = other[picture.min(axis=2) > 60].mean(axis=0)
        assert np.abs(seen[lit].mean(axis=0) - expected).max() < 12
        assert seen[own.max(axis=2) == 0].max() == 0


def test_healthy_crops_show_no_polyp_and_are_always_the_same() -> None:
    random = np.random.default_rng(1)
    picture = random.integers(60, 200, (300, 400, 3), np.uint8)
    mask = np.zeros((300, 400), np.uint8)
    cv2.circle(mask, (300, 150), 60, 255, -1)
    picture[mask > 0] = (255, 0, 0)
    crops = healthy_crops(picture, mask)
    assert [share for share, _ in crops] == [0.2, 0.3, 0.45, 0.65]  # 0.9 of the height does not fit beside it
    for share, crop in crops:
        assert crop.shape == (round(share * 300), round(share * 300), 3)
        assert not (crop == (255, 0, 0)).all(axis=2).any()
        difference = cv2.matchTemplate(picture, crop, cv2.TM_SQDIFF_NORMED)
        assert difference.min() < 1e-4  # it is a part of the picture as it is
    again = healthy_crops(picture, mask)
    assert all(np.array_equal(one[1], other[1]) for one, other in zip(crops, again, strict=True))
    assert healthy_crops(picture, np.full_like(mask, 255)) == []


def test_healthy_crops_leave_out_the_dark() -> None:
    picture = np.full((200, 200, 3), 120, np.uint8)
    cv2.circle(picture, (135, 100), 45, (0, 0, 0), -1)  # a lumen inside the view
    crops = healthy_crops(picture, np.zeros((200, 200), np.uint8))
    assert crops
    for _, crop in crops:
        assert (crop > 0).mean() > 0.9


@pytest.mark.parametrize("radius", [10, 25, 45])
def test_healthy_close_ups_show_no_polyp(radius: int) -> None:
    mask = np.zeros((200, 200), np.uint8)
    cv2.circle(mask, (110, 90), radius, 255, -1)
    for seed in range(200):
        random = np.random.default_rng(seed)
        zoom, centre = _close_up(mask, True, random)
        assert 1.5 <= zoom <= 4
        assert not cv2.warpAffine(mask, _random_affine(200, 64, zoom, centre, random), (64, 64)).any()


def test_close_ups_of_polyps_show_one() -> None:
    mask = np.zeros((200, 200), np.uint8)
    cv2.circle(mask, (120, 90), 20, 255, -1)
    for seed in range(50):
        random = np.random.default_rng(seed)
        transform = _random_affine(200, 64, *_close_up(mask, False, random), random)
        assert cv2.warpAffine(mask, transform, (64, 64))[26:38, 26:38].any()


@pytest.mark.parametrize("level", [0, 255])
def test_a_close_up_of_what_the_picture_does_not_have_is_one_of_any_place(level: int) -> None:
    zoom, centre = _close_up(np.full((64, 64), level, np.uint8), level > 0, np.random.default_rng(1))
    assert 1.5 <= zoom <= 4
    assert (centre > 0).all()
    assert (centre < 1).all()


def test_pictures_of_several_folders_are_told_apart(tmp_path: Path) -> None:
    one, two = make_data(tmp_path / "one", 2), make_data(tmp_path / "two", 2)
    (two / "train.txt").write_text("p1\n")
    assert [name for name, _ in named_pairs([one, two])] == ["one/p0", "one/p1", "two/p1"]
    with pytest.raises(DataError, match="have the same name"):
        named_pairs([one, tmp_path / "two" / ".." / "one"])
    with pytest.raises(SettingsError, match="--names"):
        named_pairs([one, two], two / "train.txt")
    assert [pair.name for pair in spread(find_pairs(make_data(tmp_path / "many", 7)), 3)] == ["p0", "p3", "p6"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_of_pictures_may_be_any_bytes(tmp_path: Path) -> None:
    """OpenCV's own reader brings the process down on them."""
    path = tmp_path / os.fsdecode(b"k\xf6rper.png")
    path.write_bytes(cv2.imencode(".png", np.full((8, 8, 3), 200, np.uint8))[1].tobytes())
    picture, mask = read_pair(Pair("k", path, path))
    assert np.array_equal(picture, np.full((8, 8, 3), 200, np.uint8))
    assert mask.min() == 255
