// The manifest of an artifact: the schema of resq_tvm/manifest.py, format version 1.
#ifndef RESQ_INTERNAL_MANIFEST_HPP_
#define RESQ_INTERNAL_MANIFEST_HPP_

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "json.hpp"
#include "resq.hpp"
#include "tensors.hpp"

namespace resq::internal {

constexpr int kFormatVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kLibrary = "library.so";
constexpr const char* kParams = "params.safetensors";
constexpr const char* kThresholds = "thresholds";  // the parameter that holds them

struct TypedShape {
  std::string name;
  Shape shape;
  std::string type;
};

struct WorkspaceEntry {
  std::string name;
  Shape shape;
  DLDataType type;
  std::int64_t fill;           // before the first frame
  bool refresh;                // fill again after every keyframe
  std::optional<int> output;   // the keyframe's output of this number takes the tensor's place
};

struct FileEntry {
  std::int64_t bytes;
  std::string sha256;
};

struct Manifest {
  std::string tvm_version, ffi_version;
  std::vector<std::string> features;
  Facts facts;
  std::vector<WorkspaceEntry> workspace;
  bool probe = false;
  bool note = false;  // whether there are programs of this name and `peek`
  std::vector<TypedShape> params;
  std::optional<std::vector<std::size_t>> frame_params;  // which of them `frame` takes, in order
  std::map<int, std::size_t> noted;  // network input: the state that holds the keyframe's
  std::map<std::string, FileEntry> files;
};

inline std::vector<TensorInfo> read_tensors(const Node& list) {
  std::vector<TensorInfo> found;
  for (const Node& node : list.list()) {
    TensorInfo info{node["name"].text(), node["shape"].integers(1), ""};
    if (const auto layout = node.get("layout")) info.layout = layout->text({"NCHW", "NHWC", ""});
    if (!info.layout.empty() && info.shape.size() != 4) {
      throw Invalid(node["shape"].place(), "the layout " + info.layout + " has four dimensions");
    }
    elements(info.shape);
    found.push_back(std::move(info));
  }
  if (found.empty()) throw Invalid(list.place(), "the list is empty");
  return found;
}

inline TypedShape read_typed(const Node& node) {
  TypedShape entry{node["name"].text(), node["shape"].integers(0), node["dtype"].text()};
  if (find_type(entry.type) == nullptr) {
    throw Invalid(node["dtype"].place(), "unknown value '" + entry.type + "'");
  }
  elements(entry.shape);
  return entry;
}

inline std::vector<WorkspaceEntry> read_workspace(const Node& list, std::size_t outputs) {
  std::vector<WorkspaceEntry> found;
  for (const Node& node : list.list()) {
    node.only({"name", "shape", "dtype", "fill", "refresh", "output"});
    node["dtype"].text({"float32", "float16", "int8", "uint8", "int32"});
    const TypedShape typed = read_typed(node);
    WorkspaceEntry entry{typed.name, typed.shape, find_type(typed.type)->type, 0, false, {}};
    if (const auto value = node.get("fill")) {
      entry.fill = value->integer(std::numeric_limits<std::int32_t>::min());
      if (entry.fill != 0 && typed.type == "float16") {
        throw Invalid(value->place(), "float16 can only be filled with 0");
      }
    }
    if (const auto value = node.get("refresh")) entry.refresh = value->flag();
    if (const auto value = node.get_value("output")) {
      entry.output = static_cast<int>(value->integer(0, static_cast<std::int64_t>(outputs) - 1));
    }
    found.push_back(std::move(entry));
  }
  return found;
}

inline std::array<double, 3> read_triple(const Node& node) {
  const std::vector<Node> values = node.list();
  if (values.size() != 3) throw Invalid(node.place(), "not three numbers");
  return {values[0].number(), values[1].number(), values[2].number()};
}

inline InputProcessing read_processing(const Node& node) {
  node.only({"input", "task"});
  InputProcessing found;
  if (const auto task = node.get("task")) {
    if (const auto name = task->get("task")) name->text({"raw", "segmentation", "landmarks"});
  }
  const auto input = node.get("input");
  if (!input) return found;
  input->only({"crop", "resize", "colour", "mean", "std", "scale"});
  if (const auto crop = input->get_value("crop")) {
    const std::vector<std::int64_t> values = crop->integers(0);
    if (values.size() != 4 || values[2] < 1 || values[3] < 1) {
      throw Invalid(crop->place(), "not y, x, height, width");
    }
    found.crop = {values[0], values[1], values[2], values[3]};
  }
  if (const auto value = input->get("resize")) found.resize = value->text({"bilinear", "none"});
  if (const auto value = input->get("colour")) found.colour = value->text({"RGB", "BGR"});
  if (const auto value = input->get("mean")) found.mean = read_triple(*value);
  if (const auto value = input->get("scale")) found.scale = value->number();
  if (const auto value = input->get("std")) {
    found.std = read_triple(*value);
    for (double deviation : found.std) {
      if (deviation == 0) throw Invalid(value->place(), "std must not hold zero");
    }
  }
  return found;
}

inline std::map<std::string, FileEntry> read_files(const Node& node) {
  std::map<std::string, FileEntry> found;
  for (const auto& [name, entry] : node.entries()) {
    entry.only({"bytes", "sha256"});
    const FileEntry file{entry["bytes"].integer(0), entry["sha256"].text()};
    if (file.sha256.size() != 64 ||
        file.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
      throw Invalid(entry["sha256"].place(), "not 64 lower-case hexadecimal digits");
    }
    found[name] = file;
  }
  return found;
}

// What this runtime does not use is checked as far as its kind.
inline void check_records(const Node& root) {
  if (const auto layers = root.get("layers")) {
    for (const Node& node : layers->list()) {
      node["name"].text();
      node["op"].text();
      node["macs"].integer(0);
    }
  }
  if (const auto kernels = root.get("kernels")) {
    for (const Node& node : kernels->list()) {
      node["name"].text();
      node["program"].text();
    }
  }
  if (const auto opaque = root.get("opaque")) {
    for (const auto& [program, operators] : opaque->entries()) operators.texts();
  }
  if (const auto bops = root.get("bops")) bops->entries();
  if (const auto options = root.get("options")) options->entries();
  if (const auto names = root.get("thresholds")) names->texts();
}

inline std::vector<std::size_t> read_frame_params(const Node& names,
                                                  const std::vector<TypedShape>& params) {
  std::vector<std::size_t> found;
  for (const Node& node : names.list()) {
    const std::string name = node.text();
    const auto place = std::find_if(params.begin(), params.end(),
                                    [&](const TypedShape& entry) { return entry.name == name; });
    if (place == params.end()) throw Invalid(node.place(), "there is no parameter '" + name + "'");
    found.push_back(static_cast<std::size_t>(place - params.begin()));
  }
  return found;
}

// Throws Invalid or std::overflow_error.
inline Manifest read_manifest(const Node& root) {
  root.only({"format",       "format_version", "versions", "target",     "scheme",
             "period",       "inputs",         "outputs",  "state",      "workspace",
             "probe",        "note",           "params",   "layers",     "kernels",
             "frame_params", "opaque",         "bops",     "options",    "processing",
             "thresholds",   "files"});
  Manifest manifest;
  if (const auto format = root.get("format")) format->text({"resq-tvm artifact"});
  const Node versions = root["versions"];
  versions.only({"resq_tvm", "tvm", "tvm_ffi"});
  versions["resq_tvm"].text();
  manifest.tvm_version = versions["tvm"].text();
  manifest.ffi_version = versions["tvm_ffi"].text();

  Facts& facts = manifest.facts;
  const Node target = root["target"];
  target.only({"name", "features"});
  facts.target = target["name"].text();
  if (const auto features = target.get("features")) manifest.features = features->texts();
  facts.scheme = root["scheme"].text();
  facts.has_residual = facts.scheme.find("->") != std::string::npos;
  facts.period = static_cast<int>(root["period"].integer(1, std::numeric_limits<int>::max()));
  facts.inputs = read_tensors(root["inputs"]);
  facts.outputs = read_tensors(root["outputs"]);
  if (const auto state = root.get("state")) {
    std::size_t number = 0;
    for (const Node& node : state->list()) {
      read_typed(node);
      if (const auto input = node.get_value("input")) {
        const auto most = static_cast<std::int64_t>(facts.inputs.size()) - 1;
        manifest.noted[static_cast<int>(input->integer(0, most))] = number;
      }
      ++number;
      facts.state_bytes += static_cast<std::size_t>(node["bytes"].integer(0));
    }
  }
  if (const auto list = root.get("workspace")) {
    manifest.workspace = read_workspace(*list, facts.outputs.size());
    for (const WorkspaceEntry& entry : manifest.workspace) {
      const auto count = static_cast<std::size_t>(elements(entry.shape));
      facts.workspace_bytes += count * entry.type.bits / 8;
    }
  }
  if (const auto probe = root.get("probe")) manifest.probe = probe->flag();
  if (const auto note = root.get("note")) manifest.note = note->flag();
  if (const auto list = root.get("params")) {
    for (const Node& node : list->list()) {
      node.only({"name", "shape", "dtype"});
      manifest.params.push_back(read_typed(node));
    }
  }
  if (const auto names = root.get_value("frame_params")) {
    manifest.frame_params = read_frame_params(*names, manifest.params);
  }
  if (const auto node = root.get_value("processing")) facts.processing = read_processing(*node);
  check_records(root);
  manifest.files = read_files(root["files"]);
  return manifest;
}

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_MANIFEST_HPP_
