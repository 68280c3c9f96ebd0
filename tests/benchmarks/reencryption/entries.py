"""What is measured in which database: the rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.benchmarks.reencryption.contents import AES, ENVELOPES, FERNET, PGP
from tests.benchmarks.reencryption.subjects import FLOOR, OURS
from tests.support.databases import DRIVER_MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.reencryption.contents import Content
    from tests.benchmarks.reencryption.stores import Store

__all__ = ["FLOOR_ENTRY", "Entry", "main_entry", "other_drivers", "rivals", "two_shards"]


@dataclass(frozen=True)
class Entry:
    """One row of a table.

    Attributes:
        name: What it is called there.
        subject: What is run: a name of :data:`~tests.benchmarks.reencryption.subjects.SUBJECTS`.
        content: What it is run on.
        driver: With which driver; None for the store's first.
        is_sharded: Whether other processes do the work, so that CPU time and memory of this one say nothing.
    """

    name: str
    subject: str
    content: Content = ENVELOPES
    driver: str | None = None
    is_sharded: bool = False

    @property
    def is_checked(self) -> bool:
        """Whether it is ours, so that every row must open afterwards."""
        return self.subject.startswith(OURS)


FLOOR_ENTRY: Final = Entry(FLOOR, FLOOR)


def main_entry(store: Store) -> Entry:
    """Return what the limits are for."""
    return _with_driver(store.drivers[0], None)


def two_shards(store: Store) -> Iterator[Entry]:
    """Yield the run in two processes where there is a limit for it."""
    if store.name == "postgresql":
        yield Entry("reencrypt, 2 shards", "reencrypt, 2 shards", is_sharded=True)


def other_drivers(store: Store) -> Iterator[Entry]:
    """Yield ours with the drivers beside the first."""
    for driver in store.drivers[1:]:
        yield _with_driver(driver, driver)


def _with_driver(name: str, driver: str | None) -> Entry:
    module, _ = DRIVER_MODULES[name]
    return Entry(f"{OURS}, {module}", OURS, driver=driver)


def rivals(store: Store) -> Iterator[Entry]:
    """Yield what people do instead; and on PostgreSQL what it costs to let it reuse the space of old rows."""
    if store.name == "postgresql":
        yield Entry("reencrypt, no VACUUM", "reencrypt, no VACUUM")
    yield Entry("naive ORM loop", "naive ORM loop")
    yield Entry("MultiFernet.rotate", "MultiFernet.rotate", FERNET)
    if store.name == "postgresql":
        yield Entry("pgcrypto, pgp_sym", "pgcrypto, pgp_sym", PGP)
        yield Entry("pgcrypto, encrypt", "pgcrypto, encrypt", AES)
