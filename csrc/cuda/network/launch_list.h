// One call of the network as data: what memory it needs and which kernels are launched with which arguments. No CUDA
// and no torch here, so that the same list is counted by tests, run by the emulator and captured into a graph.
//
// Nothing in it depends on images, gates or routes. Only `init_call`, the first launch, carries what changes from call
// to call, where inputs and outputs are; all the others find that in device memory.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "contract/network.h"
#include "records.h"

namespace dynroute::cuda {

// Where the cells of a scale keep what lies between their two stages: in shared memory (fused: `cell`), or in the
// halves (staged: `sepconv`, and the last stage in `stage_paths`, with the outgoing paths). A row is three
// launches where its scales agree, aggregate_route, cell or sepconv, stage_paths, and four where they do not: a network
// of 16 layers takes 60 to 77.
enum class Fusion : int {
  kAuto = 0,    // fused where it pays (cell.h)
  kFused = 1,   // fused where a tile fits
  kStaged = 2,  // none is
};

// All that a list depends on.
struct CallSpec {
  NetworkConfig config;
  int n, h, w, out_h, out_w;
  DType dtype;
  Fusion fusion;
  DeviceLimits limits;
};

// Memory that the launches use. In the one workspace each lies at its offset, a multiple of kAlign; where two share
// memory their offsets say so. A memory of its own for each of them serves as well.
struct Buffer {
  std::string name;
  int64_t bytes;
  int64_t offset;  // in the workspace
};
constexpr int64_t kAlign = 256;

class LaunchList {
 public:
  explicit LaunchList(const CallSpec& call);

  const std::vector<Buffer>& buffers() const { return buffers_; }
  int64_t workspace() const { return workspace_; }

  // For buffers at these addresses, in the order of buffers(). Weights lie at `weights` + table[...] bytes.
  std::vector<Launch> launches(const std::vector<int64_t>& addresses, int64_t weights, const int64_t* table) const;

 private:
  const CallSpec call_;
  std::vector<Buffer> buffers_;
  int64_t workspace_ = 0;
};

}  // namespace dynroute::cuda
