"""Pictures that are not worth looking at are told from those that are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from polypstream.core.frame import Quality
from polypstream.sources.demo_colon import DemoColon, DemoSettings
from polypstream.stages.quality import inspect


@pytest.fixture(scope="module")
def colon() -> np.ndarray:
    picture: np.ndarray = DemoColon(DemoSettings(width=320, height=320)).render(30)[0]
    return picture


def test_a_good_picture_has_nothing_wrong_with_it(colon: np.ndarray) -> None:
    assert inspect(colon) == Quality(blurred=False, overexposed=False, outside=False)


def test_what_is_wrong_is_named(colon: np.ndarray) -> None:
    assert inspect(cv2.GaussianBlur(colon, (0, 0), 8)).blurred
    assert inspect(colon // 20).blurred
    assert inspect(cv2.add(colon, (150, 150, 150, 0))).overexposed
    blue = np.ascontiguousarray(colon[..., ::-1])
    assert inspect(blue) == Quality(blurred=False, overexposed=False, outside=True)
    assert inspect(cv2.cvtColor(cv2.cvtColor(colon, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)).outside
