"""ONNX Runtime's execution providers: which are here, and a session on one of them.

This is the one place that makes an ONNX Runtime session. A provider is used or refused, never silently replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from polypstream.errors import ModelError, ProviderError

Provider = Literal["cuda", "tensorrt", "openvino", "cpu"]
FASTEST_FIRST: tuple[Provider, ...] = ("tensorrt", "cuda", "openvino", "cpu")
# ONNX Runtime's own names.
FULL_NAMES: dict[Provider, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
GPU: frozenset[Provider] = frozenset({"tensorrt", "cuda"})
# ONNX Runtime 1.27 and later are built with CUDA 13.
OLDEST_DRIVER = 13_000
INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
# What the provider is made with: its name for people, its files on Linux and Windows.
CUDA_LIBRARIES = (
    ("cuBLAS of CUDA 13", "libcublasLt.so.13", "cublasLt64_13.dll"),
    ("cuDNN 9", "libcudnn.so.9", "cudnn64_9.dll"),
)
FATAL_ONLY = 4


@dataclass(frozen=True, slots=True)
class Absent:
    """Why a provider cannot be used here, and what to do about it.

    Attributes:
        reason: what is missing.
        remedy: what to do.
        surprising: the machine has the hardware, so that its owner would expect the provider to be used.
    """

    reason: str
    remedy: str
    surprising: bool = False

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def probe(provider: Provider) -> Absent | None:
    """None if the provider can be used on this machine, or why it cannot."""
    if provider == "cpu":
        return None
    if provider == "openvino":
        return _probe_openvino()
    return _probe_gpu(provider)


def choose(wanted: str) -> tuple[list[Provider], list[str]]:
    """The providers to try, and notes for the user on faster ones that their hardware would have allowed.

    Args:
        wanted: "auto" for all that are present, fastest first, or a provider's name for that one alone.

    Raises:
        ProviderError: the provider asked for is unknown or cannot be used here.
    """
    if wanted not in ("auto", *FASTEST_FIRST):
        raise ProviderError(f"inference.provider {wanted}: not one of auto, {', '.join(FASTEST_FIRST)}")
    present: list[Provider] = []
    notes: list[str] = []
    for provider in FASTEST_FIRST:
        if wanted not in ("auto", provider):
            continue
        absent = probe(provider)
        if absent is None:
            present.append(provider)
        elif wanted == provider:
            raise ProviderError(f"inference.provider {provider} is not available: {absent}")
        elif absent.surprising and not present:
            notes.append(f"{provider} is not used: {absent}")
    return present, notes


def open_session(model: Path, provider: Provider, threads: int) -> ort.InferenceSession:
    """A session of a model file on one provider.

    Args:
        model: an ONNX file.
        provider: one whose `probe` is None.
        threads: CPU threads of the session; 0 leaves the number to the provider.

    Raises:
        ModelError: the file cannot be loaded.
        ProviderError: the provider refuses to work after all.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = threads
    # A session's idle threads must not spin on the cores that decode and encode: it cost a fifth of the frame rate.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    names: list[str] | None = [FULL_NAMES[provider]]
    if provider == "openvino":
        names = None
        settings = {"load_config": json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(threads)}})} if threads else {}
        options.add_provider_for_devices(_openvino_devices(), settings)
    if provider != "cpu":
        # Without this, a provider that cannot run a model is replaced by the CPU with no more than a log line.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(model), options, providers=names)
    except Exception as error:  # ONNX Runtime raises classes of its own for each status code
        if provider != "cpu" and _loads_on_cpu(model):
            raise ProviderError(f"inference.provider {provider} cannot run {model}: {_first_line(error)}") from error
        raise ModelError(f"{model}: not a model that ONNX Runtime can load ({_first_line(error)})") from error
    if session.get_providers()[0] != FULL_NAMES[provider]:
        raise ProviderError(f"inference.provider {provider}: ONNX Runtime took {session.get_providers()[0]} instead")
    return session


def _loads_on_cpu(model: Path) -> bool:
    """Whether the model itself is sound."""
    try:
        open_session(model, "cpu", 0)
    except ModelError:
        return False
    return True


def warm_up(session: ort.InferenceSession, provider: Provider, shapes: Sequence[tuple[int, ...]]) -> None:
    """Run each input shape once: providers compile kernels, and cuDNN searches, at the first run of a shape.

    Raises:
        ProviderError: the provider fails at the first run (a missing cuDNN shows only here).
    """
    name = session.get_inputs()[0].name
    try:
        for shape in shapes:
            session.run(None, {name: np.zeros(shape, np.uint8)})
    except Exception as error:  # as above
        raise ProviderError(f"inference.provider {provider} fails at its first run: {_first_line(error)}") from error


def _probe_openvino() -> Absent | None:
    if importlib.util.find_spec("onnxruntime_ep_openvino") is None:
        return Absent("its plug-in is not installed", "pip install onnxruntime-ep-openvino")
    if not _openvino_devices():
        return Absent("its plug-in finds no CPU that it supports", "choose cpu")
    return None


def _openvino_devices() -> list[ort.OrtEpDevice]:
    """The plug-in's CPU device; there is none on a CPU that it does not support."""
    name, cpu = _register_openvino(), ort.OrtHardwareDeviceType.CPU
    return [device for device in ort.get_ep_devices() if device.ep_name == name and device.device.type == cpu]


@functools.cache  # registering a plug-in twice in one process is an error
def _register_openvino() -> str:
    """The provider's name in ONNX Runtime."""
    plugin = importlib.import_module("onnxruntime_ep_openvino")
    ort.register_execution_provider_library("polypstream-openvino", plugin.get_library_path())
    return str(plugin.get_ep_name())


def _probe_gpu(provider: Provider) -> Absent | None:
    gpus = count_nvidia_gpus()
    if FULL_NAMES[provider] not in ort.get_available_providers():
        return Absent(
            "this ONNX Runtime is built without it",
            "pip install onnxruntime-gpu (Linux and Windows, x86-64)",
            surprising=gpus > 0,
        )
    if gpus == 0:
        return Absent("no NVIDIA GPU with a driver was found", "see `nvidia-smi`, or choose openvino or cpu")
    if cuda_driver_version() < OLDEST_DRIVER:
        return Absent("the NVIDIA driver is too old for CUDA 13", "install driver 580 or later", surprising=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot find; we say so ourselves
        ort.preload_dlls(directory="")
    for name, linux, windows in CUDA_LIBRARIES:
        if not _can_load(linux, windows):
            return Absent(f"{name} was not found", INSTALL_CUDA, surprising=True)
    if provider == "tensorrt" and not _can_load("libnvinfer.so.10", "nvinfer_10.dll"):
        return Absent("TensorRT 10 was not found", "pip install 'tensorrt>=10,<11', or choose cuda")
    return None


def count_nvidia_gpus() -> int:
    """The number of GPUs that NVIDIA's driver reports, by the CUDA driver API's cuDeviceGetCount."""
    try:
        driver = _cuda_driver()
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_names() -> list[str]:
    """What NVIDIA's driver calls its GPUs, by the driver API's cuDeviceGetName."""
    names = []
    for ordinal in range(count_nvidia_gpus()):
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
        _cuda_driver().cuDeviceGet(ctypes.byref(device), ordinal)
        _cuda_driver().cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return names


def cuda_driver_version() -> int:
    """The newest CUDA that the driver supports, 13000 meaning 13.0, by the driver API's cuDriverGetVersion."""
    version = ctypes.c_int(0)
    _cuda_driver().cuDriverGetVersion(ctypes.byref(version))
    return version.value


def _cuda_driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _can_load(linux: str, windows: str) -> bool:
    try:
        ctypes.CDLL(windows if sys.platform == "win32" else linux)
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
