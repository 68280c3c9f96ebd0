"""OpenTelemetry gauges of a key ring: its age, its keys, and what it lacks.

>>> from jwt_column import KeyRing
>>> from jwt_column.metrics import observe_keyring
>>> ring = KeyRing.generate()
>>> observe_keyring(ring, name="sessions")
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from weakref import ref

from .keys.ring import KeyRing
from .meters import meter_of
from .option_values import TEXT, instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.metrics import MeterProvider, Observation

    from .keys.ring import RingReport

    #: Returns the value of a gauge, or None for none.
    Value = Callable[[RingReport], float | None]

__all__ = ["observe_keyring"]


def _days_since_activation(report: RingReport) -> float | None:
    since = report.active_since
    return None if since is None else (datetime.now(UTC) - since).total_seconds() / 86_400


_GAUGES: Final[Sequence[tuple[str, str, str, Value]]] = (
    ("age", "s", "Seconds since the keys were loaded", lambda report: report.age),
    (
        "unconfirmed",
        "s",
        "Seconds since a load or a look at the file showed that the keys are those of the source",
        lambda report: report.unconfirmed,
    ),
    (
        "failed",
        "1",
        "1 if the last load failed or a refresh is overdue, else 0",
        lambda report: int(report.error is not None),
    ),
    ("keys", "{key}", "Keys of the ring", lambda report: len(report.key_ids)),
    (
        "missing_keys",
        "{key}",
        "Keys of rows that the ring lacks, as of the last look of is_ready() or a refresh",
        lambda report: len(report.missing_key_ids),
    ),
    ("active", "{key}", "1 for the active key", lambda _report: 1),
    ("active_age", "d", "Days since the active key became active", _days_since_activation),
)
# Gauges that have the key's id as an attribute.
_OF_ACTIVE_KEY: Final = ("active", "active_age")


def observe_keyring(
    ring: KeyRing, *, name: str | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Report the state of a ring in this process as OpenTelemetry gauges, as long as the ring lives.

    The names begin with ``jwt_column.keyring.``: ``age``, ``unconfirmed``, ``failed``, ``keys``, ``missing_keys``,
    ``active`` and ``active_age``. A collection counts as a use of the ring.

    Args:
        ring: The ring.
        name: The value of the attribute ``jwt_column.keyring``; None means the ring's URI.
        meter_provider: None means the global one.

    Raises:
        ConfigurationError: Not a key ring.
        MissingExtraError: OpenTelemetry's API is not installed.
    """
    instance("a KeyRing", KeyRing).check(ring=ring)
    TEXT.or_none.check(name=name)
    meter = meter_of(meter_provider)
    attributes = {"jwt_column.keyring": name or ring.uri or "keys given by the program"}
    # A gauge cannot be taken away again, and must not keep the ring and its refresh thread.
    ring_of = ref(ring)
    for gauge, unit, description, value_of in _GAUGES:
        callback = _callback(ring_of, attributes, value_of, has_key=gauge in _OF_ACTIVE_KEY)
        name = f"jwt_column.keyring.{gauge}"
        meter.create_observable_gauge(name, [callback], unit=unit, description=description)


def _callback(
    ring_of: Callable[[], KeyRing | None], attributes: dict[str, str], value_of: Value, *, has_key: bool
) -> Callable[[object], Iterator[Observation]]:
    from opentelemetry.metrics import Observation

    def observe(_options: object) -> Iterator[Observation]:
        ring = ring_of()
        if ring is not None:
            report = ring.report()
            value = value_of(report)
            if value is not None:
                more = {"jwt_column.key_id": report.encrypting[0]} if has_key else {}
                yield Observation(value, attributes | more)

    return observe
