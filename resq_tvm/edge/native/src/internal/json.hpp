// JSON values that know where in their document they stand, so that a wrong one can be named.
#ifndef RESQ_INTERNAL_JSON_HPP_
#define RESQ_INTERNAL_JSON_HPP_

#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace resq::internal {

namespace ffi = tvm::ffi;

// A value is not what the schema says.
class Invalid : public std::runtime_error {
 public:
  Invalid(const std::string& place, const std::string& reason)
      : std::runtime_error("invalid at '" + place + "': " + reason) {}
};

// The document is not JSON.
class NotJson : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Node {
 public:
  static Node parse(const std::string& text) {
    ffi::String message;
    ffi::Any value = ffi::json::Parse(ffi::String(text), &message);
    if (!message.empty()) throw NotJson(std::string(message));
    return Node(std::move(value), "");
  }

  bool is_null() const { return value_ == nullptr; }

  bool is_object() const { return value_.as<ffi::json::Object>().has_value(); }

  // Refuses members of other names.
  void only(std::initializer_list<const char*> names) const {
    for (const auto& [name, node] : entries()) {
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        throw Invalid(node.place_, "unknown field");
      }
    }
  }

  // Returns a member that may be absent.
  std::optional<Node> get(const char* name) const {
    const ffi::json::Object members = object();
    const auto found = members.find(ffi::String(name));
    if (found == members.end()) return std::nullopt;
    return Node((*found).second, inside(name));
  }

  // Returns a member that may be absent or null.
  std::optional<Node> get_value(const char* name) const {
    std::optional<Node> node = get(name);
    return node && node->is_null() ? std::nullopt : node;
  }

  Node operator[](const char* name) const {
    std::optional<Node> node = get(name);
    if (!node) throw Invalid(inside(name), "the field is missing");
    return *node;
  }

  std::vector<std::pair<std::string, Node>> entries() const {
    std::vector<std::pair<std::string, Node>> found;
    for (const auto& [key, value] : object()) {
      const std::string name = key.cast<ffi::String>();
      found.emplace_back(name, Node(value, inside(name)));
    }
    return found;
  }

  std::vector<Node> list() const {
    const auto values = value_.as<ffi::json::Array>();
    if (!values) throw Invalid(place_, "not a list");
    std::vector<Node> found;
    for (const ffi::Any& value : *values) {
      found.push_back(Node(value, inside(std::to_string(found.size()))));
    }
    return found;
  }

  std::string text() const {
    const auto value = value_.as<ffi::String>();
    if (!value) throw Invalid(place_, "not a string");
    return *value;
  }

  std::string text(std::initializer_list<const char*> choices) const {
    const std::string found = text();
    if (std::find(choices.begin(), choices.end(), found) == choices.end()) {
      throw Invalid(place_, "unknown value '" + found + "'");
    }
    return found;
  }

  std::int64_t integer(std::int64_t least,
                       std::int64_t most = std::numeric_limits<std::int64_t>::max()) const {
    const auto value = value_.as<std::int64_t>();
    if (!value) throw Invalid(place_, "not an integer");
    if (*value < least || *value > most) {
      throw Invalid(place_, "the value " + std::to_string(*value) + " is out of range");
    }
    return *value;
  }

  double number() const {
    const auto value = value_.try_cast<double>();
    if (!value || value_.as<bool>() || !std::isfinite(*value)) {
      throw Invalid(place_, "not a finite number");
    }
    return *value;
  }

  bool flag() const {
    const auto value = value_.as<bool>();
    if (!value) throw Invalid(place_, "neither true nor false");
    return *value;
  }

  std::vector<std::int64_t> integers(std::int64_t least) const {
    std::vector<std::int64_t> found;
    for (const Node& node : list()) found.push_back(node.integer(least));
    return found;
  }

  std::vector<std::string> texts() const {
    std::vector<std::string> found;
    for (const Node& node : list()) found.push_back(node.text());
    return found;
  }

  const std::string& place() const { return place_; }

 private:
  Node(ffi::Any value, std::string place) : value_(std::move(value)), place_(std::move(place)) {}

  ffi::json::Object object() const {
    const auto members = value_.as<ffi::json::Object>();
    if (!members) throw Invalid(place_, "not an object");
    return *members;
  }

  std::string inside(const std::string& name) const {
    return place_.empty() ? name : place_ + "." + name;
  }

  ffi::Any value_;
  std::string place_;
};

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_JSON_HPP_
