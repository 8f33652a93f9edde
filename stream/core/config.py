"""Settings: config.yaml and `--set` overrides, validated with pydantic."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from PIL import ImageColor
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from polypstream.errors import SettingsError

Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
]
Display = Literal["in-step", "pass-through"]
Coordinate = Annotated[int, Field(ge=0, strict=True)]
Length = Annotated[int, Field(gt=0, strict=True)]
Probability = Annotated[float, Field(gt=0, lt=1, strict=True)]


# Width of the outline if the setting is `true`.
CONTOUR = 4.0
# Error messages show at most this many characters of a reason or of a wrong value.
MAX_QUOTED = 100
# Type of the error where two settings contradict each other.
TOGETHER = "settings_together"


def _contour_width(width: Any) -> Any:
    """Map `false` to no outline and `true` to the default outline."""
    return {False: 0.0, True: CONTOUR}[width] if isinstance(width, bool) else width


def _colour(value: Any) -> Any:
    """Accept a colour's name in CSS, and digits without `#`. YAML reads one that has digits only as a number."""
    text = f"{value:06}" if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        return text
    digits = f"#{text}" if re.fullmatch("[0-9a-fA-F]{6}", text) else text
    return ImageColor.colormap.get(text.strip().lower(), digits)


class Section(BaseModel):
    """Base class of the sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class View(Section):
    """The part of the frame that the model sees."""

    field_of_view: Literal["auto", "full"] | tuple[Coordinate, Coordinate, Length, Length] = "auto"


class Deidentify(Section):
    """What is removed from a recording before anything is written."""

    enabled: bool = False
    blank_outside: bool = True


class Inference(Section):
    """The model and its execution provider."""

    model: str = "shipped"
    provider: Literal["auto", "cuda", "tensorrt", "tensorrt-rtx", "openvino", "cpu"] = "auto"
    device: int = Field(default=0, ge=0, strict=True)
    decoder: Literal["auto", "cpu", "nvdec"] = "auto"
    cuda_graph: bool = False
    batch_size: int = Field(default=8, ge=1, le=64, strict=True)
    every: int = Field(default=1, ge=1, le=100, strict=True)
    threads: int = Field(default=0, ge=0, le=1024, strict=True)


class Findings(Section):
    """What counts as a finding."""

    threshold: Literal["model"] | Probability = "model"
    peak: Literal["model"] | Probability = "model"
    smallest: float = Field(default=0.001, ge=0, lt=1, strict=True)
    shortest: float = Field(default=0.0, ge=0, le=10, strict=True)
    steady: bool = True


class OverlaySettings(Section):
    """How findings are drawn."""

    style: Literal["tint", "outline", "box", "heatmap", "none"] = "tint"
    colour: Annotated[str, BeforeValidator(_colour)] = Field(default="#40ff60", pattern="^#[0-9a-fA-F]{6}$")
    opacity: float = Field(default=0.3, ge=0, le=1, strict=True)
    contour: Annotated[float, BeforeValidator(_contour_width)] = Field(default=CONTOUR, ge=0, le=100, strict=True)
    labels: Literal["auto", "none", "number", "all"] = "auto"

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue of `colour`, 0..255."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


class WindowSettings(Section):
    """Where live windows appear."""

    full_screen: bool = False
    left: int = Field(default=0, strict=True)
    top: int = Field(default=0, strict=True)


class LiveSettings(Section):
    """How live sources are shown."""

    display: Display = "in-step"
    max_staleness: float = Field(default=0.2, gt=0, le=60, strict=True)
    timeout: float = Field(default=2.0, gt=0, le=60, strict=True)
    longest_wait: float = Field(default=0.5, gt=0, le=3600, strict=True)
    most_attempts: int = Field(default=0, ge=0, strict=True)
    sound: bool = False
    keep_seconds: float = Field(default=60.0, gt=0, le=600, strict=True)
    window: WindowSettings = WindowSettings()


class VideoSettings(Section):
    """How annotated.mp4 is encoded."""

    unmarked: Literal["auto", "copy", "encode"] = "auto"
    codec: Literal["auto", "h264_nvenc", "h264_qsv", "libx264", "none"] = "libx264"
    preset: Preset = "veryfast"
    crf: float = Field(default=20, ge=0, le=51, strict=True)


class RollSettings(Section):
    """When a live recording continues in a new file."""

    seconds: float = Field(default=3600.0, ge=1, strict=True)
    megabytes: float = Field(default=4000.0, ge=1, strict=True)


class Output(Section):
    """How results are written."""

    video: VideoSettings = VideoSettings()
    roll: RollSettings = RollSettings()


class ServeSettings(Section):
    """What `polypstream serve` accepts, and how long it keeps the data."""

    picture_megabytes: int = Field(default=64, ge=1, le=1024, strict=True)
    recording_gigabytes: float = Field(default=100.0, gt=0, strict=True)
    keep_days: float = Field(default=30.0, gt=0, strict=True)


class Settings(Section):
    """All settings of a run. config.yaml explains each of them."""

    view: View = View()
    deidentify: Deidentify = Deidentify()
    inference: Inference = Inference()
    findings: Findings = Findings()
    overlay: OverlaySettings = OverlaySettings()
    live: LiveSettings = LiveSettings()
    output: Output = Output()
    serve: ServeSettings = ServeSettings()

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        """Refuse values that are valid alone but not together."""
        if self.inference.every > 1 and not self.findings.steady:
            raise PydanticCustomError(
                TOGETHER,
                f"inference.every={self.inference.every}: needs findings.steady=true, since findings are moved to the "
                f"frames that the model does not see",
            )
        if self.findings.shortest and not self.findings.steady:
            raise PydanticCustomError(
                TOGETHER,
                f"findings.shortest={self.findings.shortest:g}: needs findings.steady=true; without it each frame is "
                f"treated separately",
            )
        return self


def config_file() -> Path:
    """Return the path of the installed config.yaml, which lists every setting with its default and explains it.

    Returns:
        The path.
    """
    return Path(str(files("polypstream") / "config.yaml"))


def load_settings(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Load settings: the defaults, then the values of a file, then overrides.

    Args:
        file: YAML file such as config.yaml, which explains every setting.
        overrides: each `key=value`, as for the option `--set` of the command line.

    Returns:
        The validated settings.

    Raises:
        SettingsError: a setting is unknown, of the wrong type or out of range. The message names it and its origin.

    Example:
        >>> import polypstream as pp
        >>> pp.load_settings(overrides=["overlay.opacity=0.5"]).overlay.opacity
        0.5
    """
    return settings_of(Path(file) if file is not None else None, overrides)


def settings_of(file: Path | None, overrides: Sequence[str], option: str = "") -> Settings:
    """Load settings as `load_settings` does.

    Args:
        file, overrides: as there.
        option: what the user wrote before each override, for messages: `--set ` on the command line.

    Raises:
        SettingsError: as there.
    """
    values: dict[str, Any] = _read(file) if file else {}
    origins: dict[str, str] = {}
    for override in overrides:
        origin = f"{option}{override}"
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals or not key:
            raise SettingsError(f"{origin}: write it as key=value, for instance overlay.opacity=0.5")
        origins[key] = origin
        # YAML reads `#ffcc00` as a comment.
        value = text if text.startswith("#") else _parse(text, origin)
        _put(values, key.split("."), value, origin)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error, origins, file)) from error


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise SettingsError(f"{file}: no such file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingsError(f"{file}: cannot be read ({reason})") from error
    content = _parse(text, str(file))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file}: holds no sections such as `overlay:`; see config.yaml")
    return _without_empty(content, Settings)


def _without_empty(content: dict[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """Remove the sections in which every line is commented out, which YAML reads as null."""
    kept = {}
    for key, value in content.items():
        below = _section_in(section, key)
        if below is None:
            kept[key] = value
        elif value is not None:
            kept[key] = _without_empty(value, below) if isinstance(value, dict) else value
    return kept


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML: ValueError for impossible dates and numbers
        reason = " ".join(str(error).split())
        raise SettingsError(f"{origin}: is not valid YAML ({reason[:MAX_QUOTED]})") from error


def _put(values: dict[str, Any], path: list[str], value: Any, origin: str) -> None:
    for name in path[:-1]:
        below = values.setdefault(name, {})
        if not isinstance(below, dict):
            raise SettingsError(f"{origin}: {name} is a value, not a section")
        values = below
    values[path[-1]] = value


def _explain(error: ValidationError, origins: dict[str, str], file: Path | None) -> str:
    """Describe the first problem, with its key and where the key was set."""
    problem = error.errors()[0]
    if problem["type"] == TOGETHER:
        return problem["msg"]
    key = _key(problem["loc"])
    origin = next(
        (
            text
            for name, text in origins.items()
            if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")
        ),
        None,
    )
    where = f"{origin}:" if origin else f"{file}: {key}:"
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        close = difflib.get_close_matches(key.lower(), known_keys(), 1, 0.5)
        return f"{where} no such setting" + (f"; did you mean {close[0]}?" if close else "; see config.yaml")
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{where} is a section, which holds settings such as {key}.{first_setting(key)}"
    return f"{where} write {_expected(key)} (got {_as_written(problem['input'], key, origin, file)[:MAX_QUOTED]})"


def _as_written(value: Any, key: str, origin: str | None, file: Path | None) -> str:
    """Quote a value as the user wrote it: YAML reads `yes` as True, and 1_0 as 10."""
    if isinstance(value, str | list | dict):
        return repr(value)
    if origin is not None:
        before, _, text = origin.partition("=")
        # An option of the command line may stand before the name.
        path = key.removeprefix(before.split()[-1]).removeprefix(".")
    else:
        assert file is not None
        text, path = file.read_text(encoding="utf-8"), key
    written = yaml.BaseLoader(text).get_single_data()
    for part in filter(None, path.split(".")):
        if part not in written:  # a merge key of YAML has put it there
            return repr(value)
        written = written[part]
    return str(written or "nothing")


def _expected(key: str) -> str:
    """Describe the values that a setting may have, from its JSON Schema."""
    whole = Settings.model_json_schema()
    schema = whole
    for name in key.split("."):
        schema = schema["properties"][name]
        schema = whole["$defs"][schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema
    return ", or ".join(_value_of(each) for each in reversed(schema.get("anyOf", [schema])))


def _value_of(schema: dict[str, Any]) -> str:
    """Describe the values that a JSON Schema of one type allows."""
    if "const" in schema or "enum" in schema:
        *names, last = (f"`{name}`" for name in schema.get("enum", [schema.get("const")]))
        return f"{', '.join(names)} or {last}" if names else last
    if schema["type"] == "boolean":
        return "true or false"
    if schema["type"] == "array":
        return "four whole numbers such as [0, 0, 640, 480]"
    if "pattern" in schema:
        return f"a colour by its name, such as red, or as six hexadecimal digits, such as {schema['default']}"
    if schema["type"] == "string":
        return "text"
    number = "a whole number" if schema["type"] == "integer" else "a number"
    bounds = [
        f"{word} {schema[name]:g}"
        for name, word in (
            ("minimum", " from"),
            ("exclusiveMinimum", " above"),
            ("maximum", " to"),
            ("exclusiveMaximum", ", below"),
        )
        if name in schema
    ]
    return "".join([number, *bounds])


def _key(location: tuple[int | str, ...]) -> str:
    """Return the name of the setting. pydantic appends the alternative that it tried or an index into a list."""
    parts: list[str] = []
    section: type[BaseModel] = Settings
    for part in location:
        parts.append(str(part))
        below = _section_in(section, part)
        if below is None:
            break
        section = below
    return ".".join(parts)


def first_setting(section: str) -> str:
    """Return the first setting of a section, as an example.

    Args:
        section: full name of a section, such as `live.window`.

    Returns:
        The setting's name inside the section.
    """
    return next(key for key in known_keys() if key.startswith(f"{section}.")).removeprefix(f"{section}.")


def known_keys(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """List the full names of all settings.

    Args:
        section: the section to list.
        prefix: put before each name.

    Returns:
        Names such as `overlay.opacity`, in the order of declaration.
    """
    keys: list[str] = []
    for name in section.model_fields:
        below = _section_in(section, name)
        keys += [f"{prefix}{name}"] if below is None else known_keys(below, f"{prefix}{name}.")
    return keys


def _section_in(section: type[BaseModel], name: int | str) -> type[BaseModel] | None:
    """Return the subsection with this name, or None if the name is a setting or unknown."""
    known = section.model_fields.get(str(name))
    below = known.annotation if known else None
    return below if isinstance(below, type) and issubclass(below, BaseModel) else None
