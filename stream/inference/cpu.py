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
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime as ort

from polypstream.core.cache import cache_folder
from polypstream.inference.model_card import INPUT, OUTPUT, digest_of
from polypstream.inference.providers import Provider, SessionSettings, open_session, warm_up

log = logging.getLogger(__name__)

# Instruction sets that accelerate inference on x86-64, the oldest first; names as in Linux.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# The fastest of several runs is taken: other programs can only make a run slower.
ROUNDS = 8


def describe_cpu() -> str:
    """Describe the CPU: its name, the number of its cores that this process may use, and its instruction sets.

    Returns:
        For example "AMD EPYC 7763, 2 cores (avx2)".
    """
    name, flags = _name_and_flags()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores" + (f" ({' '.join(flags)})" if flags else "")


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

    All processes of a user on a machine get the same answer, also if they measure at the same time.

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
    path = cache_folder() / f"speed-{name}.json"
    measured = _remembered(path, models)
    if measured is None:
        measured = measure(models, threads)
        log.debug("%s: milliseconds per image of each provider: %s", next(iter(models.values())), measured)
        _remember(path, {"conditions": conditions, "milliseconds": measured})
        measured = _remembered(path, models) or measured  # another process may have been first
    return sorted(models, key=measured.__getitem__)


def measure(models: Mapping[Provider, Path], threads: int) -> dict[Provider, float]:
    """Measure the time per image of each provider, in turns.

    Args:
        models: the model file of each provider.
        threads: CPU threads of a session; 0 leaves the number to the provider.

    Returns:
        Milliseconds per image.

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
    best = dict.fromkeys(models, float("inf"))
    for _ in range(ROUNDS):
        for provider, session in sessions.items():
            best[provider] = min(best[provider], _milliseconds(session, pictures[provider]))
    return best


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


def _remembered(path: Path, models: Mapping[Provider, Path]) -> dict[Provider, float] | None:
    try:
        milliseconds = json.loads(path.read_text())["milliseconds"]
        return {provider: float(milliseconds[provider]) for provider in models}
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
