"""Gauges of a key ring, read by OpenTelemetry's own SDK."""

from __future__ import annotations

import gc
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from jwt_column import ConfigurationError, KeyRing, KeyUnavailableError, generate_key
from jwt_column.errors import MissingExtraError
from jwt_column.keys import loader as loading
from jwt_column.keys.data_key import DataKey
from jwt_column.metrics import observe_keyring
from jwt_column.testing import fake_kek
from tests.keys.test_search import NOW, write_ring

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = generate_key(), generate_key()


class Observed:
    """The gauges of a ring."""

    def __init__(self, ring: KeyRing, name: str | None = None) -> None:
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader])
        observe_keyring(ring, name=name, meter_provider=self._provider)

    def points(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """Return value and attributes by the gauge's name."""
        data: Any = self._reader.get_metrics_data()
        metrics = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        found = {}
        for metric in metrics:
            assert metric.description
            for point in metric.data.data_points:
                found[metric.name.removeprefix("jwt_column.keyring.")] = (point.value, dict(point.attributes))
        return found

    def value(self, name: str) -> float:
        return self.points()[name][0]


def test_gauges_of_a_ring_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(loading, "monotonic", lambda: now[0])
    path = tmp_path / "ring.json"
    with fake_kek() as kek:
        write_ring(path, OLD, kek=kek.uri)
        ring = KeyRing.from_uri(f"file:{path}", refresh="watch")
        observed = Observed(ring)
        now[0] += 50
        points = observed.points()
        name = {"jwt_column.keyring": f"file:{path}"}
        key = {"jwt_column.key_id": DataKey(OLD).id}
        days = (datetime.now(UTC) - NOW) / timedelta(days=1)
        age, attributes = points.pop("active_age")
        assert abs(age - days) < 0.01
        assert attributes == name | key
        assert points == {
            "age": (50.0, name),
            "unconfirmed": (50.0, name),
            "failed": (0, name),
            "keys": (1, name),
            "missing_keys": (0, name),
            "active": (1, name | key),
        }
        ring.refresh()
        assert (observed.value("age"), observed.value("unconfirmed")) == (50.0, 0.0)
        write_ring(path, NEW, OLD, kek=kek.uri)
        kek.is_available = False
        with pytest.raises(KeyUnavailableError):
            ring.refresh()
        assert (observed.value("failed"), observed.value("keys")) == (1, 1)
        kek.is_available = True
        ring.reload()
        assert (observed.value("failed"), observed.value("keys")) == (0, 2)
        assert observed.points()["active"][1] == name | {"jwt_column.key_id": DataKey(NEW).id}


def test_a_ring_that_was_given_its_keys_has_no_time_of_activation() -> None:
    ring = KeyRing([OLD])
    points = Observed(ring, name="sessions").points()
    assert "active_age" not in points
    assert points["keys"] == (1, {"jwt_column.keyring": "sessions"})


def test_a_gauge_keeps_no_ring_alive() -> None:
    ring = KeyRing([OLD])
    observed = Observed(ring)
    assert observed.points()
    del ring
    gc.collect()
    assert observed.points() == {}


def test_only_rings_are_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="ring is a KeyRing, not str"):
        observe_keyring("file:x")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(MissingExtraError, match=r"jwt-column\[opentelemetry\]"):
        observe_keyring(KeyRing([OLD]))
