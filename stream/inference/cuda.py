"""NVIDIA's driver: which GPUs there are, a wait for their work, and the context that all share.

It is called directly, without the CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from polypstream.errors import ProviderError

# CU_CTX_SCHED_BLOCKING_SYNC of the CUDA driver API.
BLOCKING_SYNC = 4


def count_nvidia_gpus() -> int:
    """Count the GPUs that NVIDIA's driver reports, with cuDeviceGetCount of the CUDA driver API.

    Returns:
        The number of GPUs; 0 without a driver.
    """
    try:
        driver = _driver()
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
        _driver().cuDeviceGet(ctypes.byref(device), ordinal)
        _driver().cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return names


def cuda_driver_version() -> int:
    """Return the newest CUDA version that the driver supports, with cuDriverGetVersion of the CUDA driver API.

    Returns:
        The version; 13000 means 13.0.
    """
    version = ctypes.c_int(0)
    _driver().cuDriverGetVersion(ctypes.byref(version))
    return version.value


def let_ffmpeg_share(device: int) -> None:
    """Let FFmpeg decode in the context in which ONNX Runtime computes. Call it before a session is made.

    FFmpeg takes the primary context of a GPU only if threads that wait for the GPU sleep
    (CU_CTX_SCHED_BLOCKING_SYNC; libavutil/hwcontext_cuda.c). Otherwise it says "Operation not supported". This also
    leaves the processor to the threads that decode and encode.

    Args:
        device: number of the GPU, from 0.

    Raises:
        ProviderError: the driver reports an error.
    """
    _check(_driver().cuDevicePrimaryCtxSetFlags_v2(_handle_of(device), BLOCKING_SYNC), device)


def wait_for_default_stream(device: int) -> None:
    """Wait until the work in a GPU's default stream is done, with cuStreamSynchronize of the CUDA driver API.

    FFmpeg returns a decoded picture when the work on it is queued in the default stream (libavcodec/nvdec.c). ONNX
    Runtime computes in a stream of its own, which does not wait for the default stream.

    Args:
        device: number of the GPU, from 0.

    Raises:
        ProviderError: the driver reports an error, also one of earlier work.
    """
    with _current_context(device):
        _check(_driver().cuStreamSynchronize(None), device)


def copy_to_cpu(address: int, samples: np.ndarray, device: int) -> None:
    """Copy from the memory of a GPU, with cuMemcpyDtoH of the CUDA driver API. Other threads of Python go on meanwhile.

    Args:
        address: where it begins in the memory of the GPU; what is written there must be done.
        samples: receives it; contiguous.
        device: number of the GPU, from 0.

    Raises:
        ProviderError: the driver reports an error, also one of earlier work.
    """
    target, source = ctypes.c_void_p(samples.ctypes.data), ctypes.c_uint64(address)
    with _current_context(device):
        _check(_driver().cuMemcpyDtoH_v2(target, source, ctypes.c_size_t(samples.nbytes)), device)


@contextmanager
def _current_context(device: int) -> Iterator[None]:
    """Make the primary context of a GPU that of the calling thread, within the block."""
    # To give up the global lock and wait for it again takes longer than these calls.
    driver = _driver(ctypes.PyDLL)
    _check(driver.cuCtxPushCurrent_v2(_primary_context(device)), device)
    try:
        yield
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


@functools.cache  # it is retained once, and never released: ONNX Runtime and FFmpeg use it, too
def _primary_context(device: int) -> ctypes.c_void_p:
    context = ctypes.c_void_p()
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), _handle_of(device)), device)
    return context


def _handle_of(device: int) -> ctypes.c_int:
    """Return the driver's handle of a GPU."""
    handle = ctypes.c_int(0)
    _check(_driver().cuInit(0), device)
    _check(_driver().cuDeviceGet(ctypes.byref(handle), device), device)
    return handle


def _check(result: int, device: int) -> None:
    if result != 0:
        raise ProviderError(f"inference.device {device}: NVIDIA's driver reports error {result}; see `nvidia-smi`")


@functools.cache  # it is asked for each decoded picture; an error is not kept
def _driver(kind: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL:
    """The driver. Functions of a PyDLL are called with Python's global lock."""
    return kind("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
