"""The CPU: its description, and which provider is the fastest on it.

Which of ONNX Runtime's providers is faster on a CPU depends on its instructions and on the model. It is measured when
a model is used for the first time, and remembered in the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort

from polypstream.core.cache import cache_folder
from polypstream.inference.model_card import INPUT, OUTPUT, digest_of
from polypstream.inference.providers import Provider, SessionSettings, open_session, warm_up

log = logging.getLogger(__name__)

# Instruction sets that accelerate inference on x86-64, the oldest first; names as in Linux.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# The fastest of several runs is taken: other programs can only make a run slower. There are as many rounds as fit into
# SECONDS, and at least ROUNDS.
ROUNDS, SECONDS = 3, 0.8
# If the usual run takes so much longer than the fastest one, other programs were busy. Then it is measured again at the
# next start, until there are ATTEMPTS measurements.
STEADY, ATTEMPTS = 1.3, 3


@dataclass(frozen=True, slots=True)
class Measurement:
    """How fast each provider is.

    Attributes:
        milliseconds: per image, of the fastest run.
        steady: the runs took nearly the same time, so other programs did not disturb them.
    """

    milliseconds: dict[Provider, float]
    steady: bool


def describe_cpu() -> str:
    """Describe the CPU: its name, the number of its cores that this process may use, and its instruction sets.

    Returns:
        For example "AMD EPYC 7763, 2 cores (avx2)".
    """
    name, flags = _name_and_flags()
    return f"{name}, {usable_cores()} cores" + (f" ({' '.join(flags)})" if flags else "")


def usable_cores() -> int:
    """Return the number of the CPU's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name_and_flags() -> tuple[str, list[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return facts.get("model name", platform.machine()), [flag for flag in FLAGS if flag in flags]


def fastest_first(models: Mapping[Provider, Path], threads: int) -> list[Provider]:
    """Sort providers of the CPU by their speed on this CPU, measured once for each model and remembered.

    If other programs disturbed the measurement, the next calls repeat it, at most until there are ATTEMPTS, and the
    fastest run of all counts. Processes that measure at the same time get the same answer.

    Args:
        models: the model file of each provider.
        threads: CPU threads of a session; 0 leaves the number to the provider.

    Returns:
        The providers, the fastest first.

    Raises:
        ModelError: a file cannot be loaded.
        ProviderError: a provider cannot run its model. Nothing is remembered.

    Example:
        >>> fastest_first({"openvino": shipped_weights(), "cpu": shipped_weights("shipped-int8")}, 0)  # doctest: +SKIP
        ['openvino', 'cpu']
    """
    conditions = _conditions(models, threads)
    name = hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:20]
    measurements: list[Measurement] = []
    for attempt in range(1, ATTEMPTS + 1):
        path = cache_folder() / f"speed-{name}-{attempt}.json"
        remembered = _remembered(path, models)
        if remembered is None:
            log.info(f"measuring which is faster on this CPU: {' or '.join(models)}")
            new = measure(models, threads)
            log.debug("%s: milliseconds per image of each provider: %s", next(iter(models.values())), new)
            _remember(path, {"conditions": conditions, **asdict(new)})
            measurements.append(_remembered(path, models) or new)  # another process may have been first
            break
        measurements.append(remembered)
        if remembered.steady:
            break
    return sorted(models, key=lambda provider: min(each.milliseconds[provider] for each in measurements))


def measure(models: Mapping[Provider, Path], threads: int) -> Measurement:
    """Measure the time per image of each provider, in turns.

    Args:
        models: the model file of each provider.
        threads: CPU threads of a session; 0 leaves the number to the provider.

    Raises:
        ModelError: a file cannot be loaded.
        ProviderError: a provider cannot run its model.
    """
    sessions = {provider: open_session(model, provider, SessionSettings(threads)) for provider, model in models.items()}
    pictures: dict[Provider, np.ndarray] = {}
    for provider, session in sessions.items():
        _, height, width, _ = session.get_inputs()[0].shape
        pictures[provider] = np.zeros((1, height, width, 3), np.uint8)
        warm_up(partial(_run, session), provider, [pictures[provider].shape])
    runs: dict[Provider, list[float]] = {provider: [] for provider in models}
    end = time.monotonic() + SECONDS
    while any(len(each) < ROUNDS for each in runs.values()) or time.monotonic() < end:
        for provider, session in sessions.items():
            runs[provider].append(_milliseconds(session, pictures[provider]))
    best = {provider: min(each) for provider, each in runs.items()}
    return Measurement(best, all(median(each) <= STEADY * min(each) for each in runs.values()))


def _milliseconds(session: ort.InferenceSession, picture: np.ndarray) -> float:
    begin = time.perf_counter()
    _run(session, picture)
    return (time.perf_counter() - begin) * 1000


def _run(session: ort.InferenceSession, pictures: np.ndarray) -> None:
    session.run([OUTPUT], {INPUT: pictures})


def _conditions(models: Mapping[Provider, Path], threads: int) -> dict[str, object]:
    """All that the speed depends on."""
    return {
        "cpu": describe_cpu(),
        "threads": threads,
        "onnxruntime": ort.__version__,
        "openvino": version("onnxruntime-ep-openvino") if "openvino" in models else "",
        "models": {provider: digest_of(model) for provider, model in models.items()},
    }


def _remembered(path: Path, models: Mapping[Provider, Path]) -> Measurement | None:
    try:
        stored = json.loads(path.read_text())
        milliseconds = {provider: float(stored["milliseconds"][provider]) for provider in models}
        return Measurement(milliseconds, bool(stored["steady"]))
    except OSError:
        return None
    except (ValueError, LookupError, TypeError):
        path.unlink(missing_ok=True)  # it is damaged
        return None


def _remember(path: Path, measured: dict[str, object]) -> None:
    """Write the file, unless another process has. Where this is impossible, the next run measures again."""
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(json.dumps(measured, indent=1))
            os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
