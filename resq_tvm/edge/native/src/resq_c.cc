// The C interface: handles around resq.hpp's objects, exceptions turned into codes.
#include "resq.h"

#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "resq.hpp"

struct resq_artifact {
  std::shared_ptr<const resq::Artifact> shared;
};

struct resq_session {
  resq::Session session;
  std::vector<resq::Values> frame;
  std::vector<resq::Values> outputs;  // of the latest frame; empty before the first
};

namespace {

thread_local std::string last_error;

resq_code fail(resq_code code, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {  // no memory for the text: the code alone tells
    last_error.clear();
  }
  return code;
}

// Runs a body and returns its failure as a code.
template <typename Body>
resq_code guarded(Body body) noexcept {
  try {
    body();
    return RESQ_OK;
  } catch (const resq::ArtifactError& error) {
    return fail(RESQ_ARTIFACT_ERROR, error.what());
  } catch (const resq::TargetError& error) {
    return fail(RESQ_TARGET_ERROR, error.what());
  } catch (const resq::ConfigError& error) {
    return fail(RESQ_CONFIG_ERROR, error.what());
  } catch (const resq::FrameError& error) {
    return fail(RESQ_FRAME_ERROR, error.what());
  } catch (const std::exception& error) {
    return fail(RESQ_RUNTIME_ERROR, error.what());
  } catch (...) {
    return fail(RESQ_RUNTIME_ERROR, "unknown failure");
  }
}

void require(const void* pointer, const char* name) {
  if (pointer == nullptr) throw resq::ConfigError(std::string(name) + " is NULL");
}

void describe(const std::vector<resq::TensorInfo>& infos, std::size_t number,
              resq_tensor_info* info) {
  require(info, "info");
  if (number >= infos.size()) {
    throw resq::ConfigError("there is no tensor " + std::to_string(number) + "; there are " +
                            std::to_string(infos.size()));
  }
  const resq::TensorInfo& found = infos[number];
  *info = {found.name.c_str(), found.layout.c_str(), found.shape.data(), found.shape.size(),
           found.size()};
}

}  // namespace

const char* resq_last_error(void) { return last_error.c_str(); }

resq_code resq_artifact_load(const char* path, resq_artifact** artifact) {
  return guarded([&] {
    require(path, "path");
    require(artifact, "artifact");
    *artifact = new resq_artifact{resq::Artifact::load(path)};
  });
}

void resq_artifact_free(resq_artifact* artifact) { delete artifact; }

size_t resq_input_count(const resq_artifact* artifact) {
  return artifact == nullptr ? 0 : artifact->shared->facts().inputs.size();
}

size_t resq_output_count(const resq_artifact* artifact) {
  return artifact == nullptr ? 0 : artifact->shared->facts().outputs.size();
}

resq_code resq_input_info(const resq_artifact* artifact, size_t number, resq_tensor_info* info) {
  return guarded([&] {
    require(artifact, "artifact");
    describe(artifact->shared->facts().inputs, number, info);
  });
}

resq_code resq_output_info(const resq_artifact* artifact, size_t number, resq_tensor_info* info) {
  return guarded([&] {
    require(artifact, "artifact");
    describe(artifact->shared->facts().outputs, number, info);
  });
}

resq_code resq_session_new(const resq_artifact* artifact, const resq_options* options_or_null,
                           resq_session** session) {
  return guarded([&] {
    require(artifact, "artifact");
    require(session, "session");
    resq::SessionOptions options;
    if (options_or_null != nullptr) {
      options.period = options_or_null->period;
      options.threads = options_or_null->threads;
      if (options_or_null->threshold_scale != 0) {
        options.threshold_scale = options_or_null->threshold_scale;
      }
      options.guard = options_or_null->no_guard == 0;
      if (options_or_null->adaptive != 0) options.keyframes = "adaptive";
      if (options_or_null->min_distance != 0) {
        options.min_distance = options_or_null->min_distance;
      }
      options.max_distance = options_or_null->max_distance;
      if (options_or_null->repeat != nullptr) options.repeat = *options_or_null->repeat;
    }
    *session = new resq_session{resq::Session(artifact->shared, options), {}, {}};
  });
}

void resq_session_free(resq_session* session) { delete session; }

resq_code resq_session_run(resq_session* session, const float* const* inputs, size_t count) {
  return guarded([&] {
    require(session, "session");
    require(inputs, "inputs");
    const auto& infos = session->session.artifact().facts().inputs;
    session->frame.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      session->frame[i] = {inputs[i], i < infos.size() ? infos[i].size() : 0};
    }
    session->outputs = session->session.run(session->frame);
  });
}

resq_code resq_session_output(const resq_session* session, size_t number, const float** values) {
  return guarded([&] {
    require(session, "session");
    require(values, "values");
    if (number >= session->outputs.size()) {
      throw resq::ConfigError("there is no output " + std::to_string(number) +
                              " of a frame; the session has " +
                              std::to_string(session->outputs.size()));
    }
    *values = session->outputs[number].data;
  });
}

resq_code resq_session_last(const resq_session* session, resq_frame_info* info) {
  return guarded([&] {
    require(session, "session");
    require(info, "info");
    const resq::FrameInfo& last = session->session.last();
    *info = {resq::to_string(last.kind), resq::to_string(last.reason), last.index, last.ms,
             last.changed.value_or(-1),  last.predicted_ms.value_or(-1)};
  });
}

resq_code resq_session_force_keyframe(resq_session* session) {
  return guarded([&] {
    require(session, "session");
    session->session.force_keyframe();
  });
}

resq_code resq_session_skip(resq_session* session) {
  return guarded([&] {
    require(session, "session");
    session->session.skip();
  });
}

resq_code resq_session_reset(resq_session* session) {
  return guarded([&] {
    require(session, "session");
    session->session.reset();
    session->outputs.clear();
  });
}
