"""MkDocs hooks: pages from elsewhere in the repository, and links that work in the repository and in the site alike."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
#: page of the site -> file of the repository, outside docs/
PAGES = {
    "kernels.md": "kernels/README.md",
    "models/slim-prototypes.md": "fastcrystal/models/slim-prototypes/MODEL_CARD.md",
    "models/slim-prototypes-modify.md": "fastcrystal/models/slim-prototypes-modify/MODEL_CARD.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
#: branch of the repository that links lead to
BRANCH = "main"
#: replaced by `public_names`
MARK = "<!-- the names that fastcrystal exports -->"
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_TARGET = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")


class Shapes(griffe.Extension):
    """Keep the shapes of arrays as they are written: Griffe reads "shape (B,)" as a call and prints "shape(B)"."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Put a no-break space before the shape: then it is no Python, and Griffe takes the text."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("shape (", "shape\u00a0(")


def on_config(config: Any) -> Any:
    """Set docs_dir to the folder of mkdocs.yml, which its validation refuses."""
    config.docs_dir = str(DOCS)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add `PAGES`."""
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links to files outside the site: a file that exists gets its address in the repository.

    A link that leads nowhere stays as it is, and MkDocs warns of it.
    """
    uri = page.file.src_uri
    here = ROOT / PAGES[uri] if uri in PAGES else DOCS / uri
    pages = {(ROOT / path).resolve(): page_uri for page_uri, path in PAGES.items()}

    def address(found: re.Match[str]) -> str:
        target = (here.parent / found[1]).resolve()
        if not target.exists() or ROOT not in target.parents:
            return found[1]
        inside = pages.get(target) or (target.relative_to(DOCS).as_posix() if DOCS in target.parents else "")
        if inside and files.get_file_from_path(inside) is not None:
            return os.path.relpath(inside, os.path.dirname(uri) or ".")
        kind = "tree" if target.is_dir() else "blob"
        return f"{config.repo_url.rstrip('/')}/{kind}/{BRANCH}/{target.relative_to(ROOT).as_posix()}"

    if MARK in markdown:
        markdown = markdown.replace(MARK, public_names())
    parts = _FENCED.split(markdown)
    parts[::2] = [_TARGET.sub(address, part) for part in parts[::2]]
    return "".join(parts)


def public_names() -> str:
    """A table of what `import fastcrystal` offers: the names that its `__init__.py` imports for type checkers.

    Raises
    ------
    ValueError
        If there are none: the file is written in another way than this reads.
    """
    imports = [n for n in ast.walk(_parsed("fastcrystal")) if isinstance(n, ast.ImportFrom) and n.module]
    names = [(str(n.module), a.name) for n in imports for a in n.names if a.asname == a.name]
    if not names:
        raise ValueError("fastcrystal/__init__.py imports no name as itself (from X import Y as Y)")
    rows = (f"| [`fastcrystal.{name}`][{module}.{name}] | {_first_line(module, name)} |" for module, name in names)
    return "\n".join(["| name | |", "|---|---|", *rows])


def _first_line(module: str, name: str) -> str:
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [n for n in _parsed(module).body if isinstance(n, kinds) and n.name == name]
    return (ast.get_docstring(found[0]) or "").partition("\n")[0] if found else ""


def _parsed(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))
