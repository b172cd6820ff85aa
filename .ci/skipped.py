"""Tests that were skipped, from pytest's JUnit XML: python .ci/skipped.py RESULT.xml [--none]

Prints one test a line, by the name that pytest takes. Those that need real structures, which are not part of the
repository, are left out. With --none each is an error.
"""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

#: reasons that no package can remove
DATA = re.compile(r"real structures|sample in |needs \S*/" + ("" if sys.version_info >= (3, 11) else "|torch-sim"))


def skipped(path: str) -> dict[str, str]:
    """Test -> why it was skipped."""
    out = {}
    for case in ET.parse(path).iter("testcase"):
        reason = case.find("skipped")
        if reason is None or DATA.search(reason.get("message", "")):
            continue
        module, name = case.get("classname", ""), case.get("name", "")
        # a module that was skipped whole is a case without a class
        test = f"{module.replace('.', '/')}.py::{name}" if module else f"{name.replace('.', '/')}.py"
        if not Path(test.split("::")[0]).is_file():
            raise SystemExit(f"{path}: no file of {module} {name}")
        out[test] = reason.get("message", "")
    return out


found = skipped(sys.argv[1])
if sys.argv[2:] == ["--none"]:
    for test, why in found.items():
        print(f"ci: skipped: {test}: {why}", file=sys.stderr)
    raise SystemExit(1 if found else 0)
print("\n".join(found))
