"""Values that must not change by accident: compared with a committed JSON file, or written to it on request."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
#: set to 1, the committed files are rewritten with what the code says now: look at the diff before you commit it
UPDATE = "FASTCRYSTAL_UPDATE_PINS"


def as_text(value: Any) -> str:
    """JSON in one form, in which 1 and 1.0 are different."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def check_pin(path: Path, value: Any) -> None:
    """Fail if `value` is not what the file `path` holds."""
    if os.environ.get(UPDATE) == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(value), encoding="utf-8")
        return
    assert path.is_file(), f"no {path}: {UPDATE}=1 writes it"
    pinned = as_text(json.loads(path.read_text(encoding="utf-8")))
    # pytest explains comparisons in test files alone
    changes = "\n".join(difflib.unified_diff(pinned.splitlines(), as_text(value).splitlines(), "pinned", "now", n=2))
    assert not changes, f"{path.name} is not what it was; if this is meant, {UPDATE}=1 rewrites it:\n{changes}"
