// Tensors in this process's memory, and the reader of .safetensors files.
#ifndef RESQ_INTERNAL_TENSORS_HPP_
#define RESQ_INTERNAL_TENSORS_HPP_

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.hpp"

namespace resq::internal {

using Shape = std::vector<std::int64_t>;

struct ElementType {
  const char* name;    // as the manifest writes it
  const char* stored;  // as safetensors writes it
  DLDataType type;
};

inline const ElementType* find_type(const std::string& name, bool stored = false) {
  static const ElementType kTypes[] = {
      {"float64", "F64", {kDLFloat, 64, 1}}, {"float32", "F32", {kDLFloat, 32, 1}},
      {"float16", "F16", {kDLFloat, 16, 1}}, {"int64", "I64", {kDLInt, 64, 1}},
      {"int32", "I32", {kDLInt, 32, 1}},     {"int16", "I16", {kDLInt, 16, 1}},
      {"int8", "I8", {kDLInt, 8, 1}},        {"uint64", "U64", {kDLUInt, 64, 1}},
      {"uint32", "U32", {kDLUInt, 32, 1}},   {"uint16", "U16", {kDLUInt, 16, 1}},
      {"uint8", "U8", {kDLUInt, 8, 1}},      {"bool", "BOOL", {kDLBool, 8, 1}},
  };
  for (const ElementType& type : kTypes) {
    if (name == (stored ? type.stored : type.name)) return &type;
  }
  return nullptr;
}

// Returns the product of the dimensions; throws std::overflow_error where it leaves 2^62.
inline std::int64_t elements(const Shape& shape) {
  std::int64_t count = 1;
  for (std::int64_t extent : shape) {
    if (extent != 0 && count > (std::int64_t{1} << 62) / extent) {
      throw std::overflow_error("a shape is too large");
    }
    count *= extent;
  }
  return count;
}

// Kernels read vectors that start at multiples of 64 bytes, as TVM's own allocator gives them.
struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    const std::size_t size = (tvm::ffi::GetDataSize(*tensor) + 63) / 64 * 64;
    tensor->data = std::aligned_alloc(64, size == 0 ? 64 : size);
    if (tensor->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

inline ffi::Tensor new_tensor(const Shape& shape, DLDataType type) {
  return ffi::Tensor::FromNDAlloc(AlignedMemory(), ffi::ShapeView(shape.data(), shape.size()), type,
                                  DLDevice{kDLCPU, 0});
}

inline std::size_t byte_count(const ffi::Tensor& tensor) {
  return tvm::ffi::GetDataSize(*tensor.GetDLTensorPtr());
}

inline char* bytes_of(const ffi::Tensor& tensor) {
  return static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset();
}

inline std::size_t element_count(const ffi::Tensor& tensor) {
  return static_cast<std::size_t>(tensor.numel());
}

inline ffi::Tensor copy_of(const ffi::Tensor& tensor) {
  const auto shape = tensor.shape();
  const ffi::Tensor made = new_tensor(Shape(shape.begin(), shape.end()), tensor.dtype());
  std::memcpy(bytes_of(made), bytes_of(tensor), byte_count(tensor));
  return made;
}

// Sets every element; throws std::invalid_argument for a type or value that it cannot write.
inline void fill(const ffi::Tensor& tensor, std::int64_t value) {
  const std::size_t bytes = byte_count(tensor);
  if (value == 0) {
    std::memset(bytes_of(tensor), 0, bytes);
    return;
  }
  const DLDataType type = tensor.dtype();
  char element[8];
  if (type.code == kDLFloat && type.bits == 32) {
    const float number = static_cast<float>(value);
    std::memcpy(element, &number, sizeof(number));
  } else if (type.code == kDLInt || type.code == kDLUInt) {
    std::memcpy(element, &value, sizeof(element));  // little-endian: the low bytes come first
  } else {
    throw std::invalid_argument("a workspace of this type can only be filled with 0");
  }
  const std::size_t width = type.bits / 8;
  for (std::size_t at = 0; at < bytes; at += width) {
    std::memcpy(bytes_of(tensor) + at, element, width);
  }
}

// Returns the share of elements that are not 0.
inline double share_of_nonzero(const ffi::Tensor& tensor) {
  const std::size_t width = tensor.dtype().bits / 8, count = element_count(tensor);
  static constexpr char kZero[8] = {};
  std::size_t found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    found += std::memcmp(bytes_of(tensor) + i * width, kZero, width) != 0;
  }
  return count == 0 ? 0 : static_cast<double>(found) / static_cast<double>(count);
}

inline std::string describe(const std::string& type, const Shape& shape) {
  std::string text = type + "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

struct StoredTensor {
  std::string type;
  Shape shape;
  const char* data;
  std::size_t bytes;
};

// Returns the tensors of a .safetensors file, which point into its contents. Throws Invalid,
// NotJson or std::runtime_error: eight bytes tell the length of a JSON header, which tells
// types, shapes and places of what follows.
inline std::map<std::string, StoredTensor> read_safetensors(const std::string& contents) {
  if (contents.size() < 8) throw std::runtime_error("the header is missing");
  std::uint64_t length = 0;
  for (int i = 0; i < 8; ++i) {
    length |= std::uint64_t{static_cast<unsigned char>(contents[i])} << (8 * i);
  }
  if (length > contents.size() - 8) throw std::runtime_error("the header is longer than the file");
  const char* data = contents.data() + 8 + length;
  const std::int64_t size = static_cast<std::int64_t>(contents.size() - 8 - length);
  std::map<std::string, StoredTensor> found;
  for (const auto& [name, entry] : Node::parse(contents.substr(8, length)).entries()) {
    if (name == "__metadata__") continue;
    const std::string stored = entry["dtype"].text();
    const ElementType* type = find_type(stored, true);
    if (type == nullptr) throw Invalid(entry.place(), "the type " + stored + " is unknown");
    const Shape shape = entry["shape"].integers(0);
    const std::vector<std::int64_t> places = entry["data_offsets"].integers(0);
    if (places.size() != 2 || places[0] > places[1] || places[1] > size) {
      throw Invalid(entry.place(), "the data lies outside the file");
    }
    const std::int64_t bytes = places[1] - places[0];
    if (elements(shape) != bytes / (type->type.bits / 8) || bytes % (type->type.bits / 8) != 0) {
      throw Invalid(entry.place(), "the shape does not fit the data");
    }
    found[name] = {type->name, shape, data + places[0], static_cast<std::size_t>(bytes)};
  }
  return found;
}

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_TENSORS_HPP_
