// Everything that is checked about an artifact before its library is loaded, in the order of
// docs/artifact.md.
#ifndef RESQ_INTERNAL_CHECKS_HPP_
#define RESQ_INTERNAL_CHECKS_HPP_

#include <sys/stat.h>

#include <climits>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "machine.hpp"
#include "manifest.hpp"
#include "resq.hpp"
#include "sha256.hpp"
#include "tensors.hpp"

namespace resq::internal {

using Tensors = std::vector<ffi::Tensor>;

// Returns the first line of a message that says something; TVM's own have many.
inline std::string first_line(const std::string& text) {
  const std::size_t start = text.find_first_not_of(" \n");
  if (start == std::string::npos) return "no message";
  return text.substr(start, text.find('\n', start) - start);
}

inline std::string named(const std::string& folder) { return "artifact '" + folder + "'"; }

inline bool is_file(const std::string& path) {
  struct stat facts;
  return stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode);
}

inline bool read_file(const std::string& path, std::string& contents) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return false;
  contents.resize(static_cast<std::size_t>(file.tellg()));
  file.seekg(0);
  file.read(&contents[0], static_cast<std::streamsize>(contents.size()));
  return file.good();
}

inline Manifest load_manifest(const std::string& folder) {
  struct stat facts;
  if (stat(folder.c_str(), &facts) != 0) {
    throw ArtifactError(named(folder) + " does not exist; compile it first");
  }
  const std::string path = folder + "/" + kManifest;
  std::string text;
  if (!is_file(path)) {
    throw ArtifactError(named(folder) + " has no manifest.json; compile it anew");
  }
  try {
    if (!read_file(path, text)) throw NotJson("it cannot be read");
    const Node root = Node::parse(text);
    std::string version = "none";
    if (root.is_object()) {
      if (const auto node = root.get("format_version")) {
        version = std::to_string(node->integer(INT_MIN));
      }
    }
    if (version != std::to_string(kFormatVersion)) {
      throw ArtifactError(named(folder) + " has format version " + version +
                          ", this program reads " + std::to_string(kFormatVersion) +
                          "; compile it anew");
    }
    return read_manifest(root);
  } catch (const NotJson& error) {
    throw ArtifactError(named(folder) + ": manifest.json is not readable JSON (" +
                        first_line(error.what()) + "); compile it anew");
  } catch (const Invalid& error) {
    throw ArtifactError(named(folder) + ": manifest.json is " + error.what() +
                        "; compile it anew");
  } catch (const std::overflow_error& error) {
    throw ArtifactError(named(folder) + ": manifest.json is invalid: " + error.what() +
                        "; compile it anew");
  }
}

// Checks size and hash, in this order; returns the contents, whose hash it was.
inline std::string verified_contents(const std::string& folder, const char* name,
                                     const Manifest& manifest) {
  const auto entry = manifest.files.find(name);
  if (entry == manifest.files.end()) {
    throw ArtifactError(named(folder) + ": the manifest lists no " + name);
  }
  const std::string path = folder + "/" + name;
  struct stat facts;
  if (stat(path.c_str(), &facts) != 0 || !S_ISREG(facts.st_mode)) {
    throw ArtifactError(named(folder) + ": " + name + " is missing; compile it anew");
  }
  if (facts.st_size != entry->second.bytes) {
    throw ArtifactError(named(folder) + ": " + name + " has " + std::to_string(facts.st_size) +
                        " bytes, the manifest says " + std::to_string(entry->second.bytes) +
                        "; it is truncated or altered, compile it anew");
  }
  std::string contents;
  if (!read_file(path, contents)) {
    throw ArtifactError(named(folder) + ": " + name + " cannot be read");
  }
  Sha256 hash;
  hash.update(contents.data(), contents.size());
  if (hash.hex_digest() != entry->second.sha256) {
    throw ArtifactError(named(folder) + ": " + name +
                        " does not match its SHA-256 in the manifest; it was altered, compile it "
                        "anew");
  }
  return contents;
}

// The loader would refuse another architecture's library in words that help nobody.
inline void check_architecture(const std::string& folder, const Manifest& manifest,
                               const std::string& library) {
  static const std::map<int, std::string> kNames = {{40, "arm"}, {62, "x86_64"}, {183, "aarch64"}};
#if defined(__aarch64__)
  constexpr int kHere = 183;
#elif defined(__x86_64__)
  constexpr int kHere = 62;
#else
  const int kHere = -1;
#endif
  // The two bytes of an ELF file at 18 are its machine.
  if (kHere < 0 || library.size() < 20 || library.compare(0, 4, "\x7f" "ELF") != 0) return;
  const int found = static_cast<unsigned char>(library[18]) |
                    static_cast<unsigned char>(library[19]) << 8;
  if (found == kHere) return;
  const auto name = kNames.find(found);
  throw TargetError(named(folder) + " is for target " + manifest.facts.target + ", whose code is " +
                    (name == kNames.end() ? "another machine's" : name->second) + "; this is " +
                    kNames.at(kHere) + ": compile it for this CPU");
}

inline void check_version(const std::string& folder, const char* package, const std::string& built,
                   const char* here) {
  if (built == here) return;
  throw ArtifactError(named(folder) + " was built with " + package + " " + built +
                      ", this program with " + here + "; compile it anew or build this program "
                      "with " + built);
}

inline void check_machine(const std::string& folder, const Manifest& manifest,
                          const std::string& library) {
  const std::string problem = linked_problem();
  if (!problem.empty()) throw ArtifactError(problem);
  check_version(folder, "tvm", manifest.tvm_version, RESQ_TVM_VERSION);
  check_version(folder, "tvm_ffi", manifest.ffi_version, RESQ_TVM_FFI_VERSION);
  check_architecture(folder, manifest, library);
  const std::set<std::string> present = cpu_features();
  std::set<std::string> missing;
  for (const std::string& feature : manifest.features) {
    if (present.count(feature) == 0) missing.insert(feature);
  }
  if (missing.empty()) return;
  std::string names;
  for (const std::string& name : missing) names += (names.empty() ? "" : ", ") + name;
  throw TargetError(named(folder) + " is for target " + manifest.facts.target +
                    "; this CPU lacks " + names + "; compile it for this CPU");
}

inline Tensors read_params(const std::string& folder, const Manifest& manifest,
                    const std::string& contents) {
  std::map<std::string, StoredTensor> stored;
  try {
    stored = read_safetensors(contents);
  } catch (const std::exception& error) {
    throw ArtifactError(named(folder) + ": params.safetensors is not readable (" +
                        first_line(error.what()) + "); compile it anew");
  }
  Tensors params;
  for (const TypedShape& entry : manifest.params) {
    const auto found = stored.find(entry.name);
    if (found == stored.end() || found->second.shape != entry.shape ||
        found->second.type != entry.type) {
      const std::string is = found == stored.end() ? "absent"
                                                   : describe(found->second.type,
                                                                        found->second.shape);
      throw ArtifactError(named(folder) + ": parameter " + entry.name + " is " + is +
                          ", the manifest says " + describe(entry.type, entry.shape) +
                          "; compile it anew");
    }
    params.push_back(new_tensor(entry.shape, find_type(entry.type)->type));
    std::memcpy(bytes_of(params.back()), found->second.data, found->second.bytes);
  }
  return params;
}

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_CHECKS_HPP_
