"""Errors of database drivers, named without their text, which may hold the values of a row."""

from __future__ import annotations

__all__ = ["error_name", "mysql_code"]


def error_name(error: Exception) -> str:
    """Return the class of a driver's error and the database's code for it: ``InsufficientPrivilege 42501``."""
    original = getattr(error, "orig", None) or error
    code: object = mysql_code(original)
    for attribute in ("sqlstate", "pgcode", "sqlite_errorname"):
        code = code or getattr(original, attribute, None)
    name = type(original).__name__
    return f"{name} {code}" if code else name


def mysql_code(error: BaseException | None) -> int | None:
    """Return the error number of MySQL and MariaDB: PyMySQL and mysqlclient put it first, mariadb aside."""
    first = error.args[0] if error is not None and error.args else None
    code = first if isinstance(first, int) else getattr(error, "errno", None)
    return code if isinstance(code, int) else None
