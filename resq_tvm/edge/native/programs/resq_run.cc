// resq-run: an artifact over raw frames from standard input. The smallest whole use of resq.hpp.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "resq.hpp"

namespace {

constexpr int kRefused = 1;
constexpr int kUsage = 2;

constexpr const char* kHelp =
    "usage: resq-run ARTIFACT [options] < FRAMES\n"
    "\n"
    "Runs every frame of standard input through an artifact and writes the outputs of every frame,\n"
    "one after the other, as float32.\n"
    "\n"
    "  --rgb                 frames are uint8 RGB (height, width, 3) of the network's size, which\n"
    "                        the artifact's processing prepares; else float32 values of all\n"
    "                        inputs in the source model's layout\n"
    "  --period N            a keyframe every N frames; the artifact's own by default\n"
    "  --frames N            stop after N frames\n"
    "  --threads N           threads per frame; every CPU by default\n"
    "  --output FILE         instead of standard output\n"
    "  --times               a line of JSON per frame on standard error: kind, reason, ms, and the\n"
    "                        share of the input that changed\n"
    "\n"
    "Of artifacts that choose bits (docs/streams.md):\n"
    "\n"
    "  --threshold-scale X   factor on the thresholds\n"
    "  --no-guard            residual frames whatever they cost\n"
    "  --keyframes RULE      period, or adaptive: a new keyframe where too much has changed\n"
    "  --min-distance N      frames from one chosen keyframe to the next at least\n"
    "  --max-distance N      the same at most, of adaptive keyframes; four periods by default\n"
    "  --repeat SHARE        the latest output once more for frames that changed up to this share\n"
    "  --costs LIST          milliseconds to decide by instead of learning them from frames, as\n"
    "                        keyframe=7,frame=5,probe=0.2,residual@0=0.5,residual@0.5=3,...\n"
    "                        (residual@SHARE: where this share of the input changed)\n"
    "\n"
    "Exit codes: 0 done, 1 refused (one line on standard error says why), 2 wrong usage.\n";

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string artifact;
  std::string output;  // "": standard output
  resq::SessionOptions session;
  long frames = LONG_MAX;
  bool rgb = false;
  bool times = false;
};

int parse_count(const std::string& option, const std::string& text, long most = INT_MAX) {
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < 1 || value > most) {
    throw UsageError(option + " " + text + " is not a count; use 1 or more");
  }
  return static_cast<int>(value);
}

double parse_number(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') throw UsageError(option + " " + text + " is not a number");
  return value;
}

// Reads name=milliseconds, with commas between.
resq::FixedCosts parse_costs(const std::string& option, const std::string& text) {
  resq::FixedCosts costs;
  std::map<std::string, double*> missing{
      {"keyframe", &costs.keyframe}, {"frame", &costs.frame}, {"probe", &costs.probe}};
  std::istringstream entries(text);
  for (std::string entry; std::getline(entries, entry, ',');) {
    const std::size_t equals = entry.find('=');
    if (equals == entry.npos) throw UsageError(option + " has " + entry + " without '='");
    const std::string name = entry.substr(0, equals);
    const double ms = parse_number(option + " " + name, entry.substr(equals + 1));
    const std::string residual = "residual@";
    if (name.rfind(residual, 0) == 0) {
      const double share = parse_number(option + " residual", name.substr(residual.size()));
      costs.residual.emplace_back(share, ms);
    } else if (const auto found = missing.find(name); found != missing.end()) {
      *found->second = ms;
      missing.erase(found);
    } else {
      throw UsageError(option + " has " + name +
                       " once too often or unknown; use keyframe, frame, probe, residual@SHARE");
    }
  }
  if (!missing.empty()) throw UsageError(option + " needs " + missing.begin()->first);
  return costs;
}

Options parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&]() -> std::string {
      if (++i == count) throw UsageError(word + " needs a value");
      return words[i];
    };
    if (word == "--rgb") {
      options.rgb = true;
    } else if (word == "--times") {
      options.times = true;
    } else if (word == "--period") {
      options.session.period = parse_count(word, value());
    } else if (word == "--frames") {
      options.frames = parse_count(word, value());
    } else if (word == "--threads") {
      options.session.threads = parse_count(word, value());
    } else if (word == "--threshold-scale") {
      options.session.threshold_scale = static_cast<float>(parse_number(word, value()));
    } else if (word == "--keyframes") {
      options.session.keyframes = value();
    } else if (word == "--min-distance") {
      options.session.min_distance = parse_count(word, value());
    } else if (word == "--max-distance") {
      options.session.max_distance = parse_count(word, value());
    } else if (word == "--no-guard") {
      options.session.guard = false;
    } else if (word == "--repeat") {
      options.session.repeat = parse_number(word, value());
    } else if (word == "--costs") {
      options.session.costs = parse_costs(word, value());
    } else if (word == "--output") {
      options.output = value();
    } else if (word.size() > 1 && word[0] == '-') {
      throw UsageError("the option " + word + " is unknown");
    } else if (options.artifact.empty()) {
      options.artifact = word;
    } else {
      throw UsageError("the argument " + word + " is one too many");
    }
  }
  if (options.artifact.empty()) throw UsageError("name an artifact");
  return options;
}

// Where outputs go: standard output, or a file that appears whole or not at all.
class Sink {
 public:
  explicit Sink(const std::string& path) : path_(path) {
    struct stat facts;
    const bool special = stat(path.c_str(), &facts) == 0 && !S_ISREG(facts.st_mode);
    if (path.empty()) {
      file_ = stdout;
    } else {
      staging_ = special ? "" : path + ".tmp-" + std::to_string(getpid());
      file_ = std::fopen(special ? path.c_str() : staging_.c_str(), "wb");
    }
    if (file_ == nullptr) fail();
  }

  ~Sink() {
    if (file_ != nullptr && file_ != stdout) std::fclose(file_);
    if (!staging_.empty()) std::remove(staging_.c_str());
  }

  void write(const resq::Values& values) {
    if (std::fwrite(values.data, sizeof(float), values.size, file_) != values.size) fail();
  }

  void finish() {
    std::FILE* file = std::exchange(file_, nullptr);
    if ((file == stdout ? std::fflush(file) : std::fclose(file)) != 0) fail();
    if (!staging_.empty() && std::rename(staging_.c_str(), path_.c_str()) != 0) fail();
    staging_.clear();
  }

 private:
  [[noreturn]] void fail() const {
    throw resq::Error("output '" + (path_.empty() ? "standard output" : path_) +
                      "' cannot be written (" + std::strerror(errno) + ")");
  }

  std::string path_, staging_;
  std::FILE* file_ = nullptr;
};

// Reads one frame; returns false at the end of the input.
bool read_frame(void* data, std::size_t bytes, long number) {
  const std::size_t found = std::fread(data, 1, bytes, stdin);
  if (found == bytes) return true;
  if (found == 0 && std::feof(stdin)) return false;
  throw resq::FrameError("standard input ends inside frame " + std::to_string(number) + ": " +
                         std::to_string(found) + " of " + std::to_string(bytes) + " bytes");
}

std::string json(std::optional<double> value) {
  if (!value) return "null";
  char text[32];
  std::snprintf(text, sizeof(text), "%.17g", *value);
  return text;
}

void report(const resq::FrameInfo& info) {
  const std::string reason = resq::to_string(info.reason);
  std::fprintf(stderr,
               "{\"frame\": %lld, \"kind\": \"%s\", \"reason\": %s, \"ms\": %.6f, "
               "\"changed\": %s, \"predicted_ms\": %s}\n",
               static_cast<long long>(info.index), resq::to_string(info.kind),
               reason.empty() ? "null" : ("\"" + reason + "\"").c_str(), info.ms,
               json(info.changed).c_str(), json(info.predicted_ms).c_str());
}

void run(const Options& options) {
  const auto artifact = resq::Artifact::load(options.artifact);
  resq::Session session(artifact, options.session);
  std::optional<resq::Preprocessor> prepare;
  if (options.rgb) prepare.emplace(*artifact);

  std::vector<std::uint8_t> picture(prepare ? prepare->picture_bytes() : 0);
  std::vector<std::vector<float>> tensors;
  std::vector<resq::Values> frame;
  for (const resq::TensorInfo& info : artifact->facts().inputs) {
    tensors.emplace_back(prepare ? 0 : info.size());
    frame.push_back({tensors.back().data(), tensors.back().size()});
  }
  const auto next = [&](long number) {
    if (prepare) {
      if (!read_frame(picture.data(), picture.size(), number)) return false;
      frame[0] = (*prepare)(picture.data());
      return true;
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const std::size_t bytes = tensors[i].size() * sizeof(float);
      if (read_frame(tensors[i].data(), bytes, number)) continue;
      if (i == 0) return false;
      throw resq::FrameError("standard input ends between the tensors of frame " +
                             std::to_string(number));
    }
    return true;
  };

  Sink sink(options.output);
  for (long number = 0; number < options.frames && next(number); ++number) {
    for (const resq::Values& values : session.run(frame)) sink.write(values);
    if (options.times) report(session.last());
  }
  sink.finish();
}

}  // namespace

int main(int count, char** words) {
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(words[i], "--help") == 0 || std::strcmp(words[i], "-h") == 0) {
      std::fputs(kHelp, stdout);
      return 0;
    }
  }
  try {
    run(parse(count, words));
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "resq-run: error: %s; see resq-run --help\n", error.what());
    return kUsage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "resq-run: error: %s\n", error.what());
    return kRefused;
  }
}
