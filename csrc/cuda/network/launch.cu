// From a kernel's name to its function, and launches of lists.
#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/kernels/params_ops.h"
#include "cuda/kernels/upsampled_loss.h"
#include "launch.h"

namespace dynroute::cuda {

// Defined, by DYNROUTE_KERNEL, in the file of each.
#define DYNROUTE_KERNELS(X)                      \
  X(init_call, InitCallParams)                   \
  X(stem_conv, StemConvParams)                   \
  X(sepconv, SepconvParams)                      \
  X(cell, CellParams)                            \
  X(aggregate_route, AggregateRouteParams)       \
  X(stage_paths, StagePathsParams)               \
  X(merge, MergeParams)                          \
  X(predictor, PredictorParams)                  \
  X(upsample, UpsampleParams)                    \
  X(prepare, PrepareParams)                      \
  X(transform, TransformParams)                  \
  X(gate, GateParams)                            \
  X(route, RouteParams)                          \
  X(aggregate, AggregateParams)                  \
  X(aggregate_backward, AggregateBackwardParams) \
  X(upsampled_loss, UpsampledLossParams)

#define DYNROUTE_DECLARE(name, Params)                 \
  extern "C" __global__ void name##_f32(const Params); \
  extern "C" __global__ void name##_f16(const Params); \
  extern "C" __global__ void name##_bf16(const Params);
DYNROUTE_KERNELS(DYNROUTE_DECLARE)

namespace {

struct Entry {
  const char* name;
  const void* function[3];  // by DType
  size_t params;
};
#define DYNROUTE_LIST(name, Params)                                                         \
  {#name,                                                                                   \
   {reinterpret_cast<const void*>(&name##_f32), reinterpret_cast<const void*>(&name##_f16), \
    reinterpret_cast<const void*>(&name##_bf16)},                                           \
   sizeof(Params)},
const Entry entries[] = {DYNROUTE_KERNELS(DYNROUTE_LIST)};

constexpr int kDevices = 128;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("cuda_run: " + what); }

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it has been told
  fail(what + ": " + cudaGetErrorString(error));
}
void check(cudaError_t error, const char* kernel, const LaunchShape& shape) {
  if (error == cudaSuccess) return;  // no words are made for the others
  check(error, std::string(kernel) + ", " + std::to_string(shape.blocks) + " blocks of " +
                   std::to_string(shape.threads) + " threads, " + std::to_string(shape.shared) +
                   " bytes of shared memory");
}

// Readies the kernels of a type on the current device, once for each device: all the shared memory that a block may
// have there, and of what L1 and shared memory have in common as much as possible for the latter, as what kernels read
// again lies in it and the rest goes past L1. Asking a function for its attributes loads it, too: nothing is left to be
// loaded by a launch, which a stream that is being captured might not allow. So launches set nothing: what a function
// may use belongs to the process, and another thread may be about to launch it.
void ready(int device, DType dtype) {
  static std::atomic<bool> done[kDevices][3];
  static std::mutex mutex;
  const int most = device_limits(device).shared_per_block;
  std::atomic<bool>& is_done = done[device][int(dtype)];
  if (is_done.load(std::memory_order_acquire)) return;
  const std::lock_guard<std::mutex> lock(mutex);
  if (is_done.load(std::memory_order_relaxed)) return;
  for (const Entry& entry : entries) {
    const void* function = entry.function[int(dtype)];
    cudaFuncAttributes found = {};
    const std::string where = std::string(entry.name) + " on device " + std::to_string(device);
    check(cudaFuncGetAttributes(&found, function), where);
    const int dynamic = most - int(found.sharedSizeBytes);
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic), where);
    check(
        cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        where);
  }
  is_done.store(true, std::memory_order_release);
}

const Entry& find(const char* kernel, size_t length, size_t params) {
  for (const Entry& entry : entries)
    if (std::strncmp(entry.name, kernel, length) == 0) {
      if (params < entry.params) fail(std::string(entry.name) + ": the record's parameters are short");
      return entry;
    }
  fail("there is no kernel " + std::string(kernel, strnlen(kernel, length)));
}

void launch(const Entry& entry, DType dtype, const LaunchShape& shape, void* params, void* stream) {
  void* arguments[] = {params};
  check(cudaLaunchKernel(entry.function[int(dtype)], dim3(unsigned(shape.blocks)), dim3(unsigned(shape.threads)),
                         arguments, size_t(shape.shared), static_cast<cudaStream_t>(stream)),
        entry.name, shape);
}

}  // namespace

void run_records(const unsigned char* records, size_t bytes, int device, DType dtype, int64_t first, int64_t last,
                 const Io& io, void* stream) {
  ready(device, dtype);
  size_t at = 0;
  for (int64_t number = 0; at < bytes && number < last; ++number) {
    Record record;
    if (at + sizeof(record) > bytes) fail("the list ends within a record");
    std::memcpy(&record, records + at, sizeof(record));
    at += sizeof(record);
    if (record.params < 0 || at + size_t(record.params) > bytes) fail("the list ends within a record");
    alignas(16) unsigned char params[4096];
    if (size_t(record.params) > sizeof(params)) fail("a record's parameters are too long");
    std::memcpy(params, records + at, size_t(record.params));
    at += size_t(record.params);
    if (number < first) continue;

    const Entry& entry = find(record.kernel, sizeof(record.kernel), size_t(record.params));
    if (number == 0) std::memcpy(params, &io, sizeof(io));  // InitCallParams::value
    launch(entry, dtype, record.shape, params, stream);
  }
}

void run_launches(const std::vector<Launch>& launches, int device, DType dtype, void* stream) {
  ready(device, dtype);
  for (const Launch& one : launches)
    launch(find(one.kernel, sizeof(Record::kernel), one.params.size()), dtype, one.shape,
           const_cast<unsigned char*>(one.params.data()), stream);
}

DeviceLimits device_limits(int device) {
  const bool counted = device >= 0 && device < kDevices;
  if (!counted) fail("device " + std::to_string(device) + " is beyond what this library counts");
  static DeviceLimits known[kDevices];
  static std::once_flag asked[kDevices];
  std::call_once(asked[device], [&] {
    const auto ask = [&](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, device), "device " + std::to_string(device));
      return value;
    };
    known[device] = {10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor),
                     ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                     ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
  });
  return known[device];
}

bool hold_for_graph(void* stream, void* held, void (*release)(void*)) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  const auto of = static_cast<cudaStream_t>(stream);
#if CUDART_VERSION >= 13000
  check(cudaStreamGetCaptureInfo(of, &status, nullptr, &graph, nullptr, nullptr, nullptr), "capture");
#else
  check(cudaStreamGetCaptureInfo_v2(of, &status, nullptr, &graph, nullptr, nullptr), "capture");
#endif
  if (status != cudaStreamCaptureStatusActive) return false;
  cudaUserObject_t object = nullptr;
  check(cudaUserObjectCreate(&object, held, release, 1, cudaUserObjectNoDestructorSync), "capture");
  check(cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove), "capture");
  return true;
}

}  // namespace dynroute::cuda
