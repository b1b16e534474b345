"""Calibrated schemes as files: `foca-dit calibrate` writes them, `load_scheme` reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foca_dit import schemes
from foca_dit.calibration import eoc
from foca_dit.calibration.calibrated import ORIGIN, Calibrated, read_origin
from foca_dit.files import write_whole
from foca_dit.schemes.base import Scheme

GOC_FORMAT = "foca-goc"


def save_goc(scheme: Calibrated, path: Path, report: Mapping[str, Any]) -> None:
    """Writes a GOC scheme with its inflection set and its origin as JSON."""
    data = {
        "format": GOC_FORMAT,
        "scheme": schemes.describe(scheme.base),
        ORIGIN: None if scheme.made_for is None else scheme.made_for.as_dict(),
        "report": dict(report),
    }
    write_whole(path, json.dumps(data, indent=1) + "\n")


def load_scheme(path: str | os.PathLike[str]) -> Scheme:
    """The scheme in a file of `foca-dit calibrate`, for `FoCaCacheConfig(scheme=..)`.

    It refuses models, samplers and numbers of steps that it was not calibrated on.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file.
    """
    file = Path(path)
    text = file.read_text()
    try:
        data = json.loads(text)
        known = data.get("format") if isinstance(data, dict) else None
        if known == GOC_FORMAT:
            return Calibrated(schemes.build(data["scheme"]), made_for=read_origin(data))
        if known == eoc.FORMAT:
            return eoc.load_eoc(file, data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"load_scheme {file}: expected a file of foca-dit calibrate, got one that cannot be "
            f"read: {type(error).__name__}: {error}"
        ) from error
    raise ValueError(
        f"load_scheme {file}: expected the format {GOC_FORMAT!r} or {eoc.FORMAT!r}, got {known!r}"
    )
