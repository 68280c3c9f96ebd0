"""What rewrites a table: the floor, this project, and what people do instead.

Each takes an engine, the name of a table and the batches to work in, as numbers of rows, and returns the batches that
it made. The ids of the rows go from 1 upwards without gaps. Our own way takes a connection too, as asyncpg needs it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column
from sqlalchemy.orm.attributes import flag_modified

from migrations_helpers import reencrypt
from tests.benchmarks.reencryption.contents import NEW_FERNET, column_type

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from migrations_helpers import ReencryptionReport

    Subject = Callable[[Any, str, Sequence[int]], Sequence[int]]

__all__ = ["FLOOR", "OURS", "SUBJECTS"]

FLOOR: Final = "the floor itself"
OURS: Final = "reencrypt"

# As many bytes as there were, without any cryptography. InnoDB would skip an update that changes nothing; in SQLite
# the operator || makes text.
_REWRITTEN: Final = {
    "postgresql": "token || ''",
    "mariadb": "reverse(token)",
    "sqlite": "CAST(substr(token, 2) || 'x' AS BLOB)",
}
_NEW_PGP: Final = (
    "pgp_sym_encrypt_bytea(pgp_sym_decrypt_bytea(token, 'the old passphrase'), 'the new passphrase')"
)
_NEW_AES: Final = "encrypt(decrypt(token, sha256('the old key'), 'aes'), sha256('the new key'), 'aes')"


def _update(engine: sa.Engine, table: str, batches: Sequence[int], expression: str) -> Sequence[int]:
    """Rewrite a table inside the database: one UPDATE and one commit for each batch."""
    if engine.dialect.name != "sqlite":
        engine = engine.execution_options(isolation_level="READ COMMITTED")
    after = 0
    with engine.connect() as connection:
        for rows in batches:
            connection.exec_driver_sql(
                f"UPDATE {table} SET token = {expression} WHERE id > {after} AND id <= {after + rows}"
            )
            connection.commit()
            after += rows
    return batches


def _floor(engine: sa.Engine, table: str, batches: Sequence[int]) -> Sequence[int]:
    return _update(engine, table, batches, _REWRITTEN[engine.dialect.name])


def _pgp(engine: sa.Engine, table: str, batches: Sequence[int]) -> Sequence[int]:
    return _update(engine, table, batches, _NEW_PGP)


def _aes(engine: sa.Engine, table: str, batches: Sequence[int]) -> Sequence[int]:
    return _update(engine, table, batches, _NEW_AES)


def _ours(**options: Any) -> Subject:
    """Return the project's own way, which chooses its batches itself. The pause that SQLite has is left out."""

    def run(bind: sa.Engine | sa.Connection, table: str, _: Sequence[int]) -> Sequence[int]:
        done = [0]

        def note(report: ReencryptionReport) -> None:
            if report.reencrypted > done[-1]:
                done.append(report.reencrypted)

        reencrypt(bind, table, "token", type_=column_type(), nice=0, progress=note, **options)
        return [later - earlier for earlier, later in itertools.pairwise(done)]

    return run


def _orm(engine: sa.Engine, table: str, batches: Sequence[int]) -> Sequence[int]:
    """Do what comes to mind first: load objects, mark them as changed, commit."""

    class Base(DeclarativeBase):
        pass

    columns = {"id": mapped_column(sa.Integer, primary_key=True), "token": mapped_column(column_type())}
    entity: Any = type("Entity", (Base,), {"__tablename__": table, **columns})
    after = 0
    for rows in batches:
        with Session(engine) as session:
            for one in session.scalars(
                sa.select(entity).where(entity.id > after).order_by(entity.id).limit(rows)
            ):
                flag_modified(one, "token")
            session.commit()
        after += rows
    return batches


def _fernet(engine: sa.Engine, table: str, batches: Sequence[int]) -> Sequence[int]:
    """Rotate batches of rows with MultiFernet, and write them with an UPDATE of many parameters."""
    raw = sa.table(table, sa.column("id", sa.Integer), sa.column("token", sa.LargeBinary))
    update = sa.update(raw).where(raw.c.id == sa.bindparam("row")).values(token=sa.bindparam("new"))
    after = 0
    for rows in batches:
        with engine.begin() as connection:
            read = connection.execute(
                sa.select(raw).where(raw.c.id > after).order_by(raw.c.id).limit(rows)
            ).all()
            connection.execute(
                update, [{"row": number, "new": NEW_FERNET.rotate(old)} for number, old in read]
            )
        after += rows
    return batches


#: By the names that they have in the tables.
SUBJECTS: Final[dict[str, Subject]] = {
    FLOOR: _floor,
    OURS: _ours(),
    "reencrypt, no VACUUM": _ours(vacuum=False),
    "reencrypt, 2 shards": _ours(shards=2),
    "naive ORM loop": _orm,
    "MultiFernet.rotate": _fernet,
    "pgcrypto, pgp_sym": _pgp,
    "pgcrypto, encrypt": _aes,
}
