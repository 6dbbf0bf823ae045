// The one source of the runtime; resq.hpp says what it does.
#include "resq.hpp"

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "internal/buffers.hpp"
#include "internal/checks.hpp"
#include "internal/costs.hpp"
#include "internal/keyframes.hpp"
#include "internal/machine.hpp"
#include "internal/manifest.hpp"
#include "internal/markers.hpp"
#include "internal/options.hpp"
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

const char* to_string(Kind kind) {
  switch (kind) {
    case Kind::keyframe:
      return "keyframe";
    case Kind::frame:
      return "frame";
    case Kind::repeat:
      return "repeat";
    case Kind::residual:
      break;
  }
  return "residual";
}

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
    case Reason::max_distance:
      return "max_distance";
    case Reason::scene:
      return "scene";
    case Reason::cost:
      return "cost";
    case Reason::resume:
      return "resume";
    case Reason::measure:
      return "measure";
    case Reason::stateless:
      return "stateless";
    case Reason::repeat:
      return "repeat";
    case Reason::none:
      break;
  }
  return "";
}

namespace {

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
  internal::KeyframePolicy policy;
  int period, threads;
  std::unique_ptr<internal::Costs> costs;
  internal::Buffers buffers;
  std::optional<internal::Programs> programs;
  std::optional<internal::KeyframeSchedule> schedule;
  std::int64_t index = 0;
  FrameInfo last;

  Parts(std::shared_ptr<const Artifact> shared, const Manifest& its_manifest,
        const SessionOptions& options)
      : artifact(std::move(shared)),
        manifest(its_manifest),
        policy(options),
        period(options.period == 0 ? its_manifest.facts.period : options.period),
        threads(options.threads == 0 ? internal::available_cpus() : options.threads),
        costs(internal::choose_costs(options)),
        buffers(its_manifest.facts) {
    begin();
  }

  // Begins a stream.
  void begin() {
    const internal::Abilities abilities{manifest.facts.has_residual, manifest.probe,
                                        manifest.frame_params.has_value(), manifest.note};
    schedule.emplace(policy, policy.limit(period), *costs, abilities);
    index = 0;
    last = {};
  }

  // Looks at a frame; returns the share that changed.
  double look(const Tensors& tensors, internal::Look at) {
    internal::begin_region(internal::Work::look);
    const double share = at == internal::Look::probe ? programs->probe(tensors)
                                                     : programs->peek(tensors);
    internal::end_region();
    return share;
  }

  // Decides what gives a frame its output: kind, reason, the share that changed, the time that a
  // residual frame is expected to take.
  FrameInfo decide(const Tensors& tensors) {
    std::optional<double> share;
    internal::Step step = schedule->start();
    if (internal::asks_for(step, internal::Look::latest)) {
      share = look(tensors, internal::Look::latest);
      step = schedule->after_latest(*share);
    } else if (internal::asks_for(step, internal::Look::peek)) {
      share = look(tensors, internal::Look::peek);
      step = schedule->after_peek(*share);
    }
    FrameInfo info;
    info.index = index;
    if (const auto* decision = std::get_if<internal::Decision>(&step)) {
      info.kind = decision->kind;
      info.reason = decision->reason;
      if (info.kind != Kind::residual) info.changed = share;
      return info;
    }
    info.changed = look(tensors, internal::Look::probe);
    const internal::Decision decision = schedule->after_probe(*info.changed);
    info.kind = decision.kind;
    info.reason = decision.reason;
    info.predicted_ms = schedule->expected(*info.changed);
    return info;
  }

  // Computes a frame, and keeps account of it in `last`.
  void compute(const Tensors& tensors) {
    using Clock = std::chrono::steady_clock;
    using Milliseconds = std::chrono::duration<double, std::milli>;
    const Clock::time_point start = Clock::now();
    FrameInfo info = decide(tensors);
    const Clock::time_point looked = Clock::now();
    internal::begin_region(internal::work_of(info.kind));
    const Tensors& computed = programs->run(info.kind, tensors);
    internal::end_region();
    const Clock::time_point done = Clock::now();
    if (schedule->keeps(info.kind)) {
      internal::begin_region(internal::Work::note);
      programs->note(info.kind, tensors);
      internal::end_region();
    }
    info.ms = Milliseconds(Clock::now() - start).count();
    schedule->note(info.kind, Milliseconds(done - looked).count(), info.changed,
                   Milliseconds(looked - start).count());
    buffers.give_up(*programs);
    if (info.kind != Kind::repeat) buffers.unload(computed);
    last = info;
    ++index;
  }
};

Session::Session(std::shared_ptr<const Artifact> artifact, const SessionOptions& options) {
  if (!artifact) throw ConfigError("a session needs an artifact");
  Artifact::Parts& shared = *artifact->parts_;
  internal::check_options(options);
  parts_ = std::make_unique<Parts>(std::move(artifact), shared.manifest, options);
  internal::check_policy(parts_->policy, shared.manifest);
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
  const Tensors tensors = p.buffers.load(frame, p.index);
  try {
    internal::use_threads(p.threads);
    p.programs->prepare();
    p.compute(tensors);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error("frame " + std::to_string(p.index) + " cannot be computed (" +
                first_line(error.what()) + ")");
  }
  return p.buffers.outputs();
}

const std::vector<Values>& Session::run(Values frame) {
  return run(std::vector<Values>{frame});
}

void Session::force_keyframe() { parts_->schedule->force(Reason::forced); }

void Session::skip() {
  ++parts_->index;
  parts_->schedule->force(Reason::lost);
}

void Session::reset() {
  parts_->programs->forget();
  parts_->begin();
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
