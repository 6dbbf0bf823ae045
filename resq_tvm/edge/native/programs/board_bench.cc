// What `resq-tvm bench --rpc-tracker` sends to a board: a library for its RPC server, native or
// Python's. Its one function plays frames through an artifact that was sent, too; times come back.
#include <sys/utsname.h>
#include <tvm/ffi/tvm_ffi.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "pinning.hpp"
#include "resq.hpp"

namespace {

constexpr std::int64_t kBlock = 10;  // rounds between two pauses

using Frame = std::vector<resq::Values>;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The frames of a file, which owns their values.
std::vector<Frame> split(const std::string& contents, const resq::Facts& facts) {
  const auto* values = reinterpret_cast<const float*>(contents.data());
  std::size_t left = contents.size() / sizeof(float);
  std::vector<Frame> frames;
  while (left > 0) {
    Frame frame;
    for (const resq::TensorInfo& input : facts.inputs) {
      if (left < input.size()) throw resq::FrameError("the file of frames ends inside a frame");
      frame.push_back({values, input.size()});
      values += input.size();
      left -= input.size();
    }
    frames.push_back(std::move(frame));
  }
  if (frames.empty()) throw resq::FrameError("the file of frames is empty");
  return frames;
}

template <typename T>
std::string list(const std::vector<T>& values) {
  std::ostringstream text;
  text.precision(9);
  text << '[';
  for (std::size_t i = 0; i < values.size(); ++i) text << (i == 0 ? "" : ", ") << values[i];
  text << ']';
  return text.str();
}

// What the board calls itself, or its processor; empty where neither has a name.
std::string model() {
  std::string found = read_file("/proc/device-tree/model");
  std::istringstream lines(read_file("/proc/cpuinfo"));
  for (std::string line; found.empty() && std::getline(lines, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != line.npos) found = line.substr(colon + 2);
  }
  std::string name;
  for (char c : found) {
    if (c >= ' ' && c <= '~' && c != '"' && c != '\\') name += c;
  }
  return name;
}

// A stream that shows the same few frames again and again.
class Player {
 public:
  Player(std::shared_ptr<const resq::Artifact> artifact, const resq::SessionOptions& options,
         std::vector<Frame> frames)
      : session_(std::move(artifact), options), frames_(std::move(frames)) {}

  // Plays a keyframe and the residual frames of its period; adds milliseconds to `times`.
  void round(std::vector<double>* times = nullptr) {
    session_.force_keyframe();
    for (int n = 0; n < session_.period(); ++n) {
      session_.run(frames_[shown_++ % frames_.size()]);
      const resq::FrameInfo& last = session_.last();
      if (times) times[last.kind == resq::Kind::residual].push_back(last.ms);
    }
  }

  // Plays a round from the first frame on; returns its outputs.
  std::vector<float> outputs() {
    std::vector<float> all;
    session_.force_keyframe();
    for (int n = 0; n < session_.period(); ++n) {
      for (const resq::Values& output : session_.run(frames_[n % frames_.size()])) {
        all.insert(all.end(), output.data, output.data + output.size);
      }
    }
    return all;
  }

  int threads() const { return session_.threads(); }

 private:
  resq::Session session_;
  std::vector<Frame> frames_;
  std::size_t shown_ = 0;
};

// Runs `repeats` keyframes, each with `followers` residual frames behind it; `warmup` rounds that
// do not count run first, and again after every pause. Returns a JSON object.
tvm::ffi::String bench(const tvm::ffi::String& path, const tvm::ffi::String& frames_path,
                       std::int64_t threads, std::int64_t followers, std::int64_t warmup,
                       std::int64_t repeats, double cool_down_s, const tvm::ffi::String& cores) {
  const std::vector<int> cpus = resq::board::choose_cpus(cores, static_cast<int>(threads));
  const std::size_t allowed = resq::board::allowed_cpus().size();
  resq::board::prepare_pool(cpus);
  const auto artifact = resq::Artifact::load(path);
  const std::string contents = read_file(frames_path);
  resq::SessionOptions options;
  options.threads = static_cast<int>(cpus.empty() ? threads : cpus.size());
  options.period = static_cast<int>(1 + followers);
  options.guard = false;  // what runs must not depend on time
  Player player(artifact, options, split(contents, artifact->facts()));

  const std::vector<float> outputs = player.outputs();  // makes the pool
  resq::board::pin(cpus);
  for (float value : outputs) {
    if (!std::isfinite(value)) throw resq::Error("the outputs hold NaN or infinity");
  }
  const std::vector<float> again = player.outputs();
  if (std::memcmp(again.data(), outputs.data(), outputs.size() * sizeof(float)) != 0) {
    throw resq::Error("the same frames gave other outputs the second time");
  }

  std::vector<double> times[2];
  for (std::int64_t n = 0; n < repeats; ++n) {
    const bool pause = n > 0 && n % kBlock == 0 && cool_down_s > 0;
    if (pause) std::this_thread::sleep_for(std::chrono::duration<double>(cool_down_s));
    for (std::int64_t w = 0; w < warmup && (n == 0 || pause); ++w) player.round();
    player.round(times);
  }
  const int cpu = cpus.empty() ? sched_getcpu() : cpus.front();
  const long clock = resq::board::clock_khz(cpu, "scaling_cur_freq") / 1000;
  const long highest = resq::board::clock_khz(cpu, "cpuinfo_max_freq") / 1000;

  utsname system;
  uname(&system);
  std::ostringstream told;
  told << "{\"keyframe_ms\": " << list(times[0]) << ", \"residual_ms\": " << list(times[1])
       << ", \"cpu\": \"" << model() << "\", \"machine\": \"" << system.machine << "\", \"os\": \""
       << system.sysname << ' ' << system.release << "\", \"cpus\": " << allowed
       << ", \"threads\": " << player.threads() << ", \"pinned\": " << list(cpus)
       << ", \"clock_mhz\": " << clock << ", \"highest_clock_mhz\": " << highest << '}';
  return told.str();
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(resq_board_bench, bench);
