"""Run one target under atheris: ``python -m tests.fuzz TARGET [options of libFuzzer]``. Needs the extra ``fuzz``."""

from __future__ import annotations

import functools
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Final

# By name, because the extra is needed here only, and has no types.
atheris: Final[Any] = import_module("atheris")

with atheris.instrument_imports(include=["jwt_column", "migrations_helpers"]):
    from tests.fuzz.corpus import seeds
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    # Every URI of an unknown scheme would read the metadata of all installed distributions.
    schemes: Any = import_module("jwt_column.keys.schemes")
    schemes.entry_points = functools.cache(schemes.entry_points)
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            Path(corpus, str(number)).write_bytes(seed)
        # It ends the process, and a failing input is written to the current directory.
        atheris.Setup([sys.argv[0], *options, corpus], TARGETS[name])
        atheris.Fuzz()
