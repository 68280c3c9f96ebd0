"""Run the suite of a library twice, with its own types and with this package's, and print what passed and failed.

``python -m tests.frameworks.suites LIBRARY DIRECTORY [DATABASE_URL]``, where DIRECTORY is the library's source.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET

_HERE: Final = Path(__file__).parent

#: The tests of each library that store tokens, and what pytest needs for them.
_TESTS: Final = {
    "advanced-alchemy": ("--noconftest", "tests/integration/test_encrypted_string.py"),
    "authlib": ("tests/flask/test_oauth2",),
    "fastapi-users": ("tests",),
    "flask-dance": ("tests/consumer/storage",),
    "sqlalchemy": ("test/dialect/test_suite.py", "-k", "StringTest or TextTest"),
    "sqlalchemy-utils": ("tests/types/test_encrypted.py",),
}


#: The environment variables by which the suites take a database, the plugin's own among them.
_DATABASE: Final = ("DATABASE_URI", "DATABASE_URL", "SUITE_DATABASE")


class _Run(NamedTuple):
    """The outcome and message of each test, and the number of envelopes that reached the database."""

    outcomes: dict[str, tuple[str, str]]
    envelopes: str

    def counts(self) -> str:
        counts = Counter(outcome for outcome, _ in self.outcomes.values())
        shown = (f"{counts[outcome]:4} {outcome}" for outcome in ("passed", "failed", "skipped"))
        return f"{'  '.join(shown)}  {self.envelopes} envelopes"


def _run(library: str, directory: Path, database: str | None, *, swapped: bool) -> _Run:
    """Run a library's suite once."""
    environment = {
        **os.environ,
        **dict.fromkeys(_DATABASE if database else (), database or ""),
        "PYTHONPATH": os.pathsep.join(map(str, (_HERE, _HERE.parents[2], "."))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SWAPPED_LIBRARY": library if swapped else "",
    }
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        options = ["-q", "-p", "swapped_types", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if library == "sqlalchemy" and database:
            options.append(f"--dburi={database}")
        command = [sys.executable, "-m", "pytest", *options, *_TESTS[library]]
        done = subprocess.run(
            command, cwd=directory, env=environment, check=False, capture_output=True, text=True
        )
        if not report.exists():
            raise SystemExit(done.stdout + done.stderr)
        tree = ET.parse(report)
        (envelopes,) = (
            one.get("value") or "" for one in tree.iter("property") if one.get("name") == "envelopes"
        )
        return _Run(dict(map(_outcome, tree.iter("testcase"))), envelopes)


def _outcome(case: ET.Element) -> tuple[str, tuple[str, str]]:
    name = f"{case.get('classname')}::{case.get('name')}"
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            outcome = "skipped" if child.tag == "skipped" else "failed"
            return name, (outcome, (child.get("message") or "").strip().splitlines()[0])
    return name, ("passed", "")


def main() -> None:
    """Print the counts of both runs, and the tests that pass with the library's types only."""
    parser = argparse.ArgumentParser(prog="python -m tests.frameworks.suites", description=__doc__)
    parser.add_argument("library", choices=sorted(_TESTS))
    parser.add_argument("directory", type=Path)
    parser.add_argument("database", nargs="?", help="a URL, for the suites that take one")
    given = parser.parse_args()
    theirs = _run(given.library, given.directory, given.database, swapped=False)
    print(f"their types  {theirs.counts()}")
    ours = _run(given.library, given.directory, given.database, swapped=True)
    print(f"our types    {ours.counts()}")
    if ours.envelopes == "0":
        raise SystemExit("no envelope was sent: the types were not swapped")
    for name, (outcome, message) in sorted(ours.outcomes.items()):
        if outcome == "failed":
            before, _ = theirs.outcomes.get(name, ("missing", ""))
            print(f"{name} ({before} with their types): {message}")


main()
