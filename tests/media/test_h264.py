"""Parameter sets, read from streams that x264 wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import pytest

from polypstream.media.h264 import (
    NotSupported,
    ParameterSets,
    SequenceParameters,
    join_lengths,
    split_lengths,
    split_start_codes,
)

Make = Callable[..., Path]


def sets_of(path: Path) -> ParameterSets:
    with av.open(str(path)) as file:
        return ParameterSets.parse(file.streams.video[0].codec_context.extradata or b"")


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le", "yuv444p"])
@pytest.mark.parametrize("preset", ["ultrafast", "veryfast", "slow"])
def test_a_parameter_set_is_written_as_it_was_read(make: Make, pixel_format: str, preset: str) -> None:
    (unit,) = sets_of(make(frames=2, pixel_format=pixel_format, options={"preset": preset})).sequence
    assert SequenceParameters.parse(unit).unit() == unit


def test_an_avcc_is_written_as_it_was_read(make: Make) -> None:
    path = make(frames=2)
    with av.open(str(path)) as file:
        extradata = file.streams.video[0].codec_context.extradata
    assert ParameterSets.parse(extradata).avcc() == extradata


def test_a_byte_stream_gives_the_same_avcc_as_an_mp4(make: Make) -> None:
    assert sets_of(make(name="a.ts", frames=2)).avcc() == sets_of(make(name="a.mp4", frames=2)).avcc()


@pytest.mark.parametrize(
    ("options", "references", "profile"),
    [
        ({"refs": "4", "bf": "0", "profile": "high"}, 4, 100),
        ({"refs": "1", "bf": "0", "profile": "baseline"}, 1, 66),
        ({"refs": "3", "bf": "2", "profile": "main"}, 4, 77),  # a pyramid of B-frames needs four
    ],
)
def test_what_a_parameter_set_says_is_what_x264_was_told(
    make: Make, options: dict[str, str], references: int, profile: int
) -> None:
    found = SequenceParameters.parse(sets_of(make(frames=2, options=options)).sequence[0])
    assert (found.references, found.profile, found.id, found.progressive) == (references, profile, 0, True)
    assert found.size == (320 // 16 - 1, 240 // 16 - 1)
    assert found.usability().states_reordering


def test_colours_are_read(make: Make) -> None:
    tags = {"color_primaries": 1, "color_trc": 13, "colorspace": 6}
    assert SequenceParameters.parse(sets_of(make(frames=2, colours=tags)).sequence[0]).usability().colours == (1, 13, 6)


def test_a_free_id_is_one_that_nothing_has(make: Make) -> None:
    sets = sets_of(make(frames=2, options={"x264-params": "sps-id=1"}))
    assert sets.free_id() == 2


def test_zeros_in_a_parameter_set_never_look_like_a_start_code(make: Make) -> None:
    found = SequenceParameters.parse(sets_of(make(frames=2)).sequence[0])
    unit = SequenceParameters(
        found.profile, 0, 0, 0, found.chroma, found.order, 1, 0, (0, 0), True, 1, "0", "1" + "0" * 60
    ).unit()
    assert b"\x00\x00\x00" not in unit
    assert b"\x00\x00\x03" in unit
    assert SequenceParameters.parse(unit).vui == "1" + "0" * 60


def test_start_codes_and_lengths_hold_the_same_units() -> None:
    units = split_start_codes(b"\x00\x00\x00\x01\x67ab\x00\x00\x01\x65\x00c\x00")
    assert units == [b"\x67ab", b"\x65\x00c"]
    assert split_lengths(join_lengths(units)) == units


@pytest.mark.parametrize("damaged", [b"\x00\x00\x00\x09ab", b"\x00\x00\x00\x00", b"\x00"])
def test_lengths_beyond_the_packet_are_an_error(damaged: bytes) -> None:
    with pytest.raises(NotSupported):
        split_lengths(damaged)


def test_cut_off_parameter_sets_are_an_error(make: Make) -> None:
    path = make(frames=2)
    with av.open(str(path)) as file:
        extradata = file.streams.video[0].codec_context.extradata
    for length in range(8, len(extradata) - 5):
        with pytest.raises(NotSupported):
            SequenceParameters.parse(ParameterSets.parse(extradata[:length]).sequence[0]).usability()
    unit = sets_of(path).sequence[0]
    for length in range(1, 8):
        with pytest.raises(NotSupported):
            SequenceParameters.parse(unit[:length])
