"""Scalars from the host and scalars from the device give the same bits, without a GPU too.

On the CPU every small tensor is a host tensor. These tests make a backend treat them the way it
does beside CUDA features: the reference as tensors it may not look at, Triton as numbers passed by
value.
"""

import math

import pytest
import torch
from backends import find_backend
from bad_inputs import valid_call
from tensors import Maker, clones, same_bits

from foca_kernels import reference
from foca_kernels.registry import FUNCTIONS

BACKENDS = [find_backend(name) for name in ("reference-cpu", "triton-cpu")]


@pytest.fixture(params=[b for b in BACKENDS if not isinstance(b, str)], ids=lambda b: b.name)
def python_backend(request):
    return request.param


@pytest.fixture
def other_path(monkeypatch, python_backend):
    """Switches the backend over; undone by monkeypatch."""

    def switch():
        if python_backend.is_reference:
            monkeypatch.setattr(reference, "_scalars", lambda t: list(t.flatten().unbind()))
        else:
            from foca_kernels import triton_ops

            monkeypatch.setattr(
                triton_ops, "_by_value", lambda t, _: (tuple(t.flatten().tolist()), True)
            )

    return switch


def tensors_of(args):
    return [t for v in args for t in (v if isinstance(v, list) else [v]) if torch.is_tensor(t)]


def both_ways(python_backend, other_path, function, args):
    copy = [clones(a) if isinstance(a, list) else a.clone() if torch.is_tensor(a) else a
            for a in args]  # fmt: skip
    want = python_backend.call(function, *copy)
    other_path()
    got = python_backend.call(function, *args)
    assert all(map(same_bits, tensors_of(args), tensors_of(copy)))
    assert (got is None and want is None) or same_bits(got, want)


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_every_operator(python_backend, other_path, function):
    args = list(valid_call(function, "cpu").values())
    both_ways(python_backend, other_path, function, args)


def test_zero_weights_skip_terms_and_features(python_backend, other_path):
    make = Maker(torch.bfloat16)
    x, *history = make.many(9, 2, 3, 5)
    for i in (1, 2, 3):
        history[i].fill_(math.nan)
    gates = [make(5), torch.full((5,), math.nan, dtype=x.dtype), make(5), make(5)]
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, -0.0], [2.0, 1.0]])
    args = [x, history, weights, gates]
    both_ways(python_backend, other_path, "forecast_residual_", args)
    assert not x.isnan().any()


def test_more_weights_than_one_launch_carries(python_backend, other_path):
    """Triton brings the weights of an arena to the device 64 numbers at a time."""
    make = Maker(torch.float32)
    args = [make(7), make(50, 3, 7), make.small(50, 3), make(0)]
    both_ways(python_backend, other_path, "forecast_residual_packed_", args)


def test_commit_with_zero_columns(python_backend, other_path):
    make = Maker(torch.float16)
    feature, *history = make.many(4, 33)
    history[2].fill_(math.nan)
    transition = torch.tensor([[0, 0, 0, 1], [-1, 0, 0, 1], [0.5, 0, 0, 0], [1, -1, 0, 0.0]])
    args = [feature, history, transition, torch.zeros(1)]
    both_ways(python_backend, other_path, "commit_", args)
    assert not any(t.isnan().any() for t in history)
