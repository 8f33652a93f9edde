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
        "one/x.avi",
        "one/x.jpg",
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
        (["img/f%02d.png"], [Input("img", images("img/f10.png"), "img")]),
        (["img/*.JPG"], [Input("img", images("img/x.JPG"), "img")]),
        (["one"], [Input("one/x.avi"), Input("one", images("one/x.jpg"), "one")]),
        (["one/x.jpg", "one/x.avi"], [Input("one/x.jpg", images("one/x.jpg"), "x"), Input("one/x.avi")]),
        (["one/x.jpg", "one"], [Input("one", images("one/x.jpg"), "one"), Input("one/x.avi")]),
        (["img/f2.png"], [Input("img/f2.png", images("img/f2.png"), "f2")]),
        (
            ["img/f2.png", "rec/b.avi", "img/x.JPG"],
            [Input("img", images("img/f2.png", "img/x.JPG"), "img"), Input("rec/b.avi")],
        ),
        (["img/f2.png", "img/f2.png"], [Input("img/f2.png", images("img/f2.png"), "f2")]),
        (["nested/**/*.mp4"], [Input("nested/deeper/a.mp4")]),
    ],
)
def test_inputs_are_found(folder: Path, arguments: list[str], expected: list[Input]) -> None:
    inputs = find_inputs(arguments)
    assert inputs.found == expected
    assert inputs.problems == {}


def test_a_set_in_the_current_folder_has_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "img")
    assert [each.name for each in find_inputs(["."]).found] == ["img"]


@pytest.fixture
def results(folder: Path) -> Path:
    """Results of a recording and of images, in the folder `results`."""
    for name in ("rec/annotated.mp4", "rec/masks.mkv", "rec/snapshots/track-1.jpg", "img/masks/a.png", "img/notes.txt"):
        path = folder / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("rec", "img"):
        (folder / "results" / name / "summary.json").write_text('{"polypstream": "0.1"}')
    return folder / "results"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("results/rec", "is a folder of results of polypstream, see results/rec/report.html; give the recordings or"),
        ("results/img", "is a folder of results of polypstream"),
        ("results", "holds folders of results of polypstream, and no recordings or images; give"),
        ("results/img/masks", "holds only results of polypstream"),
        ("results/*/annotated.mp4", "names only results of polypstream"),
    ],
)
def test_results_are_no_inputs(results: Path, argument: str, words: str) -> None:
    inputs = find_inputs([argument])
    assert (inputs.found, inputs.results, inputs.others) == ([], 0, [])
    assert inputs.problems[argument].startswith(f"{argument}: {words}")


def test_results_among_recordings_are_left_out_and_counted(results: Path) -> None:
    inputs = find_inputs(["**/*.mp4"])
    assert (inputs.found, inputs.results) == ([Input("nested/deeper/a.mp4")], 1)
    (results / "rec" / "b.avi").touch()
    inputs = find_inputs(["results/rec"])
    assert (inputs.found, inputs.results) == ([Input("results/rec/b.avi")], 3)
    named = find_inputs(["results/rec/annotated.mp4"])
    assert (named.found, named.results) == ([Input("results/rec/annotated.mp4")], 0)


def test_files_with_names_of_results_are_inputs_elsewhere(folder: Path) -> None:
    (folder / "rec" / "annotated.mp4").touch()
    assert Input("rec/annotated.mp4") in find_inputs(["rec"]).found


def test_other_files_of_a_folder_are_counted(folder: Path) -> None:
    assert find_inputs(["rec"]).others == [Path("rec/notes.txt")]
    assert find_inputs(["rec/*"]).others == []  # named by the pattern, so tried


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("nested", "holds no recordings and no images; `polypstream archive` also takes its subfolders"),
        ("nothing*.mp4", "no file has such a name"),
        ("missing.mp4", "no such file"),
        ("img/g%04d.png", "no file has such a name"),
        ("https://host/a.mp4", "is a web address"),
        ("RTSP://host/stream", "is a live stream; use `polypstream live"),
        ("s3://bucket/a.mp4", "use `polypstream archive`"),
    ],
)
def test_what_names_nothing_is_a_problem_and_the_others_go_on(folder: Path, argument: str, words: str) -> None:
    inputs = find_inputs([argument, "rec/b.avi"])
    assert inputs.found == [Input("rec/b.avi")]
    problem = inputs.problems.pop(argument)
    assert not inputs.problems
    assert problem.startswith(f"{argument}: ")
    assert words in problem


def test_a_folder_that_may_not_be_listed_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert find_inputs(["rec"]).problems == {"rec": "rec: cannot be listed (Permission denied)"}
