"""Every kernel compiles for GPUs that need not be here, keeps to its registers, and costs what the README says."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.ops.aot import compile_all

MODULES = ["masked_l1", "pbc", "update_step", "noising"]
CAPABILITIES = [80, 90]
Tables = dict[tuple[str, int], "Future[list[dict[str, Any]]]"]


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Every module for every GPU, two compilers at a time."""
    pytest.importorskip("triton", reason="no Triton on this platform")
    pool = ThreadPoolExecutor(2)
    return {(m, c): pool.submit(compile_all, f"fastcrystal.kernels.{m}", c) for m in MODULES for c in CAPABILITIES}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("module", MODULES)
def test_no_kernel_spills(tables: Tables, module: str, capability: int) -> None:
    rows = tables[module, capability].result()
    dtypes = {kind for row in rows for kind in row["signature"].values()}
    assert {"*fp64", "*fp32", "*bf16", "*fp16"} <= dtypes
    for row in rows:
        name = f"sm_{capability} {module}.{row['kernel']} {row['signature']['x_ptr']} {row['constants']}"
        print(f"{name}: {row['reg']} registers, {row['instructions']} instructions in {row['num_warps']} warps")
        assert (row["stack"], row["local"], row["spills"]) == (0, 0, 0), name
        assert row["reg"] <= 255


@pytest.mark.timeout(600)
def test_instructions_of_the_default_loss(tables: Tables) -> None:
    """What kernels/README.md says of a site; it was about 1,000 forward for the plain form."""
    rows = [r for r in tables["pbc", 90].result() if r["signature"]["x_ptr"] == "*fp32"][:2]
    sites = [int(r["constants"]["BLOCK"]) / (32 * r["num_warps"]) for r in rows]
    forward, backward = (r["instructions"] / s for r, s in zip(rows, sites, strict=True))
    assert [r["kernel"] for r in rows] == ["_forward", "_backward"]
    assert forward < 360
    assert backward < 510
