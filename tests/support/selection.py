"""Choose the tests of the default run: all but the marked ones, and of each test one case on a server.

Storage forms, drivers and strategies multiply a test that runs on three databases. SQLite takes every case in
milliseconds, so the default run repeats one case on PostgreSQL or on MariaDB, a different one for each test. The rest
gets the marker ``exhaustive``. A test with the marker ``each_server`` is about what the two servers do in different
ways, and keeps a case on each. A test with the marker ``matrix`` is there for its cases, and keeps them all.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["is_left_out", "mark_by_fixture", "mark_repetitions"]

_SERVERS = frozenset({"postgresql", "mariadb"})
# They are compiled, and so are not among what the default run needs.
_COMPILED_DRIVERS = frozenset({"mysqldb", "mariadbconnector"})
_MARKER_OF_FIXTURE = {
    "openbao": "cloud",
    "persistent_openbao": "cloud",
    "postgresql_statement_log": "processes",
}


def is_left_out(path: Path, config: pytest.Config) -> bool:
    """Return True for a file whose ``pytestmark`` the default ``-m`` leaves out, unless the command line names it.

    Importing these files, and rewriting their assertions, would delay the first result.
    """
    options = config.getini("addopts")
    if "-m" not in options:
        return False  # Another root's configuration, which leaves nothing out.
    default = options[options.index("-m") + 1]
    if path.suffix != ".py" or config.option.markexpr != default:
        return False
    if any(Path(argument.partition("::")[0]).resolve() == path for argument in config.args):
        return False
    marks = re.search(r"^pytestmark = (\[[^]]*\]|.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    names = re.findall(r"pytest\.mark\.(\w+)", marks[0]) if marks else []
    return bool(set(names) & set(re.findall(r"\w+", default)))


def mark_by_fixture(items: Iterable[pytest.Item]) -> None:
    """Mark the tests that take a fixture which starts a server of its own."""
    for item in items:
        for name in _MARKER_OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(_MARKER_OF_FIXTURE[name])


def mark_repetitions(items: Iterable[pytest.Item]) -> None:
    """Mark every case of a test on a server but one as ``exhaustive``."""
    cases: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        test, _, case = item.nodeid.partition("[")
        words = set(re.split(r"\W+", case))
        servers = _SERVERS & words
        if words & _COMPILED_DRIVERS:
            item.add_marker(pytest.mark.exhaustive)
        elif len(servers) == 1 and item.get_closest_marker("matrix") is None:
            is_on_each = item.get_closest_marker("each_server") is not None
            cases[test, min(servers) if is_on_each else "any"].append(item)
    for (test, _), group in cases.items():
        # The choice depends on the name alone, so that all workers and all runs choose alike.
        group.sort(key=lambda item: item.nodeid)
        kept = zlib.crc32(test.encode()) % len(group)
        for item in group[:kept] + group[kept + 1 :]:
            item.add_marker(pytest.mark.exhaustive)
