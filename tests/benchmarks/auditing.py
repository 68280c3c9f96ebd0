"""What an audit costs.

A deep audit is compared with ``decrypt_token()`` over the same rows, read by the same driver: the difference is what
looking at the tokens costs, claims, headers and repetition. A shallow one is compared with the bare aggregate over the
first six bytes of the rows. The deep one is measured by CPU time of this process, the shallow one by the clock.
"""

from __future__ import annotations

import random
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from jwt_column import EncryptedJWT, KeyRing, audit, decrypt_token
from jwt_column.format import base64url
from tests.benchmarks.measure import Figure, Table, Work, compare

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["HELP", "add_arguments", "measure"]

HELP: Final = (
    "a deep audit against the decryption of the same rows, and a shallow one against the bare aggregate"
)

_CHUNK: Final = 10_000
_CONTEXT: Final = "sessions.token"

_RING: Final = KeyRing.generate()
_HEADER: Final = base64url.encode(b'{"alg":"RS256","typ":"JWT","kid":"2026-03"}')
_SESSIONS: Final = sa.Table(
    "sessions",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token", EncryptedJWT(_RING, context=_CONTEXT)),
)


def _token(number: int) -> str:
    """Return a token of about 700 characters, the same for the same number; its signature is random bytes."""
    payload = (
        b'{"iss":"https://issuer.example","sub":"user-%08d","jti":"%032x","iat":1700000000,"exp":1700003600,'
        b'"scope":"openid profile email offline_access"}' % (number, number)
    )
    signature = random.Random(number).randbytes(256)
    return f"{_HEADER}.{base64url.encode(payload)}.{base64url.encode(signature)}"


def _fill(engine: sa.Engine, rows: int) -> None:
    _SESSIONS.create(engine)
    for start in range(1, rows + 1, _CHUNK):
        numbers = range(start, min(start + _CHUNK, rows + 1))
        with engine.begin() as connection:
            connection.execute(
                _SESSIONS.insert(), [{"id": number, "token": _token(number)} for number in numbers]
            )


def measure_audit(engine: sa.Engine, rows: int, samples: int) -> Table:
    """Fill a table, audit it, and compare."""
    _fill(engine, rows)
    stored = sa.select(sa.type_coerce(_SESSIONS.c.token, sa.LargeBinary))
    bare = "SELECT substr(token, 1, 6), count(*) FROM sessions GROUP BY 1"
    with engine.connect() as connection:

        def decrypt() -> None:
            for value in connection.execute(stored).scalars():
                decrypt_token(value, _RING, context=_CONTEXT)

        def examine() -> None:
            report = audit(connection, _SESSIONS, deep=True, max_lifetime=timedelta(days=1))
            assert (report.ok, report.columns[0].examined) == (True, rows)

        def look() -> None:
            assert audit(connection, _SESSIONS).columns[0].rows == rows

        deep = compare(Work(decrypt), Work(examine), samples=samples)
        shallow = compare(
            Work(lambda: connection.exec_driver_sql(bare).all()),
            Work(look),
            samples=samples,
            clock=time.perf_counter,
        )
    name = engine.dialect.name
    seconds = deep.median * deep.floor_seconds
    return Table(
        f"{rows:,} rows on {name}",
        [
            Figure.of(deep, name, "deep audit", None),
            Figure(name, "rows per second, deep", rows / seconds, ""),
            Figure.of_floor(deep, "deep audit", "us", rows),
            Figure.of(shallow, name, "shallow audit", None),
            Figure.of_floor(shallow, "shallow audit", "ms"),
        ],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this benchmark can be told."""
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the table (default: 100000)")
    parser.add_argument("--samples", type=int, default=5, help="samples (default: 5)")


def measure(options: argparse.Namespace) -> Iterator[Table]:
    """Yield the table."""
    with tempfile.TemporaryDirectory() as directory:
        engine = sa.create_engine(f"sqlite:///{Path(directory) / 'audit.sqlite3'}")
        try:
            yield measure_audit(engine, options.rows, options.samples)
        finally:
            engine.dispose()
