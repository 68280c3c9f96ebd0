"""What it costs to find a token by its fingerprint, and to count rows per key.

A lookup is compared with the same lookup in a plain text column that has an index; the census with the bare aggregate
over the first six bytes of the same rows. Both are timed by the clock, because the database does a part of the work.
The statement alone, built and executed on a few rows in memory, shows the part of Python.

The peer is what applications make by hand: a Fernet column, and beside it an indexed column of keyed hashes.
"""

from __future__ import annotations

import hmac
import os
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from cryptography.fernet import Fernet, MultiFernet

from jwt_column import EncryptedJWT, FingerprintIndex, KeyRing, generate_key, key_usage
from jwt_column.format import base64url
from tests.benchmarks.measure import Figure, Table, Work, compare
from tests.benchmarks.servers import add_server_options, servers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["HELP", "add_arguments", "measure", "measure_lookup"]

HELP: Final = "search by fingerprint against an indexed column of plain text; the census against a bare count"

_LOOKUP_LIMIT: Final = 1.5
# A service does 0.9 of the requests.
_REQUEST_LIMIT: Final = 1.11
# By the number of keys in the ring.
_STATEMENT_LIMITS: Final = {1: 1.15, 2: 1.3}
_CENSUS_LIMIT: Final = 1.2
_LOOKUPS: Final = 200  # in one sample
_CHUNK: Final = 10_000

_KEY: Final = generate_key()
_RING: Final = KeyRing([_KEY])
#: As in the middle of a rotation; the peer has two keys too.
_TWO_KEYS: Final = KeyRing([_KEY, generate_key()])
_FERNET: Final = MultiFernet([Fernet(Fernet.generate_key()) for _ in range(2)])
_HASH_KEYS: Final = (os.urandom(32), os.urandom(32))
_HEADER: Final = base64url.encode(b'{"alg":"HS256","typ":"JWT"}')


def _token(number: int) -> str:
    """Return a token of about 300 characters, the same for the same number; its signature is random bytes."""
    payload = b'{"iss":"https://issuer.example","sub":"user-%08d","scope":"openid profile","iat":%d}' % (
        number,
        number,
    )
    signature = random.Random(number).randbytes(96)
    return f"{_HEADER}.{base64url.encode(payload)}.{base64url.encode(signature)}"


class _FernetColumn(sa.TypeDecorator[str]):
    """The usual encrypted column: one call of Fernet in each direction."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> bytes:
        assert value is not None
        return _FERNET.encrypt(value.encode())

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> str:
        assert value is not None
        return _FERNET.decrypt(value).decode()


def _hashes(token: str) -> list[bytes]:
    """Return the keyed hashes of a token under every key; the first is the one that is stored."""
    return [hmac.digest(key, token.encode(), "sha256")[:16] for key in _HASH_KEYS]


def _is(table: sa.Table, token: str) -> sa.ColumnElement[bool]:
    """Return the condition that finds a token."""
    return table.c.hash.in_(_hashes(token)) if "hash" in table.c else table.c.token == token


def _tables(ring: KeyRing = _RING) -> tuple[sa.Table, sa.Table, sa.Table]:
    metadata = sa.MetaData()
    plain = sa.Table(
        "plain",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", sa.Text, index=True),
    )
    encrypted = sa.Table(
        "encrypted",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", EncryptedJWT(ring, fingerprints=["token"])),
        FingerprintIndex("ix_encrypted_token", "token"),
    )
    fernet = sa.Table(
        "fernet",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", _FernetColumn),
        sa.Column("hash", sa.LargeBinary, index=True),
    )
    return plain, encrypted, fernet


def _fill(engine: sa.Engine, rows: int) -> None:
    """Write the tables past SQLAlchemy, which would take most of the time."""
    plain, encrypted, fernet = _tables()
    plain.metadata.create_all(engine)
    type_: Any = encrypted.c.token.type
    encrypt = type_.cipher().encrypt
    for start in range(1, rows + 1, _CHUNK):
        chunk = [(number, _token(number)) for number in range(start, min(start + _CHUNK, rows + 1))]
        sealed = [(number, encrypt(token, _RING)) for number, token in chunk]
        hashed = [(number, _FERNET.encrypt(token.encode()), _hashes(token)[0]) for number, token in chunk]
        with engine.begin() as connection:
            for table, values, *types in (
                (plain, chunk, "int4", "text"),
                (encrypted, sealed, "int4", "bytea"),
                (fernet, hashed, "int4", "bytea", "bytea"),
            ):
                cursor: Any = connection.connection.cursor()
                if engine.dialect.name == "postgresql":
                    with cursor.copy(f"COPY {table.name} FROM STDIN (FORMAT BINARY)") as copy:
                        copy.set_types(types)
                        for row in values:
                            copy.write_row(row)
                else:
                    marks = ", ".join("?" for _ in types)
                    cursor.executemany(f"INSERT INTO {table.name} VALUES ({marks})", values)
                cursor.close()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE")


def measure_lookup(engine: sa.Engine, rows: int, samples: int) -> Table:
    """Fill the tables with the same tokens, and compare."""
    _fill(engine, rows)
    plain, encrypted, fernet = _tables()
    name = engine.dialect.name
    chooser = random.Random(1)
    with engine.connect() as connection:

        def look_up(table: sa.Table, wanted: list[int]) -> None:
            for number, token in zip(wanted, map(_token, wanted), strict=True):
                found = connection.scalars(sa.select(table.c.id).where(table.c.token == token)).all()
                assert found == [number]

        wanted: list[int] = []

        def choose() -> None:
            wanted[:] = [chooser.randint(1, rows) for _ in range(_LOOKUPS)]

        lookup = compare(
            Work(lambda: look_up(plain, wanted), choose),
            Work(lambda: look_up(encrypted, wanted)),
            samples=samples,
            clock=time.perf_counter,
        )

        def answer(table: sa.Table) -> None:
            for number, token in zip(wanted, map(_token, wanted), strict=True):
                with engine.connect() as connection:
                    statement = sa.select(table.c.id, table.c.token).where(_is(table, token))
                    found = connection.execute(statement).one()
                    assert found == (number, token)

        request = "request that finds and loads a token"
        requests: list[Figure] = []
        for subject, table, limit in (
            (name, encrypted, _REQUEST_LIMIT),
            (f"{name}, two keys", _tables(_TWO_KEYS)[1], None),
            (f"{name}, Fernet and hashes, two keys", fernet, None),
        ):
            measured = compare(
                Work(partial(answer, plain), choose),
                Work(partial(answer, table)),
                samples=samples,
                clock=time.perf_counter,
            )
            requests.append(Figure.of(measured, subject, request, limit))
        bare = "SELECT substr(token, 1, 6), count(*) FROM encrypted GROUP BY 1"
        census = compare(
            Work(lambda: connection.exec_driver_sql(bare).all()),
            Work(lambda: connection.execute(key_usage(encrypted.c.token)).all()),
            samples=max(samples // 3, 3),
            clock=time.perf_counter,
        )
        census_rows: list[Any] = [tuple(row) for row in connection.execute(key_usage(encrypted.c.token))]
        assert census_rows == [(_RING.active, "current", rows)]
    return Table(
        f"{rows:,} rows on {name}",
        [
            Figure.of(lookup, name, "lookup by fingerprint", _LOOKUP_LIMIT),
            Figure.of_floor(lookup, "lookup by fingerprint", "us", _LOOKUPS),
            *requests,
            Figure.of_floor(measured, request, "us", _LOOKUPS),
            Figure.of(census, name, "census of the rows", _CENSUS_LIMIT),
            Figure.of_floor(census, "census of the rows", "ms"),
        ],
    )


def measure_statement(samples: int) -> Table:
    """Compare building and executing a statement, on few rows in memory."""
    tokens = [_token(number) for number in range(_LOOKUPS)]
    plain, encrypted, fernet = _tables()
    figures: list[Figure] = []
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with engine.begin() as connection:
        plain.metadata.create_all(connection)
        connection.execute(plain.insert(), [{"token": token} for token in tokens])
        connection.execute(encrypted.insert(), [{"token": token} for token in tokens])
        connection.execute(fernet.insert(), [{"token": token, "hash": _hashes(token)[0]} for token in tokens])

        def look_up(table: sa.Table) -> None:
            for token in tokens:
                connection.scalar(sa.select(table.c.id).where(_is(table, token)))

        for subject, table, limit in (
            ("keys in the ring: 1", encrypted, _STATEMENT_LIMITS[1]),
            ("keys in the ring: 2", _tables(_TWO_KEYS)[1], _STATEMENT_LIMITS[2]),
            ("Fernet and hashes, two keys", fernet, None),
        ):
            measured = compare(Work(partial(look_up, plain)), Work(partial(look_up, table)), samples=samples)
            figures.append(Figure.of(measured, subject, "one statement", limit))
    engine.dispose()
    return Table("One statement, built and executed, against a comparison of plain text", figures)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this benchmark can be told."""
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each table (default: 1000000)")
    parser.add_argument("--samples", type=int, default=15, help="samples (default: 15)")
    add_server_options(parser, "postgresql")


def _engines(options: argparse.Namespace) -> Iterator[sa.Engine]:
    with tempfile.TemporaryDirectory() as directory:
        yield sa.create_engine(f"sqlite:///{Path(directory) / 'lookup.sqlite3'}")
    with servers(options, "postgresql") as found:
        for server in found:
            with server.fresh_database() as database:
                yield sa.create_engine(database.url("psycopg"))


def measure(options: argparse.Namespace) -> Iterator[Table]:
    """Yield each table as soon as it is measured."""
    yield measure_statement(options.samples * 5)
    for engine in _engines(options):
        try:
            yield measure_lookup(engine, options.rows, options.samples)
        finally:
            engine.dispose()
