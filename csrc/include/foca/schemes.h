// Schemes and the interval schedule for engines without Python: standard C++17, no torch, no CUDA.
//
// A scheme turns step numbers and times into two small tables of float64 scalars (docs/method.md):
//
//   commit (a full step):       H_new[p] = sum_q M[p, q] * v[q],   v = (H_old[0..K-1], F)
//   forecast (a skipped step):  F^       = sum_p w[p] * H[p]
//
// M = transition(tau, anchors), row-major [K, K + 1]; w = weights(tau, anchors, step), [K].
//   tau      time of every step up to the one asked for, strictly monotone
//   anchors  the feature's full steps since the last reset, strictly increasing; the last one is
//            the step being committed (transition) or forecast from (weights)
// With one anchor every scheme reuses it. Bad arguments throw std::invalid_argument.
//
// The arithmetic is that of foca_dit.schemes, operation by operation, so that both give the same
// numbers (tests/schemes/test_scheme_planner.py). Other schemes: export their tables as a plan from
// Python (docs/plan-format.md).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace foca {

using Times = std::vector<double>;
using Steps = std::vector<std::int64_t>;
using Table = std::vector<double>;

namespace detail {

inline std::invalid_argument fault(const std::string& owner, const std::string& argument,
                                   const std::string& expected, const std::string& got) {
  return std::invalid_argument(owner + ": argument '" + argument + "': expected " + expected +
                               ", got " + got);
}

// Checks steps and times up to `last`, the latest step that will be read.
inline void check_steps(const std::string& owner, const Times& tau, const Steps& anchors,
                        std::int64_t last) {
  for (std::size_t i = 0; i < anchors.size(); ++i) {
    if (anchors[i] < 0 || (i > 0 && anchors[i] <= anchors[i - 1])) {
      throw fault(owner, "anchors", "strictly increasing steps from 0 on",
                  std::to_string(anchors[i]) + " at position " + std::to_string(i));
    }
  }
  if (static_cast<std::int64_t>(tau.size()) <= last) {
    throw fault(owner, "tau", "a time for every step up to " + std::to_string(last),
                std::to_string(tau.size()) + " times");
  }
  const std::int64_t first = anchors.front();
  for (std::int64_t i = first; i <= last; ++i) {
    if (!std::isfinite(tau[i])) {
      throw fault(owner, "tau[" + std::to_string(i) + "]", "a finite time", std::to_string(tau[i]));
    }
  }
  for (std::int64_t i = first + 1; i <= last; ++i) {
    const bool forward = tau[first + 1] > tau[first];
    if (tau[i] == tau[i - 1] || (tau[i] > tau[i - 1]) != forward) {
      throw fault(owner, "tau", "strictly monotone times",
                  std::to_string(tau[i - 1]) + " then " + std::to_string(tau[i]) + " at steps " +
                      std::to_string(i - 1) + " and " + std::to_string(i));
    }
  }
}

inline void check_commit(const std::string& owner, const Times& tau, const Steps& anchors) {
  if (anchors.empty()) throw fault(owner, "anchors", "at least one step", "none");
  check_steps(owner, tau, anchors, anchors.back());
}

inline void check_forecast(const std::string& owner, const Times& tau, const Steps& anchors,
                           std::int64_t step) {
  if (anchors.empty()) throw fault(owner, "anchors", "at least one step", "none");
  if (step <= anchors.back()) {
    throw fault(owner, "step", "a step after the last anchor " + std::to_string(anchors.back()),
                std::to_string(step));
  }
  check_steps(owner, tau, anchors, step);
}

}  // namespace detail

// FoCa: BDF2 predictor and Heun corrector in closed form. History (F_a, D_a, e) for the rolling
// reading, (F_a, D_a, f2) for the anchored one.
class FoCa {
 public:
  enum class Reading { kRolling, kAnchored };

  static constexpr std::size_t kHistorySize = 3;

  // feedback: c, the part of the innovation e that is fed back; 1 is the paper's recursion.
  // max_carry: bound on the part of the old e that returns per interval; may be infinite.
  // first_slope: share of the slope that is followed while there are only two anchors.
  explicit FoCa(Reading reading = Reading::kRolling, double feedback = 0.5, double max_carry = 1.0,
                double first_slope = 1.0)
      : reading_(reading), feedback_(feedback), max_carry_(max_carry), first_slope_(first_slope) {
    if (!(feedback >= 0.0) || std::isinf(feedback)) {
      throw detail::fault("FoCa", "feedback", "a finite number >= 0", std::to_string(feedback));
    }
    if (!(max_carry >= 0.0)) {
      throw detail::fault("FoCa", "max_carry", "a number >= 0", std::to_string(max_carry));
    }
    if (!(first_slope >= 0.0 && first_slope <= 1.0)) {
      throw detail::fault("FoCa", "first_slope", "a number from 0 to 1",
                          std::to_string(first_slope));
    }
  }

  std::size_t history_size() const { return kHistorySize; }

  Table transition(const Times& tau, const Steps& anchors) const {
    detail::check_commit("FoCa", tau, anchors);
    Table m(kHistorySize * (kHistorySize + 1), 0.0);
    m[3] = 1.0;  // slot 0 is the new feature itself
    if (anchors.size() < 2) return m;
    const std::int64_t a = anchors.back();
    const std::int64_t before = anchors[anchors.size() - 2];
    const double gap = tau[a] - tau[before];
    m[4] = -1 / gap;
    m[7] = 1 / gap;
    // The second anchor has no innovation: what was used before it was a reused feature.
    if (anchors.size() < 3) return m;
    if (reading_ == Reading::kAnchored) {
      const double span = tau[a] - tau[anchors[anchors.size() - 3]];
      m[8] = -1 / (gap * span);
      m[9] = -1 / span;
      m[11] = 1 / (gap * span);
      return m;
    }
    const double h = tau[a] - tau[a - 1];
    m[8] = -1 / h + 1 / gap;
    m[9] = -along(tau[a - 1] - tau[before], anchors.size() - 1) / h;
    m[10] = -std::min(returned(tau, before, a - 1) / h, max_carry_);
    m[11] = 1 / h - 1 / gap;
    return m;
  }

  Table weights(const Times& tau, const Steps& anchors, std::int64_t step) const {
    detail::check_forecast("FoCa", tau, anchors, step);
    if (anchors.size() < 2) return {1.0, 0.0, 0.0};
    const std::int64_t a = anchors.back();
    const double j = tau[step] - tau[a];
    const double slope = along(j, anchors.size());
    if (reading_ == Reading::kAnchored) {
      return {1.0, slope, 0.5 * j * (tau[a] - tau[anchors[anchors.size() - 2]])};
    }
    return {1.0, slope, returned(tau, a, step)};
  }

 private:
  // How far a forecast at distance j follows the slope.
  double along(double j, std::size_t n_anchors) const {
    return n_anchors > 2 ? j : first_slope_ * j;
  }

  // c * sum_i 2^-i h_{anchor+i-1}: how much of the innovation has come back at `step`.
  double returned(const Times& tau, std::int64_t anchor, std::int64_t step) const {
    double sum = 0.0;
    for (std::int64_t i = 1; i <= step - anchor; ++i) {
      sum += std::ldexp(tau[anchor + i] - tau[anchor + i - 1], -static_cast<int>(i));
    }
    return feedback_ * sum;
  }

  Reading reading_;
  double feedback_;
  double max_carry_;
  double first_slope_;
};

// TaylorSeer of order 1 to 3. History (F_a, D, D2, ..), estimates of the derivatives by backward
// differences. official: every order divided by the latest gap, as the published code does, and no
// difference before step warmup - 1.
class TaylorSeer {
 public:
  static constexpr int kMaxOrder = 3;

  explicit TaylorSeer(int order = 1, bool official = false, std::int64_t warmup = 3)
      : order_(order), official_(official), warmup_(warmup) {
    if (order < 1 || order > kMaxOrder) {
      throw detail::fault("TaylorSeer", "order", "an integer from 1 to 3", std::to_string(order));
    }
    if (warmup < 1) {
      throw detail::fault("TaylorSeer", "warmup", "an integer >= 1", std::to_string(warmup));
    }
  }

  std::size_t history_size() const { return static_cast<std::size_t>(order_) + 1; }

  Table transition(const Times& tau, const Steps& anchors) const {
    detail::check_commit("TaylorSeer", tau, anchors);
    const std::size_t columns = history_size() + 1;
    Table m(history_size() * columns, 0.0);
    m[columns - 1] = 1.0;
    const std::size_t n = anchors.size();
    for (int i = 1; i <= available(anchors); ++i) {
      const double gap = official_ ? tau[anchors[n - 1]] - tau[anchors[n - 2]]
                                   : (tau[anchors[n - 1]] - tau[anchors[n - 1 - i]]) / i;
      // D_i = (D_{i-1} - old D_{i-1}) / gap
      const double* previous = &m[(i - 1) * columns];
      double* row = &m[i * columns];
      std::copy(previous, previous + columns, row);
      row[i - 1] -= 1.0;
      for (std::size_t q = 0; q < columns; ++q) row[q] /= gap;
    }
    return m;
  }

  Table weights(const Times& tau, const Steps& anchors, std::int64_t step) const {
    detail::check_forecast("TaylorSeer", tau, anchors, step);
    Table w(history_size(), 0.0);
    const double j = tau[step] - tau[anchors.back()];
    static constexpr double kFactorial[] = {1, 1, 2, 6};
    for (int i = 0; i <= available(anchors); ++i) w[i] = std::pow(j, i) / kFactorial[i];
    return w;
  }

 private:
  // The orders that this many anchors allow.
  int available(const Steps& anchors) const {
    const auto anchored = static_cast<std::int64_t>(anchors.size()) - 1;
    std::int64_t orders = std::min<std::int64_t>(order_, anchored);
    if (official_) {
      const auto differenced = std::count_if(anchors.begin(), anchors.end(),
                                             [this](auto step) { return step >= warmup_ - 1; });
      orders = std::min<std::int64_t>(orders, differenced);
    }
    return static_cast<int>(orders);
  }

  int order_;
  bool official_;
  std::int64_t warmup_;
};

// The first `warmup` steps, then every `interval`-th; every step from `tail` on (negative: none).
class Interval {
 public:
  explicit Interval(std::int64_t interval, std::int64_t warmup = 3, std::int64_t tail = -1)
      : interval_(interval), warmup_(warmup), tail_(tail) {
    if (interval < 1) {
      throw detail::fault("Interval", "interval", "an integer >= 1", std::to_string(interval));
    }
    if (warmup < 1) {
      throw detail::fault("Interval", "warmup", "an integer >= 1", std::to_string(warmup));
    }
  }

  // The next full step after the full steps so far; 0 if there is none yet.
  std::int64_t next_full(const Steps& anchors) const {
    if (anchors.empty()) return 0;
    const bool warming_up = static_cast<std::int64_t>(anchors.size()) < warmup_;
    const std::int64_t due = later(anchors.back(), warming_up ? 1 : interval_);
    return tail_ >= 0 && due > tail_ ? std::max(tail_, later(anchors.back(), 1)) : due;
  }

  // All full steps out of num_steps.
  Steps full_steps(std::int64_t num_steps) const {
    if (num_steps < 0) {
      throw detail::fault("Interval", "num_steps", "an integer >= 0", std::to_string(num_steps));
    }
    Steps steps;
    for (std::int64_t s = next_full(steps); s < num_steps; s = next_full(steps)) steps.push_back(s);
    return steps;
  }

 private:
  // step + gap, or the largest number there is.
  static std::int64_t later(std::int64_t step, std::int64_t gap) {
    const std::int64_t largest = std::numeric_limits<std::int64_t>::max();
    return step > largest - gap ? largest : step + gap;
  }

  std::int64_t interval_;
  std::int64_t warmup_;
  std::int64_t tail_;
};

}  // namespace foca
