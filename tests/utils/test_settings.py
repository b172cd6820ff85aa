"""Nested settings: JSON and TOML, part.field=value by type, and one line that names the nearest valid name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from fastcrystal.utils.settings import Settings, apply_overrides, describe, load_toml, merge, names, updated


@dataclass(frozen=True)
class Flow(Settings):
    noise: Literal["uniform", "normal"] = "uniform"
    """Source of the sites. A second sentence."""
    weight: float = 1.0


@dataclass(frozen=True)
class Diffusion:
    """Not derived from Settings: any dataclass is a part."""

    steps: int = 1000


@dataclass(frozen=True)
class Optim(Settings):
    lr: float = 2e-3
    """Peak learning rate."""
    warmup: int = 200

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")


@dataclass(frozen=True)
class Run(Settings):
    data: str
    process: Flow | Diffusion = field(default_factory=Flow)
    optim: Optim = field(default_factory=Optim)
    channels: tuple[int, ...] = (1, 2)
    window: tuple[float, float] | None = None
    out: Path | None = None
    energies: dict[str, float] = field(default_factory=dict)
    fast: bool = False
    count: int | str = 3


RUN = Run("prototypes")


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.warmup = 10", "optim.warmup", 10),
        ("process.noise=normal", "process.noise", "normal"),
        ("channels=1,2,4", "channels", (1, 2, 4)),
        ("channels=(8,)", "channels", (8,)),
        ("channels=", "channels", ()),
        ("window=0,1.5", "window", (0.0, 1.5)),
        ("window=none", "window", None),
        ("out=a/b", "out", Path("a/b")),
        ("energies.NaCl=-1.5", "energies", {"NaCl": -1.5}),
        ("fast=true", "fast", True),
        ("fast=No", "fast", False),
        ("count=7", "count", 7),
        ("count=all", "count", "all"),
        ("data=a=b", "data", "a=b"),
    ],
)
def test_overrides_are_read_as_their_fields_type(override: str, name: str, value: object) -> None:
    changed = dict(names(apply_overrides(RUN, [override])))
    assert changed[name] == value
    assert type(changed[name]) is type(value)
    assert {k for k, v in changed.items() if v != dict(names(RUN))[k]} <= {name}


def test_the_last_override_counts_and_all_are_checked_together() -> None:
    assert apply_overrides(RUN, ["optim.warmup=-1", "optim.warmup=5"]).optim.warmup == 5
    both = apply_overrides(RUN, ["energies.A=1", "energies.B=2"])
    assert both.energies == {"A": 1.0, "B": 2.0}
    assert apply_overrides(both, ["energies.A=3"]).energies == {"A": 3.0, "B": 2.0}
    assert RUN.energies == {}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.warmpu=3", "optim has no field warmpu: did you mean optim.warmup?"),
        ("optm.lr=3", "Run has no field optm: did you mean optim?"),
        ("warmup=3", "Run has no field warmup: did you mean optim.warmup?"),
        ("process.steps=3", "process has no field steps: it has noise, weight"),
        ("process.wait=3", "process has no field wait: did you mean process.weight?"),
        ("optim.warmup=fast", "optim.warmup must be an integer, got 'fast'"),
        ("optim.warmup=1.5", "optim.warmup must be an integer, got '1.5'"),
        ("optim.warmup=-1", "warmup must be at least 0, got -1"),
        ("optim.lr=fast", "optim.lr must be a number, got 'fast'"),
        ("fast=2", "fast must be true or false, got '2'"),
        (
            "process.noise=gauss_normal",
            "process.noise must be one of uniform, normal, got 'gauss_normal': did you mean normal?",
        ),
        ("process.noise=7", "process.noise must be one of uniform, normal, got '7'"),
        ("process=Flow", "process is a group of settings"),
        ("optim=3", "optim is a group of settings, optim.lr and others, got '3'"),
        ("channels=1,x", "channels must be an integer, got 'x'"),
        ("window=1", r"window must be 2 values, each a number, got ['1']"),
        ("energies=3", "energies must be a table of values: energies.NAME=..., got '3'"),
        ("data.name=x", "data must be text, got {'name': 'x'}"),
        ("optim.lr", "settings are given as part.field=value, got 'optim.lr'"),
        ("=3", "settings are given as part.field=value, got '=3'"),
        ("optim..lr=3", "settings are given as part.field=value, got 'optim..lr=3'"),
    ],
)
def test_a_bad_override_is_one_line_with_the_nearest_name(override: str, line: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        apply_overrides(RUN, [override])
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_json_there_and_back() -> None:
    run = Run("x", Diffusion(50), Optim(warmup=3), (4,), (0.0, 1.0), Path("o"), {"A": 1.0}, True, "all")
    values = json.loads(json.dumps(run.to_dict()))
    assert values["process"] == {"kind": "Diffusion", "steps": 50}
    assert Run.from_dict(values) == run
    assert Run.from_dict({"data": "prototypes"}) == RUN


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "Run lacks data"),
        ({"data": "x", "fast": 1}, "fast must be true or false, got 1"),
        ({"data": "x", "optim": {"lr": True}}, "optim.lr must be a number, got True"),
        ({"data": "x", "optim": {"warmup": 2.0}}, "optim.warmup must be an integer, got 2.0"),
        ({"data": "x", "optim": {"warmup": "2"}}, "optim.warmup must be an integer, got '2'"),
        ({"data": 3}, "data must be text, got 3"),
        ({"data": "x", "process": {"steps": 3}}, "process lacks kind: one of Flow, Diffusion"),
        ({"data": "x", "process": {"kind": "Flaw"}}, "process.kind must be one of Flow, Diffusion, got 'Flaw': did"),
        ({"data": "x", "process": {"kind": "Flow", "steps": 3}}, "process has no field steps"),
        ({"data": "x", "count": [1]}, r"count must be an integer or text, got [1]"),
    ],
)
def test_values_of_another_type_are_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Run.from_dict(values)
    assert str(caught.value).startswith(line)


def test_a_kind_of_part_is_exchanged_as_a_whole() -> None:
    other = updated(RUN, {"process": {"kind": "Diffusion", "steps": 7}})
    assert other.process == Diffusion(7)
    assert apply_overrides(other, ["process.steps=8"]).process == Diffusion(8)


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('channels = [8]\n[optim]\nlr = 1\n[process]\nnoise = "normal"\n', encoding="utf-8")
    run = updated(RUN, load_toml(path))
    assert (run.channels, run.optim, run.process) == ((8,), Optim(1.0), Flow("normal"))
    path.write_text("lr = = 1", encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.toml is no TOML file: "):
        load_toml(path)
    with pytest.raises(FileNotFoundError, match="no settings file at "):
        load_toml(tmp_path / "none.toml")


def test_merge_goes_into_nested_dicts() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}}) == {
        "a": {"b": 4, "c": 2},
        "d": {"e": 5},
    }


def test_describe_names_every_setting_and_its_first_sentence() -> None:
    lines = describe(RUN).splitlines()
    assert [line.split("=")[0] for line in lines] == [name for name, _ in names(RUN)]
    assert "process.noise=uniform" in lines[1]
    assert lines[1].endswith("Source of the sites")
    assert "channels=1,2" in lines
