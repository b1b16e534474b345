"""What the compiler made of the CUDA kernels, read from the built library. Needs no GPU.

    python benchmarks/inspect_cuda.py [--arch sm_90] [--library foca_kernels/_C_cuda.abi3.so]

One line per kernel: registers, bytes of local memory (spilled registers), and how many loads and
stores of global memory there are of each width in bits. A kernel for aligned tensors moves 128 bits
at a time; its narrower accesses are the tail's. ``FFMA`` counts fused multiply-adds: there must be
none outside the division of forecast_calibrate, or the backends would no longer round alike.

The disassembler is the ``cuobjdump`` in triton's package, or the one on the search path.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent.parent / "foca_kernels" / "_C_cuda.abi3.so"

_TEMPLATE_ARGUMENT = re.compile(
    r"Li(?P<int>\d+)E|Lb(?P<bool>[01])E|(?P<float>f)|6__half(?P<half>)|13__nv_bfloat16(?P<bf16>)"
    r"|NS\w*?_6NoGate(?P<none>)E|S\w*?_(?P<again>)"
)
_ARCH = re.compile(r"\.(sm_\d+\w?)\.cubin")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<op>[A-Z][A-Z0-9_.]*)")


@dataclass
class Kernel:
    """One kernel for one architecture.

    Attributes:
        name: such as ``forecast_residual<bf16, bf16, none, 8, 3, 256>``.
        vec_size: elements handled together; 1 in the kernels for unaligned tensors, 0 where the
            name does not say.
        local_bytes: stack frame, which is where spilled registers go.
        loads, stores: number of global accesses by width in bits.
        local_accesses: loads and stores of local memory.
        ffma: fused multiply-adds in float32.
    """

    name: str
    arch: str
    vec_size: int
    registers: int = 0
    local_bytes: int = 0
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    local_accesses: int = 0
    ffma: int = 0


def find_cuobjdump() -> str | None:
    """The executable, or None where neither triton nor a CUDA toolkit brings one."""
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if bundled.exists():
            return str(bundled)
    return shutil.which("cuobjdump")


def architectures(library: Path = LIBRARY) -> list[str]:
    """What the library holds machine code for, such as ``["sm_80", "sm_90"]``."""
    cuobjdump = find_cuobjdump()
    if cuobjdump is None or not library.exists():
        return []
    return sorted({m for line in _run(cuobjdump, library, "-lelf") for m in _ARCH.findall(line)})


def _kernel(mangled: str, arch: str) -> Kernel:
    """Reads the template arguments out of a mangled name: types, then kVec and other numbers."""
    match = re.search(r"\d([a-z_]+)_kernel(?:I(.*))?", mangled)
    if match is None:
        return Kernel(mangled, arch, 0)
    base, rest = match.group(1), match.group(2) or ""
    arguments: list[str] = []
    position = 0
    while (found := _TEMPLATE_ARGUMENT.match(rest, position)) is not None:
        kind, value = found.lastgroup, found.group(found.lastgroup or 0)
        if kind == "again":  # a substitution stands for the one 16-bit type named before
            value = next(a for a in arguments if a in ("fp16", "bf16"))
        elif kind in ("float", "half", "bf16", "none"):
            value = {"float": "fp32", "half": "fp16", "bf16": "bf16", "none": "none"}[kind]
        arguments.append(value)
        position = found.end()
    numbers = [int(a) for a in arguments if a.isdigit()]
    name = f"{base}<{', '.join(arguments)}>" if arguments else base
    return Kernel(name, arch, numbers[0] if numbers else 0)


def _run(cuobjdump: str, library: Path, *options: str) -> Iterator[str]:
    command = [cuobjdump, *options, str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout


def _width(op: str) -> int:
    for width in (128, 64):
        if f".{width}" in op:
            return width
    return 16 if ".U16" in op else 32


def inspect(library: Path = LIBRARY, arch: str | None = None) -> list[Kernel]:
    """Reads all kernels of ``library``, of one architecture such as ``"sm_90"`` or of all.

    Raises:
        FileNotFoundError: the library is not built, or there is no cuobjdump.
    """
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        raise FileNotFoundError("cuobjdump: pip install triton, or put a CUDA toolkit on PATH")
    if not library.exists():
        raise FileNotFoundError(f"{library} is not built: FOCA_BUILD_CUDA=1 pip install -e .")
    options = ["-arch", arch] if arch else []
    kernels: dict[tuple[str, str], Kernel] = {}
    current, key = "", ("", "")
    for line in _run(cuobjdump, library, "-res-usage", *options):
        if line.startswith("arch = "):
            current = line.split()[-1]
        elif line.strip().startswith("Function "):
            key = (current, line.strip().removeprefix("Function ").rstrip(":"))
            kernels[key] = _kernel(key[1], current)
        elif "REG:" in line:
            usage = dict(re.findall(r"(\w+):(\d+)", line))
            kernels[key].registers = int(usage["REG"])
            kernels[key].local_bytes = int(usage["STACK"]) + int(usage["LOCAL"])
    for line in _run(cuobjdump, library, "-sass", *options):
        if line.startswith("arch = "):
            current = line.split()[-1]
        elif "Function : " in line:
            key = (current, line.split()[-1])
        elif (match := _INSTRUCTION.match(line)) is not None:
            _count(kernels[key], match.group("op"))
    return list(kernels.values())


def _count(kernel: Kernel, op: str) -> None:
    if op.startswith("LDG"):
        kernel.loads[_width(op)] += 1
    elif op.startswith("STG"):
        kernel.stores[_width(op)] += 1
    elif op.startswith(("LDL", "STL")):
        kernel.local_accesses += 1
    elif op.startswith("FFMA"):
        kernel.ffma += 1


def _widths(counts: Counter[int]) -> str:
    return " ".join(f"{n}x{width}" for width, n in sorted(counts.items(), reverse=True)) or "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", help="one architecture, such as sm_90 (default: all)")
    parser.add_argument("--library", type=Path, default=LIBRARY)
    arguments = parser.parse_args()
    row = "{:58} {:7} {:>4} {:>6} {:>5}  {:24} {}".format
    print(row("kernel", "arch", "regs", "local", "ffma", "loads", "stores"))
    for k in sorted(inspect(arguments.library, arguments.arch), key=lambda k: (k.name, k.arch)):
        loads, stores = _widths(k.loads), _widths(k.stores)
        print(row(k.name, k.arch, k.registers, k.local_bytes, k.ffma, loads, stores))


if __name__ == "__main__":
    main()
