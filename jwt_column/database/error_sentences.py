"""A sentence for each error of a database that an operator meets, without the error's text, which may hold values."""

from __future__ import annotations

from typing import Final

from .driver_errors import error_code, error_name

__all__ = ["explained", "is_setup_problem"]

_GRANT: Final = (
    "the role lacks a right on the table: GRANT it SELECT to read, UPDATE too to rewrite, DELETE to delete, and in "
    "PostgreSQL USAGE on the schema"
)
_READ_ONLY: Final = "the database is read-only here: connect to the primary, and not to a replica of it"
_READ_ONLY_FILE: Final = (
    "the file cannot be written: look at the rights on it and on its directory, and at the URL"
)
_DISK: Final = "the disk of the database is full: make room, and run again"
_LOCKED: Final = (
    "others held their locks for too long: run again when there is less to do, or raise lock_timeout"
)
_CONCURRENT: Final = "another transaction came first: run again"
_CANCELLED: Final = (
    "the statement was cancelled, by an administrator or by a time-out of the server or of a pooler: run again, "
    "or raise the time-out"
)
_LOST: Final = (
    "the connection was lost: look whether the server, or a proxy before it, was stopped, and run again"
)
_CONNECTIONS: Final = (
    "the database gives no further connection: close some, raise its limit or the pool's, or use fewer shards"
)
_LOGIN: Final = (
    "the database does not let this user in: look at the user, the password, and what it may reach"
)
_POOLER: Final = (
    "a prepared statement was lost, as behind a pooler in transaction mode: turn them off, with psycopg by "
    "prepare_threshold=None, with asyncpg by statement_cache_size=0 and prepared_statement_cache_size=0"
)
_CHECK: Final = "a constraint of the table refuses the new value: change the constraint, or this row"
_TRIGGER: Final = "a trigger refuses the change: change the trigger, or this row"
_UNIQUE: Final = "a unique index has the new value already: look at the unique indexes on the column"
_REFERENCED: Final = (
    "other rows refer to this row by a foreign key: delete those first, or clear the column instead"
)
_MISSING: Final = "a table or a column is not there: look at the schema, and apply the migrations"
_OPERATOR: Final = (
    "the database has no such operator or function for these types: look whether the key's columns have the types that "
    "the model declares, and whether the driver knows these types"
)
_TOO_LONG: Final = "the column is too short for the new value: change its type to one that holds it"
_DAMAGED: Final = "the database is damaged: restore it from a backup, or rebuild the index that is"
_STARTING: Final = "the server is starting or stopping: wait for it, and run again"
_IDENTITY: Final = (
    "PostgreSQL does not change this table as it is: most often it is published for logical replication and has no "
    "replica identity, which ALTER TABLE ... REPLICA IDENTITY gives it"
)

#: Sentences by SQLSTATE (PostgreSQL), by error number (MySQL and MariaDB), and by name (SQLite).
_SENTENCES: Final[dict[str | int, str]] = {
    "08P01": "a pooler or the server broke off: look into the pooler's log, and at the size of its pool",
    "0A000": "the database lacks what this takes: look at the version, and at the kind of the table",
    "22001": _TOO_LONG,
    "23503": _REFERENCED,
    "23505": _UNIQUE,
    "23514": _CHECK,
    "25006": _READ_ONLY,
    "25P03": _CANCELLED,
    "25P04": _CANCELLED,
    "26000": _POOLER,
    "28000": _LOGIN,
    "28P01": _LOGIN,
    "3D000": _LOGIN,
    "40001": _CONCURRENT,
    "40P01": _CONCURRENT,
    "42501": _GRANT,
    "42703": _MISSING,
    "42883": _OPERATOR,
    "428C9": "the database generates this column, and takes no other value: encrypt the column that it is made of",
    "42P01": _MISSING,
    "42P05": _POOLER,
    "53100": _DISK,
    "53200": "the server ran out of memory: make its work_mem or the batches smaller",
    "53300": _CONNECTIONS,
    "55000": _IDENTITY,
    "55P03": _LOCKED,
    "57014": _CANCELLED,
    "57P01": _LOST,
    "57P02": _LOST,
    "57P03": _STARTING,
    "P0001": _TRIGGER,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
    1020: _CONCURRENT,
    1021: _DISK,
    1036: _READ_ONLY,
    1040: _CONNECTIONS,
    1044: _LOGIN,
    1045: _LOGIN,
    1047: _STARTING,
    1049: _LOGIN,
    1053: _STARTING,
    1054: _MISSING,
    1062: _UNIQUE,
    1114: _DISK,
    1142: _GRANT,
    1143: _GRANT,
    1146: _MISSING,
    1153: "a statement is larger than max_allowed_packet: raise it on the server, or lower batch_size",
    1203: _CONNECTIONS,
    1205: _LOCKED,
    1213: _CONCURRENT,
    1226: _CONNECTIONS,
    1227: _GRANT,
    1290: _READ_ONLY,
    1317: _CANCELLED,
    1406: _TOO_LONG,
    1451: _REFERENCED,
    1644: _TRIGGER,
    1792: _READ_ONLY,
    1836: _READ_ONLY,
    1906: "the database generates this column, and takes no other value: encrypt the column that it is made of",
    1927: _LOST,
    1969: _CANCELLED,
    2002: _LOST,
    2003: _LOST,
    2006: _LOST,
    2013: _LOST,
    3024: _CANCELLED,
    3819: _CHECK,
    4025: _CHECK,
    "SQLITE_BUSY": _LOCKED,
    "SQLITE_CANTOPEN": "the file cannot be opened: look at its path, and at the rights on it and on its directory",
    "SQLITE_CONSTRAINT": _CHECK,
    "SQLITE_CONSTRAINT_FOREIGNKEY": _REFERENCED,
    "SQLITE_CONSTRAINT_TRIGGER": _TRIGGER,
    "SQLITE_CONSTRAINT_UNIQUE": _UNIQUE,
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_FULL": _DISK,
    "SQLITE_INTERRUPT": _CANCELLED,
    "SQLITE_IOERR": "the file cannot be read or written: look at the disk, and whether it is full",
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_NOTADB": "the file is no SQLite database: look at its path",
    "SQLITE_READONLY": _READ_ONLY_FILE,
}

# Caused by the set-up, so that the same call will fail again.
_SETUP: Final = frozenset({_GRANT, _READ_ONLY, _READ_ONLY_FILE, _LOGIN, _MISSING, _OPERATOR, _IDENTITY})


def explained(error: BaseException) -> str:
    """Return the name of a driver's error, and what to do about it where that is known."""
    sentence = _sentence_of(error)
    return f"{error_name(error)}: {sentence}" if sentence else error_name(error)


def is_setup_problem(error: BaseException) -> bool:
    """Return True if an error comes of how the database or its role is set up, and a retry does not help."""
    return _sentence_of(error) in _SETUP


def _sentence_of(error: BaseException) -> str | None:
    code = error_code(error)
    if isinstance(code, str) and code.startswith("SQLITE_") and code not in _SENTENCES:
        # Without what SQLite says beyond: SQLITE_READONLY_DBMOVED.
        code = "_".join(code.split("_")[:2])
    return _SENTENCES.get(code) if isinstance(code, str | int) else None
