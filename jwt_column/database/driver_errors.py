"""Errors of database drivers, named without their text, which may hold the values of a row."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

# serialization failure, deadlock, lock not available
_SQLSTATES: Final = frozenset({"40001", "40P01", "55P03"})
# lock wait time-out; deadlock, also Galera's certification conflict; record changed since last read; lock refused; a
# Galera node that is not ready, or no longer; a server that is being stopped; a connection that was killed; a packet
# that is too large, and a statement that took too long (MariaDB, MySQL): both are smaller the next time
_MYSQL_CODES: Final = frozenset({1205, 1213, 1020, 3572, 1047, 1053, 1927, 1153, 1969, 3024})
# Classes of SQLSTATE: triggered action, data exception, constraint, triggered data change, WITH CHECK OPTION, PL/pgSQL.
_ROW_CLASSES: Final = frozenset({"09", "22", "23", "27", "44", "P0"})
# SIGNAL in a trigger; CHECK constraints of MariaDB and MySQL
_MYSQL_ROW_CODES: Final = frozenset({1644, 4025, 3819})
_SQLITE_MESSAGES: Final = ("database is locked", "database table is locked", "database is busy")


def error_name(error: BaseException) -> str:
    """Return the class of a driver's error and the database's code for it: ``InsufficientPrivilege 42501``."""
    code = error_code(error)
    name = type(getattr(error, "orig", None) or error).__name__
    return f"{name} {code}" if code else name


def error_code(error: BaseException) -> object:
    """Return the database's code for a driver's error: an SQLSTATE, MySQL's number or SQLite's name; None for none."""
    original = getattr(error, "orig", None) or error
    return mysql_code(original) or _sqlstate(original) or getattr(original, "sqlite_errorname", None)


def _sqlstate(error: object) -> object:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def mysql_code(error: BaseException | None) -> int | None:
    """Return the error number of MySQL and MariaDB: PyMySQL and mysqlclient put it first, mariadb aside."""
    first = error.args[0] if error is not None and error.args else None
    code = first if isinstance(first, int) else getattr(error, "errno", None)
    return code if isinstance(code, int) else None


def is_retryable(error: BaseException) -> bool:
    """Return True if the same batch may succeed when it is done again."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or (error.orig is not None and is_retryable(error.orig))
    # MySQL's drivers have an SQLSTATE too, but it says too little: a lock wait time-out is HY000, a general error.
    if _sqlstate(error) in _SQLSTATES or mysql_code(error) in _MYSQL_CODES:
        return True
    return any(text in str(error) for text in _SQLITE_MESSAGES)


def is_refusal_of_row(error: DBAPIError) -> bool:
    """Return True if the database refused a statement because of one of its rows: a constraint, or a trigger."""
    original = error.orig
    state = _sqlstate(original)
    if isinstance(state, str) and mysql_code(original) is None:
        return state[:2] in _ROW_CLASSES
    if error.connection_invalidated or is_retryable(error):
        return False
    return isinstance(error, IntegrityError | DataError) or mysql_code(original) in _MYSQL_ROW_CODES


def is_null_refused(error: DBAPIError) -> bool:
    """Return True if the database refused a NULL in a column that is NOT NULL."""
    original = error.orig
    name = getattr(original, "sqlite_errorname", None)
    return (
        _sqlstate(original) == "23502" or mysql_code(original) == 1048 or name == "SQLITE_CONSTRAINT_NOTNULL"
    )
