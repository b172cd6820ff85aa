"""Every kernel compiles for GPUs that need not be here, keeps to its registers, and costs what the README says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.factories.aot import Table, compile_all

MODULES = ["masked_l1", "pbc", "update_step", "noising", "row_norm", "philox"]
CAPABILITIES = [80, 90]
pytestmark = pytest.mark.slow
Tables = dict[int, dict[str, Table]]


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Every module for every GPU, in a process for each GPU."""
    pytest.importorskip("triton", reason="no Triton on this platform")
    names = [f"fastcrystal.kernels.{name}" for name in MODULES]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda c: compile_all(c, *names, count=names[1] if c == 90 else ""), CAPABILITIES)
        return dict(zip(CAPABILITIES, found, strict=True))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("module", MODULES)
def test_no_kernel_spills(tables: Tables, module: str, capability: int) -> None:
    rows = tables[capability][f"fastcrystal.kernels.{module}"]
    dtypes = {kind for row in rows for kind in row["signature"].values()}
    assert ({"*fp64", "*fp32", "*bf16", "*fp16"} if module != "philox" else {"*i64"}) <= dtypes
    for row in rows:
        name = f"sm_{capability} {module}.{row['kernel']} {row['signature'].get('x_ptr', '')} {row['constants']}"
        print(f"{name}: {row['reg']} registers, {row.get('instructions')} instructions in {row['num_warps']} warps")
        assert (row["stack"], row["local"], row.get("spills", 0)) == (0, 0, 0), name
        assert row["reg"] <= 255


@pytest.mark.timeout(600)
def test_instructions_of_the_default_loss(tables: Tables) -> None:
    """What kernels/README.md says of a site; it was about 1,000 forward for the plain form."""
    rows = [r for r in tables[90]["fastcrystal.kernels.pbc"] if r["signature"]["x_ptr"] == "*fp32"][:2]
    sites = [int(r["constants"]["BLOCK"]) / (32 * r["num_warps"]) for r in rows]
    forward, backward = (r["instructions"] / s for r, s in zip(rows, sites, strict=True))
    assert [r["kernel"] for r in rows] == ["_forward", "_backward"]
    assert forward < 360
    assert backward < 510
