// The rules for keyframes on numbers: rules OPTION... < FRAMES
// Frames are numbers, and the share that changed between two is their distance. Prints a line per
// frame: kind, reason, and what the cost model has learned. The options are those of Stream in
// test_rules.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <variant>

#include "internal/keyframes.hpp"

namespace rules = resq::internal;

int main(int count, char** words) {
  std::map<std::string, double> given;
  for (int i = 1; i + 1 < count; i += 2) given[words[i]] = std::stod(words[i + 1]);
  resq::SessionOptions options;
  options.keyframes = given["adaptive"] != 0 ? "adaptive" : "period";
  options.min_distance = static_cast<int>(given["min_distance"]);
  options.max_distance = static_cast<int>(given["max_distance"]);
  options.guard = given["guard"] != 0;
  if (given.count("repeat") != 0) options.repeat = given["repeat"];
  const rules::KeyframePolicy policy(options);
  const rules::Abilities abilities{true, given["can_probe"] != 0, given["can_rest"] != 0,
                                   given["can_peek"] != 0};
  rules::CostModel costs;
  rules::KeyframeSchedule schedule(policy, policy.limit(static_cast<int>(given["period"])), costs,
                                   abilities);
  double frame = 0, drift = 1, key = 0, noted = 0;
  while (std::scanf("%lf %lf", &frame, &drift) == 2) {
    if (drift < 0) schedule.force(resq::Reason::lost);
    const double speed = std::abs(drift);
    std::optional<double> share;
    const auto changed = [&](double since) { return std::min(std::abs(frame - since), 1.0); };
    rules::Step step = schedule.start();
    if (rules::asks_for(step, rules::Look::latest)) {
      share = changed(noted);
      step = schedule.after_latest(*share);
    }
    if (rules::asks_for(step, rules::Look::peek)) {
      share = changed(noted);
      step = schedule.after_peek(*share);
    }
    if (rules::asks_for(step, rules::Look::probe)) {
      share = changed(key);
      step = schedule.after_probe(*share);
    }
    const rules::Decision decision = std::get<rules::Decision>(step);
    if (schedule.keeps(decision.kind)) noted = frame;
    if (decision.kind == resq::Kind::keyframe) key = frame;
    double ms = given["full"] * share.value_or(0) + 1;
    if (decision.kind == resq::Kind::keyframe) ms = 7;
    if (decision.kind == resq::Kind::frame) ms = 5;
    if (decision.kind == resq::Kind::repeat) ms = 0;
    schedule.note(decision.kind, ms * speed, share, 0.1 * speed);
    std::printf("%s %s %.17g %.17g %.17g %.17g\n", to_string(decision.kind),
                to_string(decision.reason), costs.keyframe(), costs.frame(), costs.probe(),
                costs.residual(share.value_or(0.3)));
  }
  return 0;
}
