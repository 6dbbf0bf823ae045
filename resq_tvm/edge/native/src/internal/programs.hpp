// The programs of an artifact at work on one stream: state and workspace. The protocol is
// docs/artifact.md's; resq_tvm/programs.py is the same in Python.
#ifndef RESQ_INTERNAL_PROGRAMS_HPP_
#define RESQ_INTERNAL_PROGRAMS_HPP_

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "tensors.hpp"

namespace resq::internal {

using Tensors = std::vector<ffi::Tensor>;

class Programs {
 public:
  // Takes a library that other streams share; the caller sees to it that one stream at a time is
  // being made. Throws std::exception where the library lacks a program.
  Programs(const Manifest& manifest, const ffi::Module& library, const Tensors& params)
      : manifest_(manifest), params_(as_tuple(params)) {
    machine_ = required(library, "vm_load_executable")().cast<ffi::Module>();
    constexpr int kPooledAllocator = 2;
    required(*machine_, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    keyframe_ = required(*machine_, "keyframe");
    if (manifest.facts.has_residual) residual_ = required(*machine_, "residual");
    if (manifest.probe) probe_ = required(*machine_, "probe");
    if (manifest.note) {
      note_ = required(*machine_, "note");
      peek_ = required(*machine_, "peek");
    }
    if (manifest.frame_params) {
      frame_ = required(*machine_, "frame");
      Tensors own;
      for (std::size_t number : *manifest.frame_params) own.push_back(params[number]);
      frame_params_ = as_tuple(own);
    }
  }

  bool can_probe() const { return probe_.has_value(); }
  bool has_frame() const { return frame_.has_value(); }
  bool can_peek() const { return peek_.has_value(); }

  // Makes the workspace if it has not been made: not part of a frame's time.
  void prepare() {
    if (!workspace_.empty() || manifest_.workspace.empty()) return;
    for (const WorkspaceEntry& entry : manifest_.workspace) {
      workspace_.push_back(new_tensor(entry.shape, entry.type));
      fill(workspace_.back(), entry.fill);
    }
    workspace_tuple_ = as_tuple(workspace_);
  }

  // Runs the program of that name, or none to repeat outputs; returns the outputs.
  const Tensors& run(Kind kind, const Tensors& frame) {
    switch (kind) {
      case Kind::keyframe:
        latest_ = keyframe(frame);
        break;
      case Kind::residual:
        latest_ = residual(frame);
        break;
      case Kind::frame:
        latest_ = alone(frame);
        break;
      case Kind::repeat:
        share_.reset();
        break;
    }
    return latest_;
  }

  // Finds out what share of the frame changed since the keyframe; 1 if that is not known. Once per
  // frame: `peek` may have done it, where the frame noted is the keyframe.
  double probe(const Tensors& frame) {
    if (!probe_) return 1;
    if (!share_) share_ = compare(*probe_, frame, state_);
    return *share_;
  }

  // Keeps a frame that was computed for `peek`; a keyframe is in the state.
  void note(Kind kind, const Tensors& frame) {
    if (kind == Kind::keyframe) return;
    if (!noted_) noted_ = state_;
    const Tensors found = from_tuple(invoke(*note_, frame, {params_}));
    for (std::size_t number = 0; number < found.size(); ++number) {
      const ffi::Tensor& tensor = found[number];
      const auto place = manifest_.noted.find(static_cast<int>(number));
      if (place == manifest_.noted.end()) {
        throw std::runtime_error("no state holds input " + std::to_string(number));
      }
      // State in float32 is the frame itself, in memory that the next one is written to.
      const bool given = std::any_of(frame.begin(), frame.end(), [&](const ffi::Tensor& input) {
        return input.data_ptr() == tensor.data_ptr();
      });
      noted_->at(place->second) = given ? copy_of(tensor) : tensor;
    }
  }

  // Finds out what share of the frame changed since the frame noted.
  double peek(const Tensors& frame) {
    if (!noted_) return probe(frame);
    share_.reset();
    return compare(*peek_, frame, *noted_);
  }

  void forget() {
    state_.clear();
    noted_.reset();
  }

  // Whether the state holds a tensor's memory, so that nobody may write there any more.
  bool holds(const ffi::Tensor& tensor) const {
    return std::any_of(state_.begin(), state_.end(), [&](const ffi::Tensor& held) {
      return held.data_ptr() == tensor.data_ptr();
    });
  }

 private:
  using Tuple = ffi::Array<ffi::Tensor>;

  static Tuple as_tuple(const Tensors& tensors) { return Tuple(tensors.begin(), tensors.end()); }

  static Tensors from_tuple(const ffi::Any& tuple) {
    const Tuple found = tuple.cast<Tuple>();
    return Tensors(found.begin(), found.end());
  }

  static ffi::Function required(const ffi::Module& module, const char* name) {
    ffi::Optional<ffi::Function> found = module->GetFunction(name);
    if (!found) throw std::runtime_error(std::string("there is no function ") + name);
    return *found;
  }

  // Returns outputs and state.
  static std::pair<Tensors, Tensors> call(const ffi::Function& program, const Tensors& frame,
                                          const std::vector<Tuple>& rest) {
    const auto both = invoke(program, frame, rest).cast<ffi::Array<ffi::Any>>();
    return {from_tuple(both[0]), from_tuple(both[1])};
  }

  static ffi::Any invoke(const ffi::Function& program, const Tensors& frame,
                         const std::vector<Tuple>& rest) {
    std::vector<ffi::AnyView> arguments(frame.begin(), frame.end());
    arguments.insert(arguments.end(), rest.begin(), rest.end());
    ffi::Any result;
    program.CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
    return result;
  }

  // Runs the keyframe program and keeps its state; returns the outputs.
  Tensors keyframe(const Tensors& frame) {
    const auto [results, state] = call(*keyframe_, frame, {params_});
    state_ = state;
    noted_.reset();
    share_.reset();
    if (!manifest_.workspace.empty()) take_over(results);
    return results;
  }

  // Runs the frame program; returns the outputs. State and workspace stay as they are.
  Tensors alone(const Tensors& frame) {
    share_.reset();
    return call(*frame_, frame, {frame_params_}).first;
  }

  // Runs the residual program on what the keyframe left; returns the outputs.
  Tensors residual(const Tensors& frame) {
    if (manifest_.workspace.empty()) {
      const auto [results, state] = call(*residual_, frame, {as_tuple(state_), params_});
      state_ = state;
      return results;
    }
    prepare();
    // A frame's share says everything only if every input has a gate.
    const bool unchanged = probe(frame) == 0 && compared_ == manifest_.facts.inputs.size();
    share_.reset();
    if (unchanged && as_key_) return results_;
    results_ = call(*residual_, frame, {as_tuple(state_), workspace_tuple_, params_}).first;
    as_key_ = unchanged;
    return results_;
  }

  // Lets residual frames go on from the keyframe's outputs, in place.
  void take_over(const Tensors& results) {
    results_ = results;
    as_key_ = true;
    prepare();
    for (std::size_t i = 0; i < workspace_.size(); ++i) {
      const WorkspaceEntry& entry = manifest_.workspace[i];
      if (entry.refresh) fill(workspace_[i], entry.fill);
      if (!entry.output) continue;
      const ffi::Tensor& result = results.at(*entry.output);
      if (holds(result)) {  // state must not change
        if (byte_count(result) != byte_count(workspace_[i])) {
          throw std::runtime_error("the tensor " + entry.name + " does not fit its output");
        }
        std::memcpy(bytes_of(workspace_[i]), bytes_of(result), byte_count(result));
      } else {
        workspace_[i] = result;
      }
    }
    workspace_tuple_ = as_tuple(workspace_);
  }

  // Runs a probe, which the residual program goes on from, or a comparison with another frame.
  double compare(const ffi::Function& program, const Tensors& frame, const Tensors& state) {
    prepare();
    const Tensors maps =
        from_tuple(invoke(program, frame, {as_tuple(state), workspace_tuple_, params_}));
    compared_ = maps.size();
    double share = 0;
    for (const ffi::Tensor& map : maps) share = std::max(share, share_of_nonzero(map));
    return share;
  }

  const Manifest& manifest_;
  std::optional<ffi::Module> machine_;
  std::optional<ffi::Function> keyframe_, residual_, probe_, frame_, note_, peek_;
  Tuple params_, frame_params_;
  Tensors state_, workspace_;
  Tuple workspace_tuple_;
  std::optional<Tensors> noted_;  // a frame in the place of the keyframe's; none: the keyframe
  std::optional<double> share_;   // of the frame that is run, once it was probed
  std::size_t compared_ = 0;      // inputs that have a gate
  Tensors latest_;                // outputs of the frame computed last
  Tensors results_;      // of the latest frame of an artifact that chooses bits
  bool as_key_ = false;  // whether they are those of the keyframe
};

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_PROGRAMS_HPP_
