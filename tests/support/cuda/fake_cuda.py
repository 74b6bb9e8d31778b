"""A CUDA runtime that hands launches to Python: csrc/cuda/network/launch.cu compiled by g++ against stand-ins, and a
`torch.cuda` with streams, events and graphs that only remember.  For tests of everything around the kernels."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dynroute.runtime.cuda.emulator import INCLUDE
from dynroute.runtime.cuda.listed import Io

RUNTIME = """
#include <cstddef>
#include <string>
#define __global__
struct dim3 { unsigned x; explicit dim3(unsigned x) : x(x) {} };
typedef void* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 8, cudaDevAttrComputeCapabilityMinor = 6,
  cudaDevAttrMultiProcessorCount = 84, cudaDevAttrMaxSharedMemoryPerBlockOptin = 99 << 10,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 100 << 10 };
typedef void (*Launched)(const char* name, int blocks, int threads, int shared, int opted_in, const void* params);
inline Launched launched;
inline int opted_in;
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) { *value = what; return cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void*, int, int bytes) { opted_in = bytes; return cudaSuccess; }
std::string name_of(const void* function);
inline cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                    cudaStream_t) {
  if (grid.x == 0) return cudaErrorInvalidValue;
  launched(name_of(function).c_str(), int(grid.x), int(block.x), int(shared), opted_in, arguments[0]);
  opted_in = 0;
  return cudaSuccess;
}
"""
AROUND = """
#include <dlfcn.h>
#include "cuda/network/launch.cu"
namespace dynroute::cuda {
#define DEFINE(name, Params) extern "C" { void name##_f32(const Params) {} void name##_f16(const Params) {} \\
  void name##_bf16(const Params) {} }
DYNROUTE_KERNELS(DEFINE)
}
using namespace dynroute::cuda;
std::string name_of(const void* function) {
  Dl_info found;
  return dladdr(function, &found) && found.dli_sname ? found.dli_sname : "?";
}
extern "C" const char* run(Launched callback, const unsigned char* records, size_t bytes, int dtype, long first,
                           long last, const Io* io) {
  static std::string error;
  launched = callback;
  try { run_records(records, bytes, DType(dtype), first, last, *io, nullptr); }
  catch (const std::exception& e) { error = e.what(); return error.c_str(); }
  return nullptr;
}
"""
Callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, *[ctypes.c_int] * 4, ctypes.c_void_p)


class FakeRuntime:
    """launch.cu, which calls `on_launch(name with suffix, shape, bytes opted in, address of params)`."""

    def __init__(self, folder: Path) -> None:
        (folder / "runtime.h").write_text("#pragma once\n" + RUNTIME)
        (folder / "around.cpp").write_text(AROUND)
        made = folder / "launch.so"
        subprocess.run(
            ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-include", "runtime.h", f"-I{INCLUDE}", f"-I{folder}",
             str(folder / "around.cpp"), "-o", str(made)],
            check=True,
        )  # fmt: skip
        self._run = ctypes.CDLL(str(made)).run
        self._run.restype = ctypes.c_char_p
        self.on_launch: Callable[..., None] = lambda *launch: None
        self._error: BaseException | None = None
        self._callback = Callback(self._launched)  # kept alive here

    def _launched(self, name: bytes, blocks: int, threads: int, shared: int, opted_in: int, params: int) -> None:
        try:
            if self._error is None:
                self.on_launch(name.decode(), (blocks, threads, shared), opted_in, params)
        except BaseException as error:  # it cannot pass through C
            self._error = error

    def run(self, launches: torch.Tensor, dtype: int, first: int, last: int, io: list[int]) -> None:
        addresses = (ctypes.c_void_p * len(Io._fields))(*io)
        self._error = None
        data = launches.numpy()
        error = self._run(
            self._callback, ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes), dtype,
            ctypes.c_long(first), ctypes.c_long(last), addresses,
        )  # fmt: skip
        if self._error is not None:
            raise self._error
        if error:
            raise RuntimeError(error.decode())


class FakeTorchCuda:
    """What the executor uses of `torch.cuda`, noting in `events` what was done."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.stream, self.capturing = 0, False
        self.recording: list[Callable[[], None]] | None = None
        fake = self

        class Stream(int):
            def wait_event(self, event: Any) -> None:
                fake.events.append(("wait", int(self)))

        class Event:
            def record(self, stream: int) -> None:
                fake.events.append(("ended", int(stream)))

        class CUDAGraph:
            def replay(self) -> None:
                fake.events.append("replay")
                for call in self.calls:
                    call()

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, CUDAGraph

    def current_stream(self) -> Any:
        return self.Stream(self.stream)

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def synchronize(self) -> None:
        self.events.append("synchronize")

    def device(self, device: Any) -> Any:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, graph: Any, capture_error_mode: str) -> Any:
        self.events.append("capture")
        self.recording = graph.calls = []
        yield
        self.recording = None
