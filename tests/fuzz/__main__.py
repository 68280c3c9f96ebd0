"""Run one target under atheris: ``python -m tests.fuzz TARGET [options of libFuzzer]``. Needs the extra ``fuzz``."""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Final

# By name, because the extra is needed here only, and has no types.
atheris: Final[Any] = import_module("atheris")

with atheris.instrument_imports(include=["jwt_column", "migrations_helpers"]):
    from jwt_column.keys.schemes import MODULE_OF_SCHEME
    from tests.fuzz.corpus import seeds
    from tests.fuzz.targets import TARGETS

    # A provider is imported when a URI names it, which would be too late.
    for module in MODULE_OF_SCHEME.values():
        import_module(f"jwt_column.keys.providers.{module}")

if __name__ == "__main__":
    # Every URI of an unknown scheme would read the metadata of all installed distributions.
    schemes: Any = import_module("jwt_column.keys.schemes")
    schemes.entry_points = lambda **_: ()
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            Path(corpus, str(number)).write_bytes(seed)
        # It ends the process, and a failing input is written to the current directory.
        atheris.Setup([sys.argv[0], *options, corpus], TARGETS[name])
        atheris.Fuzz()
