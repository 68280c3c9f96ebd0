"""One run over the tables of many schemas, as applications with a schema for each tenant have them.

Each schema is a run of its own, one after the other, with a transaction, a lock and a report of its own. A tenant whose
table is missing, locked or damaged does not stop the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Executable
from sqlalchemy.exc import DBAPIError

from jwt_column.database.driver_errors import error_name
from jwt_column.database.time_limits import all_rows
from jwt_column.errors import ConfigurationError, JWTColumnError, ReencryptionError

from .calling import call
from .report import ReencryptionReport

if TYPE_CHECKING:
    Schemas = Sequence[str] | Executable | Callable[..., Iterable[str]]


# Failures that a message repeats; the report has them all.
_MOST_LISTED = 5


def check_schemas(schemas: object) -> None:
    """Refuse anything but a list of names, a query or a function."""
    if isinstance(schemas, str):
        raise ConfigurationError(
            f"schemas is a list of names, a query or a function; write [{schemas!r}], or for a query "
            "sqlalchemy.text(...)"
        )
    if not isinstance(schemas, Executable | Iterable) and not callable(schemas):
        raise ConfigurationError(
            f"schemas is a list of names, a query or a function, not {type(schemas).__name__}"
        )


def schema_names(bind: Engine | Connection, schemas: Schemas) -> list[str]:
    """Return the names of the schemas, each once; a connection is in no transaction afterwards.

    They are given as names, as a query whose first column has them, or as a function that may take a connection.
    """
    if isinstance(schemas, Executable) or callable(schemas):
        try:
            names = _asked(bind, schemas)
        except DBAPIError as error:
            raise ConfigurationError(
                f"the query that lists the schemas (--schemas-query) was refused ({error_name(error)}); nothing was "
                "done"
            ) from None
    else:
        names = list(schemas)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"schemas has {type(name).__name__} where the name of a schema belongs")
    return list(dict.fromkeys(names))


def _asked(bind: Engine | Connection, schemas: Executable | Callable[..., Iterable[Any]]) -> list[Any]:
    if isinstance(bind, Engine):
        with bind.connect() as connection:
            return _asked(connection, schemas)
    was_in_transaction = bind.in_transaction()
    try:
        if isinstance(schemas, Executable):
            with all_rows(bind):
                return list(bind.execute(schemas).scalars())
        names = call(schemas, bind)
        # The letters of a text would be as many schemas.
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise ConfigurationError(
                f"the function schemas returns a list of names, and returned {type(names).__name__}"
            )
        return list(names)
    finally:
        # A run needs a connection that is in no transaction, and this has begun one.
        if not was_in_transaction and bind.in_transaction():
            bind.rollback()


def work_in_schemas(
    schemas: Sequence[str], run: Callable[[str], ReencryptionReport], total: ReencryptionReport
) -> ReencryptionReport:
    """Do a run in one schema after the other, and add their reports to that of all.

    Raises:
        ReencryptionError: Schemas were not finished; ``.report.failures`` says which, and why.
    """
    began = time.monotonic()
    for name in schemas:
        try:
            total.add_schema(name, run(name))
        except ReencryptionError as error:
            total.failures[name] = str(error)
            if isinstance(error.report, ReencryptionReport):
                total.add_schema(name, error.report)
        except JWTColumnError as error:
            total.failures[name] = str(error)
    total.seconds = time.monotonic() - began
    total.finished = not total.failures and all(one.finished for one in total.schemas.values())
    if total.failures:
        listed = "; ".join(f"{name}: {why}" for name, why in list(total.failures.items())[:_MOST_LISTED])
        more = len(total.failures) - _MOST_LISTED
        raise ReencryptionError(
            f"{total.table}.{total.column}: {len(total.failures)} of {len(schemas)} schemas were not finished, the "
            f"others were. {listed}{f'; and {more} more' if more > 0 else ''}",
            reason="schemas",
            report=total,
        )
    return total
