"""Forecasting schemes: scalar tables for the kernels, from the times and steps alone.

Each scheme says what history it keeps per feature and how a forecast reads it, as two small
float64 tables (`Scheme.transition`, `Scheme.weights`). Adding one takes a frozen dataclass with
those tables and an entry in `registry.py`; no kernel changes. Mathematics: docs/method.md.
"""

from foca_dit.schemes.base import Scheme
from foca_dit.schemes.damped import GOC, DampedTrend
from foca_dit.schemes.foca import FoCa
from foca_dit.schemes.interpolation import AdamsBashforth, Newton
from foca_dit.schemes.reference import run_reference
from foca_dit.schemes.registry import build, describe, get, names
from foca_dit.schemes.reuse import Reuse
from foca_dit.schemes.slopes import BDF2, FrozenSlopeHeun, SlopeRecursion, TwoParameter
from foca_dit.schemes.taylor import HiCache, TaylorSeer

__all__ = [
    "BDF2",
    "GOC",
    "AdamsBashforth",
    "DampedTrend",
    "FoCa",
    "FrozenSlopeHeun",
    "HiCache",
    "Newton",
    "Reuse",
    "Scheme",
    "SlopeRecursion",
    "TaylorSeer",
    "TwoParameter",
    "build",
    "describe",
    "get",
    "names",
    "run_reference",
]
