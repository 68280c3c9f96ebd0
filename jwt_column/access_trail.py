"""The access trail: which columns' tokens were decrypted, under which keys, how many, by which statement.

It is off until :func:`set_access_sink` is called. A sink gets one :class:`Access` per statement, column and key, and
never a value, a primary key or a parameter.

Rows are decrypted while they are fetched, which may be long after a statement was sent. What is decrypted belongs to
the last statement of the same thread or asyncio task that returned an encrypted column. It is handed to the sink when
the connection sends its next statement, ends its transaction or returns to the pool; a result that is still being
fetched then is handed over in more than one part. Tokens that no statement was fetching, those of ``decrypt_token`` and
``SealedJWT.reveal``, are handed over one at a time, without a tag. Re-encryption opens envelopes without handing out
what is in them, and has a report of its own.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from .column.cipher import report_decryptions
from .column.types import EncryptedJWT
from .meters import meter_of
from .option_values import FUNCTION, instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import MeterProvider
    from sqlalchemy.engine.interfaces import ExecutionContext

__all__ = ["TAG_OPTION", "Access", "logging_sink", "opentelemetry_sink", "set_access_sink"]

#: The execution option that names a statement: ``select(Session).execution_options(jwt_column_tag="refresh")``. As for
#: every option, that of the engine or connection wins over the statement's, and what ``execute()`` is given over both.
TAG_OPTION: Final = "jwt_column_tag"

# Under this name a connection keeps the statement that it is fetching.
_INFO: Final = "jwt_column.access_trail"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """Tokens decrypted by one statement.

    Attributes:
        column: The context of their column, ``table.column`` unless it was given another.
        key_id: The key that opened them, 8 lower-case hex digits.
        count: How many, at least 1.
        tag: The statement's execution option ``jwt_column_tag``, or None.
    """

    column: str
    key_id: str
    count: int
    tag: str | None


class _Statement:
    """Decryptions of one statement that were not handed over yet."""

    __slots__ = ("counts", "is_open", "tag")

    def __init__(self, tag: str | None) -> None:
        self.tag = tag
        self.counts: dict[tuple[str, bytes], int] = {}
        self.is_open = True


_sink: Callable[[Access], None] | None = None

# An asyncio task and a thread each see their own.
_fetching: ContextVar[_Statement | None] = ContextVar("jwt_column_fetching", default=None)


def set_access_sink(sink: Callable[[Access], None] | None) -> None:
    """Tell *sink* of every decryption in this process from now on; None: tell nobody.

    Args:
        sink: Called in the thread that fetches, so it should be quick. If it raises, the failure is logged by the
            logger ``jwt_column.access_trail`` and the row is loaded all the same.

    Raises:
        ConfigurationError: Not callable.
    """
    global _sink
    FUNCTION.or_none.check(sink=sink)
    for target, name, listener in _LISTENERS:
        # Never removed: SQLAlchemy may be going through the list in another thread.
        if sink is not None and not event.contains(target, name, listener):
            event.listen(target, name, listener)
    _sink = sink
    report_decryptions(None if sink is None else _note)


def logging_sink(logger: logging.Logger | None = None, level: int = logging.INFO) -> Callable[[Access], None]:
    """Return a sink that logs each access, as text and as the record's attributes.

    The attributes, for a formatter of structured logs, are ``jwt_column``, ``jwt_key_id``, ``jwt_count`` and
    ``jwt_tag``.

    Args:
        logger: None means ``jwt_column.access``.
        level: The level of the records.
    """
    instance("a logging.Logger", logging.Logger).or_none.check(logger=logger)
    instance("a level of logging, such as logging.INFO", int).check(level=level)
    logger = logger or logging.getLogger("jwt_column.access")

    def log(accessed: Access) -> None:
        column, key_id, count, tag = accessed.column, accessed.key_id, accessed.count, accessed.tag
        extra = {"jwt_column": column, "jwt_key_id": key_id, "jwt_count": count, "jwt_tag": tag}
        text = "%d of %s decrypted under key %s, tag %s"
        logger.log(level, text, count, column, key_id, tag, extra=extra)

    return log


def opentelemetry_sink(meter_provider: MeterProvider | None = None) -> Callable[[Access], None]:
    """Return a sink that adds to the OpenTelemetry counter ``jwt_column.decryptions``, unit ``{token}``.

    Its attributes are ``jwt_column.column``, ``jwt_column.key_id`` and, where the statement has one,
    ``jwt_column.tag``: tags should be few.

    Args:
        meter_provider: None means the global one.

    Raises:
        MissingExtraError: OpenTelemetry's API is not installed.
    """
    counter = meter_of(meter_provider).create_counter(
        "jwt_column.decryptions", unit="{token}", description="Tokens decrypted"
    )

    def add(accessed: Access) -> None:
        attributes = {"jwt_column.column": accessed.column, "jwt_column.key_id": accessed.key_id}
        if accessed.tag is not None:
            attributes["jwt_column.tag"] = accessed.tag
        counter.add(accessed.count, attributes)

    return add


def _note(context: str, key_id: bytes) -> None:
    statement = _fetching.get()
    if statement is None or not statement.is_open:
        _hand_over(Access(context, key_id.hex(), 1, None))
    else:
        statement.counts[context, key_id] = statement.counts.get((context, key_id), 0) + 1


def _hand_over(accessed: Access) -> None:
    sink = _sink
    if sink is None:
        return
    try:
        sink(accessed)
    except Exception as error:  # noqa: BLE001 - what fails to be told must not fail to be loaded
        # Without the traceback, whose local variables may be shown somewhere.
        lost = (accessed.count, accessed.column, accessed.key_id)
        _log.error("the access sink failed (%s); lost: %d of %s under key %s", type(error).__name__, *lost)


def _after_statement(
    conn: Any, _cursor: Any, _statement: str, _parameters: Any, context: ExecutionContext, _many: bool
) -> None:
    if _sink is None:
        return
    # The columns that a compiled statement returns; text without columns returns what is stored, and decrypts nothing.
    returned = getattr(context.compiled, "_result_columns", None) or ()
    if any(isinstance(entry.type, EncryptedJWT) for entry in returned):
        statement = conn.info[_INFO] = _Statement(context.execution_options.get(TAG_OPTION))
        _fetching.set(statement)


def _at_end_of_connection(_connection: Any, record: Any, *_: Any) -> None:
    statement = _hand_over_of(record.info)
    if statement is not None:
        statement.is_open = False
        del record.info[_INFO]


def _hand_over_of_connection(conn: Any, *_: Any) -> None:
    # A lost connection has no info before it is rolled back; its decryptions were handed over when it was found lost.
    if _sink is not None and not conn.invalidated:
        _hand_over_of(conn.info)


def _hand_over_of(info: dict[Any, Any]) -> _Statement | None:
    """Give the sink the decryptions of a connection's statement, and return the statement."""
    statement: _Statement | None = info.get(_INFO)
    if statement is not None:
        counts, statement.counts = statement.counts, {}
        for (column, key_id), count in counts.items():
            _hand_over(Access(column, key_id.hex(), count, statement.tag))
    return statement


_LISTENERS: Final[tuple[tuple[Any, str, Callable[..., None]], ...]] = (
    (Engine, "before_cursor_execute", _hand_over_of_connection),
    (Engine, "after_cursor_execute", _after_statement),
    (Engine, "commit", _hand_over_of_connection),
    (Engine, "rollback", _hand_over_of_connection),
    (Pool, "checkin", _at_end_of_connection),
    (Pool, "invalidate", _at_end_of_connection),
    (Pool, "soft_invalidate", _at_end_of_connection),
)
