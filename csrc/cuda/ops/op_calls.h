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
#include "cuda/kernels/prepare.h"
#include "cuda/kernels/sepconv.h"
#include "cuda/kernels/transform.h"
#include "cuda/network/records.h"

namespace dynroute::cuda {

using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

// What a call is: its result, and what lives until it is done. Later work of the same stream may take the memory.
struct OpCall {
  Tensor out;
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
  CallBuilder(const Device& device, const DeviceLimits& limits, ScalarType type, Tensor out)
      : device_(device), limits_(limits), type_(type), call_{std::move(out), {}, dtype_of(type), {}} {}

  const void* map(const Tensor& tensor) { return keep(nhwc(tensor)).const_data_ptr(); }
  const void* values(const Tensor& tensor) { return keep(torch::stable::contiguous(tensor)).const_data_ptr(); }
  void* out() { return call_.out.mutable_data_ptr(); }
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
    const int64_t n = call_.out.size(0);
    prepare.n = int(n), prepare.out = out();
    prepare.out_size = call_.out.numel() / n;
    if (!mask) return {};
    constexpr int64_t kBefore = kOpen * kScales;  // what a row's tables have there is not looked at
    prepare.open = static_cast<const uint8_t*>(values(*mask));
    Row row = {};
    row.counts = static_cast<int*>(scratch((kBefore + 1) * int64_t(sizeof(int))));
    row.samples = static_cast<int*>(scratch((kBefore + 1) * n * int64_t(sizeof(int))));
    prepare.list = {row.counts + kBefore, row.samples + kBefore * n};
    return row;
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
  const Tensor& keep(Tensor tensor) { return call_.held.emplace_back(std::move(tensor)); }
  const Device device_;
  const DeviceLimits limits_;
  const ScalarType type_;
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
  CallBuilder build(device, limits, type, new_tensor({n, pointwise.back().size(0), h, w}, type, true, device));
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
    stage.plain_out = last ? build.out() : build.scratch(n * h * w * stage.pointwise.n * bytes_of(dtype_of(type)));
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
  CallBuilder build(device, limits, type, new_tensor({p.n, weight.size(0), p.h_out, p.w_out}, type, true, device));
  if (p.n == 0) return build.take();
  PrepareParams prepare = {};
  build.open(prepare, open);
  p.open = prepare.list;
  p.x = build.map(x), p.out = build.out();
  p.weight = build.matrix(prepare.matrix[0], weight, scale, shift);
  build.launch("transform", "prepare", prepare_shape, prepare);
  build.launch("transform", "transform", transform_shape, p);
  return build.take();
}

inline OpCall aggregate_call(const Maybe& down, const Maybe& keep, const Maybe& up, const Maybe& alphas,
                             const Device& device, const DeviceLimits& limits) {
  const AggregateShape shape = check_aggregate(down, keep, up, alphas, on_gpu(device));
  check_size("aggregate: sources", shape.n, shape.c, shape.h, shape.w);
  CallBuilder build(device, limits, shape.type,
                    new_tensor({shape.n, shape.c, shape.h, shape.w}, shape.type, true, device));
  if (shape.n == 0) return build.take();
  const auto source = [&](const Maybe& map) { return map ? build.map(*map) : nullptr; };
  AggregateParams p = {};
  p.down = source(down), p.keep = source(keep), p.up = source(up);
  p.alphas = alphas ? build.values(*alphas) : nullptr;
  p.out = build.out();
  p.n = int(shape.n), p.h = int(shape.h), p.w = int(shape.w), p.c = int(shape.c);
  build.launch("aggregate", "aggregate", aggregate_shape, p);
  return build.take();
}

}  // namespace dynroute::cuda
