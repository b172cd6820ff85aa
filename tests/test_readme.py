"""README.md: its commands parse, its Python runs, its links lead somewhere. So does the Python of docs/."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from fastcrystal.cli.app import build_parser
from tests.factories.tiny import ROOT, run_command

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
#: scripts/<name>.py -> the command that it is
SCRIPTS = {"train": "train", "sample": "sample", "evaluate": "evaluate", "prepare_data": "data"}


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def python() -> list[str]:
    """Every Python block of README.md and docs/."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [code for text in (TEXT, *(p.read_text(encoding="utf-8") for p in pages)) for code in blocks("python", text)]


def commands() -> list[list[str]]:
    """Argument lists of fastcrystal's own command lines in bash blocks, the program as the subcommand."""
    out = []
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["fastcrystal"]:
                out.append(words[1:])
            elif len(words) > 1 and words[0] == "python" and words[1].startswith("scripts/"):
                name = Path(words[1]).stem
                assert (ROOT / words[1]).is_file(), words[1]
                if name in SCRIPTS:
                    out.append([SCRIPTS[name], *words[2:]])
    return out


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_parse(arguments: list[str]) -> None:
    build_parser().parse_args(arguments)


def test_there_are_commands() -> None:
    found = {words[0] for words in commands()}
    assert {"train", "sample"} <= found


#: runs blocks one after the other, each with names and a folder of its own, and writes what went wrong in each
RUN = """
import json, os, pathlib, traceback
blocks, folder = json.loads(pathlib.Path("blocks.json").read_text()), pathlib.Path.cwd()
for i, code in enumerate(blocks):
    (folder / str(i)).mkdir()
    os.chdir(folder / str(i))
    wrong = ""
    try:
        exec(compile(code, "block", "exec"), {"__name__": "__main__"})
    except BaseException:
        wrong = traceback.format_exc()
    (folder / f"{i}.txt").write_text(wrong)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what went wrong in each Python block, all run by one fresh interpreter: most of its time is imports."""
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "blocks.json").write_text(json.dumps(python()))
    done = run_command("-W", "error::DeprecationWarning:__main__", "-c", RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", range(len(python())), ids=lambda i: python()[i].strip().splitlines()[-1][:40])
def test_python_runs(outcomes: Path, block: int) -> None:
    assert (outcomes / f"{block}.txt").read_text() == ""


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXT)
    local = [link for link in links if not re.match(r"https?:|mailto:", link)]
    missing = [link for link in local if not (ROOT / link).exists()]
    assert not missing


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@@\w+@@|TODO|FIXME", TEXT)
