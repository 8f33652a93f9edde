"""Settings: defaults, files, overrides, and errors that name the key and where it was set."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from polypstream.core.config import Settings, known_keys, load_settings, settings_of
from polypstream.errors import SettingsError

SHIPPED = Path(__file__).parents[2] / "config.yaml"


def test_config_yaml_holds_every_setting_with_its_default() -> None:
    assert load_settings(SHIPPED, []) == Settings()
    content = yaml.safe_load(SHIPPED.read_text())
    assert _leaves(content) == known_keys()


def _leaves(content: dict[str, object], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in content.items():
        keys += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return keys


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("overlay:\n  opacity: 0.7\n  style: heatmap\n")
    settings = load_settings(file, ["overlay.opacity=0.2", "view.field_of_view=[2, 4, 100, 80]"])
    assert (settings.overlay.opacity, settings.overlay.style) == (0.2, "heatmap")
    assert settings.view.field_of_view == (2, 4, 100, 80)
    assert settings.output == Settings().output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("overlay.opactiy=1", "did you mean overlay.opacity"),
        ("opacity=1", "did you mean overlay.opacity"),
        ("overlay.opacity=7", "write a number from 0 to 1 (got 7)"),
        ("overlay.labels=yes", "write `auto`, `none`, `number` or `all` (got yes)"),
        ("overlay={labels: off}", "overlay={labels: off}: write `auto`, `none`, `number` or `all` (got off)"),
        ("overlay.opacity=", "write a number from 0 to 1 (got nothing)"),
        ("overlay.opacity=much", "write a number from 0 to 1 (got 'much')"),
        ("overlay.style=stripes", "write `tint`, `outline`, `box`, `heatmap` or `none`"),
        ("output.video.crf=99", "a number from 0 to 51"),
        ("output.video.preset=quick", "`veryfast`"),
        ("inference.batch_size=0", "a whole number from 1 to 64"),
        ("inference.provider=npu", "`openvino`"),
        ("findings.threshold=2", "write a number above 0, below 1, or `model` (got 2)"),
        ("view.field_of_view=[1, 2, 3]", "view.field_of_view=[1, 2, 3]: "),
        ("view.field_of_view=wide", "four whole numbers such as [0, 0, 640, 480], or `auto` or `full` (got 'wide')"),
        ("findings.steady=maybe", "write true or false"),
        (
            "overlay.colour=reddish",
            "write a colour by its name, such as red, or as six hexadecimal digits, such as #40ff60 (got 'reddish')",
        ),
        ("overlay=5", "overlay"),
        ("overlay", "key=value"),
        ("=5", "key=value"),
        ("overlay.opacity=[", "not valid YAML"),
        ("overlay.opacity.x=1", "overlay.opacity"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, [override])
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"{override}: ")
    assert "\n" not in text
    with pytest.raises(SettingsError) as caught:
        settings_of(None, [override], "--set ")
    assert str(caught.value) == f"--set {text}"


def test_spaces_around_the_equals_sign_do_not_count() -> None:
    settings = load_settings(None, ["overlay.style = box", " overlay.colour= #ffcc00", "overlay.opacity =0.2 "])
    assert (settings.overlay.style, settings.overlay.colour, settings.overlay.opacity) == ("box", "#ffcc00", 0.2)
    with pytest.raises(SettingsError, match=r"^--set overlay\.labels = yes: write .* \(got yes\)$"):
        settings_of(None, ["overlay.labels = yes"], "--set ")


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("overlay:\n  opacity: 7\n", "overlay.opacity"),
        ("overlay:\n  colour: reddish\n", "overlay.colour"),
        ("overlay:\n  labels: yes\n", "write `auto`, `none`, `number` or `all` (got yes)"),
        ("a: &a {labels: yes}\noverlay:\n  <<: *a\n", "overlay.labels"),
        ("overly:\n  opacity: 1\n", "overly"),
        ("overlay: 3\n", "overlay"),
        ("output:\n  video:\n    crf: high\n", "output.video.crf"),
        ("- overlay\n", "no sections"),
        ("overlay: [\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, content: str, key: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_settings(file, [])
    assert str(file) in str(caught.value)
    assert key in str(caught.value)


def test_an_empty_file_and_an_empty_section_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for content in ("", "# nothing\n", "overlay:\n", "output:\n  video:\n"):
        file.write_text(content)
        assert load_settings(file, []) == Settings()


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    for file in (tmp_path / "none.yaml", binary, tmp_path):
        with pytest.raises(SettingsError, match=str(file)):
            load_settings(file, [])


@pytest.mark.parametrize(
    ("name", "rgb"), [("red", (255, 0, 0)), ("Yellow", (255, 255, 0)), ("lime", (0, 255, 0)), ("grey", (128, 128, 128))]
)
def test_a_colour_may_be_a_name(name: str, rgb: tuple[int, int, int]) -> None:
    assert load_settings(None, [f"overlay.colour={name}"]).overlay.rgb == rgb


@pytest.mark.parametrize("written", ["#ffcc00", '"#ffcc00"', "ffcc00"])
def test_a_colour_may_be_written_as_people_write_it(written: str) -> None:
    assert load_settings(None, [f"overlay.colour={written}"]).overlay.rgb == (255, 204, 0)
    assert load_settings(None, ["overlay.colour=001122"]).overlay.colour in ("#001122", "#000594")  # YAML 1.1: octal


def test_a_shortest_time_needs_findings_over_time() -> None:
    with pytest.raises(
        SettingsError, match=r"findings\.shortest=1: needs findings\.steady=true; without it each frame"
    ):
        load_settings(None, ["findings.shortest=1", "findings.steady=false"])
