"""docs/paper.md: its links and commands hold, and the docstrings name each algorithm of the paper once."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from pathlib import Path

import pytest

from fastcrystal.cli.app import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "paper.md"
#: algorithms of the paper's appendix
ALGORITHMS = range(1, 12)
#: scripts/<name>.py -> the subcommand that it is; other scripts have options of their own
SCRIPTS = {"train": "train", "sample": "sample", "evaluate": "evaluate"}


def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def sources() -> list[Path]:
    """Python files of the package, kernels included, each once."""
    found = {p.resolve() for top in ("fastcrystal", "kernels") for p in (ROOT / top).rglob("*.py")}
    assert found
    return sorted(found)


@functools.cache
def docstrings() -> tuple[tuple[str, str], ...]:
    """Where each docstring of the package is, and its text; those below an attribute count too."""
    nodes = ((path, n) for path in sources() for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = ((path, n.value) for path, n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
    return tuple((f"{p.relative_to(ROOT)}:{c.lineno}", c.value) for p, c in found if isinstance(c.value, str))


def naming(pattern: str) -> list[str]:
    """Where the docstrings are that match a regular expression."""
    return [place for place, doc in docstrings() if re.search(pattern, doc)]


@pytest.mark.parametrize("number", ALGORITHMS)
def test_one_docstring_names_the_algorithm(number: int) -> None:
    places = naming(rf"\bAlgorithm {number}\b")
    assert len(places) == 1, places


def test_algorithms_are_named_one_by_one() -> None:
    assert naming(r"\bAlgorithms \d") == []


@pytest.mark.parametrize("number", ALGORITHMS)
def test_page_lists_the_algorithm_beside_its_file(number: int) -> None:
    rows = re.findall(rf"^\| {number} \|.*$", text(), re.MULTILINE)
    assert len(rows) == 1, rows
    (place,) = naming(rf"\bAlgorithm {number}\b")
    assert f"](../{place.partition(':')[0]})" in rows[0], place


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", text())
    local = [link for link in links if "://" not in link]
    assert local
    assert not [link for link in local if not (PAGE.parent / link).exists()]


def test_links_to_headings_lead_to_headings() -> None:
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*\.md|)#([^)\s]+)\)", text()):
        page = PAGE.parent / target if target else PAGE
        headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", h.lower()).strip()) for h in headings}
        if anchor not in slugs:
            broken.append(f"{target}#{anchor}")
    assert not broken


def commands() -> list[list[str]]:
    """Argument lists of the command lines on the page, in code spans and bash blocks, the program as the subcommand."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text())
    lines = [
        line
        for block in re.findall(r"^```bash\n(.*?)^```$", text(), re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    out = []
    for line in [*spans, *lines]:
        words = shlex.split(line, comments=True) if line.startswith(("fastcrystal ", "python scripts/")) else []
        if words[:1] == ["fastcrystal"]:
            out.append(words[1:])
        elif words:
            assert (ROOT / words[1]).is_file(), words[1]
            if Path(words[1]).stem in SCRIPTS:
                out.append([SCRIPTS[Path(words[1]).stem], *words[2:]])
            else:
                options = [w for w in words if w.startswith("--")]
                assert all(f'"{o}"' in (ROOT / words[1]).read_text(encoding="utf-8") for o in options), line
    return out


def test_commands_parse() -> None:
    found = commands()
    assert found
    for words in found:
        build_parser().parse_args(words)
