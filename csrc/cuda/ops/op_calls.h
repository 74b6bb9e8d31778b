// The operators on CUDA tensors as lists of launches: arguments checked, memory asked for, structs filled. Nothing is
// launched here, and nothing is of CUDA: the same lists are made for tensors on the CPU, for the emulator.
#pragma once
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bindings/op_checks.h"
#include "cuda/kernels/aggregate.h"
#include "cuda/kernels/gate.h"
#include "cuda/kernels/prepare.h"
#include "cuda/kernels/route.h"
#include "cuda/kernels/sepconv.h"
#include "cuda/kernels/transform.h"
#include "cuda/network/records.h"

namespace dynroute::cuda {

using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

// What a call is: its results, and what lives until it is done. Later work of the same stream may take the memory.
struct OpCall {
  std::vector<Tensor> outs;
  std::vector<Tensor> held;  // scratch, and contiguous copies of arguments
  DType dtype;
  std::vector<Launch> launches;
};

inline DType dtype_of(ScalarType type) {
  return type == ScalarType::Float ? DType::kFloat : type == ScalarType::Half ? DType::kHalf : DType::kBfloat16;
}

// Puts a call together.
class CallBuilder {
 public:
  CallBuilder(const Device& device, const DeviceLimits& limits, ScalarType type)
      : device_(device), limits_(limits), call_{{}, {}, dtype_of(type), {}} {}

  const void* map(const Tensor& tensor) { return keep(nhwc(tensor)).const_data_ptr(); }
  const void* values(const Tensor& tensor) { return keep(torch::stable::contiguous(tensor)).const_data_ptr(); }
  void* out(std::initializer_list<int64_t> sizes, ScalarType type, bool channels_last = false) {
    return call_.outs.emplace_back(new_tensor(sizes, type, channels_last, device_)).mutable_data_ptr();
  }
  void* out(std::initializer_list<int64_t> sizes) { return out(sizes, call_type(), true); }
  void* scratch(int64_t bytes) {
    call_.held.push_back(new_tensor({round_up(bytes, int64_t(256))}, ScalarType::Byte, false, device_));
    return call_.held.back().mutable_data_ptr();
  }

  // Of a 1x1 convolution's weights, into scratch, by `prepare`.
  Matrix matrix(PackedMatrix& packed, const Tensor& weight, const Tensor& scale, const Tensor& shift) {
    const int n = int(weight.size(0)), k = int(weight.size(1));
    packed.weight = values(weight), packed.scale = values(scale), packed.shift = values(shift);
    void* const weights = scratch(int64_t(padded(n)) * padded(k) * bytes_of(call_.dtype));
    const auto* shifts = static_cast<const float*>(scratch(int64_t(padded(n)) * int64_t(sizeof(float))));
    return packed.to = {weights, shifts, k, n, padded(k), padded(n)};
  }
  const float* depthwise(PackedDepthwise& packed, const Tensor& weight) {
    packed.weight = values(weight), packed.c = int(weight.size(0));
    packed.to = static_cast<float*>(scratch(9 * weight.size(0) * int64_t(sizeof(float))));
    return packed.to;
  }
  // The list of open samples, as a row's tables hold scale 0's; the others' outputs are cleared. Null pointers: all.
  Row open(PrepareParams& prepare, const Maybe& mask) {
    const Tensor& result = call_.outs.front();
    const int64_t n = result.size(0);
    prepare.n = int(n), prepare.out = const_cast<void*>(result.const_data_ptr());
    prepare.out_size = result.numel() / n;
    if (!mask) return {};
    constexpr int64_t kBefore = kOpen * kScales;  // what a row's tables have there is not looked at
    prepare.open = static_cast<const uint8_t*>(values(*mask));
    Row row = {};
    row.counts = static_cast<int*>(scratch((kBefore + 1) * int64_t(sizeof(int))));
    row.samples = static_cast<int*>(scratch((kBefore + 1) * n * int64_t(sizeof(int))));
    prepare.list = {row.counts + kBefore, row.samples + kBefore * n};
    return row;
  }
  const float* floats(WidenedValues& widened, const Tensor& from) {
    widened = {values(from), static_cast<float*>(scratch(from.numel() * int64_t(sizeof(float)))), int(from.numel())};
    return widened.to;
  }
  template <class Params>
  void launch(const char* op, const char* kernel, LaunchShape (*shape_of)(const Params&, DType, const DeviceLimits&),
              const Params& params) {
    const LaunchShape shape = shape_of(params, call_.dtype, limits_);
    require(shape.shared <= limits_.shared_per_block,
            std::string(op) + ": these channels need " + std::to_string(shape.shared) +
                " bytes of shared memory per block, the device has " + std::to_string(limits_.shared_per_block));
    const auto* bytes = reinterpret_cast<const unsigned char*>(&params);
    call_.launches.push_back({kernel, shape, {bytes, bytes + sizeof(Params)}});
  }
  OpCall take() { return std::move(call_); }

 private:
  ScalarType call_type() const {
    return call_.dtype == DType::kFloat  ? ScalarType::Float
           : call_.dtype == DType::kHalf ? ScalarType::Half
                                         : ScalarType::BFloat16;
  }
  const Tensor& keep(Tensor tensor) { return call_.held.emplace_back(std::move(tensor)); }
  const Device device_;
  const DeviceLimits limits_;
  OpCall call_;
};

// Kernels count the values of a sample's map, and the pixels of all samples, in 32 bits.
inline void check_size(const std::string& what, int64_t n, int64_t c, int64_t h, int64_t w) {
  constexpr int64_t kMost = INT32_MAX;
  require(c * h * w <= kMost && n * h * w <= kMost,
          what + ": wanted at most 2147483647 values in a sample, and pixels in all, got " +
              shape_text(std::vector<int64_t>{n, c, h, w}));
}
inline OpRules on_gpu(const Device& device) { return {device, false, true, 8}; }

inline OpCall sepconv_call(const Tensor& x, const Tensors& depthwise, const Tensors& pointwise, const Tensors& scale,
                           const Tensors& shift, const Maybe& open, int64_t stride, bool residual, bool final_relu,
                           const Device& device, const DeviceLimits& limits) {
  const ScalarType type =
      check_sepconv(x, depthwise, pointwise, scale, shift, open, stride, residual, on_gpu(device));
  const int64_t n = x.size(0), h = strided(int(x.size(2)), int(stride)), w = strided(int(x.size(3)), int(stride));
  const size_t stages = depthwise.size();
  check_size("sepconv: x", n, x.size(1), x.size(2), x.size(3));
  for (const Tensor& weight : pointwise) check_size("sepconv: pointwise", n, weight.size(0), h, w);
  CallBuilder build(device, limits, type);
  void* const out = build.out({n, pointwise.back().size(0), h, w});
  if (n == 0) return build.take();
  PrepareParams prepare = {};
  const Row row = build.open(prepare, open);
  std::vector<SepconvParams> params(stages);
  const void* const input = build.map(x);
  const void* from = input;
  for (size_t k = 0; k < stages; ++k) {
    const bool first = k == 0, last = k + 1 == stages;
    SepconvStage& stage = params[k].stage[0];
    stage.depthwise = build.depthwise(prepare.depthwise[k], depthwise[k]);
    stage.pointwise = build.matrix(prepare.matrix[k], pointwise[k], scale[k], shift[k]);
    stage.c_in = stage.pointwise.k, stage.stride = first ? int(stride) : 1;
    stage.h_in = first ? int(x.size(2)) : int(h), stage.w_in = first ? int(x.size(3)) : int(w);
    stage.h_out = int(h), stage.w_out = int(w);
    stage.from = stage.to = kPlain;
    stage.plain_x = from;
    stage.plain_out = last ? out : build.scratch(n * h * w * stage.pointwise.n * bytes_of(dtype_of(type)));
    from = stage.plain_out;
    if (last && residual) stage.plain_residual = input;
    stage.relu = !last || final_relu;
    params[k].row = row, params[k].n = int(n);
  }
  build.launch("sepconv", "prepare", prepare_shape, prepare);
  for (const SepconvParams& stage : params) build.launch("sepconv", "sepconv", sepconv_shape, stage);
  return build.take();
}

inline OpCall transform_call(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                             const Maybe& open, int64_t stride, const Device& device, const DeviceLimits& limits) {
  const ScalarType type = check_transform(x, weight, scale, shift, open, stride, on_gpu(device));
  TransformParams p = {};
  p.n = int(x.size(0)), p.c = int(x.size(1)), p.h = int(x.size(2)), p.w = int(x.size(3)), p.stride = int(stride);
  p.h_out = strided(p.h, p.stride), p.w_out = strided(p.w, p.stride);
  check_size("transform: x", p.n, p.c, p.h, p.w);
  check_size("transform: weight", p.n, weight.size(0), p.h_out, p.w_out);
  CallBuilder build(device, limits, type);
  p.out = build.out({p.n, weight.size(0), p.h_out, p.w_out});
  if (p.n == 0) return build.take();
  PrepareParams prepare = {};
  build.open(prepare, open);
  p.open = prepare.list;
  p.x = build.map(x);
  p.weight = build.matrix(prepare.matrix[0], weight, scale, shift);
  build.launch("transform", "prepare", prepare_shape, prepare);
  build.launch("transform", "transform", transform_shape, p);
  return build.take();
}

inline OpCall aggregate_call(const Maybe& down, const Maybe& keep, const Maybe& up, const Maybe& alphas,
                             const Device& device, const DeviceLimits& limits) {
  const AggregateShape shape = check_aggregate(down, keep, up, alphas, on_gpu(device));
  check_size("aggregate: sources", shape.n, shape.c, shape.h, shape.w);
  CallBuilder build(device, limits, shape.type);
  void* const out = build.out({shape.n, shape.c, shape.h, shape.w});
  if (shape.n == 0) return build.take();
  const auto source = [&](const Maybe& map) { return map ? build.map(*map) : nullptr; };
  AggregateParams p = {};
  p.down = source(down), p.keep = source(keep), p.up = source(up);
  p.alphas = alphas ? build.values(*alphas) : nullptr;
  p.out = out;
  p.n = int(shape.n), p.h = int(shape.h), p.w = int(shape.w), p.c = int(shape.c);
  build.launch("aggregate", "aggregate", aggregate_shape, p);
  return build.take();
}

inline OpCall gate_call(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                        const Tensor& fc_weight, const Tensor& fc_bias, const std::string& activation, bool small,
                        const Maybe& present, const Device& device, const DeviceLimits& limits) {
  const ScalarType type =
      check_gate(x, weight, scale, shift, fc_weight, fc_bias, small, present, on_gpu(device));
  GateParams p = {};
  p.activation = int(parse_activation("gate", activation));
  p.n = int(x.size(0)), p.c = int(x.size(1)), p.h = int(x.size(2)), p.w = int(x.size(3));
  p.gates = int(fc_weight.size(0)), p.small_gate = small;
  require(p.gates >= 1 && p.gates <= kPaths,
          "gate: fc_weight: wanted 1 to 3 rows on CUDA, got " + std::to_string(p.gates));
  check_size("gate: x", p.n, p.c, p.h, p.w);
  CallBuilder build(device, limits, type);
  p.out = build.out({p.n, p.gates}, type);
  if (p.n == 0) return build.take();
  PrepareParams prepare = {};
  build.open(prepare, present);
  p.present = prepare.list;
  p.x = build.map(x);
  p.gate = build.matrix(prepare.matrix[0], weight, scale, shift);
  p.fc_weight = build.floats(prepare.widened[0], fc_weight), p.fc_bias = build.floats(prepare.widened[1], fc_bias);
  const int64_t tasks = gate_tiling(p, dtype_of(type)).tasks;
  p.partials = static_cast<float*>(build.scratch(p.n * tasks * p.gate.n_pad * int64_t(sizeof(float))));
  p.arrivals = prepare.zeroed = static_cast<int*>(build.scratch(p.n * int64_t(sizeof(int))));
  prepare.zeroed_count = p.n;
  build.launch("gate", "prepare", prepare_shape, prepare);
  build.launch("gate", "gate", gate_shape, p);
  return build.take();
}

inline OpCall route_call(const Tensor& alphas, const Tensor& present, const Tensor& path_exists, const Tensor& slots,
                         const Device& device, const DeviceLimits& limits) {
  const ScalarType type = check_route(alphas, present, path_exists, slots, on_gpu(device));
  const int64_t n = alphas.size(0);
  require(n <= INT32_MAX / kPaths, "route: alphas: wanted at most 715827882 samples, got " + std::to_string(n));
  CallBuilder build(device, limits, type);
  RouteParams p = {};
  const auto ints = [&](std::initializer_list<int64_t> sizes) {
    return static_cast<int*>(build.out(sizes, ScalarType::Int));
  };
  const auto flags = [&] { return static_cast<uint8_t*>(build.out({n, kScales}, ScalarType::Bool)); };
  p.alphas = build.values(alphas), p.slots = static_cast<const int*>(build.values(slots));
  p.present = static_cast<const uint8_t*>(build.values(present));
  p.path_exists = static_cast<const uint8_t*>(build.values(path_exists));
  p.masked = build.out({n, kScales, kPaths}, type);
  p.open = ints({kScales, n}), p.open_count = ints({kScales});
  p.path_open = ints({kScales, kPaths, n}), p.path_count = ints({kScales, kPaths});
  p.closed = flags(), p.next_present = flags();
  p.next_slots = ints({n, kScales});
  p.n = int(n);
  build.launch("route", "route", route_shape, p);  // counts are written for no samples too
  return build.take();
}

}  // namespace dynroute::cuda
