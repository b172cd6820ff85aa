"""The plan of the house: few loose modules, imports that go down the list of packages, no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.factories.tiny import ROOT

#: top to bottom; a package imports only what stands below it, or itself
ORDER = (
    *("cli", "experiments", "discovery", "evaluation", "sampling", "training", "stability", "relaxation", "process"),
    *("model", "loss", "data", "ops", "symmetry", "structure", "testing", "crystal", "features", "parallel"),
    *("kernels", "utils"),
)


def modules() -> dict[str, Path]:
    """Every module of the package by name, those of kernels/ by their import name."""
    out = {}
    for path in sorted((ROOT / "fastcrystal").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for path in sorted((ROOT / "kernels").glob("*.py")):
        out[f"fastcrystal.kernels.{path.stem}".removesuffix(".__init__")] = path
    return out


def statements(tree: ast.AST, typing: bool) -> Iterator[ast.AST]:
    """Every node; those under `if TYPE_CHECKING` only where `typing` is asked for."""
    for node in ast.iter_child_nodes(tree):
        if not typing and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from statements(node, typing)


def imports(names: dict[str, Path], *, typing: bool) -> dict[str, set[str]]:
    """What each module imports from the package, wherever in the file."""
    out: dict[str, set[str]] = {}
    for name, path in names.items():
        found = out.setdefault(name, set())
        for node in statements(ast.parse(path.read_text(encoding="utf-8")), typing):
            if isinstance(node, ast.Import):
                found |= {a.name for a in node.names if a.name.startswith("fastcrystal.")}
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastcrystal":
                full = {f"{node.module}.{a.name}" for a in node.names}
                found |= {m if m in names else node.module for m in full}
        found -= {name, "fastcrystal"}
    return out


def test_few_modules_are_loose() -> None:
    loose = {p.stem for p in (ROOT / "fastcrystal").glob("*.py")}
    assert loose <= {"__init__", "__main__", "crystal", "loss", "testing"}


def test_every_package_has_its_place() -> None:
    packages = {name.split(".")[1] for name in modules() if "." in name} - {"__main__"}
    assert packages == set(ORDER)


def test_imports_go_down() -> None:
    rank = {name: i for i, name in enumerate(ORDER)}
    up = [
        f"{name} imports {other}"
        for name, found in imports(modules(), typing=True).items()
        for other in found
        if name.count(".") and name.split(".")[1] in rank and rank[other.split(".")[1]] < rank[name.split(".")[1]]
    ]
    assert up == []


def test_there_are_no_circles() -> None:
    graph = imports(modules(), typing=False)
    # a package's own module may import its parts, and parts their package: only real modules are nodes of a circle
    graph = {n: {o for o in found if not n.startswith(f"{o}.")} for n, found in graph.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
