// Frames into a network's tensors and outputs out of them: checks, layouts, copies.
#ifndef RESQ_INTERNAL_BUFFERS_HPP_
#define RESQ_INTERNAL_BUFFERS_HPP_

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "layout.hpp"
#include "programs.hpp"
#include "resq.hpp"
#include "tensors.hpp"

namespace resq::internal {

// The shape in which the library takes a tensor: channels last.
inline Shape physical_shape(const TensorInfo& info) {
  const auto& s = info.shape;
  return info.layout == "NCHW" ? Shape{s[0], s[2], s[3], s[1]} : s;
}

// The tensors of one stream.
class Buffers {
 public:
  explicit Buffers(const Facts& facts)
      : facts_(facts),
        inputs_(facts.inputs.size()),
        converted_(facts.outputs.size()),
        outputs_(facts.outputs.size()) {}

  // Checks a frame and copies it into tensors; `index` is its position in the stream. Throws
  // FrameError before anything is written.
  Tensors load(const std::vector<Values>& frame, std::int64_t index) {
    const std::vector<TensorInfo>& infos = facts_.inputs;
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
      if (!all_finite(frame[i].data, frame[i].size)) {
        throw FrameError(input + " holds NaN or infinity; clean the frame or drop it");
      }
    }
    Tensors tensors;
    for (std::size_t i = 0; i < infos.size(); ++i) tensors.push_back(filled(i, frame[i]));
    return tensors;
  }

  // Gives up tensors that became part of a stream's state.
  void give_up(const Programs& programs) {
    for (auto& input : inputs_) {
      if (input && programs.holds(*input)) input.reset();
    }
  }

  // Shows a program's outputs in the source model's layout, until it is called again.
  void unload(const Tensors& computed) {
    const std::vector<TensorInfo>& infos = facts_.outputs;
    if (computed.size() != infos.size()) throw Error("the library gives another number of outputs");
    results_ = computed;
    for (std::size_t i = 0; i < infos.size(); ++i) {
      const auto* data = reinterpret_cast<const float*>(bytes_of(results_[i]));
      const std::size_t size = infos[i].size();
      if (element_count(results_[i]) != size) {
        throw Error("output " + infos[i].name + " does not have the shape of the manifest");
      }
      if (infos[i].layout == "NCHW") {
        const std::size_t channels = static_cast<std::size_t>(infos[i].shape[1]);
        converted_[i].resize(size);
        separate(data, channels, size / channels, converted_[i].data());
        data = converted_[i].data();
      }
      outputs_[i] = {data, size};
    }
  }

  const std::vector<Values>& outputs() const { return outputs_; }

 private:
  ffi::Tensor filled(std::size_t i, const Values& values) {
    const TensorInfo& info = facts_.inputs[i];
    if (!inputs_[i]) inputs_[i] = new_tensor(physical_shape(info), DLDataType{kDLFloat, 32, 1});
    auto* data = reinterpret_cast<float*>(bytes_of(*inputs_[i]));
    if (info.layout == "NCHW") {
      const std::size_t channels = static_cast<std::size_t>(info.shape[1]);
      interleave(values.data, channels, values.size / channels, data);
    } else {
      std::memcpy(data, values.data, values.size * sizeof(float));
    }
    return *inputs_[i];
  }

  const Facts& facts_;
  std::vector<std::optional<ffi::Tensor>> inputs_;
  Tensors results_;                            // keep what `outputs_` shows
  std::vector<std::vector<float>> converted_;  // outputs in NCHW
  std::vector<Values> outputs_;
};

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_BUFFERS_HPP_
