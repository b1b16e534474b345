// The contract of forecast_residual_, the C++ twin of foca_kernels/checks.py; see ops_checks.cpp.
#include <algorithm>

#include "ops_common.h"

namespace foca::ops {
namespace {

void check_gate_dtype(const Arg& gate, const Arg& x) {
  if (gate.dtype == x.dtype || gate.scalar_type() == ScalarType::kFloat32) return;
  const bool one = x.scalar_type() == ScalarType::kFloat32;
  fail(gate, "dtype " + x.dtype_name() + (one ? "" : " or float32"), gate.dtype_name());
}

// x seen as rows of its last dimension, without gates.
void set_rows(ForecastResidualArgs& args, const Arg& x) {
  args.batch = 1;
  args.cols = x.dim == 0 ? 1 : x.sizes[x.dim - 1];
  args.rows = args.cols == 0 ? 0 : x.numel / args.cols;
}

void set_gate_strides(ForecastResidualArgs& args, const Arg& x, const Arg& gate) {
  if (x.dim == 0) fail(x, "at least one dimension when gates are given", "shape []");
  const std::int64_t d = x.sizes[x.dim - 1];
  if (x.dim == 3) {
    const std::int64_t b = x.sizes[0], s = x.sizes[1];
    args.batch = b, args.rows = s, args.cols = d;
    const bool full = gate.has_shape({b, s, d});
    if (full || gate.has_shape({b, 1, d})) {
      args.gate_row_stride = full ? d : 0;
      args.gate_batch_stride = full ? s * d : d;
      return;
    }
    if (gate.has_shape({1, 1, d}) || gate.has_shape({d})) return;
    fail(gate,
         "shape " + shape_text({d}) + ", " + shape_text({1, 1, d}) + ", " + shape_text({b, 1, d}) +
             " or " + shape_text({b, s, d}),
         gate.shape());
  }
  if (!gate.has_shape({d})) fail(gate, "shape " + shape_text({d}), gate.shape());
}

void check_gates(ForecastResidualArgs& args, std::vector<Arg>& gates, const Arg& x) {
  for (Arg& gate : gates) {
    if (&gate != &gates[0]) {
      check_follow(gate, gates[0]);
      continue;
    }
    if (x.dim == 0) fail(x, "at least one dimension when gates are given", "shape []");
    check_gate_dtype(gate, x);
    check_same_device(gate, x);
    set_gate_strides(args, x, gate);
    check_plain(gate);
  }
}

void finish_residual(CheckedForecastResidual& checked, const Arg& x, ScalarType history_dtype,
                     std::int64_t features, std::int64_t k, const Arg& weights,
                     ScalarType gate_dtype) {
  ForecastResidualArgs& args = checked.args;
  args.x = x.data;
  args.x_dtype = x.scalar_type();
  args.history = checked.history.data();
  args.history_dtype = history_dtype;
  args.features = static_cast<int>(features);
  args.k = static_cast<int>(k);
  args.weights_per_feature = weights.dim == 2;
  args.gates = checked.gates.empty() ? nullptr : checked.gates.data();
  args.gate_dtype = gate_dtype;
  checked.weights = small(weights);
  checked.device_index = x.device_index;
}

}  // namespace

void check_forecast_residual(CheckedForecastResidual& checked, const Tensor& x,
                             const TensorList& history, const Tensor& weights,
                             const TensorList& gates) {
  const char* op = "forecast_residual_";
  Arg stream(op, "x", -1, x), w(op, "weights", -1, weights);
  check_lead(stream);
  check_small(w, stream);
  if (w.dim != 1 && w.dim != 2) fail(w, "shape [K] or [L, K]", w.shape());
  const std::int64_t k = w.sizes[w.dim - 1];
  if (k < 1 || k > kMaxHistory) {
    fail(w, "1 to " + std::to_string(kMaxHistory) + " weights per feature", w.shape());
  }
  check_plain(w);
  const std::int64_t terms = static_cast<std::int64_t>(history.size()), features = terms / k;
  if (terms != features * k || features < 1 || features > kMaxFeatures) {
    fail(op, "history",
         std::to_string(k) + " tensors for each of 1 to " + std::to_string(kMaxFeatures) +
             " features",
         std::to_string(terms));
  }
  if (w.dim == 2 && w.sizes[0] != features) {
    fail(w, "shape " + shape_text({k}) + " or " + shape_text({features, k}), w.shape());
  }
  std::vector<Arg> slots = make_args(op, "history", history), gate = make_args(op, "gates", gates);
  check_history(slots, [&](std::size_t) -> const Arg& { return stream; });
  if (!gates.empty() && static_cast<std::int64_t>(gates.size()) != features) {
    fail(op, "gates", "0 or " + count(features), std::to_string(gates.size()));
  }
  set_rows(checked.args, stream);
  check_gates(checked.args, gate, stream);
  check_finite(w);
  std::vector<Access> accesses;
  accesses.reserve(2 + slots.size() + gate.size());
  accesses.push_back({&stream, true});
  add(accesses, slots, false);
  accesses.push_back({&w, false});
  add(accesses, gate, false);
  check_own_memory(accesses);
  for (const Arg& arg : slots) checked.history.push_back(arg.data);
  for (const Arg& arg : gate) checked.gates.push_back(arg.data);
  finish_residual(checked, stream, slots[0].scalar_type(), features, k, w,
                  gate.empty() ? ScalarType::kFloat32 : gate[0].scalar_type());
}

void check_forecast_residual_packed(CheckedForecastResidual& checked, const Tensor& x,
                                    const Tensor& history, const Tensor& weights,
                                    const Tensor& gates) {
  const char* op = "forecast_residual_";
  Arg stream(op, "x", -1, x), arena(op, "history", -1, history), w(op, "weights", -1, weights),
      gate(op, "gates", -1, gates);
  check_lead(stream);
  check_floating(arena);
  check_same_device(arena, stream);
  if (arena.dim != stream.dim + 2 ||
      !std::equal(stream.sizes, stream.sizes + stream.dim, arena.sizes + 2)) {
    std::string inner;
    for (std::int64_t i = 0; i < stream.dim; ++i) inner += ", " + std::to_string(stream.sizes[i]);
    fail(arena, "shape [L, K" + inner + "]", arena.shape());
  }
  const std::int64_t features = arena.sizes[0], k = arena.sizes[1];
  if (features < 1 || features > kMaxFeatures || k < 1 || k > kMaxHistory) {
    fail(arena,
         "1 to " + std::to_string(kMaxFeatures) + " features and 1 to " +
             std::to_string(kMaxHistory) + " tensors for each",
         "shape " + arena.shape());
  }
  check_plain(arena);
  check_small(w, stream);
  if (!w.has_shape({k}) && !w.has_shape({features, k})) {
    fail(w, "shape " + shape_text({k}) + " or " + shape_text({features, k}), w.shape());
  }
  check_plain(w);
  set_rows(checked.args, stream);
  std::int64_t gate_rows = 0;
  if (gate.numel != 0) check_gate_dtype(gate, stream);
  check_same_device(gate, stream);
  if (gate.numel != 0) {
    if (stream.dim != 3) fail(stream, "shape [B, S, D] when gates are given", stream.shape());
    const std::int64_t b = stream.sizes[0], s = stream.sizes[1], d = stream.sizes[2];
    if (!gate.has_shape({features, 1, d}) && !gate.has_shape({features, b, d})) {
      fail(gate, "shape " + shape_text({features, 1, d}) + " or " + shape_text({features, b, d}),
           gate.shape());
    }
    gate_rows = gate.sizes[1];
    checked.args.batch = b, checked.args.rows = s, checked.args.cols = d;
    checked.args.gate_batch_stride = gate_rows == 1 ? 0 : d;
  }
  check_plain(gate);
  check_finite(w);
  check_own_memory({{&stream, true}, {&arena, false}, {&w, false}, {&gate, false}});
  const std::int64_t bytes = stream.numel * element_size(arena.scalar_type());
  for (std::int64_t i = 0; i < features * k; ++i) checked.history.push_back(arena.data + i * bytes);
  const std::int64_t gate_bytes = gate_rows * checked.args.cols * element_size(gate.scalar_type());
  for (std::int64_t l = 0; l < features && gate_rows > 0; ++l) {
    checked.gates.push_back(gate.data + l * gate_bytes);
  }
  finish_residual(checked, stream, arena.scalar_type(), features, k, w, gate.scalar_type());
}

}  // namespace foca::ops
