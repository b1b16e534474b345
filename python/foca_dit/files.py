"""Files written whole or not at all, so that an interrupted command leaves no half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file through a temporary one beside it, which takes its place when complete.

    Raises:
        OSError: It cannot be written; an older file of that name is still what it was.
    """
    target = Path(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
