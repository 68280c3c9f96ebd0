"""The servers that a benchmark is told of or finds, as the tests find them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.databases import KINDS, Resolver, Unavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from tests.support.databases import Server

__all__ = ["add_server_options", "servers"]


def add_server_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Let a benchmark be told of servers: ``"postgresql"``, ``"mariadb"``."""
    for name in names:
        kind = KINDS[name]
        parser.add_argument(
            f"--{name}",
            metavar="URL",
            help=f"a {kind.title} where databases may be created and dropped (default: {kind.url_variable}, else a "
            "container, else a private server)",
        )


@contextmanager
def servers(options: argparse.Namespace, name: str) -> Iterator[list[Server]]:
    """Return the server of this name in a list, which is empty where there is none; what was started is stopped."""
    given = getattr(options, name)
    variable = KINDS[name].url_variable
    resolver = Resolver({**os.environ, variable: given} if given else os.environ)
    try:
        try:
            found = [resolver.server(name)]
        except Unavailable as reason:
            print(f"\n{KINDS[name].title} was left out: {reason}")
            found = []
        yield found
    finally:
        resolver.close()
