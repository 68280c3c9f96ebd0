"""The OpenTelemetry meter of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import MissingExtraError
from .option_values import Kind

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider


def meter_of(provider: MeterProvider | None) -> Meter:
    """Return the meter of a provider; None means the global one.

    Raises:
        MissingExtraError: OpenTelemetry's API is not installed.
    """
    try:
        from opentelemetry.metrics import get_meter
    except ImportError:
        raise MissingExtraError(
            "metrics need OpenTelemetry's API: pip install 'jwt-column[opentelemetry]'"
        ) from None
    Kind(
        "an OpenTelemetry MeterProvider", lambda provider: callable(getattr(provider, "get_meter", None))
    ).or_none.check(meter_provider=provider)
    return get_meter("jwt_column", meter_provider=provider)
