"""Values as people read them."""

from __future__ import annotations

from pathlib import Path

from polypstream.core.formatting import counted, quoted, shortened, time_in_view, time_span


def test_one_is_no_plural() -> None:
    assert [counted(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]


def test_the_times_of_something_short_differ() -> None:
    assert time_span(1.3, 5) == "0:00:01.3 to 0:00:05.0"
    assert time_span(1.32, 1.34) == "0:00:01.32 to 0:00:01.34"
    assert time_span(0.64, 0.64) == "0:00:00.6"
    assert time_in_view(2.12, 53) == "2.1 s, 53 frames"
    assert time_in_view(0.04, 1) == "0.04 s, 1 frame"
    assert time_in_view(0, 1) == "1 frame"


def test_a_path_can_be_copied_into_a_shell() -> None:
    assert quoted(Path("results/a/report.html")) == "results/a/report.html"
    assert quoted(Path("my results/it's.html")) == """'my results/it'"'"'s.html'"""


def test_a_long_name_keeps_its_begin_and_its_end() -> None:
    assert shortened("a.mp4", 5) == "a.mp4"
    assert shortened("colonoscopy-2024-01-17.mp4", 15) == "colono...17.mp4"
    for longest in range(6, 27):
        assert len(shortened("colonoscopy-2024-01-17.mp4", longest)) == longest
