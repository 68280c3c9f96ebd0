"""A sentence for each error of a database that an operator meets, without the error's text, which may hold values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .driver_errors import error_code, error_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOST: Final = (
    "the connection was lost: look whether the server, or a proxy before it, was stopped, and run again"
)
_UNREACHED: Final = (
    "the database cannot be reached, or the connection was lost: look at its address, and whether the server, or a "
    "proxy before it, was stopped, and run again"
)
_NO_CONNECTION: Final = (
    "the database gives no further connection: close some, raise its limit or the pool's, or use fewer shards"
)
# Codes of a statement that the database does not understand.
_NOT_UNDERSTOOD: Final = (
    "21000", "42601", "42803", "42804", "42846", "42P02", "42P18", 1064, 1111, 1242, "SQLITE_ERROR",
)  # fmt: skip
# By SQLSTATE (PostgreSQL), error number (MySQL and MariaDB) and name (SQLite).

# Errors caused by the set-up, so that the same call will fail again.
_OF_SETUP: Final[Mapping[tuple[str | int, ...], str]] = {
    ("25006", 1036, 1290, 1792, 1836): "the database is read-only here: connect to the primary, and not to a "
    "replica of it",
    ("28000", "28P01", "3D000", 1044, 1045, 1049): "the database does not let this user in: look at the "
    "user, the password, and what it may reach",
    ("42501", 1142, 1143, 1227): "the role lacks a right on the table: GRANT it SELECT to read, UPDATE too "
    "to rewrite, DELETE to delete, and in PostgreSQL USAGE on the schema",
    ("42703", "42P01", 1054, 1146): "a table or a column is not there: look at the schema, and apply the "
    "migrations",
    ("42883",): "the database has no such operator or function for these types: look whether the "
    "columns have the types that the model declares, and whether the driver knows these types",
    (
        "42P10",
    ): "PostgreSQL does not change this table as it is: most often it is published with a row filter, or "
    "a list of columns, that does not go with its replica identity; change the publication",
    ("55000",): "PostgreSQL does not change this table as it is: most often it is published for logical "
    "replication and has no replica identity, which ALTER TABLE ... REPLICA IDENTITY gives it",
    _NOT_UNDERSTOOD: "the database does not take the statement as it is: look at the conditions and queries "
    "that it was given, and at the names and types of the model",
    ("42P07", 1050, 1060, 1061): "there is something of this name already: choose another name, or drop that "
    "first",
    ("42704", 1091): "there is nothing of this name: look at the name, and at the schema",
    ("42622", 1059): "the name is too long: shorten it",
    (1553,): "a foreign key needs this index: create another one that begins with its column, then drop this",
    (1104,): "the server refuses statements that look at many rows: SET max_join_size or sql_big_selects is "
    "in the engine's connect event, in init_command or on the server; set sql_big_selects to 1 for this user",
    (1175,): "the session has sql_safe_updates set, which refuses an UPDATE or DELETE without a key: remove "
    "that SET from the engine's connect event or init_command, or set it to 0 on the server",
    ("SQLITE_READONLY",): "the file cannot be written: look at the rights on it and on its directory, and at "
    "the URL",
}
_OTHERS: Final[Mapping[tuple[str | int, ...], str]] = {
    ("08P01",): "a pooler or the server broke off: look into the pooler's log, at the size of its pool, and "
    "at its mode, which takes no transactions if it is statement",
    ("0A000",): "the database lacks what this takes: look at the version, and at the kind of the table",
    ("22001", 1406): "the column is too short for the new value: change its type to one that holds it",
    ("23503", 1451, "SQLITE_CONSTRAINT_FOREIGNKEY"): "other rows refer to this row by a foreign key: delete "
    "those first, or clear the column instead",
    ("23505", 1062, "SQLITE_CONSTRAINT_UNIQUE"): "a unique index has the new value already: look at the "
    "unique indexes on the column",
    ("23514", 3819, 4025, "SQLITE_CONSTRAINT"): "a constraint of the table refuses the new value: change the "
    "constraint, or this row",
    ("25P03", "25P04", "57014", 1317, 1969, 3024, "SQLITE_INTERRUPT"): "the statement was cancelled, by an "
    "administrator or by a time-out of the server or of a pooler: run again, or raise the time-out",
    ("26000", "42P05"): "a prepared statement was lost, as behind a pooler in transaction mode: turn them "
    "off, with psycopg by prepare_threshold=None, with asyncpg by statement_cache_size=0 and "
    "prepared_statement_cache_size=0",
    ("40001", "40P01", 1020, 1213): "another transaction came first: run again",
    ("428C9", 1906): "the database generates this column, and takes no other value: encrypt the column that "
    "it is made of",
    ("53100", 1021, 1114, "SQLITE_FULL"): "the disk of the database is full: make room, and run again",
    ("53200",): "the server ran out of memory: make its work_mem or the batches smaller",
    (
        "53400",
    ): "a limit of the server's settings is too small, most often temp_file_limit: raise it for this role",
    ("53300", 1040, 1203, 1226): _NO_CONNECTION,
    ("55P03", 1205, "SQLITE_BUSY", "SQLITE_LOCKED"): "others held their locks for too long: run again when "
    "there is less to do, or raise lock_timeout",
    ("57P01", "57P02", 1927, 2002, 2003, 2006, 2013): _LOST,
    ("57P03", 1047, 1053): "the server is starting or stopping: wait for it, and run again",
    ("P0001", 1644, "SQLITE_CONSTRAINT_TRIGGER"): "a trigger refuses the change: change the trigger, or this "
    "row",
    ("XX001", "XX002", "SQLITE_CORRUPT"): "the database is damaged: restore it from a backup, or rebuild the "
    "index that is",
    (1153,): "a statement is larger than max_allowed_packet: raise it on the server, or lower batch_size",
    ("SQLITE_CANTOPEN",): "the file cannot be opened: look at its path, and at the rights on it and on its "
    "directory",
    ("SQLITE_IOERR",): "the file cannot be read or written: look at the disk, and whether it is full",
    ("SQLITE_NOTADB",): "the file is no SQLite database: look at its path",
}
_SENTENCES: Final = {code: text for codes, text in {**_OF_SETUP, **_OTHERS}.items() for code in codes}


def explained(error: BaseException) -> str:
    """Return the name of a driver's error, and what to do about it where that is known."""
    sentence = _sentence_of(error)
    return f"{error_name(error)}: {sentence}" if sentence else error_name(error)


def is_setup_problem(error: BaseException) -> bool:
    """Return True if an error comes of how the database or its role is set up, and a retry does not help."""
    return _sentence_of(error) in _OF_SETUP.values()


def _sentence_of(error: BaseException) -> str | None:
    code = error_code(error)
    if isinstance(code, str) and code.startswith("SQLITE_") and code not in _SENTENCES:
        # Without what SQLite says beyond: SQLITE_READONLY_DBMOVED.
        code = "_".join(code.split("_")[:2])
    if code is not None:
        return _SENTENCES.get(code) if isinstance(code, str | int) else None
    original = getattr(error, "orig", None)
    if isinstance(original, PoolTimeoutError):
        return _NO_CONNECTION
    # Drivers have no code for a server that does not answer.
    if isinstance(error, InterfaceError | OperationalError | OSError):
        return _UNREACHED
    return _LOST if getattr(error, "connection_invalidated", False) else None
