"""Description of this machine, for the comparison of measurements."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av
import psutil

from polypstream.inference.providers import cuda_driver_version, gpu_names

# Instruction sets that accelerate inference on x86-64, the oldest first; names as in Linux.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES = ("polypstream", "onnxruntime-gpu", "onnxruntime", "onnxruntime-ep-openvino", "av", "opencv-python", "numpy")


def describe_machine() -> dict[str, str]:
    """Describe CPU, memory, GPUs, driver, operating system and package versions.

    Returns:
        One line of text for each of them; `driver` exists only with an NVIDIA GPU.
    """
    name, flags = _cpu()
    gpus = gpu_names()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "cpu": f"{name}, {cores} cores" + (f" ({' '.join(flags)})" if flags else ""),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "gpu": ", ".join(gpus) or "none",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {installed}" for name in PACKAGES if (installed := _version(name))),
        "ffmpeg": f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}",
    }
    if gpus:
        found["driver"] = f"for CUDA {cuda_driver_version() // 1000}.{cuda_driver_version() % 1000 // 10}"
    return found


def _cpu() -> tuple[str, list[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return facts.get("model name", platform.machine()), [flag for flag in CPU_FLAGS if flag in flags]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
