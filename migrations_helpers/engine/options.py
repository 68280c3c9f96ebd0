"""The options of a run, checked before anything is read or written."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
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
_KINDS: Final = {
    "batch_size": number("at least 1 row, as a whole number", at_least=1, whole=True),
    "batch_seconds": _SECONDS,
    "nice": number("a number, at least 0").or_none,
    "shards": number("a whole number, at least 1", at_least=1, whole=True),
    "executor": instance("a concurrent.futures.Executor", Executor).or_none,
    "make_engine": FUNCTION.or_none,
    "dry_run": FLAG,
    "verify": choice("stamp", "decrypt", "tokens"),
    # A strategy itself is for tests.
    "strategy": Kind(
        "'auto' or 'cas'",
        lambda value: value in ("auto", "cas") if isinstance(value, str) else hasattr(value, "run_batch"),
    ),
    "lock_timeout": _SECONDS,
    "wait": number("a number of seconds, at least 0", endless=True),
    "max_retries": number("a whole number, at least 0", whole=True),
    "max_passes": number("a whole number, at least 1", at_least=1, whole=True),
    "vacuum": FLAG,
    "on_row_error": choice("list", "fail"),
    "recompute": FLAG,
    "throttle": Kind(
        "a function, or a query such as sqlalchemy.text(...)",
        lambda value: callable(value) or isinstance(value, Executable),
    ).or_none,
    "max_latency": _SECONDS.or_none,
    "max_replica_lag": _SECONDS.or_none,
    "is_paused": FUNCTION.or_none,
    "progress": FUNCTION.or_none,
}


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run; see :func:`migrations_helpers.reencrypt`."""

    batch_size: int = 500
    batch_seconds: float = 0.1
    nice: float | None = None
    shards: int = 1
    executor: Executor | None = None
    make_engine: Callable[[], Engine] | None = None
    dry_run: bool = False
    verify: Literal["stamp", "decrypt", "tokens"] = "stamp"
    strategy: str | Strategy = "auto"
    lock_timeout: float = 0.2
    wait: float = 0.0
    max_retries: int = 8
    max_passes: int = 10
    vacuum: bool = True
    key_columns: tuple[str, ...] | None = None
    preserve: tuple[str, ...] = ()
    on_row_error: Literal["list", "fail"] = "list"
    recompute: bool = False
    expired: Expired | None = None
    schemas: Schemas | None = field(default=None, compare=False)
    until: datetime | time_of_day | str | None = None
    window: Window | Sequence[time_of_day | str] | str | None = None
    throttle: Throttle | None = field(default=None, compare=False)
    max_latency: float | None = None
    max_replica_lag: float | None = None
    replicas: Sequence[Replica] = ()
    is_paused: Callable[[], bool] | None = field(default=None, compare=False)
    progress: Callable[[ReencryptionReport], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            kind.check(**{name: getattr(self, name)})
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
    known = set(Options.__dataclass_fields__) - {"expired"}
    for name in options:
        if name not in known:
            raise ConfigurationError(f"there is no option {name}; there are {', '.join(sorted(known))}")
    for name in ("key_columns", "preserve"):
        if options.get(name) is None:
            options.pop(name, None)
        else:
            options[name] = names_of(name, options[name], "each a column of the table")
    return options
