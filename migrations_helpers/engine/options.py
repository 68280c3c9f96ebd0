"""The options of a run, checked before anything is read or written."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import Executable

from jwt_column.column.spec import names_of
from jwt_column.errors import ConfigurationError
from jwt_column.option_values import FLAG, FUNCTION, Kind, choice, instance, number

from .hours import Window, moment, window
from .tenants import check_schemas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from datetime import time as time_of_day

    from sqlalchemy import Engine

    from .expired import Expired
    from .pace import Throttle
    from .replicas import Replica
    from .report import ReencryptionReport
    from .strategies import Strategy
    from .tenants import Schemas


_SECONDS: Final = number("a number of seconds, more than 0", above=0)
_COUNT: Final = number("a whole number, at least 1", at_least=1, whole=True)
# A strategy itself is for tests.
_STRATEGY: Final = Kind(
    "'auto' or 'cas'",
    lambda value: value in ("auto", "cas") if isinstance(value, str) else hasattr(value, "run_batch"),
)
_THROTTLE: Final = Kind(
    "a function, or a query such as sqlalchemy.text(...)",
    lambda value: callable(value) or isinstance(value, Executable),
)


def _option(default: Any, kind: Kind, **options: Any) -> Any:
    """Return a field of :class:`Options` whose value is of a kind."""
    return field(default=default, metadata={"kind": kind}, **options)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run; see :func:`migrations_helpers.reencrypt`."""

    batch_size: int = _option(500, number("at least 1 row, as a whole number", at_least=1, whole=True))
    batch_seconds: float = _option(0.1, _SECONDS)
    nice: float | None = _option(None, number("a number, at least 0").or_none)
    shards: int = _option(1, _COUNT)
    executor: Executor | None = _option(None, instance("a concurrent.futures.Executor", Executor).or_none)
    make_engine: Callable[[], Engine] | None = _option(None, FUNCTION.or_none)
    dry_run: bool = _option(default=False, kind=FLAG)
    verify: Literal["stamp", "decrypt", "tokens"] = _option("stamp", choice("stamp", "decrypt", "tokens"))
    strategy: str | Strategy = _option("auto", _STRATEGY)
    lock_timeout: float = _option(0.2, _SECONDS)
    wait: float = _option(0.0, number("a number of seconds, at least 0", endless=True))
    max_retries: int = _option(8, number("a whole number, at least 0", whole=True))
    max_passes: int = _option(10, _COUNT)
    vacuum: bool = _option(default=True, kind=FLAG)
    key_columns: tuple[str, ...] | None = None
    preserve: tuple[str, ...] = ()
    on_row_error: Literal["list", "fail"] = _option("list", choice("list", "fail"))
    recompute: bool = _option(default=False, kind=FLAG)
    expired: Expired | None = None
    schemas: Schemas | None = field(default=None, compare=False)
    until: datetime | time_of_day | str | None = None
    window: Window | Sequence[time_of_day | str] | str | None = None
    throttle: Throttle | None = _option(None, _THROTTLE.or_none, compare=False)
    max_latency: float | None = _option(None, _SECONDS.or_none)
    max_replica_lag: float | None = _option(None, _SECONDS.or_none)
    replicas: Sequence[Replica] = ()
    is_paused: Callable[[], bool] | None = _option(None, FUNCTION.or_none, compare=False)
    progress: Callable[[ReencryptionReport], None] | None = _option(None, FUNCTION.or_none, compare=False)

    def __post_init__(self) -> None:
        for one in fields(self):
            if "kind" in one.metadata:
                one.metadata["kind"].check(**{one.name: getattr(self, one.name)})
        if self.schemas is not None:
            check_schemas(self.schemas)
        # A moment and a window mean the same in every process. A frozen dataclass is set by the way around.
        if self.until is not None:
            object.__setattr__(self, "until", moment(self.until))
        if self.window is not None:
            object.__setattr__(self, "window", window(self.window))
        if isinstance(self.replicas, str) or not isinstance(self.replicas, Iterable):
            raise ConfigurationError("replicas is a list of URLs; put the URL in brackets")
        object.__setattr__(self, "replicas", tuple(self.replicas))
        if self.replicas and self.max_replica_lag is None:
            raise ConfigurationError("replicas (--replica) goes with max_replica_lag (--max-replica-lag)")
        if self.max_latency is not None and self.throttle is None:
            raise ConfigurationError(
                "max_latency (--max-latency) needs throttle (--throttle-query), which returns the latency in seconds"
            )


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments for :class:`Options`; refuse an option that there is not, and names that are no list."""
    # Of re-encryptions only, and made of a word by choose_expired().
    known = {one.name for one in fields(Options)} - {"expired"}
    for name in options:
        if name not in known:
            raise ConfigurationError(f"there is no option {name}; there are {', '.join(sorted(known))}")
    for name in ("key_columns", "preserve"):
        if options.get(name) is None:
            options.pop(name, None)
        else:
            options[name] = names_of(name, options[name], "each a column of the table")
    return options
