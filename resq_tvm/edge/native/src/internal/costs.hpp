// What the next frame will cost, learned from the frames before, or fixed: the rules of
// resq_tvm/costs.py, which says why. Nothing here reads a clock.
#ifndef RESQ_INTERNAL_COSTS_HPP_
#define RESQ_INTERNAL_COSTS_HPP_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "resq.hpp"

namespace resq::internal {

// What the rules for keyframes ask; all times are milliseconds.
class Costs {
 public:
  virtual ~Costs() = default;

  virtual double keyframe() const = 0;
  virtual double frame() const = 0;        // without state
  virtual double probe() const = 0;        // finding out what changed
  virtual bool knows_frame() const = 0;    // whether frames without state have been measured
  virtual double residual(double share) const = 0;  // after its probe

  virtual void saw_keyframe(double ms) = 0;
  virtual void saw_frame(double ms) = 0;
  virtual void saw_probe(double ms) = 0;
  virtual void saw_residual(double share, double ms) = 0;
};

// Costs that nothing changes.
class ConstantCosts : public Costs {
 public:
  // Throws ConfigError.
  explicit ConstantCosts(const FixedCosts& fixed) : fixed_(fixed) {
    const auto refuse = [](const std::string& what) {
      throw ConfigError("fixed costs: " + what);
    };
    const auto is_time = [](double ms) { return std::isfinite(ms) && ms >= 0; };
    if (!is_time(fixed.keyframe) || !is_time(fixed.frame) || !is_time(fixed.probe)) {
      refuse("a time is no number of milliseconds; use at least 0");
    }
    if (fixed.residual.empty()) refuse("residual frames have none; give a share and a time");
    double before = -1;
    for (const auto& [share, ms] : fixed.residual) {
      if (!is_time(ms)) refuse("a time is no number of milliseconds; use at least 0");
      if (!(share > before && share >= 0 && share <= 1)) {
        refuse("shares of residual frames must rise from 0 to 1");
      }
      before = share;
    }
  }

  double keyframe() const override { return fixed_.keyframe; }
  double frame() const override { return fixed_.frame; }
  double probe() const override { return fixed_.probe; }
  bool knows_frame() const override { return true; }

  double residual(double share) const override {
    const auto& points = fixed_.residual;
    const auto right =
        std::lower_bound(points.begin(), points.end(), share,
                         [](const auto& point, double wanted) { return point.first < wanted; });
    if (right == points.begin()) return right->second;
    if (right == points.end()) return points.back().second;
    const auto left = std::prev(right);
    const double part = (share - left->first) / (right->first - left->first);
    return left->second + part * (right->second - left->second);
  }

  void saw_keyframe(double) override {}
  void saw_frame(double) override {}
  void saw_probe(double) override {}
  void saw_residual(double, double) override {}

 private:
  FixedCosts fixed_;
};

// Moving averages, and for residual frames a monotone curve over the share that changed.
class CostModel : public Costs {
 public:
  double keyframe() const override { return unit_; }
  double frame() const override { return unit_ * ratio_; }
  double probe() const override { return probe_.value_or(unit_ * kProbePrior); }
  bool knows_frame() const override { return frames_ > 1; }  // the first one warms caches

  double residual(double share) const override {
    const auto [right, part] = place(share);
    return curve_[right - 1] + part * (curve_[right] - curve_[right - 1]);
  }

  void saw_keyframe(double ms) override {
    compare(Kind::keyframe, ms);
    saw_unit(ms);
  }

  void saw_frame(double ms) override {
    compare(Kind::frame, ms);
    ++frames_;
    saw_unit(ms / ratio_);
  }

  void saw_probe(double ms) override { probe_ = probe_ ? blend(*probe_, ms) : ms; }

  // The two points of the curve around the share move by their weight; others only as far as the
  // curve must rise.
  void saw_residual(double share, double ms) override {
    const auto [right, part] = place(share);
    const double weights[] = {1 - part, part};
    const double expected = residual(share);
    const double step = kResidual * (within(ms, expected) - expected) /
                        (weights[0] * weights[0] + weights[1] * weights[1]);
    double low = curve_[right - 1] + step * weights[0];
    double high = curve_[right] + step * weights[1];
    if (low > high) low = high = (low + high) / 2;
    for (std::size_t i = 0; i < kPoints; ++i) {
      if (points_[i]) points_[i] = i < right ? std::min(*points_[i], low)
                                             : std::max(*points_[i], high);
    }
    if (weights[0] > 0) points_[right - 1] = low;
    if (weights[1] > 0) points_[right] = high;
    redraw();
  }

 private:
  static constexpr std::size_t kPoints = 8;
  static constexpr std::array<double, kPoints> kShares{0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1};
  // What is assumed of a residual frame at these shares until it is measured, in keyframes.
  static constexpr std::array<double, kPoints> kPrior{0.1,  0.2, 0.3,  0.37,
                                                      0.43, 0.5, 0.65, 0.85};
  static constexpr double kFramePrior = 0.8;  // of a frame without state, in keyframes
  static constexpr double kProbePrior = 0.03;
  static constexpr double kOwn = 0.25;      // weight of a new keyframe, frame, probe
  static constexpr double kResidual = 0.4;  // weight of a new residual frame
  static constexpr double kForget = 0.005;  // share of the way to the prior, with every frame
  static constexpr double kOutlier = 2;     // times the prediction (or one such part) at most

  // Returns the point to the right of a share, and how far it is on the way there.
  static std::pair<std::size_t, double> place(double share) {
    const auto found = std::lower_bound(kShares.begin(), kShares.end(), share) - kShares.begin();
    const std::size_t right = std::clamp<std::size_t>(found, 1, kPoints - 1);
    return {right, (share - kShares[right - 1]) / (kShares[right] - kShares[right - 1])};
  }

  static double within(double value, double expected) {
    return std::min(std::max(value, expected / kOutlier), expected * kOutlier);
  }

  static double blend(double old, double latest) {
    return old + kOwn * (within(latest, old) - old);
  }

  // Learns the ratio, where a keyframe and a frame without state follow each other.
  void compare(Kind program, double ms) {
    if (latest_ && latest_->first != program) {
      const double other = latest_->second;
      const double found = program == Kind::frame ? ms / other : other / ms;
      const double ratio = std::min(std::max(found, 0.4), 1.0);
      ratio_ = ratio_runs_ == 0 ? ratio : blend(ratio_, ratio);
      ++ratio_runs_;
    }
    latest_ = {program, ms};
  }

  void saw_unit(double ms) {
    // The first run of all warms caches: the second replaces it.
    unit_ = runs_ < 2 ? ms : blend(unit_, ms);
    ++runs_;
    redraw();
  }

  // Draws the curve through what was measured, and near the prior elsewhere.
  void redraw() {
    double least = 0;
    for (std::size_t i = 0; i < kPoints; ++i) {
      const double prior = kPrior[i] * unit_;
      if (points_[i]) {
        least = *points_[i] + kForget * (prior - *points_[i]);
        points_[i] = least;
        curve_[i] = least;
      } else {
        curve_[i] = std::max(prior, least);
      }
    }
    double most = std::numeric_limits<double>::infinity();
    for (std::size_t i = kPoints; i-- > 0;) {
      most = points_[i] ? *points_[i] : std::min(most, curve_[i]);
      curve_[i] = most;
    }
  }

  double unit_ = 1;  // a keyframe
  int runs_ = 0;
  double ratio_ = kFramePrior;
  int ratio_runs_ = 0;
  int frames_ = 0;
  std::optional<std::pair<Kind, double>> latest_;  // program and time of the latest own frame
  std::optional<double> probe_;
  std::array<std::optional<double>, kPoints> points_;  // none: not measured
  std::array<double, kPoints> curve_ = kPrior;
};

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_COSTS_HPP_
