// From a kernel's name to its function, and launches of lists.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/kernels/params_train.h"
#include "cuda/kernels/upsampled_loss.h"
#include "launch.h"

namespace dynroute::cuda {

// Defined, by DYNROUTE_KERNEL, in the file of each.
#define DYNROUTE_KERNELS(X)                       \
  X(init_call, InitCallParams)                    \
  X(stem_conv, StemConvParams)                    \
  X(stem_planes, StemPlanesParams)                \
  X(stem_stages, StemStagesParams)                \
  X(sepconv, SepconvParams)                       \
  X(cell, CellParams)                             \
  X(aggregate_route, AggregateRouteParams)        \
  X(stage_paths, StagePathsParams)                \
  X(merge, MergeParams)                           \
  X(predictor, PredictorParams)                   \
  X(upsample, UpsampleParams)                     \
  X(prepare, PrepareParams)                       \
  X(transform, TransformParams)                   \
  X(gate, GateParams)                             \
  X(route, RouteParams)                           \
  X(aggregate, AggregateParams)                   \
  X(aggregate_backward, AggregateBackwardParams)  \
  X(train_prepare, TrainPrepareParams)            \
  X(train_forward, TrainForwardParams)            \
  X(train_norm, TrainNormParams)                  \
  X(train_apply, TrainApplyParams)                \
  X(train_sums, TrainSumsParams)                  \
  X(train_norm_backward, TrainNormBackwardParams) \
  X(train_product, TrainProductParams)            \
  X(train_outer, TrainOuterParams)                \
  X(train_depthwise, TrainDepthwiseParams)        \
  X(train_hidden, TrainHiddenParams)              \
  X(train_reduce, TrainReduceParams)              \
  X(train_alphas, TrainAlphasParams)              \
  X(train_gate_pool, TrainGatePoolParams)         \
  X(train_gate_end, TrainGateEndParams)           \
  X(train_gate_begin, TrainGateBeginParams)       \
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

// Whether launches may overlap on a device where all kernels wait for the launch before (primitives.cuh):
// DYNROUTE_CUDA_PDL=0 forbids it, and is read once. Graphs can hold such launches from 12.3 on, of runtime and driver.
bool may_overlap(int device) {
#if CUDART_VERSION >= 12030
  static const bool forbidden = [] {
    const char* said = std::getenv("DYNROUTE_CUDA_PDL");
    return said && std::strcmp(said, "0") == 0;
  }();
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "driver");
  return !forbidden && driver >= 12030 && device_limits(device).capability >= 90;
#else
  return device < 0;  // none
#endif
}

// Readies the kernels of a type on the current device, once for each device: all the shared memory that a block may
// have there, and of what L1 and shared memory have in common as much as possible for the latter, as what kernels read
// again lies in it and the rest goes past L1. Asking a function for its attributes loads it, too: nothing is left to be
// loaded by a launch, which a stream that is being captured might not allow. So launches set nothing: what a function
// may use belongs to the process, and another thread may be about to launch it.
// Returns whether launches may overlap. A kernel waits if it was compiled for 9.0: on such a device, too, it may come
// from an older architecture's PTX.
bool ready(int device, DType dtype) {
  struct Readied {
    std::atomic<bool> done;
    bool overlaps;
  };
  static Readied all[kDevices][3];
  static std::mutex mutex;
  const int most = device_limits(device).shared_per_block;
  Readied& readied = all[device][int(dtype)];
  if (readied.done.load(std::memory_order_acquire)) return readied.overlaps;
  const std::lock_guard<std::mutex> lock(mutex);
  if (readied.done.load(std::memory_order_relaxed)) return readied.overlaps;
  readied.overlaps = may_overlap(device);
  for (const Entry& entry : entries) {
    const void* function = entry.function[int(dtype)];
    cudaFuncAttributes found = {};
    const std::string where = std::string(entry.name) + " on device " + std::to_string(device);
    check(cudaFuncGetAttributes(&found, function), where);
    readied.overlaps &= found.ptxVersion >= 90;
    const int dynamic = most - int(found.sharedSizeBytes);
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic), where);
    check(
        cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        where);
  }
  readied.done.store(true, std::memory_order_release);
  return readied.overlaps;
}

const Entry& find(const char* kernel, size_t length, size_t params) {
  for (const Entry& entry : entries)
    if (std::strncmp(entry.name, kernel, length) == 0) {
      if (params < entry.params) fail(std::string(entry.name) + ": the record's parameters are short");
      return entry;
    }
  fail("there is no kernel " + std::string(kernel, strnlen(kernel, length)));
}

// overlaps: its blocks may be placed before the launch ahead of it on the stream has ended (primitives.cuh).
void launch(const Entry& entry, DType dtype, const LaunchShape& shape, void* params, void* stream, bool overlaps) {
  const void* function = entry.function[int(dtype)];
  const dim3 grid(unsigned(shape.blocks)), block(unsigned(shape.threads));
  void* arguments[] = {params};
#if CUDART_VERSION >= 12030
  if (overlaps) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = size_t(shape.shared);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute, config.numAttrs = 1;
    return check(cudaLaunchKernelExC(&config, function, arguments), entry.name, shape);
  }
#endif
  check(cudaLaunchKernel(function, grid, block, arguments, size_t(shape.shared), static_cast<cudaStream_t>(stream)),
        entry.name, shape);
}

}  // namespace

// The first launch of a call follows work that is not ours, or begins a graph: it does not overlap.
void run_records(const unsigned char* records, size_t bytes, int device, DType dtype, int64_t first, int64_t last,
                 const Io& io, void* stream) {
  const bool overlaps = ready(device, dtype);
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
    launch(entry, dtype, record.shape, params, stream, overlaps && number > first);
  }
}

void run_launches(const std::vector<Launch>& launches, int device, DType dtype, void* stream) {
  const bool overlaps = ready(device, dtype);
  for (const Launch& one : launches)
    launch(find(one.kernel, sizeof(Record::kernel), one.params.size()), dtype, one.shape,
           const_cast<unsigned char*>(one.params.data()), stream, overlaps && &one != &launches.front());
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
