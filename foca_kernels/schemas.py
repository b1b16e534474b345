"""The operator schemas of the `foca` namespace: the one place where they are written.

`torch.ops.foca.*` is defined from this table when `foca_kernels` is imported. The C++ libraries,
the Triton launchers and the PyTorch reference only register implementations for these names.

Overloads written `-> ()` return nothing on purpose: an operator that returned an alias of its
argument would fail `torch.library.opcheck` and `torch.compile`.
"""

NAMESPACE = "foca"

MAX_HISTORY = 8  # K: tensors kept per feature
MAX_FEATURES = 256  # L: features in one collapsed skip
MAX_STATS = 8  # R: rows of a transition that are reduced to a norm instead of stored

SCHEMAS = {
    # One step of the paper: BDF2 predictor and Heun corrector, fused. Writes F_{k+1} over f_km1.
    "forecast_calibrate": (
        "(Tensor f_k, Tensor(a!) f_km1, Tensor d_anchor, float h, float h_prev) -> ()"
    ),
    "forecast_calibrate.tensor": (
        "(Tensor f_k, Tensor(a!) f_km1, Tensor d_anchor, Tensor steps) -> ()"
    ),
    "forecast_calibrate.list": (
        "(Tensor[] f_k, Tensor(a!)[] f_km1, Tensor[] d_anchor, Tensor steps) -> ()"
    ),
    "forecast_calibrate.rotate": (
        "(Tensor(a!) f_k, Tensor(b!) f_km1, Tensor d_anchor, Tensor steps) -> ()"
    ),
    # A weighted sum of one feature's history.
    "forecast": "(Tensor[] history, Tensor weights) -> Tensor",
    "forecast.out": "(Tensor[] history, Tensor weights, *, Tensor(a!) out) -> ()",
    # The collapsed skip: x += sum_l gate_l * sum_p w[l, p] * history[l * K + p].
    "forecast_residual_": (
        "(Tensor(a!) x, Tensor[] history, Tensor weights, Tensor[] gates) -> ()"
    ),
    "forecast_residual_.packed": (
        "(Tensor(a!) x, Tensor history, Tensor weights, Tensor gates) -> ()"
    ),
    # Folds a computed feature into its history, in place, and reduces norms on the way.
    "commit_": (
        "(Tensor feature, Tensor(a!)[] history, Tensor transition, Tensor(b!)? stats) -> ()"
    ),
    "commit_.list": (
        "(Tensor[] features, Tensor(a!)[] history, Tensor transition, Tensor(b!)? stats) -> ()"
    ),
}
