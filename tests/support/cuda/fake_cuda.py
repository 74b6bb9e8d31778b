"""A CUDA runtime that hands launches to Python: csrc/cuda/network/launch.cu compiled by g++ against stand-ins, and a
`torch.cuda` with streams, events and graphs that only remember.  For tests of everything around the kernels."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dynroute.runtime.cuda.emulator import INCLUDE
from dynroute.runtime.cuda.listed import Io

RUNTIME = """
#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#define __global__
#define CUDART_VERSION 13000
struct dim3 { unsigned x; dim3(unsigned x = 1) : x(x) {} };
typedef void* cudaStream_t;
typedef void* cudaGraph_t;
typedef void* cudaUserObject_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum { cudaSharedmemCarveoutMaxShared = 100, cudaUserObjectNoDestructorSync = 1, cudaGraphUserObjectMove = 1 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
struct cudaFuncAttributes { size_t sharedSizeBytes; int ptxVersion; };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = CAPABILITY / 10,
  cudaDevAttrComputeCapabilityMinor = CAPABILITY % 10,
  cudaDevAttrMultiProcessorCount = 84, cudaDevAttrMaxSharedMemoryPerBlockOptin = 163 << 10,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 164 << 10 };
enum cudaLaunchAttributeID { cudaLaunchAttributeIgnore, cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute { cudaLaunchAttributeID id; struct { int programmaticStreamSerializationAllowed; } val; };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim; size_t dynamicSmemBytes; cudaStream_t stream; cudaLaunchAttribute* attrs; unsigned numAttrs;
};
typedef void (*Launched)(const char* name, int blocks, int threads, int shared, const void* params, int overlaps);
static Launched launched;
static thread_local int device;
static std::mutex mutex;
static std::map<std::pair<const void*, int>, int> opted_in, said;  // bytes, and how often that was said
static const int static_bytes = 512;
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { *version = DRIVER; return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) { *value = what; return cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void* function, int attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value + static_bytes > cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaErrorInvalidValue;
  opted_in[{function, device}] = value, ++said[{function, device}];
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  found->sharedSizeBytes = static_bytes, found->ptxVersion = PTX;
  return cudaSuccess;
}
struct Held { void* what; void (*release)(void*); };
static Held held;
static bool capturing;
inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, void*, cudaGraph_t*, void*,
                                            void*, void*) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaUserObjectCreate(cudaUserObject_t*, void* what, void (*release)(void*), unsigned, unsigned) {
  held = {what, release};
  return cudaSuccess;
}
inline cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) { return cudaSuccess; }
std::string name_of(const void* function);
inline cudaError_t launch_as(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             int overlaps) {
  int most = 48 << 10;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = opted_in.find({function, device});
    if (found != opted_in.end()) most = found->second;
  }
  if (grid.x == 0 || int(shared) > most) return cudaErrorInvalidValue;
  launched(name_of(function).c_str(), int(grid.x), int(block.x), int(shared), arguments[0], overlaps);
  return cudaSuccess;
}
inline cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                    cudaStream_t) {
  return launch_as(function, grid, block, arguments, shared, 0);
}
inline cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  int overlaps = 0;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization) return cudaErrorInvalidValue;
    overlaps = attribute.val.programmaticStreamSerializationAllowed;
  }
  return launch_as(function, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, overlaps);
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
extern "C" int times_opted_in() {  // the most for any kernel on any device
  int most = 0;
  for (const auto& [of, count] : said) most = count > most ? count : most;
  return most;
}
extern "C" int hold(int is_capturing) {  // what a graph held: how often it was let go
  static int released;
  released = 0;
  capturing = is_capturing;
  if (!hold_for_graph(nullptr, &released, [](void* count) { ++*static_cast<int*>(count); })) return -1;
  const int before = released;
  held.release(held.what);
  return before == 0 ? released : -2;
}
extern "C" const char* run(Launched callback, const unsigned char* records, size_t bytes, int on, int dtype, long first,
                           long last, const Io* io) {
  static thread_local std::string error;
  launched = callback, device = on;
  try { run_records(records, bytes, on, DType(dtype), first, last, *io, nullptr); }
  catch (const std::exception& e) { error = e.what(); return error.c_str(); }
  return nullptr;
}
extern "C" void run_operator(Launched callback, int on) {
  launched = callback, device = on;
  run_launches({{"prepare", {1, 128, 0}, std::vector<unsigned char>(sizeof(PrepareParams))},
                {"gate", {1, 128, 0}, std::vector<unsigned char>(sizeof(GateParams))}}, on, DType::kHalf, nullptr);
}
"""
Callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_void_p, ctypes.c_int)


class FakeRuntime:
    """launch.cu, which calls `on_launch(name with suffix, shape, address of params)`.

    Like CUDA it refuses a launch that shares more than its function was opted in for on the device, and an opt-in for
    more than the device has.

    Attributes:
        overlaps: of each launch of the last run, whether it may begin before the one ahead of it has ended.
    """

    def __init__(self, folder: Path, capability: int = 86, ptx: int | None = None, driver: int = 13000) -> None:
        """ptx: what the kernels were compiled for, if not for the device."""
        defines = {"CAPABILITY": capability, "PTX": capability if ptx is None else ptx, "DRIVER": driver}
        (folder / "runtime.h").write_text("#pragma once\n" + RUNTIME)
        (folder / "around.cpp").write_text(AROUND)
        made = folder / "launch.so"
        subprocess.run(
            ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-include", "runtime.h", f"-I{INCLUDE}", f"-I{folder}",
             *[f"-D{name}={value}" for name, value in defines.items()], str(folder / "around.cpp"), "-o", str(made)],
            check=True,
        )  # fmt: skip
        self.library = ctypes.CDLL(str(made))
        self._run = self.library.run
        self._run.restype = ctypes.c_char_p
        self.on_launch: Callable[..., None] = lambda *launch: None
        self.overlaps: list[bool] = []
        self._error: BaseException | None = None
        self._callback = Callback(self._launched)  # kept alive here

    def _launched(self, name: bytes, blocks: int, threads: int, shared: int, params: int, overlaps: int) -> None:
        self.overlaps.append(bool(overlaps))
        try:
            if self._error is None:
                self.on_launch(name.decode(), (blocks, threads, shared), params)
        except BaseException as error:  # it cannot pass through C
            self._error = error

    def run(self, launches: torch.Tensor, dtype: int, first: int, last: int, io: list[int], device: int = 0) -> None:
        addresses = (ctypes.c_void_p * len(Io._fields))(*io)
        self._error = None
        self.overlaps = []
        data = launches.numpy()
        error = self._run(
            self._callback, ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes), device, dtype,
            ctypes.c_long(first), ctypes.c_long(last), addresses,
        )  # fmt: skip
        if self._error is not None:
            raise self._error
        if error:
            raise RuntimeError(error.decode())

    def run_operator(self) -> None:
        """Two launches, as operators launch theirs."""
        self.overlaps = []
        self.library.run_operator(self._callback, 0)


class FakeTorchCuda:
    """What the executor uses of `torch.cuda`, noting in `events` what was done."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.current, self.capturing, self.index = 0, False, 0
        self.recording: list[Callable[[], None]] | None = None
        self.captures_at_once = self.most_captures_at_once = 0
        self._entered = threading.Lock()
        fake = self

        class Stream(int):
            made = 100

            def __new__(cls, number: int | None = None, device: Any = None) -> Any:
                if number is None:
                    cls.made += 1
                return super().__new__(cls, cls.made if number is None else number)

            def wait_event(self, event: Any) -> None:
                fake.events.append(("wait", int(self)))

        class Event:
            def record(self, stream: int) -> None:
                fake.events.append(("ended", int(stream)))

        class CUDAGraph:
            def capture_begin(self, capture_error_mode: str) -> None:
                with fake._entered:
                    fake.captures_at_once += 1
                    fake.most_captures_at_once = max(fake.most_captures_at_once, fake.captures_at_once)
                fake.events.append(("capture", fake.current, fake.index))
                time.sleep(0.01)
                fake.recording = self.calls = []

            def capture_end(self) -> None:
                fake.recording = None
                with fake._entered:
                    fake.captures_at_once -= 1

            def replay(self) -> None:
                fake.events.append("replay")
                for call in self.calls:
                    call()

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, CUDAGraph
        self.graphs: Any = None

    def current_stream(self) -> Any:
        return self.Stream(self.current)

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    @contextlib.contextmanager
    def stream(self, stream: int) -> Any:
        before, self.current = self.current, int(stream)
        yield
        self.current = before

    @contextlib.contextmanager
    def device(self, device: Any) -> Any:
        before, self.index = self.index, getattr(device, "index", None) or 0
        yield
        self.index = before
