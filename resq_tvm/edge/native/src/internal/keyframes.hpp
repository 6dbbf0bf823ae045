// Which frame is a keyframe: the rules (docs/streams.md), without clock, frames or programs.
// resq_tvm/keyframes.py has the same rules under the same names, and says why.
#ifndef RESQ_INTERNAL_KEYFRAMES_HPP_
#define RESQ_INTERNAL_KEYFRAMES_HPP_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <variant>

#include "costs.hpp"
#include "resq.hpp"

namespace resq::internal {

// How a session chooses keyframes.
struct KeyframePolicy {
  bool adaptive = false;  // else a keyframe every so many frames
  int min_distance = 1;
  int max_distance = 0;  // 0: four periods
  bool guard = true;
  std::optional<double> repeat;  // share up to which an output is repeated

  // Throws ConfigError.
  explicit KeyframePolicy(const SessionOptions& options)
      : adaptive(options.keyframes == "adaptive"),
        min_distance(options.min_distance),
        max_distance(options.max_distance),
        guard(options.guard),
        repeat(options.repeat) {
    if (!adaptive && options.keyframes != "period") {
      throw ConfigError("keyframes '" + options.keyframes +
                        "' are unknown; use period or adaptive");
    }
    if (min_distance < 1) {
      throw ConfigError("min distance " + std::to_string(min_distance) +
                        " is out of range; use 1 or more");
    }
    if (repeat && !(*repeat >= 0 && *repeat <= 1)) {
      std::ostringstream share;
      share << *repeat;
      throw ConfigError("repeat " + share.str() + " is out of range; give a share, 0 to 1");
    }
    if (max_distance == 0) return;
    if (!adaptive) {
      throw ConfigError("a max distance needs keyframes 'adaptive'; use period instead");
    }
    if (max_distance < min_distance) {
      throw ConfigError("max distance " + std::to_string(max_distance) +
                        " is below min distance " + std::to_string(min_distance));
    }
  }

  // Returns the frames from one keyframe to the next at most.
  int limit(int period) const {
    constexpr int kMaxPeriods = 4;
    if (!adaptive) return period;
    if (max_distance != 0) return max_distance;
    const int most = std::numeric_limits<int>::max();
    return std::max(period > most / kMaxPeriods ? most : kMaxPeriods * period, min_distance);
  }
};

// What gives a frame its output, and why; a residual frame needs no reason.
struct Decision {
  Kind kind;
  Reason reason;
};

// What is compared with: the keyframe, the frame before, the frame that was computed last.
enum class Look { probe, peek, latest };

using Step = std::variant<Decision, Look>;

inline bool asks_for(const Step& step, Look look) {
  const Look* wanted = std::get_if<Look>(&step);
  return wanted != nullptr && *wanted == look;
}

// What an artifact has: residuals, a probe of what changed, frames without state, a comparison of
// two such frames.
struct Abilities {
  bool has_residual = true;
  bool can_probe = false;
  bool can_rest = false;
  bool can_peek = false;
};

// The rules at work on one stream. A group, a keyframe and its residual frames, that did not pay
// is followed by a rest, frames without state, twice as many each time.
class KeyframeSchedule {
 public:
  KeyframeSchedule(const KeyframePolicy& policy, int limit, Costs& costs, Abilities abilities)
      : policy_(policy),
        limit_(limit),
        costs_(&costs),
        has_residual_(abilities.has_residual),
        can_rest_(abilities.can_rest),
        can_peek_(abilities.can_peek),
        looks_(abilities.can_probe && (policy.guard || policy.adaptive)),
        guards_(abilities.can_probe && policy.guard),
        shortest_(std::min<std::int64_t>(limit, kShortestGroup / (policy.repeat ? kRepeating : 1))),
        usual_(std::min(limit, kUsual / (policy.repeat ? kRepeating : 1))) {}

  // Makes the next frame a keyframe.
  void force(Reason reason) {
    if (pending_ != Reason::first) pending_ = reason;
  }

  // Whether a frame that was decided upon will be compared with later ones.
  bool keeps(Kind kind) const {
    if (policy_.repeat) return kind != Kind::repeat;
    return ends_rest() && kind == Kind::frame;
  }

  // Returns the decision, or what has to be looked at first.
  Step start() {
    if (!has_residual_) return Decision{Kind::keyframe, Reason::stateless};
    if (pending_ != Reason::none) return Decision{Kind::keyframe, pending_};
    if (policy_.repeat && age_ < limit_) return Look::latest;
    return choose();
  }

  // Decides on a frame of which that share changed since the one computed last.
  Step after_latest(double share) {
    if (share <= *policy_.repeat) return Decision{Kind::repeat, Reason::repeat};
    const Step step = choose();
    return asks_for(step, Look::peek) ? after_peek(share) : step;
  }

  // Decides on a frame of which that share changed since the keyframe.
  Decision after_probe(double share) {
    const bool far_enough = distance_ >= policy_.min_distance;
    if (policy_.adaptive && has_changed(share) && far_enough) return renew(Reason::scene);
    if (!guards_ || costs_->residual(share) <= own()) return kResidual;
    if (can_rest_ && !far_enough) return start_rest();
    return far_enough ? renew(Reason::cost) : kResidual;
  }

  // Decides on a frame of which that share changed since the frame before.
  Decision after_peek(double share) {
    const double residuals = (usual_ - 1) * (costs_->residual(share) + costs_->probe());
    const bool pays = costs_->keyframe() + residuals < usual_ * costs_->frame();
    if (pays && distance_ >= policy_.min_distance) return {Kind::keyframe, Reason::resume};
    return start_rest();
  }

  // Returns the milliseconds that a residual frame would take, its probe included.
  double expected(double share) const { return costs_->probe() + costs_->residual(share); }

  // Takes note of a frame: what gave it its output and how long that took, what share of it had
  // changed (none if nobody looked), and how long looking took.
  void note(Kind kind, double ms, std::optional<double> share, double looked_ms) {
    if (share) costs_->saw_probe(looked_ms);
    if (kind == Kind::repeat) {
      ++distance_;
      ++age_;
      return;
    }
    age_ = 1;
    if (kind == Kind::keyframe) {
      pending_ = Reason::none;
      costs_->saw_keyframe(ms);
      spent_ = costs_->keyframe();
      before_.reset();
      distance_ = computed_ = 1;
      rest_ = 0;
      resting_ = false;
      return;
    }
    if (share) spent_ += costs_->probe();
    if (kind == Kind::frame) {
      costs_->saw_frame(ms);
      spent_ += costs_->frame();
      rest_ = std::max(rest_ - 1, 0);
    } else if (share) {
      costs_->saw_residual(*share, ms);
      spent_ += costs_->residual(*share);
    }
    ++distance_;
    ++computed_;
  }

 private:
  static constexpr int kLongestRest = 16;  // frames until residuals are considered again
  static constexpr std::int64_t kShortestGroup = 4;  // that is expected: the scene may have calmed down
  static constexpr int kUsual = 8;  // residual groups are taken to last so many frames at first
  static constexpr int kRepeating = 2;  // so many times shorter where outputs are repeated
  static constexpr double kWeight = 0.25;  // of the latest group in what is expected of groups
  static constexpr Decision kResidual{Kind::residual, Reason::none};

  // Whether this is the last frame of a rest: the next one may be compared with it.
  bool ends_rest() const { return resting_ && rest_ == 1 && can_peek_; }

  // Returns what computes a frame, or what has to be looked at first.
  Step choose() {
    if (rest_ > 0) return Decision{Kind::frame, Reason::cost};
    if (guards_ && can_rest_ && !costs_->knows_frame()) {
      return Decision{Kind::frame, Reason::measure};
    }
    if (resting_) {
      if (can_peek_) return Look::peek;
      return Decision{Kind::keyframe, Reason::resume};
    }
    if (distance_ >= limit_) {
      return renew(policy_.adaptive ? Reason::max_distance : Reason::period);
    }
    if (looks_) return Look::probe;
    return kResidual;
  }

  // What the frame costs on its own.
  double own() const { return can_rest_ ? costs_->frame() : costs_->keyframe(); }

  // Whether the group took less time than as many frames on their own.
  bool paid() const { return spent_ <= computed_ * costs_->frame(); }

  // Ends a group: a keyframe, or a rest if the group did not pay.
  Decision renew(Reason reason) {
    const std::int64_t seen = std::max(std::min(computed_, limit_), shortest_);
    usual_ += kWeight * (seen - usual_);
    if (guards_ && can_rest_ && !paid()) return start_rest();
    rested_ = 0;
    return {Kind::keyframe, reason};
  }

  Decision start_rest() {
    rest_ = rested_ = std::min(2 * std::max(rested_, 1), kLongestRest);
    resting_ = true;
    return {Kind::frame, Reason::cost};
  }

  // Returns whether a residual frame costs more than the group's frames did on average, the
  // keyframe counted as one of them.
  bool has_changed(double share) {
    const double now = std::min(own(), costs_->residual(share)) + costs_->probe();
    const double mean = before_ ? (now + *before_) / 2 : now;
    before_ = now;
    return mean > spent_ / computed_;
  }

  KeyframePolicy policy_;
  std::int64_t limit_;  // frames from one keyframe to the next at most
  Costs* costs_;
  bool has_residual_, can_rest_, can_peek_, looks_, guards_;
  Reason pending_ = Reason::first;  // why the next frame must be a keyframe
  std::int64_t distance_ = 0;       // frames since and including the keyframe
  std::int64_t computed_ = 0;       // of them, those that did not repeat an output
  std::int64_t age_ = 0;            // frames since and including the one computed last
  double spent_ = 0;                // by the group so far, in milliseconds
  int rested_ = 0;                  // length of the latest rest, 0 after a group that paid
  int rest_ = 0;                    // frames without state still to come
  bool resting_ = false;            // the state is of another time
  std::int64_t shortest_;           // residual group that is expected
  double usual_;                    // frames of a residual group that are computed
  std::optional<double> before_;    // what the frame before was expected to cost
};

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_KEYFRAMES_HPP_
