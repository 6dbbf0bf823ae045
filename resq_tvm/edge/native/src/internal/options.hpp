// The options of a session against their ranges and against what an artifact has.
#ifndef RESQ_INTERNAL_OPTIONS_HPP_
#define RESQ_INTERNAL_OPTIONS_HPP_

#include <cmath>
#include <memory>
#include <string>

#include "costs.hpp"
#include "keyframes.hpp"
#include "machine.hpp"
#include "manifest.hpp"
#include "resq.hpp"

namespace resq::internal {

inline std::unique_ptr<Costs> choose_costs(const SessionOptions& options) {
  if (options.costs) return std::make_unique<ConstantCosts>(*options.costs);
  return std::make_unique<CostModel>();
}

// Throws ConfigError where an option is out of range, whatever the artifact.
inline void check_options(const SessionOptions& options) {
  if (options.period < 0) {
    throw ConfigError("period " + std::to_string(options.period) +
                      " is out of range; use 1 or more, or 0 for the artifact's own");
  }
  const int cpus = available_cpus();
  if (options.threads < 0 || options.threads > cpus) {
    throw ConfigError("threads " + std::to_string(options.threads) +
                      " is out of range; this machine allows 1 to " + std::to_string(cpus));
  }
  if (!(options.threshold_scale >= 0) || std::isinf(options.threshold_scale)) {
    throw ConfigError("threshold scale " + std::to_string(options.threshold_scale) +
                      " is out of range; use a finite number of at least 0");
  }
}

// Throws ConfigError where a policy needs programs that the artifact does not have.
inline void check_policy(const KeyframePolicy& policy, const Manifest& manifest) {
  const std::string& scheme = manifest.facts.scheme;
  if (policy.adaptive && !manifest.probe) {
    throw ConfigError("adaptive keyframes need a scheme that chooses bits, this is " + scheme +
                      "; use a period");
  }
  if (policy.repeat && !manifest.note) {
    throw ConfigError(
        "repeating outputs needs a scheme that chooses bits and a library that can note frames, "
        "this is " + scheme + " without; leave repeat out, or compile it anew");
  }
}

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_OPTIONS_HPP_
