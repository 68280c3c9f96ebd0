"""The encrypted columns that ``jwt-column audit`` is about: of the application, or named by table and column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Connection, MetaData, Table, inspect

from ..errors import ConfigurationError
from .columns import ColumnOptions, choose_column, import_application

if TYPE_CHECKING:
    from .columns import ChosenColumn

__all__ = ["Targets", "choose_targets", "typed_column"]

#: Returns what audit() takes, once there is a connection to look at the database with.
Targets = Callable[[Connection], Sequence[Any]]


def choose_targets(options: ColumnOptions, models: Sequence[str]) -> Targets:
    """Return what the command line names. The database was not asked yet.

    Raises:
        ConfigurationError: It names nothing, or the application has nothing of that name.
    """
    if models:
        if options != ColumnOptions():
            raise ConfigurationError(
                "--model takes table, column, type and key ring from the application; leave out the options that say "
                "them again"
            )
        targets = [_target(model) for model in models]
        return lambda _: targets
    if not options.table or not options.column:
        raise ConfigurationError(
            "which columns? Give --model module:Base for all of an application, or --table and --column"
        )
    chosen = choose_column(options)
    return lambda connection: [typed_column(connection, chosen.counted_in(connection))]


def _target(model: str) -> Any:
    """Return what a name of the application stands for; of a declarative base, its MetaData."""
    module_name, _, path = model.partition(":")
    if not module_name or not path:
        raise ConfigurationError(
            "--model has the form module:name, as in app.models:Base, app.models:Session or app.models:Session.token"
        )
    try:
        target: Any = attrgetter(path)(import_application(module_name))
    except AttributeError:
        raise ConfigurationError(f"--model: the module {module_name} has no {path}") from None
    metadata = getattr(target, "metadata", None)
    is_base = isinstance(target, type) and inspect(target, raiseerr=False) is None
    return metadata if is_base and isinstance(metadata, MetaData) else target


def typed_column(connection: Connection, chosen: ChosenColumn) -> Column[Any]:
    """Return a column in a table that also has its primary key and what it is bound to, as the database has them."""
    inspector = inspect(connection)
    types = {info["name"]: info["type"] for info in inspector.get_columns(chosen.table, schema=chosen.schema)}
    keys = inspector.get_pk_constraint(chosen.table, schema=chosen.schema)["constrained_columns"]
    missing = [name for name in chosen.type_.bound_to if name not in types]
    if missing:
        raise ConfigurationError(f"there is no column {missing[0]} beside {chosen.name}")
    column: Column[Any] = Column(chosen.column, chosen.type_)
    others: list[Column[Any]] = [
        Column(name, types[name], primary_key=name in keys)
        for name in dict.fromkeys((*keys, *chosen.type_.bound_to))
    ]
    Table(chosen.table, MetaData(), *others, column, schema=chosen.schema)
    return column
