"""What the gates of a skipped step cost: three ways to two gate chunks of a modulation Linear.

    python benchmarks/gates.py [--device cuda] [--out FILE.json]

chunks         a product for each gate chunk
at_once        one batched product over a strided view of the weight
whole          the whole layer, shifts and scales included

The ways stand in `foca_dit.adapters.gates`, which chooses by what this measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _measure import Results, rotations, time_in_turn

from foca_dit.adapters.gates import _rows, _rows_at_once

CHUNKS, GATES = 6, (2, 5)  # AdaLayerNormZero
SIZES = ((64, 192), (1, 1152), (1, 3072), (2, 3072))  # rows of conditioning, width


def providers(rows: int, width: int, dtype: torch.dtype, device: str):
    """By name, one call for each set of cold weights."""
    nbytes = CHUNKS * width * width * dtype.itemsize
    sets = [
        (
            torch.nn.Linear(width, CHUNKS * width, device=device, dtype=dtype),
            torch.randn(rows, width, device=device, dtype=dtype),
        )
        for _ in range(min(rotations(nbytes), 8))
    ]
    own = [slice(chunk * width, (chunk + 1) * width) for chunk in GATES]
    every = slice(GATES[0], GATES[-1] + 1, GATES[1] - GATES[0])
    return {
        "chunks": [lambda s=s: [_rows(*s, rows) for rows in own] for s in sets],
        "at_once": [lambda s=s: _rows_at_once(*s, every, width) for s in sets],
        "whole": [lambda s=s: s[0](s[1]) for s in sets],
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = Results(arguments.out, arguments.device)
    for dtype in (torch.float32, torch.bfloat16):
        for rows, width in SIZES:
            runs = providers(rows, width, dtype, arguments.device)
            times = time_in_turn(runs, arguments.device, arguments.rounds)
            name = str(dtype).removeprefix("torch.")
            for provider, ms in times.items():
                results.add(provider=provider, rows=rows, width=width, dtype=name, ms=ms)
            listed = "  ".join(f"{provider} {ms:.3f}" for provider, ms in times.items())
            print(f"{name:<9} rows {rows:<3} width {width:<5} ms: {listed}")


if __name__ == "__main__":
    main()
