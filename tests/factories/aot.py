"""Compile every kernel of a module for a GPU that need not be there, and count what comes out.

    python tests/factories/aot.py CAPABILITY MODULE...

prints a JSON list for each module: per entry of its AOT the kernel, constants, registers, stack and local bytes, and,
where asked for or where there is a stack, the machine instructions. Run as a process of its own, because the tests' own
Triton is an interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

NO_WORK = ("NOP", "BRA", "EXIT")


Table = list[dict[str, Any]]


def compile_all(capability: int, *modules: str, count: str = "") -> dict[str, Table]:
    """Run this file without the interpreter, once for all modules; `count` names one whose default is counted.

    Raises
    ------
    AssertionError
        If a kernel does not compile.
    """
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, str(capability), count, *modules]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise AssertionError(f"{modules} for sm_{capability}: {done.stderr[-2000:]}")
    out: dict[str, Table] = json.loads(done.stdout)
    return out


def table(module: str, capability: int, counted: int) -> Table:
    """One row per kernel of a module; the instructions of the first `counted`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows: Table = []
    for fn, signature, constants, *options in importlib.import_module(module).AOT:
        everything = {**signature, **dict.fromkeys(constants, "constexpr")}
        # tensors begin at multiples of 16 bytes: a launch sees that in their addresses, and uses wide loads
        pointers = [name for name, kind in signature.items() if kind.startswith("*")]
        aligned = {(fn.arg_names.index(name),): [["tt.divisibility", 16]] for name in pointers}
        source = ASTSource(fn=fn, signature=everything, constexprs=constants, attrs=aligned)
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options[0] if options else {})
        names = {k: str(v) for k, v in constants.items()}
        warps = kernel.metadata.num_warps
        rows.append(
            {
                "kernel": fn.__name__,
                "num_warps": warps,
                "signature": signature,
                "constants": names,
                **usage(kernel.asm["cubin"], len(rows) < counted),
            }
        )
    return rows


def usage(cubin: bytes, count: bool) -> dict[str, Any]:
    """Registers, stack and local memory (bytes), and instructions with `count`, by the cuobjdump that triton ships."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()

        def dump(what: str) -> str:
            return subprocess.run([tool, what, f.name], capture_output=True, text=True, check=True).stdout

        found = {k.lower(): int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("--dump-resource-usage"))}
        # disassembling takes a hundred times as long, and without a stack there is nothing to spill to
        if not (count or found["stack"] or found["local"]):
            return found
        sass = dump("--dump-sass")
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", sass, re.M)
    counts = Counter(names)
    spills = sum(counts[name] for name in ("LDL", "STL"))
    work = sum(n for name, n in counts.items() if name not in NO_WORK)
    return {**found, "spills": spills, "instructions": work, "special": counts["MUFU"], "names": dict(counts)}


if __name__ == "__main__":
    print(json.dumps({name: table(name, int(sys.argv[1]), 2 * (name == sys.argv[2])) for name in sys.argv[3:]}))
