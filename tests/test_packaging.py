"""The kernels link, what an installed copy holds, and the public surface."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastcrystal
from fastcrystal.sampling.pretrained import MODELS

ROOT = Path(__file__).resolve().parents[1]
checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an sdist holds a copy in place of the link")
#: without these an installed copy cannot work
NEEDED = {
    "fastcrystal/data/datasets/prototype_formulas.txt",
    "fastcrystal/features/elements.npz",
    "fastcrystal/features/space_groups.npz",
    "fastcrystal/kernels/__init__.py",
    "fastcrystal/kernels/masked_l1.py",
    "fastcrystal/py.typed",
}
USE = """
import fastcrystal, fastcrystal.kernels
from fastcrystal.features.elements import element_features
from fastcrystal.features.space_groups import space_group_table
from fastcrystal.loss import l1_loss
assert element_features().shape == (104, 125) and space_group_table().shape == (231, 192, 4, 4)
print(fastcrystal.__file__, fastcrystal.kernels.__file__, sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made from an sdist made from this checkout, as a release is."""
    pytest.importorskip("build", reason="extra: test")
    pytest.importorskip("hatchling", reason="extra: test")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return path


def declared_version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found[1]


@checkout
def test_kernels_is_a_link() -> None:
    assert os.readlink(ROOT / "fastcrystal" / "kernels") == "../kernels"


@checkout
def test_top_level_kernels_refuses() -> None:
    done = subprocess.run([sys.executable, "-c", "import kernels"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "ImportError: this folder is fastcrystal.kernels, not a package named 'kernels'" in done.stderr


def test_version_is_pyprojects() -> None:
    assert fastcrystal.__version__ == declared_version()


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    package = ROOT / "fastcrystal"
    # the link is a folder of its own in the wheel
    files = [*package.rglob("*"), *(package / "kernels").iterdir()]
    here = {
        f"fastcrystal/{path.relative_to(package).as_posix()}"
        for path in files
        if path.suffix in (".py", ".npz", ".toml", ".txt", ".typed")
    }
    assert here >= NEEDED
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert here - names == set()
    for folder in MODELS.values():  # a shipped model is a run folder: config, card, measured accuracy, weights
        own = {name.rsplit("/", 1)[1] for name in names if name.startswith(f"fastcrystal/{folder}/")}
        assert own == {"config.json", "MODEL_CARD.md", "result.json", "state.json", "ema.safetensors"}
    # nothing lands beside the package in site-packages, least of all a folder `kernels`
    assert {name.split("/")[0] for name in names} == {"fastcrystal", f"fastcrystal-{declared_version()}.dist-info"}


def test_wheel_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site, cwd = tmp_path / "site", tmp_path / "elsewhere"
    cwd.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    package = site / "fastcrystal"
    assert done.stdout.splitlines() == [str(package / "__init__.py"), str(package / "kernels" / "__init__.py")]


def test_public_surface() -> None:
    classes = ["CrystalBatch", "CrystalDataset", "CrystalGenerator"]
    assert fastcrystal.__all__ == [*classes, "evaluate", "l1_loss", "load_dataset", "load_model", "pbc_loss"]
    assert set(fastcrystal.__all__) < set(dir(fastcrystal))
    for name in fastcrystal.__all__:
        assert getattr(fastcrystal, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'crystal_batch'"):
        _ = fastcrystal.crystal_batch
