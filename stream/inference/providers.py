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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from polypstream.core.cache import cache_folder
from polypstream.errors import ModelError, PolypstreamError, ProviderError
from polypstream.inference.cuda import count_nvidia_gpus, cuda_driver_version, let_ffmpeg_share
from polypstream.inference.model_card import INPUT, digest_of

log = logging.getLogger(__name__)

Provider = Literal["cuda", "tensorrt", "tensorrt-rtx", "openvino", "cpu"]
# `auto` does not take tensorrt-rtx: it was not tried on a GPU, and compiles the model at each start.
FASTEST_FIRST: tuple[Provider, ...] = ("tensorrt", "cuda", "openvino", "cpu")
# The names in ONNX Runtime.
FULL_NAMES: dict[Provider, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
GPU: frozenset[Provider] = frozenset({"tensorrt", "tensorrt-rtx", "cuda"})


@dataclass(frozen=True, slots=True)
class Plugin:
    """A package that brings a provider to any build of ONNX Runtime.

    Attributes:
        module: its module.
        install: how to install it.
        device_type: what it runs on.
        hardware: the same for the user.
    """

    module: str
    install: str
    device_type: ort.OrtHardwareDeviceType
    hardware: str


PLUGINS: dict[Provider, Plugin] = {
    "openvino": Plugin(
        "onnxruntime_ep_openvino", "pip install onnxruntime-ep-openvino", ort.OrtHardwareDeviceType.CPU, "CPU"
    ),
    "tensorrt-rtx": Plugin(
        "onnxruntime_ep_nv_tensorrt_rtx",
        "pip install onnxruntime-ep-nv-tensorrt-rtx",
        ort.OrtHardwareDeviceType.GPU,
        "RTX GPU",
    ),
}
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
    if provider in PLUGINS:
        return _probe_plugin(PLUGINS[provider])
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
    if wanted not in ("auto", *FULL_NAMES):
        raise ProviderError(f"inference.provider {wanted}: not one of auto, {', '.join(FULL_NAMES)}")
    present: list[Provider] = []
    notes: list[str] = []
    for provider in FASTEST_FIRST if wanted == "auto" else FULL_NAMES:
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


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session runs.

    Attributes:
        threads: CPU threads of the session; 0 leaves the number to the provider.
        device: number of the GPU, from 0, in the order of `nvidia-smi`'s CUDA devices; other providers ignore it.
        batch_size: the largest batch, for which tensorrt builds its engine.
        cuda_graph: cuda records the work for a batch once and replays it. Then each batch size needs buffers of its own
            that stay in place (`polypstream.inference.bound`).
        tf32: cuda may round the factors of products to 11 significant bits (TF32), which is faster.
    """

    threads: int = 0
    device: int = 0
    batch_size: int = 1
    cuda_graph: bool = False
    tf32: bool = True


def open_session(
    model: Path, provider: Provider, settings: SessionSettings = SessionSettings()
) -> ort.InferenceSession:
    """Create a session of a model file on one provider.

    Args:
        model: path of an ONNX file.
        provider: a provider whose `probe` is None.
        settings: how it runs.

    Returns:
        The session.

    Raises:
        ModelError: the file cannot be loaded.
        ProviderError: the provider cannot run the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = settings.threads
    # Idle threads of the session must not spin on the cores that decode and encode. Spinning cost a fifth of the frame
    # rate.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != "cpu":
        # Without this option ONNX Runtime replaces a provider that cannot run a model by the CPU, and only logs it.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        chosen = _chosen_providers(model, provider, settings, options)
        session = ort.InferenceSession(str(model), options, providers=chosen)
    except PolypstreamError:
        raise
    except Exception as error:  # ONNX Runtime raises its own class for each status code
        if provider != "cpu" and _loads_on_cpu(model):
            raise ProviderError(f"inference.provider {provider} cannot run {model}: {_first_line(error)}") from error
        raise ModelError(f"{model}: not a model that ONNX Runtime can load ({_first_line(error)})") from error
    if session.get_providers()[0] != FULL_NAMES[provider]:
        raise ProviderError(f"inference.provider {provider}: ONNX Runtime took {session.get_providers()[0]} instead")
    return session


def _chosen_providers(
    model: Path, provider: Provider, settings: SessionSettings, options: ort.SessionOptions
) -> list[tuple[str, dict[str, str]]] | None:
    """ONNX Runtime's list of providers with their options; None: a plug-in, which was added to `options`."""
    if provider in PLUGINS:
        options.add_provider_for_devices(_plugin_devices(PLUGINS[provider]), _plugin_options(provider, settings))
        return None
    if provider not in GPU:
        return [(FULL_NAMES[provider], {})]
    if settings.device and settings.device >= count_nvidia_gpus():
        raise ProviderError(
            f"inference.device {settings.device}: there is no such NVIDIA GPU; this machine has "
            f"{count_nvidia_gpus()}, and the first one has number 0"
        )
    let_ffmpeg_share(settings.device)
    cuda = {"device_id": str(settings.device)}
    cuda |= {"enable_cuda_graph": "1"} if settings.cuda_graph else {}
    cuda |= {} if settings.tf32 else {"use_tf32": "0"}
    if provider == "cuda":
        return [(FULL_NAMES["cuda"], cuda)]
    return [(FULL_NAMES["tensorrt"], _tensorrt_options(model, settings)), (FULL_NAMES["cuda"], cuda)]


def _tensorrt_options(model: Path, settings: SessionSettings) -> dict[str, str]:
    """One engine for all batch sizes. It is built at the first start, which takes minutes, and then kept."""
    folder = tensorrt_folder(model, settings.batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    shape = ort.InferenceSession(str(model), providers=[FULL_NAMES["cpu"]]).get_inputs()[0].shape
    size = "x".join(map(str, shape[1:]))
    return {
        "device_id": str(settings.device),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": f"{INPUT}:1x{size}",
        "trt_profile_opt_shapes": f"{INPUT}:{settings.batch_size}x{size}",
        "trt_profile_max_shapes": f"{INPUT}:{settings.batch_size}x{size}",
    }


def tensorrt_folder(model: Path, batch_size: int) -> Path:
    """Return the folder of the engines that TensorRT built for a model.

    TensorRT itself distinguishes GPUs and versions by the names of the files.

    Args:
        model: the ONNX file.
        batch_size: the largest batch.
    """
    return cache_folder() / "tensorrt" / f"{digest_of(model)[:16]}-{batch_size}"


def has_tensorrt_engine(model: Path, batch_size: int) -> bool:
    """Whether TensorRT has built an engine for a model before. If not, it builds one for minutes.

    Args:
        model: the ONNX file.
        batch_size: the largest batch.
    """
    return any(tensorrt_folder(model, batch_size).glob("*.engine"))


def _loads_on_cpu(model: Path) -> bool:
    """Whether the model itself is valid."""
    try:
        open_session(model, "cpu")
    except ModelError:
        return False
    return True


def warm_up(run: Callable[[np.ndarray], object], provider: Provider, shapes: Sequence[tuple[int, ...]]) -> None:
    """Run each input shape once. Providers compile kernels, and cuDNN searches algorithms, in the first run of a shape.

    Args:
        run: runs the model on one batch.
        provider: its provider, for the message.
        shapes: shapes of the input, [N, H, W, 3].

    Raises:
        ProviderError: the first run fails. For example, a missing cuDNN is only detected here.
    """
    try:
        for shape in shapes:
            run(np.zeros(shape, np.uint8))
    except Exception as error:  # as above
        raise ProviderError(f"inference.provider {provider} fails at its first run: {_first_line(error)}") from error


def _probe_plugin(plugin: Plugin) -> Absent | None:
    if importlib.util.find_spec(plugin.module) is None:
        return Absent("its plug-in is not installed", plugin.install)
    if not _plugin_devices(plugin):
        return Absent(f"its plug-in finds no {plugin.hardware} that it supports", "choose another provider, or auto")
    return None


def _plugin_devices(plugin: Plugin) -> list[ort.OrtEpDevice]:
    """Return the device of a plug-in. There is none if the plug-in does not support the hardware."""
    name = _register(plugin)
    return [each for each in ort.get_ep_devices() if each.ep_name == name and each.device.type == plugin.device_type]


@functools.cache  # registering a plug-in twice in one process is an error
def _register(plugin: Plugin) -> str:
    """Register a plug-in, and return the provider's name in ONNX Runtime."""
    module = importlib.import_module(plugin.module)
    ort.register_execution_provider_library(f"polypstream-{plugin.module}", module.get_library_path())
    return str(module.get_ep_name())


def _plugin_options(provider: Provider, settings: SessionSettings) -> dict[str, str]:
    if provider == "openvino" and settings.threads:
        return {"load_config": json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(settings.threads)}})}
    return {}


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


def _can_load(linux: str, windows: str) -> bool:
    try:
        ctypes.CDLL(windows if sys.platform == "win32" else linux)
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
