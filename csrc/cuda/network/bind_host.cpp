// The launch list of a call as data for Python: which buffers, which launches. Part of the CPU library, as it needs no
// GPU.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "bindings/network_checks.h"
#include "launch_list.h"

namespace dynroute::cuda {
namespace {

using Numbers = std::vector<int64_t>;

// Kernels count the values of a sample's map, and the pixels of all samples' finest maps, in 32 bits.
void check_offsets(const std::string& op, const CallSpec& call) {
  constexpr int64_t kMost = INT32_MAX;
  const MapShape finest = scale_shape(call.config, call.h, call.w, 0);
  const int64_t pixels = int64_t(finest.h) * finest.w;
  const std::pair<const char*, int64_t> maps[] = {
      {"the image", call.config.in_channels * int64_t(call.h) * call.w},
      {"the stem's maps", stem_shape(call.config, call.h, call.w).size()},
      {"the finest maps", finest.size()},  // no coarser one is larger
      {"the logits before upsampling", pixels * call.config.num_classes},
      {"the logits", int64_t(call.config.num_classes) * call.out_h * call.out_w}};
  for (const auto& [name, values] : maps)
    require(values <= kMost, op + ": image: wanted at most " + std::to_string(kMost) + " values in " + name +
                                 " of a sample, got " + std::to_string(values) + " for " + std::to_string(call.h) +
                                 "x" + std::to_string(call.w) + " pixels");
  require(call.n * pixels <= kMost, op + ": image: wanted at most " + std::to_string(kMost / pixels) +
                                        " samples of this size, got " + std::to_string(call.n));
}

CallSpec parse(const std::string& op, const Numbers& config, const Numbers& image, int64_t dtype, int64_t fusion,
               const Numbers& device) {
  CallSpec call = {};
  call.config = parse_config(config, op.c_str());
  require(image.size() == 5,
          op + ": image: wanted [n, h, w, out_h, out_w], got " + std::to_string(image.size()) + " numbers");
  const int64_t n = image[0], h = image[1], w = image[2];
  require(n >= 1 && n <= 65535, op + ": image: wanted 1 to 65535 samples, got " + std::to_string(n));
  check_size(op.c_str(), call.config, h, w);
  require(h <= INT32_MAX && w <= INT32_MAX, op + ": image: wanted sides of at most 2147483647 pixels");
  require(image[3] >= 1 && image[3] <= h && image[4] >= 1 && image[4] <= w,
          op + ": image: wanted an output of at most " + std::to_string(h) + "x" + std::to_string(w) + ", got " +
              std::to_string(image[3]) + "x" + std::to_string(image[4]));
  require(dtype >= 0 && dtype <= 2,
          op + ": dtype: wanted 0 (float32), 1 (float16) or 2 (bfloat16), got " + std::to_string(dtype));
  require(fusion >= 0 && fusion <= 2,
          op + ": fusion: wanted 0 (auto), 1 (fused) or 2 (staged), got " + std::to_string(fusion));
  require(device.size() == 4, op +
                                  ": device: wanted [capability, multiprocessors, shared_per_block, "
                                  "shared_per_multiprocessor], got " +
                                  std::to_string(device.size()) + " numbers");
  require(device[0] >= 80, op + ": device: wanted compute capability 8.0 or higher, got " +
                               std::to_string(device[0] / 10) + "." + std::to_string(device[0] % 10));
  call.n = int(n), call.h = int(h), call.w = int(w);
  call.out_h = int(image[3]), call.out_w = int(image[4]);
  call.dtype = DType(dtype);
  call.fusion = Fusion(fusion);
  call.limits = {int(device[0]), int(device[1]), int(device[2]), int(device[3])};
  check_offsets(op, call);
  return call;
}

// names, separated by blanks; int64 [buffers, 2] bytes and offsets; bytes of the workspace
std::tuple<std::string, Tensor, int64_t> buffers_op(Numbers config, Numbers image, int64_t dtype, int64_t fusion,
                                                    Numbers device) {
  const LaunchList list(parse("cuda_plan", config, image, dtype, fusion, device));
  std::string names;
  Tensor sizes = new_tensor({int64_t(list.buffers().size()), 2}, ScalarType::Long);
  int64_t* size = sizes.mutable_data_ptr<int64_t>();
  for (const Buffer& buffer : list.buffers()) {
    names += (names.empty() ? "" : " ") + buffer.name;
    *size++ = buffer.bytes;
    *size++ = buffer.offset;
  }
  return {names, sizes, list.workspace()};
}

Tensor launches_op(Numbers config, Numbers image, int64_t dtype, int64_t fusion, Numbers device,
                                       Numbers addresses, int64_t weights, const Tensor& table) {
  const std::string op = "cuda_launches";
  const CallSpec call = parse(op, config, image, dtype, fusion, device);
  const LaunchList list(call);
  require(addresses.size() == list.buffers().size(), op + ": addresses: wanted one for each of " +
                                                         std::to_string(list.buffers().size()) + " buffers, got " +
                                                         std::to_string(addresses.size()));
  check(op + ": table", table, ScalarType::Long, {table_rows(call.config.layers), kTableFields});
  require(table.is_contiguous(), op + ": table: wanted a contiguous tensor");

  const auto bytes = as_records(list.launches(addresses, weights, table.const_data_ptr<int64_t>()));
  Tensor records = new_tensor({int64_t(bytes.size())}, ScalarType::Byte);
  std::memcpy(records.mutable_data_ptr(), bytes.data(), bytes.size());
  return records;
}

}  // namespace
}  // namespace dynroute::cuda

STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("cuda_plan", TORCH_BOX(&dynroute::cuda::buffers_op));
  m.impl("cuda_launches", TORCH_BOX(&dynroute::cuda::launches_op));
}
