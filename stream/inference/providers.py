"""ONNX Runtime's execution providers: which ones are available, and sessions on one of them.

No other module creates an ONNX Runtime session. A requested provider is used or refused, and never silently replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import io
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from polypstream.errors import ModelError, ProviderError

log = logging.getLogger(__name__)

Provider = Literal["cuda", "tensorrt", "openvino", "cpu"]
FASTEST_FIRST: tuple[Provider, ...] = ("tensorrt", "cuda", "openvino", "cpu")
# The names in ONNX Runtime.
FULL_NAMES: dict[Provider, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
GPU: frozenset[Provider] = frozenset({"tensorrt", "cuda"})
# The oldest driver that works: ONNX Runtime 1.27 and later are built with CUDA 13.
OLDEST_DRIVER = 13_000
INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
# Libraries that the provider needs: name for the user, file on Linux, file on Windows.
CUDA_LIBRARIES = (
    ("cuBLAS of CUDA 13", "libcublasLt.so.13", "cublasLt64_13.dll"),
    ("cuDNN 9", "libcudnn.so.9", "cudnn64_9.dll"),
)
FATAL_ONLY = 4


@dataclass(frozen=True, slots=True)
class Absent:
    """Why a provider cannot be used on this machine, and what to do about it.

    Attributes:
        reason: what is missing.
        remedy: what to do.
        surprising: the machine has the hardware, so the user would expect the provider to be used.
    """

    reason: str
    remedy: str
    surprising: bool = False

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def probe(provider: Provider) -> Absent | None:
    """Test whether a provider can be used on this machine.

    Args:
        provider: the provider.

    Returns:
        None if it can be used; otherwise the reason.
    """
    if provider == "cpu":
        return None
    if provider == "openvino":
        return _probe_openvino()
    return _probe_gpu(provider)


def choose(wanted: str) -> tuple[list[Provider], list[str]]:
    """Choose the providers to try.

    Args:
        wanted: "auto" for all available ones, the fastest first, or the name of one provider.

    Returns:
        The providers, and notes for the user about faster providers that the hardware would allow.

    Raises:
        ProviderError: the requested provider is unknown or cannot be used here.
    """
    if wanted not in ("auto", *FASTEST_FIRST):
        raise ProviderError(f"inference.provider {wanted}: not one of auto, {', '.join(FASTEST_FIRST)}")
    present: list[Provider] = []
    notes: list[str] = []
    for provider in FASTEST_FIRST:
        if wanted not in ("auto", provider):
            continue
        absent = probe(provider)
        log.debug("provider %s: %s", provider, absent or "can be used")
        if absent is None:
            present.append(provider)
        elif wanted == provider:
            raise ProviderError(f"inference.provider {provider} is not available: {absent}")
        elif absent.surprising and not present:
            notes.append(f"{provider} is not used: {absent}")
    return present, notes


def open_session(model: Path, provider: Provider, threads: int = 0, device: int = 0) -> ort.InferenceSession:
    """Create a session of a model file on one provider.

    Args:
        model: path of an ONNX file.
        provider: a provider whose `probe` is None.
        threads: CPU threads of the session; 0 leaves the number to the provider.
        device: number of the GPU, from 0, in the order of `nvidia-smi`'s CUDA devices; other providers ignore it.

    Returns:
        The session.

    Raises:
        ModelError: the file cannot be loaded.
        ProviderError: the provider cannot run the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = threads
    # Idle threads of the session must not spin on the cores that decode and encode. Spinning cost a fifth of the frame
    # rate.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    names: list[str | tuple[str, dict[str, str]]] | None = [FULL_NAMES[provider]]
    if provider in GPU:
        if device and device >= count_nvidia_gpus():
            raise ProviderError(
                f"inference.device {device}: there is no such NVIDIA GPU; this machine has {count_nvidia_gpus()}, and "
                "the first one has number 0"
            )
        names = [(FULL_NAMES[provider], {"device_id": str(device)})]
    if provider == "openvino":
        names = None
        settings = {"load_config": json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(threads)}})} if threads else {}
        options.add_provider_for_devices(_openvino_devices(), settings)
    if provider != "cpu":
        # Without this option ONNX Runtime replaces a provider that cannot run a model by the CPU, and only logs it.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(model), options, providers=names)
    except Exception as error:  # ONNX Runtime raises its own class for each status code
        if provider != "cpu" and _loads_on_cpu(model):
            raise ProviderError(f"inference.provider {provider} cannot run {model}: {_first_line(error)}") from error
        raise ModelError(f"{model}: not a model that ONNX Runtime can load ({_first_line(error)})") from error
    if session.get_providers()[0] != FULL_NAMES[provider]:
        raise ProviderError(f"inference.provider {provider}: ONNX Runtime took {session.get_providers()[0]} instead")
    return session


def _loads_on_cpu(model: Path) -> bool:
    """Whether the model itself is valid."""
    try:
        open_session(model, "cpu")
    except ModelError:
        return False
    return True


def warm_up(session: ort.InferenceSession, provider: Provider, shapes: Sequence[tuple[int, ...]]) -> None:
    """Run each input shape once. Providers compile kernels, and cuDNN searches algorithms, in the first run of a shape.

    Args:
        session: the session.
        provider: its provider, for the message.
        shapes: shapes of the input, [N, H, W, 3].

    Raises:
        ProviderError: the first run fails. For example, a missing cuDNN is only detected here.
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
    """Return the plug-in's CPU device. There is none if the plug-in does not support the CPU."""
    name, cpu = _register_openvino(), ort.OrtHardwareDeviceType.CPU
    return [device for device in ort.get_ep_devices() if device.ep_name == name and device.device.type == cpu]


@functools.cache  # registering a plug-in twice in one process is an error
def _register_openvino() -> str:
    """Register the plug-in, and return the provider's name in ONNX Runtime."""
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
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what is missing; our message says it already
        ort.preload_dlls(directory="")
    for name, linux, windows in CUDA_LIBRARIES:
        if not _can_load(linux, windows):
            return Absent(f"{name} was not found", INSTALL_CUDA, surprising=True)
    if provider == "tensorrt" and not _can_load("libnvinfer.so.10", "nvinfer_10.dll"):
        return Absent("TensorRT 10 was not found", "pip install 'tensorrt>=10,<11', or choose cuda")
    return None


def count_nvidia_gpus() -> int:
    """Count the GPUs that NVIDIA's driver reports, with cuDeviceGetCount of the CUDA driver API.

    Returns:
        The number of GPUs; 0 without a driver.
    """
    try:
        driver = _cuda_driver()
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_names() -> list[str]:
    """List the names of the GPUs, with cuDeviceGetName of the CUDA driver API.

    Returns:
        One name per GPU.
    """
    names = []
    for ordinal in range(count_nvidia_gpus()):
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
        _cuda_driver().cuDeviceGet(ctypes.byref(device), ordinal)
        _cuda_driver().cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return names


def cuda_driver_version() -> int:
    """Return the newest CUDA version that the driver supports, with cuDriverGetVersion of the CUDA driver API.

    Returns:
        The version; 13000 means 13.0.
    """
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
