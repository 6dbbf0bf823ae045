// The resq-tvm runtime for C++17: loads an artifact (NAME.resq/) and runs video through it frame
// by frame, keyframes at high and residual frames at low precision. docs/deploy.md has a tour.
//
// Compile src/resq.cc beside your program; it links libtvm_runtime and libtvm_ffi. This header
// needs neither.
#ifndef RESQ_HPP_
#define RESQ_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace resq {

// Errors that a user can cause and mend. Every message is one line and names the thing, its value
// and the way out.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// An artifact is missing, truncated, altered, or of another version.
class ArtifactError : public Error {
 public:
  using Error::Error;
};

// This CPU lacks a feature that the artifact's library needs.
class TargetError : public Error {
 public:
  using Error::Error;
};

// An option is out of range, or the artifact cannot do what it asks.
class ConfigError : public Error {
 public:
  using Error::Error;
};

// A frame has the wrong size, or holds NaN or infinity.
class FrameError : public Error {
 public:
  using Error::Error;
};

// A network input or output, float32, in the source model's shape.
struct TensorInfo {
  std::string name;
  std::vector<std::int64_t> shape;
  std::string layout;  // "NCHW", "NHWC" or ""

  std::size_t size() const;  // in elements
};

// How uint8 RGB pictures become the network's input: (pixel - mean) / std * scale, channel by
// channel in the network's colour order.
struct InputProcessing {
  std::optional<std::array<std::int64_t, 4>> crop;  // y, x, height, width
  std::string resize = "bilinear";
  std::string colour = "RGB";
  std::array<double, 3> mean{0, 0, 0};
  std::array<double, 3> std{1, 1, 1};
  double scale = 1;
};

// What the manifest says that users ask for.
struct Facts {
  std::string scheme;  // "W8A8->W4A4"
  std::string target;  // "cortex-a72"
  int period = 1;
  std::vector<TensorInfo> inputs;
  std::vector<TensorInfo> outputs;
  std::size_t state_bytes = 0;      // of every stream
  std::size_t workspace_bytes = 0;  // of every stream of a scheme that chooses bits
  bool has_residual = false;        // else every frame is computed on its own
  std::optional<InputProcessing> processing;
};

// A loaded artifact: library and parameters. Any number of sessions in any threads may share it.
class Artifact {
 public:
  // Checks in this order: manifest (schema, format version), sizes and SHA-256 of the files,
  // versions of TVM, CPU features, parameters; only then is the library loaded, which runs code.
  // Throws ArtifactError or TargetError.
  //
  // TVM's thread pools read the environment: unless set, TVM_NUM_THREADS becomes the number of
  // available CPUs and TVM_BIND_THREADS 0. Load the first artifact before starting threads that
  // read the environment.
  static std::shared_ptr<const Artifact> load(const std::string& path);

  ~Artifact();
  Artifact(const Artifact&) = delete;
  Artifact& operator=(const Artifact&) = delete;

  const std::string& path() const;
  const Facts& facts() const;

 private:
  friend class Session;
  struct Parts;
  explicit Artifact(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// What programs take, in milliseconds, where a session shall not learn it from its own frames: its
// decisions then depend on the frames alone.
struct FixedCosts {
  double keyframe = 0;
  double frame = 0;  // on its own, without state
  double probe = 0;  // finding out what changed
  // A residual frame behind its probe: share of the input that changed, milliseconds. Shares rise;
  // between them lines are drawn, beyond them nothing changes.
  std::vector<std::pair<double, double>> residual;
};

// docs/streams.md tells the rules. Below the line all is for artifacts that choose bits.
struct SessionOptions {
  int period = 0;   // a keyframe every so many frames; 0: the artifact's own
  int threads = 0;  // per frame; 0: every available CPU
  // --------------------------------
  float threshold_scale = 1;         // more leaves out more
  bool guard = true;                 // frames whose residual would not pay run on their own
  std::string keyframes = "period";  // or "adaptive": where too much has changed
  int min_distance = 1;              // from one chosen keyframe to the next at least
  int max_distance = 0;              // "adaptive": at most; 0: four periods
  std::optional<double> repeat;      // share up to which a changed frame gets the latest output
  std::optional<FixedCosts> costs;   // learned from frames by default
};

// What gives a frame its output: a program, or the frame that was computed last.
enum class Kind { keyframe, residual, frame, repeat };

enum class Reason {  // docs/streams.md; none: a residual frame needs no reason
  none,
  first,
  forced,
  lost,
  period,
  max_distance,
  scene,
  cost,
  resume,
  measure,
  stateless,
  repeat
};

const char* to_string(Kind kind);
const char* to_string(Reason reason);  // "" for none

// What a session did with its latest frame.
struct FrameInfo {
  Kind kind = Kind::keyframe;
  Reason reason = Reason::none;  // why it is no residual frame
  std::int64_t index = 0;        // in the stream, lost frames counted
  double ms = 0;                 // of the network itself, without checks and copies around it
  // Share of the input that changed since the frame it was compared with; none if nobody looked.
  std::optional<double> changed;
  std::optional<double> predicted_ms;  // of a residual frame, where `changed` is about that
};

// Numbers of one tensor in the source model's layout; not owned.
struct Values {
  const float* data = nullptr;
  std::size_t size = 0;
};

// One stream through an artifact. One thread at a time may use it; its first frame in a thread
// makes that thread's pool of workers.
class Session {
 public:
  // Throws ConfigError.
  explicit Session(std::shared_ptr<const Artifact> artifact, const SessionOptions& options = {});
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  // Runs one frame: the values of every network input. Returns the values of every output; they
  // are valid until the next frame, reset() or the session's end. Throws FrameError and leaves
  // the session as it was; a caller who drops the frame then calls skip().
  const std::vector<Values>& run(const std::vector<Values>& frame);

  // The same for a network of one input.
  const std::vector<Values>& run(Values frame);

  void force_keyframe();  // the next frame; the period restarts there
  void skip();            // counts a frame that was lost: the next one is a keyframe
  void reset();           // forgets the stream: the next frame is frame 0

  const FrameInfo& last() const;
  int period() const;
  int threads() const;
  const Artifact& artifact() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// Turns uint8 RGB pictures (height, width, 3) of the network's own size into its input, bit for
// bit as the Python package does. Throws ConfigError if the artifact has no processing, needs a
// crop, or does not take one picture.
class Preprocessor {
 public:
  explicit Preprocessor(const Artifact& artifact);

  std::size_t picture_bytes() const { return height_ * width_ * 3; }
  std::size_t height() const { return height_; }
  std::size_t width() const { return width_; }

  // Returns values that are valid until the next call.
  Values operator()(const std::uint8_t* picture);

 private:
  bool planes_ = false;  // NCHW
  bool bgr_ = false;
  std::size_t height_ = 0, width_ = 0;
  std::array<std::array<float, 256>, 3> table_{};  // of every channel and value of a pixel
  std::vector<float> values_;
};

}  // namespace resq

#endif  // RESQ_HPP_
