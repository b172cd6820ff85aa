"""`python -m tests.factories.tiny_cli train ...`: the command line with the tiny network, for tests in processes of
their own."""

import sys

from _pytest.monkeypatch import MonkeyPatch

import fastcrystal.cli.app
from tests.factories.tiny import match_in_process, shrink_networks

if __name__ == "__main__":
    with MonkeyPatch.context() as patch:
        shrink_networks(patch)
        match_in_process(patch)
        sys.exit(fastcrystal.cli.app.main())
