// The contract of every operator, the C++ twin of foca_kernels/checks.py: same order, same text.
// For each tensor dtype, device, shape, contiguity, gradient; then the values of small host
// tensors; then overlapping memory.
#include "ops_common.h"

namespace foca::ops {
namespace {

// Tensors of one dtype and device, of any shapes.
void check_leads(std::vector<Arg>& args) {
  for (Arg& arg : args) {
    if (&arg == &args[0]) {
      check_floating(arg);
    } else {
      check_same_dtype(arg, args[0]);
      check_same_device(arg, args[0]);
    }
    check_plain(arg);
  }
}

void check_steps(Arg& steps, const Arg& like) {
  check_small(steps, like);
  if (!steps.has_shape({2})) fail(steps, "shape [2]", steps.shape());
  check_plain(steps);
  if (!steps.on_cpu()) return;
  const float* values = reinterpret_cast<const float*>(steps.data);
  check_step_sizes(steps.op, "steps", "steps", values[0], values[1]);
}

struct TransitionShape {
  int k, stat_rows;
};

// Shape [K + R, K + 1]; k is 0 where the transition itself defines K.
TransitionShape check_transition(Arg& transition, int k, const Arg& like) {
  check_small(transition, like);
  const std::string expected =
      k ? "shape [" + std::to_string(k) + " + R, " + std::to_string(k + 1) + "]"
        : "shape [K + R, K + 1], K up to " + std::to_string(kMaxHistory);
  if (transition.dim != 2) fail(transition, expected, transition.shape());
  const std::int64_t rows = transition.sizes[0], columns = transition.sizes[1];
  if (k == 0 && columns >= 2 && columns <= kMaxHistory + 1) k = static_cast<int>(columns - 1);
  if (k == 0 || columns != k + 1 || rows < k) fail(transition, expected, transition.shape());
  if (rows - k > kMaxStats) {
    fail(transition,
         "at most " + std::to_string(kMaxStats) + " rows beyond the history's " + std::to_string(k),
         transition.shape());
  }
  check_plain(transition);
  return {k, static_cast<int>(rows - k)};
}

template <typename Shape>
void check_stats(const char* op, std::optional<Arg>& stats, int stat_rows, const Shape& shape,
                 const std::string& expected_shape, const Arg& like) {
  if (stat_rows == 0) {
    if (!stats) return;
    if (stats->numel == 0) return check_same_device(*stats, like);
    fail(*stats, "None or an empty tensor as transition reduces no rows",
         "shape " + stats->shape());
  }
  if (!stats) fail(op, "stats", "a float32 tensor of shape " + expected_shape, "None");
  if (stats->dtype != aoti_torch_dtype_float32()) {
    fail(*stats, "dtype float32", stats->dtype_name());
  }
  check_same_device(*stats, like);
  if (!shape(*stats)) fail(*stats, "shape " + expected_shape, stats->shape());
  check_plain(*stats);
}

void finish_commit(CheckedCommit& checked, const std::vector<Arg>& features,
                   const std::vector<Arg>& history, const Arg& transition,
                   const std::optional<Arg>& stats, TransitionShape shape) {
  check_finite(transition);
  std::vector<Access> accesses;
  accesses.reserve(features.size() + history.size() + 2);
  add(accesses, features, false);
  add(accesses, history, true);
  accesses.push_back({&transition, false});
  if (stats) accesses.push_back({&*stats, true});
  check_own_memory(accesses);

  for (const Arg& arg : features) {
    checked.features.push_back(arg.data);
    checked.numel.push_back(arg.numel);
  }
  for (const Arg& arg : history) checked.history.push_back(arg.data);
  checked.transition = small(transition);
  checked.device_index = features[0].device_index;
  checked.args = {checked.features.data(),
                  checked.history.data(),
                  checked.numel.data(),
                  static_cast<int>(features.size()),
                  shape.k,
                  shape.stat_rows,
                  features[0].scalar_type(),
                  history[0].scalar_type(),
                  shape.stat_rows ? reinterpret_cast<float*>(stats->data) : nullptr};
}

}  // namespace

void check_forecast_calibrate(CheckedCalibrate& checked, const Tensor& f_k, const Tensor& f_km1,
                              const Tensor& d_anchor, double h, double h_prev) {
  const char* op = "forecast_calibrate";
  Arg now(op, "f_k", -1, f_k), before(op, "f_km1", -1, f_km1), slope(op, "d_anchor", -1, d_anchor);
  check_lead(now);
  check_follow(before, now);
  check_follow(slope, now);
  checked.host_steps[0] = static_cast<float>(h);
  checked.host_steps[1] = static_cast<float>(h_prev);
  check_step_sizes(op, "h", "h_prev", checked.host_steps[0], checked.host_steps[1]);
  check_own_memory({{&now, false}, {&before, true}, {&slope, false}});
  checked.tensors = {{now.data, before.data, slope.data, now.numel}};
  checked.steps = {checked.host_steps, true};
  checked.args = {checked.tensors.data(), 1, now.scalar_type(), false};
  checked.device_index = now.device_index;
}

void check_forecast_calibrate(CheckedCalibrate& checked, const Tensor& f_k, const Tensor& f_km1,
                              const Tensor& d_anchor, const Tensor& steps, bool rotate) {
  const char* op = "forecast_calibrate";
  Arg now(op, "f_k", -1, f_k), before(op, "f_km1", -1, f_km1), slope(op, "d_anchor", -1, d_anchor);
  Arg sizes(op, "steps", -1, steps);
  check_lead(now);
  check_follow(before, now);
  check_follow(slope, now);
  check_steps(sizes, now);
  check_own_memory({{&now, rotate}, {&before, true}, {&slope, false}, {&sizes, false}});
  checked.tensors = {{now.data, before.data, slope.data, now.numel}};
  checked.steps = small(sizes);
  checked.args = {checked.tensors.data(), 1, now.scalar_type(), rotate};
  checked.device_index = now.device_index;
}

void check_forecast_calibrate(CheckedCalibrate& checked, const TensorList& f_k,
                              const TensorList& f_km1, const TensorList& d_anchor,
                              const Tensor& steps) {
  const char* op = "forecast_calibrate";
  const std::size_t n = f_k.size();
  if (n == 0) fail(op, "f_k", "at least 1 tensor", "0");
  for (const auto& [name, size] :
       {std::pair("f_km1", f_km1.size()), {"d_anchor", d_anchor.size()}}) {
    if (size != n) fail(op, name, count(n) + " like f_k", std::to_string(size));
  }
  std::vector<Arg> now = make_args(op, "f_k", f_k), before = make_args(op, "f_km1", f_km1),
                   slope = make_args(op, "d_anchor", d_anchor);
  Arg sizes(op, "steps", -1, steps);
  for (std::size_t i = 0; i < n; ++i) {
    if (i == 0) {
      check_floating(now[i]);
    } else {
      check_same_dtype(now[i], now[0]);
      check_same_device(now[i], now[0]);
    }
    check_plain(now[i]);
    check_follow(before[i], now[i]);
    check_follow(slope[i], now[i]);
    checked.tensors.push_back({now[i].data, before[i].data, slope[i].data, now[i].numel});
  }
  check_steps(sizes, now[0]);
  std::vector<Access> accesses;
  accesses.reserve(3 * n + 1);
  add(accesses, now, false);
  add(accesses, before, true);
  add(accesses, slope, false);
  accesses.push_back({&sizes, false});
  check_own_memory(accesses);
  checked.steps = small(sizes);
  checked.args = {checked.tensors.data(), static_cast<int>(n), now[0].scalar_type(), false};
  checked.device_index = now[0].device_index;
}

void check_forecast(CheckedForecast& checked, const TensorList& history, const Tensor& weights,
                    const Tensor* out) {
  const char* op = "forecast";
  const std::int64_t k = static_cast<std::int64_t>(history.size());
  if (k < 1 || k > kMaxHistory) {
    fail(op, "history", "1 to " + std::to_string(kMaxHistory) + " tensors", std::to_string(k));
  }
  std::vector<Arg> slots = make_args(op, "history", history);
  Arg w(op, "weights", -1, weights);
  check_history(slots, [&](std::size_t) -> const Arg& { return slots[0]; });
  check_small(w, slots[0]);
  if (!w.has_shape({k})) fail(w, "shape " + shape_text({k}), w.shape());
  check_plain(w);
  std::optional<Arg> result;
  if (out != nullptr) {
    result.emplace(op, "out", -1, *out);
    check_follow(*result, slots[0]);
  }
  check_finite(w);
  if (result) {
    std::vector<Access> accesses;
    add(accesses, slots, false);
    accesses.push_back({&w, false});
    accesses.push_back({&*result, true});
    check_own_memory(accesses);
  }
  for (const Arg& slot : slots) checked.history.push_back(slot.data);
  checked.weights = small(w);
  checked.args = {result ? result->data : nullptr, checked.history.data(), static_cast<int>(k),
                  slots[0].numel, slots[0].scalar_type()};
  checked.device_index = slots[0].device_index;
}

void check_commit(CheckedCommit& checked, const Tensor& feature, const TensorList& history,
                  const Tensor& transition, const std::optional<Tensor>& stats) {
  const char* op = "commit_";
  std::vector<Arg> features = {Arg(op, "feature", -1, feature)};
  check_lead(features[0]);
  const std::int64_t k = static_cast<std::int64_t>(history.size());
  if (k < 1 || k > kMaxHistory) {
    fail(op, "history", "1 to " + std::to_string(kMaxHistory) + " tensors", std::to_string(k));
  }
  std::vector<Arg> slots = make_args(op, "history", history);
  check_history(slots, [&](std::size_t) -> const Arg& { return features[0]; });
  Arg m(op, "transition", -1, transition);
  const TransitionShape shape = check_transition(m, static_cast<int>(k), features[0]);
  std::optional<Arg> sums;
  if (stats) sums.emplace(op, "stats", -1, *stats);
  check_stats(
      op, sums, shape.stat_rows, [&](const Arg& arg) { return arg.has_shape({shape.stat_rows}); },
      shape_text({shape.stat_rows}), features[0]);
  finish_commit(checked, features, slots, m, sums, shape);
}

void check_commit_list(CheckedCommit& checked, const TensorList& features,
                       const TensorList& history, const Tensor& transition,
                       const std::optional<Tensor>& stats) {
  const char* op = "commit_";
  const std::int64_t n = static_cast<std::int64_t>(features.size());
  if (n < 1 || n > kMaxFeatures) {
    fail(op, "features", "1 to " + std::to_string(kMaxFeatures) + " tensors", std::to_string(n));
  }
  std::vector<Arg> leads = make_args(op, "features", features);
  check_leads(leads);
  Arg m(op, "transition", -1, transition);
  const TransitionShape shape = check_transition(m, 0, leads[0]);
  if (static_cast<std::int64_t>(history.size()) != n * shape.k) {
    fail(op, "history", count(shape.k) + " for each of " + count(n, "feature"),
         std::to_string(history.size()));
  }
  std::vector<Arg> slots = make_args(op, "history", history);
  check_history(slots, [&](std::size_t i) -> const Arg& { return leads[i / shape.k]; });
  std::optional<Arg> sums;
  if (stats) sums.emplace(op, "stats", -1, *stats);
  check_stats(
      op, sums, shape.stat_rows,
      [&](const Arg& arg) { return arg.has_shape({n, shape.stat_rows}); },
      shape_text({n, shape.stat_rows}), leads[0]);
  finish_commit(checked, leads, slots, m, sums, shape);
}

}  // namespace foca::ops
