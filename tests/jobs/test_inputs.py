"""What the arguments of `process` name."""

from __future__ import annotations

from pathlib import Path

import pytest

from polypstream.jobs.inputs import Input, find_inputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with empty files: their names are what matters."""
    for name in (
        "rec/b.avi",
        "rec/a.MP4",
        "rec/notes.txt",
        "rec/.hidden.mp4",
        "img/f2.png",
        "img/f10.png",
        "img/x.JPG",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "nested" / "deeper").mkdir(parents=True)
    (tmp_path / "nested" / "deeper" / "a.mp4").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(*names: str) -> tuple[Path, ...]:
    return tuple(map(Path, names))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rec"], [Input("rec/a.MP4"), Input("rec/b.avi")]),
        (["rec/*"], [Input("rec/a.MP4"), Input("rec/b.avi"), Input("rec/notes.txt")]),
        (["rec/b.avi", "demo:?seed=2", "-"], [Input("rec/b.avi"), Input("demo:?seed=2"), Input("-")]),
        (["img"], [Input("img", images("img/f10.png", "img/f2.png", "img/x.JPG"), "img")]),
        (["img/f%d.png"], [Input("img", images("img/f2.png", "img/f10.png"), "img")]),
        (["img/f%02d.png"], [Input("img/f10.png", images("img/f10.png"), "f10")]),
        (["img/f2.png"], [Input("img/f2.png", images("img/f2.png"), "f2")]),
        (
            ["img/f2.png", "rec/b.avi", "img/x.JPG"],
            [Input("img", images("img/f2.png", "img/x.JPG"), "img"), Input("rec/b.avi")],
        ),
        (["img/f2.png", "img/f2.png"], [Input("img/f2.png", images("img/f2.png"), "f2")]),
        (["missing.mp4"], [Input("missing.mp4")]),
        (["nested/**/*.mp4"], [Input("nested/deeper/a.mp4")]),
    ],
)
def test_inputs_are_found(folder: Path, arguments: list[str], expected: list[Input]) -> None:
    inputs = find_inputs(arguments)
    assert inputs.found == expected
    assert inputs.problems == []


def test_a_set_in_the_current_folder_has_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "img")
    assert [each.name for each in find_inputs(["."]).found] == ["img"]


def test_other_files_of_a_folder_are_counted(folder: Path) -> None:
    assert find_inputs(["rec"]).others == 1
    assert find_inputs(["rec/*"]).others == 0  # named by the pattern, so tried


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("nested", "holds no recordings and no images; `polypstream archive` also takes its subfolders"),
        ("nothing*.mp4", "no file has such a name"),
        ("img/g%04d.png", "no file has such a name"),
        ("https://host/a.mp4", "is a web address"),
        ("RTSP://host/stream", "is a live stream; use `polypstream live"),
        ("s3://bucket/a.mp4", "use `polypstream archive`"),
    ],
)
def test_what_names_nothing_is_a_problem_and_the_others_go_on(folder: Path, argument: str, words: str) -> None:
    inputs = find_inputs([argument, "rec/b.avi"])
    assert inputs.found == [Input("rec/b.avi")]
    (problem,) = inputs.problems
    assert problem.startswith(f"{argument}: ")
    assert words in problem


def test_a_folder_that_may_not_be_listed_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert find_inputs(["rec"]).problems == ["rec: cannot be listed (Permission denied)"]
