"""Description of this machine, for the comparison of measurements."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import av
import psutil

from polypstream.inference.cpu import describe_cpu
from polypstream.inference.cuda import cuda_driver_version, gpu_names

PACKAGES = ("polypstream", "onnxruntime-gpu", "onnxruntime", "onnxruntime-ep-openvino", "av", "opencv-python", "numpy")


def describe_machine() -> dict[str, str]:
    """Describe CPU, memory, GPUs, driver, operating system and package versions.

    Returns:
        One line of text for each of them; `driver` exists only with an NVIDIA GPU.
    """
    gpus = gpu_names()
    found = {
        "cpu": describe_cpu(),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "gpu": ", ".join(gpus) or "none",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {installed}" for name in PACKAGES if (installed := _version(name))),
        "ffmpeg": f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}",
    }
    if gpus:
        found["driver"] = f"for CUDA {cuda_driver_version() // 1000}.{cuda_driver_version() % 1000 // 10}"
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
