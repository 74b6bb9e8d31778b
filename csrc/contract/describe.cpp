// The contract as the library was built with, for Python to compare with its own (dynroute/native/contract.py).
#include "contract/describe.h"

#include "contract/geometry.h"

namespace dynroute {
namespace {

std::string quoted(const std::string& text) { return '"' + text + '"'; }

template <class Names>
std::string list(const Names& names) {
  std::string text;
  for (const char* name : names) text += (text.empty() ? "" : ", ") + quoted(name);
  return "[" + text + "]";
}

}  // namespace

std::string describe_contract() {
  std::string json = "{" + quoted("version") + ": " + quoted(DYNROUTE_VERSION);
  const auto put = [&](const char* key, const std::string& value) { json += ", " + quoted(key) + ": " + value; };
  put("scales", std::to_string(kScales));
  put("paths", list(kPathNames));
  std::string order, fields, config;
  for (const Path path : kPublishedOrder) order += (order.empty() ? "" : ", ") + quoted(kPathNames[path]);
  put("published_order", "[" + order + "]");
  put("activations", list(kActivationNames));
  put("threshold", std::to_string(kThreshold));
  put("node_parts", list(kNodePartNames));
  put("sample_parts", list(kSamplePartNames));
  for (const ConfigField& field : kConfigFields) config += (config.empty() ? "" : ", ") + quoted(field.name);
  put("config", "[" + config + "]");
  for (const NamedField& field : kWeightFields)
    fields += (fields.empty() ? "" : ", ") + quoted(field.name) + ": " + std::to_string(int(field.field));
  put("weight_fields", "{" + fields + "}");
  // the layout of tables, and sizes, by example: a network of 16 layers, images of 512 x 1024
  constexpr int layers = 16, rows = layers + 1;
  put("table", "{" + quoted("stem") + ": " + std::to_string(stem_row(layers)) + ", " + quoted("merge") + ": " +
                   std::to_string(merge_row(layers, 0)) + ", " + quoted("predictor") + ": " +
                   std::to_string(predictor_row(layers)) + ", " + quoted("rows") + ": " +
                   std::to_string(table_rows(layers)) + "}");
  std::string exists;
  for (int row = 0; row < rows; ++row)
    for (int scale = 0; scale < kScales; ++scale)
      for (int path = 0; path < kPaths; ++path)
        exists += scale < scales_of_row(row) && path_exists(row, rows, scale, path) ? '1' : '0';
  put("path_exists", quoted(exists));
  put("smallest_sides", "[" + std::to_string(smallest_side(false)) + ", " + std::to_string(smallest_side(true)) + "]");
  put("side_multiple", std::to_string(kSideMultiple));
  put("stem_sides", "[" + std::to_string(stem_side(512)) + ", " + std::to_string(stem_side(1024)) + "]");
  return json + "}";
}

}  // namespace dynroute
