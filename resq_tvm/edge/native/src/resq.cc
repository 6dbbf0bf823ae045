// The one source of the runtime; resq.hpp says what it does.
#include "resq.hpp"

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "internal/checks.hpp"
#include "internal/layout.hpp"
#include "internal/machine.hpp"
#include "internal/manifest.hpp"
#include "internal/markers.hpp"
#include "internal/programs.hpp"

namespace resq {

using internal::first_line;
using internal::Manifest;
using internal::named;
using internal::Tensors;

std::size_t TensorInfo::size() const {
  return static_cast<std::size_t>(internal::elements(shape));
}

struct Artifact::Parts {
  std::string path;
  Manifest manifest;
  Tensors params;
  std::optional<tvm::ffi::Module> library;
  std::mutex making;  // a library caches what it looks up, so one stream at a time is made
};

Artifact::Artifact(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Artifact::~Artifact() = default;
const std::string& Artifact::path() const { return parts_->path; }
const Facts& Artifact::facts() const { return parts_->manifest.facts; }

std::shared_ptr<const Artifact> Artifact::load(const std::string& path) {
  internal::prepare_thread_pools();
  auto parts = std::make_unique<Parts>();
  parts->path = path;
  parts->manifest = internal::load_manifest(path);
  const Manifest& manifest = parts->manifest;
  const std::string code = internal::verified_contents(path, internal::kLibrary, manifest);
  const std::string params = internal::verified_contents(path, internal::kParams, manifest);
  internal::check_machine(path, manifest, code);
  parts->params = internal::read_params(path, manifest, params);
  const std::string library = path + "/" + internal::kLibrary;
  // A name with a slash: the loader searches for others.
  std::unique_ptr<char, void (*)(void*)> absolute(realpath(library.c_str(), nullptr), std::free);
  try {
    if (!absolute) throw std::runtime_error("it has gone");
    parts->library = tvm::ffi::Module::LoadFromFile(tvm::ffi::String(absolute.get()));
  } catch (const std::exception& error) {
    throw ArtifactError(named(path) + ": library.so cannot be loaded (" +
                        first_line(error.what()) + ")");
  }
  return std::shared_ptr<const Artifact>(new Artifact(std::move(parts)));
}

const char* to_string(Kind kind) { return kind == Kind::keyframe ? "keyframe" : "residual"; }

const char* to_string(Reason reason) {
  switch (reason) {
    case Reason::first:
      return "first";
    case Reason::forced:
      return "forced";
    case Reason::lost:
      return "lost";
    case Reason::period:
      return "period";
    case Reason::stateless:
      return "stateless";
    case Reason::none:
      break;
  }
  return "";
}

namespace {

// The shape in which the library takes a tensor: channels last.
internal::Shape physical_shape(const TensorInfo& info) {
  const auto& s = info.shape;
  return info.layout == "NCHW" ? internal::Shape{s[0], s[2], s[3], s[1]} : s;
}

Tensors scaled_params(const Manifest& manifest, const Tensors& params, float scale) {
  Tensors scaled = params;
  for (std::size_t i = 0; i < params.size() && scale != 1; ++i) {
    const internal::TypedShape& entry = manifest.params[i];
    if (entry.name != internal::kThresholds || entry.type != "float32") continue;
    scaled[i] = internal::new_tensor(entry.shape, params[i].dtype());
    const auto* from = reinterpret_cast<const float*>(internal::bytes_of(params[i]));
    auto* to = reinterpret_cast<float*>(internal::bytes_of(scaled[i]));
    for (std::size_t n = 0; n < internal::element_count(params[i]); ++n) to[n] = from[n] * scale;
  }
  return scaled;
}

}  // namespace

struct Session::Parts {
  std::shared_ptr<const Artifact> artifact;
  const Manifest& manifest;
  int period, threads;
  std::optional<internal::Programs> programs;
  Reason pending = Reason::first;  // why the next frame must be a keyframe
  int distance = 0;                // frames since and including the keyframe
  std::int64_t index = 0;
  FrameInfo last;
  std::vector<std::optional<tvm::ffi::Tensor>> inputs;
  Tensors results;                            // keep what `outputs` shows
  std::vector<std::vector<float>> converted;  // outputs in NCHW
  std::vector<Values> outputs;

  Parts(std::shared_ptr<const Artifact> shared, const Manifest& its_manifest)
      : artifact(std::move(shared)),
        manifest(its_manifest),
        inputs(its_manifest.facts.inputs.size()),
        converted(its_manifest.facts.outputs.size()),
        outputs(its_manifest.facts.outputs.size()) {}

  // Whether the next frame is a keyframe, and why.
  Reason decide() const {
    if (!manifest.facts.has_residual) return Reason::stateless;
    if (pending != Reason::none) return pending;
    return distance >= period ? Reason::period : Reason::none;
  }

  void force(Reason reason) {
    if (pending != Reason::first) pending = reason;
  }

  Tensors take(const std::vector<Values>& frame) {
    const std::vector<TensorInfo>& infos = manifest.facts.inputs;
    const std::string place = "frame " + std::to_string(index);
    if (frame.size() != infos.size()) {
      throw FrameError(place + " has " + std::to_string(frame.size()) +
                       " tensors, the network takes " + std::to_string(infos.size()));
    }
    for (std::size_t i = 0; i < infos.size(); ++i) {
      const std::string input = place + ", input " + infos[i].name;
      if (frame[i].data == nullptr || frame[i].size != infos[i].size()) {
        throw FrameError(input + " has " + std::to_string(frame[i].size) +
                         " numbers; the network takes " + std::to_string(infos[i].size()));
      }
      if (!internal::all_finite(frame[i].data, frame[i].size)) {
        throw FrameError(input + " holds NaN or infinity; clean the frame or drop it");
      }
    }
    Tensors tensors;
    for (std::size_t i = 0; i < infos.size(); ++i) tensors.push_back(fill_input(i, frame[i]));
    return tensors;
  }

  tvm::ffi::Tensor fill_input(std::size_t i, const Values& values) {
    const TensorInfo& info = manifest.facts.inputs[i];
    if (!inputs[i]) {
      inputs[i] = internal::new_tensor(physical_shape(info), DLDataType{kDLFloat, 32, 1});
    }
    auto* data = reinterpret_cast<float*>(internal::bytes_of(*inputs[i]));
    if (info.layout == "NCHW") {
      const std::size_t channels = static_cast<std::size_t>(info.shape[1]);
      internal::interleave(values.data, channels, values.size / channels, data);
    } else {
      std::memcpy(data, values.data, values.size * sizeof(float));
    }
    return *inputs[i];
  }

  void give(Tensors computed) {
    const std::vector<TensorInfo>& infos = manifest.facts.outputs;
    if (computed.size() != infos.size()) throw Error("the library gives another number of outputs");
    results = std::move(computed);
    for (std::size_t i = 0; i < infos.size(); ++i) {
      const auto* data = reinterpret_cast<const float*>(internal::bytes_of(results[i]));
      const std::size_t size = infos[i].size();
      if (internal::element_count(results[i]) != size) {
        throw Error("output " + infos[i].name + " does not have the shape of the manifest");
      }
      if (infos[i].layout == "NCHW") {
        const std::size_t channels = static_cast<std::size_t>(infos[i].shape[1]);
        converted[i].resize(size);
        internal::separate(data, channels, size / channels, converted[i].data());
        data = converted[i].data();
      }
      outputs[i] = {data, size};
    }
  }
};

Session::Session(std::shared_ptr<const Artifact> artifact, const SessionOptions& options) {
  if (!artifact) throw ConfigError("a session needs an artifact");
  Artifact::Parts& shared = *artifact->parts_;
  const Facts& facts = shared.manifest.facts;
  if (options.keyframes != "period") {
    throw ConfigError("keyframes '" + options.keyframes +
                      "' are not in this runtime; use a period here, or the Python session");
  }
  if (options.period < 0) {
    throw ConfigError("period " + std::to_string(options.period) +
                      " is out of range; use 1 or more, or 0 for the artifact's own");
  }
  const int cpus = internal::available_cpus();
  if (options.threads < 0 || options.threads > cpus) {
    throw ConfigError("threads " + std::to_string(options.threads) +
                      " is out of range; this machine allows 1 to " + std::to_string(cpus));
  }
  if (!(options.threshold_scale >= 0) || std::isinf(options.threshold_scale)) {
    throw ConfigError("threshold scale " + std::to_string(options.threshold_scale) +
                      " is out of range; use a finite number of at least 0");
  }
  parts_ = std::make_unique<Parts>(std::move(artifact), shared.manifest);
  parts_->period = options.period == 0 ? facts.period : options.period;
  parts_->threads = options.threads == 0 ? cpus : options.threads;
  const std::lock_guard<std::mutex> lock(shared.making);
  try {
    parts_->programs.emplace(
        shared.manifest, *shared.library,
        scaled_params(shared.manifest, shared.params, options.threshold_scale));
  } catch (const std::exception& error) {
    throw Error(named(shared.path) + ": library.so cannot be used (" + first_line(error.what()) +
                ")");
  }
}

Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

const std::vector<Values>& Session::run(const std::vector<Values>& frame) {
  Parts& p = *parts_;
  const Tensors tensors = p.take(frame);
  const Reason reason = p.decide();
  const Kind kind = reason == Reason::none ? Kind::residual : Kind::keyframe;
  using Clock = std::chrono::steady_clock;
  try {
    internal::use_threads(p.threads);
    p.programs->prepare();
    const Clock::time_point start = Clock::now();
    internal::begin_region(kind == Kind::keyframe);
    Tensors computed = kind == Kind::keyframe ? p.programs->keyframe(tensors)
                                              : p.programs->residual(tensors);
    internal::end_region();
    const std::chrono::duration<double, std::milli> elapsed = Clock::now() - start;
    p.give(std::move(computed));
    p.last = {kind, reason, p.index, elapsed.count()};
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error("frame " + std::to_string(p.index) + " cannot be computed (" +
                first_line(error.what()) + ")");
  }
  for (auto& input : p.inputs) {
    if (input && p.programs->holds(*input)) input.reset();  // became part of the state
  }
  p.distance = kind == Kind::keyframe ? 1 : p.distance + 1;
  if (kind == Kind::keyframe) p.pending = Reason::none;
  ++p.index;
  return p.outputs;
}

const std::vector<Values>& Session::run(Values frame) {
  return run(std::vector<Values>{frame});
}

void Session::force_keyframe() { parts_->force(Reason::forced); }

void Session::skip() {
  ++parts_->index;
  parts_->force(Reason::lost);
}

void Session::reset() {
  parts_->programs->forget();
  parts_->pending = Reason::first;
  parts_->distance = 0;
  parts_->index = 0;
  parts_->last = {};
}

const FrameInfo& Session::last() const { return parts_->last; }
int Session::period() const { return parts_->period; }
int Session::threads() const { return parts_->threads; }
const Artifact& Session::artifact() const { return *parts_->artifact; }

Preprocessor::Preprocessor(const Artifact& artifact) {
  const Facts& facts = artifact.facts();
  const std::string name = named(artifact.path());
  if (!facts.processing) {
    throw ConfigError(name + " has no processing; give float32 frames, or compile it with one");
  }
  const InputProcessing& processing = *facts.processing;
  if (processing.crop) {
    throw ConfigError(name + " crops its frames, which this runtime does not; crop before, or "
                      "give float32 frames");
  }
  const TensorInfo& info = facts.inputs.front();
  planes_ = info.layout == "NCHW";
  const auto& s = info.shape;
  if (facts.inputs.size() != 1 || s.size() != 4 || s[0] != 1 || s[planes_ ? 1 : 3] != 3) {
    throw ConfigError(name + " does not take one picture of three channels; give float32 frames");
  }
  height_ = static_cast<std::size_t>(s[planes_ ? 2 : 1]);
  width_ = static_cast<std::size_t>(s[planes_ ? 3 : 2]);
  bgr_ = processing.colour == "BGR";
  for (std::size_t c = 0; c < 3; ++c) {
    const double factor = processing.scale / processing.std[c];
    const float offset = static_cast<float>(-processing.mean[c] * factor);
    for (std::size_t pixel = 0; pixel < 256; ++pixel) {
      // Volatile: rounded twice, as in Python, whatever the compiler would fuse.
      volatile float product = static_cast<float>(pixel) * static_cast<float>(factor);
      table_[c][pixel] = product + offset;
    }
  }
  values_.resize(info.size());
}

Values Preprocessor::operator()(const std::uint8_t* picture) {
  const std::size_t pixels = height_ * width_;
  const std::size_t step = planes_ ? 1 : 3, plane = planes_ ? pixels : 1;
  for (std::size_t c = 0; c < 3; ++c) {
    const std::uint8_t* from = picture + (bgr_ ? 2 - c : c);
    float* to = values_.data() + c * plane;
    for (std::size_t p = 0; p < pixels; ++p) to[p * step] = table_[c][from[3 * p]];
  }
  return {values_.data(), values_.size()};
}

}  // namespace resq
