"""CUDA without a GPU: libraries in whose place ONNX Runtime's CUDA provider loads, though they compute nothing.

Enough for a session to be made: the provider says which nodes of a model it has kernels for, and ONNX Runtime which of
them it would rather leave to the CPU. Every function that the provider asks for answers "success"; memory is
the host's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import onnxruntime

PROVIDER = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so"
POSSIBLE = bool(shutil.which("gcc") and shutil.which("objdump") and PROVIDER.is_file())
ALLOCATE = "(void **memory, size_t size) { return !(*memory = aligned_alloc(256, (size / 256 + 1) * 256)); }"
# Functions that must do more than to succeed: what they are in C.
ANSWERS = {
    "cudaGetDeviceCount": "(int *count) { *count = 1; return 0; }",
    "cudaGetDevice": "(int *device) { *device = 0; return 0; }",
    "cudaMalloc": ALLOCATE,
    "cudaHostAlloc": ALLOCATE,
    "cudaMallocHost": ALLOCATE,
    "cudaFree": "(void *memory) { free(memory); return 0; }",
    "cudaFreeHost": "(void *memory) { free(memory); return 0; }",
    "cudaMemcpy": "(void *to, const void *from, size_t size) { memcpy(to, from, size); return 0; }",
    "cudaMemcpyAsync": "(void *to, const void *from, size_t size) { memcpy(to, from, size); return 0; }",
    "cuMemcpyDtoH_v2": "(void *to, const void *from, size_t size) { memcpy(to, from, size); return 0; }",
    # FFmpeg's and ONNX Runtime's work is in different streams: a test reads that the one was waited for.
    "cuStreamSynchronize": '(void *stream) { fprintf(stderr, "waited for stream %p\\n", stream); return 0; }',
    "cuDevicePrimaryCtxSetFlags_v2": "(int device, unsigned flags) "
    '{ fprintf(stderr, "flags of the primary context: %u\\n", flags); return 0; }',
    "cudaMemGetInfo": "(size_t *unused, size_t *all) { *unused = *all = 1ul << 34; return 0; }",
}

# Functions of the driver that polypstream itself calls.
DRIVER = {
    *("cuInit", "cuDeviceGet", "cuDeviceGetCount", "cuDeviceGetName", "cuDriverGetVersion", "cuStreamSynchronize"),
    *("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxSetFlags_v2", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"),
    "cuMemcpyDtoH_v2",
}


def build(folder: Path) -> None:
    """Compile the libraries into a folder, for LD_LIBRARY_PATH."""
    table = subprocess.run(["objdump", "-p", "-T", PROVIDER], capture_output=True, text=True, check=True).stdout
    functions: dict[str, set[str]] = defaultdict(set)
    for library in re.findall(r"NEEDED\s+(libcu\S+)", table):
        functions[library] = set(re.findall(rf"\*UND\*.*\({re.escape(library)}\)\s+(\S+)", table))
    # The driver's come without a version. Ours are called by their names.
    functions["libcuda.so.1"] = set(re.findall(r"\*UND\*.*Base +(cu[A-Z]\w+)", table)) | DRIVER
    for library, names in functions.items():
        lines = [f"int {name}{ANSWERS.get(name, '() { return 0; }')}" for name in sorted(names)]
        source, versions = folder / f"{library}.c", folder / f"{library}.map"
        source.write_text("\n".join(["#include <stdlib.h>", "#include <string.h>", "#include <stdio.h>", *lines]))
        versions.write_text(f"{library} {{ global: *; }};")
        command = ["gcc", "-w", "-shared", "-fPIC", source, "-o", folder / library, f"-Wl,-soname,{library}"]
        subprocess.run([*command, f"-Wl,--version-script={versions}"], check=True)
