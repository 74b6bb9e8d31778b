// The planner and the trace in Python: what is not a tensor operator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/network/trace.h"
#include "cpu/planner/planner.h"

namespace py = pybind11;
using namespace dynroute;

namespace {

SepconvShape shape_of(int stages, int c_in, int c_out, int h_out, int w_out, int stride) {
  if (stages < 1 || stages > kMaxStages || c_in < 1 || c_out < 1 || h_out < 1 || w_out < 1 || stride < 1 || stride > 2)
    throw py::value_error("plan: wanted 1 to 3 stages, positive sizes and a stride of 1 or 2");
  return {stages, c_in, c_out, h_out, w_out, stride};
}

py::dict plan(int stages, int c_in, int c_out, int h_out, int w_out, int stride, bool staged, int samples,
              int threads) {
  if (samples < 1 || threads < 1) throw py::value_error("plan: samples, threads: wanted 1 or more");
  const SepconvPlan found =
      planner().sepconv(shape_of(stages, c_in, c_out, h_out, w_out, stride), staged, samples, threads);
  py::dict result;
  result["fused"] = found.fused;
  result["band_rows"] = found.tiling.band_rows;
  result["step_rows"] = found.tiling.step_rows;
  result["strip"] = found.tiling.strip;
  result["tile_pixels"] = found.tiling.tile_pixels;
  result["milliseconds"] = found.nanoseconds * 1e-6;
  return result;
}

void tune(int stages, int c_in, int c_out, int h_out, int w_out, int stride, int fused, int band_rows, int step_rows,
          int strip, int tile_pixels) {
  if (fused < -1 || fused > 1 || band_rows < 0 || step_rows < 0 || strip < 0 || tile_pixels < 0)
    throw py::value_error("tune: wanted fused in -1, 0, 1 and numbers of rows, columns and pixels, 0 for the model's");
  planner().tune(shape_of(stages, c_in, c_out, h_out, w_out, stride),
                 {fused, band_rows, step_rows, strip, tile_pixels});
}

bool staged_cells(int stages, int scale) {
  if (stages < 1 || stages > kMaxCellStacks || scale < 0 || scale >= kScales)
    throw py::value_error("may_be_staged: wanted the stages of a cell, and a scale");
  return may_be_staged(stages, scale);
}

py::dict machine() {
  const Machine& m = planner().machine();
  py::dict result;
  result["isa"] = planner().isa();
  result["l1_bytes"] = m.l1_bytes;
  result["l2_bytes"] = m.l2_bytes;
  result["l3_bytes"] = m.l3_bytes;
  return result;
}

py::list trace_entries() {
  py::list entries;
  for (const TraceEntry& entry : traced())
    entries.append(py::make_tuple(entry.work, entry.scale, double(entry.nanoseconds) * 1e-6, entry.tasks));
  return entries;
}

}  // namespace

PYBIND11_MODULE(_planner, m) {
  using namespace py::literals;
  m.doc() = "Tile and fusion planner of the CPU kernels, and their trace; see dynroute.planner.";
  m.def("plan", &plan, "stages"_a, "c_in"_a, "c_out"_a, "h_out"_a, "w_out"_a, "stride"_a, "staged"_a, "samples"_a,
        "threads"_a);
  m.def("tune", &tune, "stages"_a, "c_in"_a, "c_out"_a, "h_out"_a, "w_out"_a, "stride"_a, "fused"_a = -1,
        "band_rows"_a = 0, "step_rows"_a = 0, "strip"_a = 0, "tile_pixels"_a = 0);
  m.def("forget_tuning", [] { planner().forget_tuning(); });
  m.def("may_be_staged", &staged_cells, "stages"_a, "scale"_a);
  m.def("machine", &machine);
  m.def("set_tracing", &set_tracing, "on"_a);
  m.def("trace", &trace_entries);
}
