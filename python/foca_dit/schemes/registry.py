"""Schemes by name, and schemes as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from foca_dit.schemes.base import Scheme, fault
from foca_dit.schemes.damped import GOC, DampedTrend
from foca_dit.schemes.foca import FoCa
from foca_dit.schemes.interpolation import AdamsBashforth, Newton
from foca_dit.schemes.reuse import Reuse
from foca_dit.schemes.slopes import BDF2, FrozenSlopeHeun, TwoParameter
from foca_dit.schemes.taylor import HiCache, TaylorSeer

_SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme
    for scheme in (
        Reuse,
        TaylorSeer,
        Newton,
        HiCache,
        AdamsBashforth,
        BDF2,
        FrozenSlopeHeun,
        TwoParameter,
        FoCa,
        DampedTrend,
        GOC,
    )
}


def names() -> tuple[str, ...]:
    """The names of all schemes."""
    return tuple(_SCHEMES)


def get(name: str, **parameters: Any) -> Scheme:
    """The scheme of that name, with its defaults for all parameters not given.

    Raises:
        ValueError: There is no scheme of that name; the message lists those there are.
        TypeError, ValueError: The scheme refuses a parameter.
    """
    if name not in _SCHEMES:
        raise ValueError(fault("schemes.get", "name", f"one of {', '.join(_SCHEMES)}", repr(name)))
    known = {field.name for field in dataclasses.fields(_SCHEMES[name])}  # type: ignore[arg-type]
    for parameter in parameters:
        if parameter not in known:
            expected = f"one of {', '.join(sorted(known))}" if known else "none"
            raise TypeError(
                f"schemes.get: scheme '{name}': expected a parameter out of: {expected}, "
                f"got {parameter!r}"
            )
    return _SCHEMES[name](**parameters)


def describe(scheme: Scheme) -> dict[str, Any]:
    """A scheme as JSON data, `{"name": .., "parameters": {..}}`; infinity is the string "inf"."""
    parameters: dict[str, Any] = {}
    for field in dataclasses.fields(scheme):  # type: ignore[arg-type]
        value = getattr(scheme, field.name)
        if isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, float) and math.isinf(value):
            value = "inf"
        parameters[field.name] = value
    return {"name": scheme.name, "parameters": parameters}


def build(description: Mapping[str, Any]) -> Scheme:
    """The inverse of `describe`."""
    parameters = {
        key: math.inf if value == "inf" else value
        for key, value in description.get("parameters", {}).items()
    }
    return get(description["name"], **parameters)
