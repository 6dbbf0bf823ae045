// The CPUs that a measurement runs on, and TVM's pool of workers pinned to them.
#ifndef RESQ_BOARD_PINNING_HPP_
#define RESQ_BOARD_PINNING_HPP_

#include <sched.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace resq::board {

// The CPUs that this process may run on.
inline std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return {0};
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

// A CPU's clock in kHz by one of the kernel's files, 0 where there is none.
inline long clock_khz(int cpu, const std::string& file) {
  std::ifstream text("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpufreq/" + file);
  long khz = 0;
  return text >> khz ? khz : 0;
}

// Returns one CPU per thread: of `cores` "fast" those of the highest clocks, of "slow" the lowest,
// else the first of those that it names ("4,5"); nothing for "free". No threads: as many as can be.
inline std::vector<int> choose_cpus(const std::string& cores, int threads) {
  const std::vector<int> allowed = allowed_cpus();
  std::vector<int> cpus = allowed;
  if (cores == "free") return {};
  if (cores == "fast" || cores == "slow") {
    const long sign = cores == "fast" ? -1 : 1;
    std::stable_sort(cpus.begin(), cpus.end(), [sign](int a, int b) {
      return sign * clock_khz(a, "cpuinfo_max_freq") < sign * clock_khz(b, "cpuinfo_max_freq");
    });
  } else {
    cpus.clear();
    std::istringstream names(cores);
    for (std::string name; std::getline(names, name, ',');) {
      const int cpu = std::atoi(name.c_str());
      if (std::find(allowed.begin(), allowed.end(), cpu) == allowed.end()) {
        throw std::runtime_error("this board has no CPU " + name + " to pin a thread to");
      }
      cpus.push_back(cpu);
    }
  }
  if (threads > static_cast<int>(cpus.size())) {
    throw std::runtime_error("threads " + std::to_string(threads) + " is out of range; CPUs to pin " +
                             "them to: " + std::to_string(cpus.size()));
  }
  if (threads > 0) cpus.resize(static_cast<std::size_t>(threads));
  return cpus;
}

// What the calling thread's pool reads when it is made: only a pool of as many workers as there are
// CPUs can have each on its own.
inline void prepare_pool(const std::vector<int>& cpus) {
  setenv("TVM_BIND_THREADS", cpus.empty() ? "0" : "1", 1);
  const std::size_t workers = cpus.empty() ? allowed_cpus().size() : cpus.size();
  setenv("TVM_NUM_THREADS", std::to_string(workers).c_str(), 1);
}

// Pins the calling thread to the first CPU and the workers of its pool, which it has used before,
// to one each of the others.
inline void pin(const std::vector<int>& cpus) {
  if (cpus.empty()) return;
  constexpr int kOneCorePerThread = -2;  // of TVM's threading backend
  tvm::ffi::Array<tvm::ffi::String> names;
  for (int cpu : cpus) names.push_back(std::to_string(cpu));
  tvm::ffi::Function::GetGlobalRequired("runtime.config_threadpool")(
      kOneCorePerThread, static_cast<int>(cpus.size()), names);
  // By itself TVM leaves this one free to move among them.
  cpu_set_t first;
  CPU_ZERO(&first);
  CPU_SET(cpus.front(), &first);
  if (sched_setaffinity(0, sizeof(first), &first) != 0) {
    throw std::runtime_error("the thread cannot be pinned to CPU " + std::to_string(cpus.front()));
  }
}

}  // namespace resq::board

#endif  // RESQ_BOARD_PINNING_HPP_
