"""One method, two ways: commit and forecast by tables, or step by step with forecast_calibrate."""

import math

import pytest
import torch

import foca_kernels
from foca_dit.schemes import FoCa, run_reference

TIMES = {
    "uniform": [float(step) for step in range(16)],
    "irregular": [
        0.0,
        0.7,
        1.1,
        2.4,
        3.0,
        3.2,
        4.9,
        5.5,
        6.6,
        7.0,
        8.3,
        8.8,
        9.9,
        11.0,
        11.4,
        12.5,
    ],
}
FULL_STEPS = (0, 1, 2, 5, 7, 11, 12)


def by_tables(features, tau):
    scheme = FoCa(feedback=1.0, max_carry=math.inf)
    history = [torch.full_like(features[0], math.nan) for _ in range(scheme.history_size)]
    used, anchors = [], []
    for step, feature in enumerate(features):
        if step in FULL_STEPS:
            anchors.append(step)
            table = torch.tensor(scheme.transition(tau, anchors), dtype=torch.float32)
            foca_kernels.commit_(feature, history, table)
            used.append(feature)
        else:
            weights = torch.tensor(scheme.weights(tau, anchors, step), dtype=torch.float32)
            used.append(foca_kernels.forecast(history, weights))
    return torch.stack(used)


def step_by_step(features, tau):
    f_k, f_km1 = features[0].clone(), features[0].clone()
    used, anchor = [], None
    for step, feature in enumerate(features):
        if step in FULL_STEPS:
            f_km1.copy_(f_k)
            f_k.copy_(feature)
            if anchor is not None:
                d_anchor = (feature - features[anchor]) / (tau[step] - tau[anchor])
            anchor = step
        else:
            steps = torch.tensor([tau[step] - tau[step - 1], tau[step - 1] - tau[step - 2]])
            foca_kernels.forecast_calibrate_rotate(f_k, f_km1, d_anchor, steps)
        used.append(f_k.clone())
    return torch.stack(used)


@pytest.mark.parametrize("tau", TIMES.values(), ids=TIMES)
def test_tables_equal_stepping(tau):
    features = torch.randn(16, 3, 33, generator=torch.Generator().manual_seed(0))
    closed, stepped = by_tables(features, tau), step_by_step(features, tau)
    torch.testing.assert_close(closed, stepped, rtol=1e-5, atol=1e-4)
    exact = run_reference(FoCa(feedback=1.0, max_carry=math.inf), features, FULL_STEPS, tau)
    torch.testing.assert_close(closed.double(), exact, rtol=1e-5, atol=1e-4)
