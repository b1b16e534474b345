"""Files written whole or not at all, so that an interrupted command leaves no half of one."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, TypeGuard


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of JSON data is a number that a double can hold: no boolean, no infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a safetensors file holds, on the host.

    Raises:
        OSError: It cannot be read.
        ValueError: It is cut off or no such file; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from None
    return tensors


def check_output(name: str, path: str | os.PathLike[str]) -> None:
    """Refuses, before anything is computed, a path that no file can be written to.

    Args:
        name: what the message begins with, like "argument --out".
        path: of the file to come.

    Raises:
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: it is a folder itself.
        OSError: no file can be made in its folder.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{name}: expected the name of a file, got the folder {path}")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"{name}: expected a folder that exists, got {path}")
    part = _beside(target)
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        raise OSError(f"{name}: expected a folder to write to, got {path}: {error}") from None


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file through a temporary one beside it, which takes its place when complete.

    Raises:
        OSError: It cannot be written; an older file of that name is still what it was.
    """
    target = Path(path)
    part = _beside(target)
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.{os.getpid()}.part")
