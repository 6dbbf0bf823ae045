// Run one compiled kernel on an aarch64 board: once to warm up, once measured.
//
//   kernel_runner LIBRARY FUNCTION TENSORS EVICT
//
// TENSORS is a text file with a line per argument of the function, in order:
//   in|fresh|out CODE BITS DIMENSIONS FILE
// CODE is DLPack's type code, DIMENSIONS are separated by commas (- for none), FILE holds the
// elements as they lie in memory. An output's file is read first and written in the end. Before
// the measured run, EVICT other bytes are touched, and then the fresh inputs are written, so that
// the caches are as in a network.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "region.h"

namespace ffi = tvm::ffi;

namespace {

constexpr size_t kAlignment = 64;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Argument {
  bool is_output = false, is_fresh = false;
  std::string file;
  std::vector<int64_t> shape;
  std::vector<char> initial;
  std::unique_ptr<void, Free> memory;
  DLTensor tensor{};

  void Reset() { std::memcpy(memory.get(), initial.data(), initial.size()); }
};

std::vector<char> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

Argument ReadArgument(const std::string& line) {
  Argument argument;
  std::istringstream words(line);
  std::string direction, dimensions;
  int code = 0, bits = 0;
  if (!(words >> direction >> code >> bits >> dimensions >> argument.file))
    throw std::runtime_error("malformed line: " + line);
  argument.is_output = direction == "out";
  argument.is_fresh = direction == "fresh";
  size_t bytes = static_cast<size_t>(bits) / 8;
  if (dimensions != "-") {
    std::istringstream list(dimensions);
    for (std::string extent; std::getline(list, extent, ',');) {
      argument.shape.push_back(std::stoll(extent));
      bytes *= static_cast<size_t>(argument.shape.back());
    }
  }
  argument.initial = ReadFile(argument.file);
  if (argument.initial.size() != bytes)
    throw std::runtime_error(argument.file + " is not as large as its shape says");
  size_t rounded = (bytes / kAlignment + 1) * kAlignment;
  argument.memory.reset(std::aligned_alloc(kAlignment, rounded));
  argument.Reset();
  argument.tensor.data = argument.memory.get();
  argument.tensor.device = {kDLCPU, 0};
  argument.tensor.ndim = static_cast<int32_t>(argument.shape.size());
  argument.tensor.dtype = {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
  argument.tensor.shape = argument.shape.data();
  return argument;
}

void Run(const char* library, const char* function, const char* description, size_t evict) {
  std::vector<Argument> arguments;
  std::ifstream lines(description);
  for (std::string line; std::getline(lines, line);)
    if (!line.empty()) arguments.push_back(ReadArgument(line));
  if (arguments.empty()) throw std::runtime_error(std::string("no tensors in ") + description);

  ffi::Module module = ffi::Module::LoadFromFile(library);
  ffi::Optional<ffi::Function> found = module->GetFunction(function);
  if (!found.has_value())
    throw std::runtime_error(std::string(library) + " has no function " + function);
  std::vector<ffi::AnyView> views;
  for (Argument& argument : arguments) {
    argument.tensor.shape = argument.shape.data();
    views.emplace_back(&argument.tensor);
  }
  ffi::Any result;
  auto call = [&] {
    (*found).CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
  };

  RESQ_REGION_BEGIN(255);
  call();
  RESQ_REGION_END();
  for (Argument& argument : arguments)
    if (!argument.is_fresh) argument.Reset();
  std::vector<char> other(evict);
  for (size_t i = 0; i < evict; i += kAlignment) static_cast<volatile char*>(other.data())[i] = 1;
  for (Argument& argument : arguments)
    if (argument.is_fresh) argument.Reset();
  RESQ_REGION_BEGIN(0);
  call();
  RESQ_REGION_END();

  for (Argument& argument : arguments) {
    if (!argument.is_output) continue;
    std::ofstream out(argument.file, std::ios::binary | std::ios::trunc);
    out.write(static_cast<const char*>(argument.memory.get()),
              static_cast<std::streamsize>(argument.initial.size()));
    if (!out.flush()) throw std::runtime_error("cannot write " + argument.file);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: kernel_runner LIBRARY FUNCTION TENSORS EVICT\n";
    return 2;
  }
  try {
    Run(argv[1], argv[2], argv[3], std::stoull(argv[4]));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
