"""Reading a report as a browser would: elements, tables, and the data of its scripts."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

#: elements that have no end
_VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """A parsed page.

    Attributes
    ----------
    elements : list of (str, dict)
        Every start tag with its attributes.
    scripts : list of str
        Those that run, in order; the data are not among them.
    style : str
    data : dict
        The JSON of the scripts.
    text : str
        All text but that of scripts and style.
    tables : dict of str to list of list of str
        Caption -> rows of the body.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.style = self.text = ""
        self.data: dict[str, Any] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self._rows.append([])
        elif tag == "td":
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = [row for row in self._rows if row]

    def handle_data(self, data: str) -> None:
        last = self.open[-1] if self.open else ""
        if last == "script" and self.elements[-1][1].get("type") == "application/json":
            self.data = json.loads(data)
        elif last == "script":
            self.scripts.append(data)
        elif last == "style":
            self.style += data
        else:
            self.text += data
            if last == "caption":
                self._caption += data
            elif "td" in self.open:
                self._rows[-1][-1] += data

    def chart(self, name: str) -> dict[str, dict[str, Any]]:
        """Traces of a chart by name."""
        return {trace["name"]: trace for trace in self.data["charts"][name]["data"]}
