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

from .errors import ConfigurationError
from .keys.ring import KeyRing
from .meters import meter_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.metrics import MeterProvider, Observation

    from .keys.report import RingReport

    #: Returns the values of a gauge, each with the key id that it is about, or None.
    Values = Callable[[RingReport], Iterator[tuple[float, str | None]]]

__all__ = ["observe_keyring"]


def _days_since_activation(report: RingReport) -> Iterator[tuple[float, str | None]]:
    if report.active_since is not None:
        yield (datetime.now(UTC) - report.active_since).total_seconds() / 86_400, report.encrypting[0]


_GAUGES: Final[Sequence[tuple[str, str, str, Values]]] = (
    ("age", "s", "Seconds since the keys were loaded", lambda report: iter([(report.age, None)])),
    (
        "unconfirmed",
        "s",
        "Seconds since a load or a look at the file showed that the keys are those of the source",
        lambda report: iter([(report.unconfirmed, None)]),
    ),
    (
        "failed",
        "1",
        "1 if the last load failed or a refresh is overdue, else 0",
        lambda report: iter([(int(report.error is not None), None)]),
    ),
    ("keys", "{key}", "Keys of the ring", lambda report: iter([(len(report.key_ids), None)])),
    (
        "missing_keys",
        "{key}",
        "Keys of rows that the ring lacks, as of the last look of is_ready() or a refresh",
        lambda report: iter([(len(report.missing_key_ids), None)]),
    ),
    ("active", "{key}", "1 for the active key", lambda report: iter([(1, report.encrypting[0])])),
    ("active_age", "d", "Days since the active key became active", _days_since_activation),
)


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
    if not isinstance(ring, KeyRing):
        raise ConfigurationError(f"metrics are those of a KeyRing, not of a {type(ring).__name__}")
    meter = meter_of(meter_provider)
    attributes = {"jwt_column.keyring": name or ring.uri or "keys given by the program"}
    # A gauge cannot be taken away again, and must not keep the ring and its refresh thread.
    ring_of = ref(ring)
    for gauge, unit, description, values in _GAUGES:
        meter.create_observable_gauge(
            f"jwt_column.keyring.{gauge}",
            [_callback(ring_of, attributes, values)],
            unit=unit,
            description=description,
        )


def _callback(
    ring_of: Callable[[], KeyRing | None], attributes: dict[str, str], values: Values
) -> Callable[[object], Iterator[Observation]]:
    from opentelemetry.metrics import Observation

    def observe(_options: object) -> Iterator[Observation]:
        ring = ring_of()
        for value, key_id in () if ring is None else values(ring.report()):
            more = {} if key_id is None else {"jwt_column.key_id": key_id}
            yield Observation(value, attributes | more)

    return observe
