// This machine: its CPU's features, its threads, the TVM that is linked.
#ifndef RESQ_INTERNAL_MACHINE_HPP_
#define RESQ_INTERNAL_MACHINE_HPP_

#include <sched.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdlib>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>
#include <string>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "resq_versions.h"

namespace resq::internal {

#if defined(__aarch64__) && defined(__linux__)

// The kernel's bits, by the names of /proc/cpuinfo. The file itself is not asked: an emulator
// shows its host's.
inline std::set<std::string> cpu_features() {
  struct Bit {
    int word, bit;
    const char* name;
  };
  static constexpr Bit kBits[] = {
      {0, 0, "fp"},      {0, 1, "asimd"},     {0, 3, "aes"},       {0, 4, "pmull"},
      {0, 5, "sha1"},    {0, 6, "sha2"},      {0, 7, "crc32"},     {0, 8, "atomics"},
      {0, 9, "fphp"},    {0, 10, "asimdhp"},  {0, 12, "asimdrdm"}, {0, 13, "jscvt"},
      {0, 14, "fcma"},   {0, 15, "lrcpc"},    {0, 16, "dcpop"},    {0, 17, "sha3"},
      {0, 20, "asimddp"}, {0, 21, "sha512"},  {0, 22, "sve"},      {0, 23, "asimdfhm"},
      {0, 24, "dit"},    {0, 25, "uscat"},    {0, 26, "ilrcpc"},   {0, 27, "flagm"},
      {0, 28, "ssbs"},   {0, 29, "sb"},       {1, 1, "sve2"},      {1, 9, "svei8mm"},
      {1, 13, "i8mm"},   {1, 14, "bf16"},
  };
  const unsigned long words[] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
  std::set<std::string> found;
  for (const Bit& bit : kBits) {
    if (words[bit.word] >> bit.bit & 1) found.insert(bit.name);
  }
  return found;
}

#else

inline std::set<std::string> cpu_features() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    std::set<std::string> found;
    for (std::string word; words >> word;) found.insert(word);
    return found;
  }
  return {};
}

#endif

// Returns the number of CPUs that this process may run on.
inline int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

// Lets thread pools, which are created on first use, grow to every available CPU: by itself TVM
// halves the count on x86 and pins the calling thread. What the user has set is kept.
inline void prepare_thread_pools() {
  static std::once_flag once;
  std::call_once(once, [] {
    setenv("TVM_BIND_THREADS", "0", 0);
    setenv("TVM_NUM_THREADS", std::to_string(available_cpus()).c_str(), 0);
  });
}

// Limits kernels that the calling thread starts to so many threads.
inline void use_threads(int threads) {
  static thread_local int current = 0;
  if (current == threads) return;
  static const tvm::ffi::Function configure =
      tvm::ffi::Function::GetGlobalRequired("runtime.config_threadpool");
  configure(1, threads);
  current = threads;
}

// Returns what is wrong with the libraries that were found at run time, "" if nothing is: the TVM
// FFI must be the one whose headers this program was compiled with (its number differs from that
// of the Python package), and nothing refers to the runtime by a symbol.
inline std::string linked_problem() {
  if (!tvm::ffi::Function::GetGlobal("runtime.config_threadpool").has_value()) {
    return "libtvm_runtime.so is not linked; link with -Wl,--no-as-needed -ltvm_runtime";
  }
  TVMFFIVersion here;
  TVMFFIGetVersion(&here);
  if (here.major == TVM_FFI_VERSION_MAJOR && here.minor == TVM_FFI_VERSION_MINOR &&
      here.patch == TVM_FFI_VERSION_PATCH) {
    return "";
  }
  const auto text = [](unsigned a, unsigned b, unsigned c) {
    return std::to_string(a) + "." + std::to_string(b) + "." + std::to_string(c);
  };
  return "libtvm_ffi.so is " + text(here.major, here.minor, here.patch) +
         ", this program was built for " +
         text(TVM_FFI_VERSION_MAJOR, TVM_FFI_VERSION_MINOR, TVM_FFI_VERSION_PATCH) +
         "; put that one beside it";
}

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_MACHINE_HPP_
