"""The encrypted columns that a command works on: named by table and column, or by the application's models."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Connection, MetaData, Table, inspect, select
from sqlalchemy.exc import OperationalError

from migrations_helpers.engine.preflight import Subject, examine
from migrations_helpers.engine.reencryption import in_column

from ..column.header_sql import HeaderSQL
from ..column.json_type import EncryptedJSON
from ..column.row_binding import python_type_of
from ..column.types import EncryptedJWT
from ..database.column_size import without_domain
from ..database.reading import rolled_back
from ..errors import ConfigurationError, ReencryptionError
from ..format.envelope import HEADER_LENGTHS, LAYOUT_FIELD, Layout
from .console import did_you_mean
from .options import MODEL_VARIABLE, ColumnOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.types import TypeEngine

    from ..format.envelope import Storage

#: Returns the targets of audit(), once there is a connection to look at the database with.
Targets = Callable[[Connection], Sequence[Any]]


@dataclass(frozen=True)
class ChosenColumn:
    """An encrypted column.

    Attributes:
        type_: The column's type, in its context.
        arguments: The options that name the column on a command line.
        options: The options that say its type, or None if the application's model does.
        mapped: The model's column, or None.
        drop: Index fields that a run may drop.
    """

    table: str
    column: str
    schema: str | None
    type_: EncryptedJWT
    arguments: str = ""
    options: ColumnOptions | None = None
    mapped: Column[Any] | None = None
    drop: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The column with its table and, if one was given, its schema."""
        return ".".join(filter(None, (self.schema, self.table, self.column)))

    def typed(self) -> Column[Any]:
        """Return the column of a table of its own, for statements that need its type."""
        typed: Column[Any] = Column(self.column, self.type_)
        Table(self.table, MetaData(), typed, schema=self.schema)
        return typed

    def found_in(
        self,
        connection: Connection,
        *,
        key_columns: Sequence[str],
        preserve: Sequence[str],
        writes: bool = True,
    ) -> ChosenColumn:
        """Return the column as the database has it, if a run on it would be right and would drop no index field."""
        try:
            found = self.counted_in(connection)
        except OperationalError:
            # Other databases have no tables in a schema that is not there; SQLite has an error.
            if self.schema is None or connection.dialect.name != "sqlite":
                raise
            raise ConfigurationError(f"there is no schema {self.schema}; nothing was done") from None
        try:
            with rolled_back(connection):
                examine(connection, found.subject(key_columns, preserve)).fit_table(writes=writes)
        except ReencryptionError as error:
            # Before a run it is the database or the command line that is wrong, and not the rows.
            raise ConfigurationError(str(error)) from None
        found.refuse_lost_fields(connection)
        return found

    def refuse_lost_fields(self, connection: Connection) -> None:
        """Refuse to drop index fields of rows that nothing names. A model names them, and so does ``--drop``.

        A command line forgets an option more easily than a model.
        """
        if self.options is None or self.drop:
            return
        typed = self.typed()
        stored = HeaderSQL(typed, self.type_)
        statement = (
            select(stored.field(LAYOUT_FIELD)).select_from(typed.table).where(stored.is_envelope()).distinct()
        )
        for value in connection.execute(statement).scalars():
            byte = int(value, 16) if isinstance(value, str) else bytes(value)[0]
            if byte not in HEADER_LENGTHS:
                continue
            layout, names = Layout(bool(byte & 1), byte >> 1), len(self.type_.fingerprints)
            lost = []
            if layout.has_expiry and not self.type_.expose_expiry:
                lost.append("a readable expiry (--expose-expiry)")
            if layout.fingerprints > names:
                lost.append(f"{layout.fingerprints} fingerprints where {names} are named (--fingerprint)")
            if lost:
                raise ConfigurationError(
                    f"{self.name}: there are rows with {' and '.join(lost)}, which this run would drop. Say it as the "
                    "model does, or give --model, which takes it from there; nothing was done"
                )

    def subject(self, key_columns: Sequence[str] = (), preserve: Sequence[str] = ()) -> Subject:
        """Return the column as a preflight takes it."""
        return Subject(
            self.table,
            self.column,
            self.type_,
            schema=self.schema,
            key_columns=key_columns or None,
            preserve=preserve,
        )

    def counted_in(self, connection: Connection) -> ChosenColumn:
        """Return the column as the database has it, for statements that count its rows and change none."""
        return self._as_stored(self._types_in(connection))

    def _types_in(self, connection: Connection) -> dict[str, TypeEngine[Any]]:
        """Return the types of the table's columns in the database; refuse a table or a column that is not there."""
        inspector = inspect(connection)
        if not inspector.has_table(self.table, schema=self.schema):
            names = [
                *inspector.get_table_names(schema=self.schema),
                *inspector.get_view_names(schema=self.schema),
            ]
            table = self.name.rpartition(".")[0]
            raise ConfigurationError(
                f"there is no table {table}{did_you_mean(self.table, names)}; nothing was done"
            )
        types = {info["name"]: info["type"] for info in inspector.get_columns(self.table, schema=self.schema)}
        if self.column not in types:
            raise ConfigurationError(
                f"there is no column {self.name}{did_you_mean(self.column, types)}; nothing was done"
            )
        return types

    def in_table(self, connection: Connection) -> Column[Any]:
        """Return the model's column, or one in a table with the primary key and ``bound_to`` of the database's."""
        if self.mapped is not None:
            return self.mapped
        types = self._types_in(connection)
        chosen = self._as_stored(types)
        keys = inspect(connection).get_pk_constraint(self.table, schema=self.schema)["constrained_columns"]
        missing = [name for name in chosen.type_.bound_to if name not in types]
        if missing:
            raise ConfigurationError(f"there is no column {missing[0]} beside {self.name}")
        column: Column[Any] = Column(self.column, chosen.type_)
        others: list[Column[Any]] = [
            Column(name, types[name], primary_key=name in keys)
            for name in dict.fromkeys((*keys, *chosen.type_.bound_to))
        ]
        Table(self.table, MetaData(), *others, column, schema=self.schema)
        return column

    def _as_stored(self, types: Mapping[str, TypeEngine[Any]]) -> ChosenColumn:
        """Return the column in the storage form that the database's column asks for."""
        given = self.type_.storage if self.options is None else self.options.storage
        in_database = types[self.column]
        held = python_type_of(without_domain(in_database))
        needed: Storage | None = "binary" if held is bytes else "text" if held is str else None
        if needed is None and given is None:
            # SQLite takes any word for a type, so the column may hold tokens all the same.
            raise ConfigurationError(
                f"{self.name} is {in_database!r}, which is neither bytes nor text; if it holds tokens, give --storage "
                "as the model has it"
            )
        if needed is None or needed == self.type_.storage:
            return self
        if self.options is None or given is not None:
            holds = "bytes" if needed == "binary" else "text"
            raise ConfigurationError(
                f"{self.name} is a column of {holds}, which goes with storage={needed!r} and not with "
                f"{given!r}; nothing was done"
            )
        return replace(self, type_=_type_of(replace(self.options, storage=needed)))


def choose_column(options: ColumnOptions, model: str | None) -> ChosenColumn:
    """Return the column that the command line names. The database was not asked yet."""
    if model is not None:
        _refuse_both(options)
        return _mapped_column(model)
    if not options.table and (configured := _configured_models()):
        if len(configured) > 1:
            raise ConfigurationError(
                f"which column? {MODEL_VARIABLE} names several; give --model with one of them"
            )
        return _mapped_column(configured[0], MODEL_VARIABLE)
    if not options.table or not options.column:
        raise ConfigurationError("which column? Give --model MODULE:CLASS.ATTR, or --table and --column")
    return ChosenColumn(
        options.table, options.column, options.schema, _type_of(options), options.arguments, options
    )


def choose_targets(options: ColumnOptions, models: Sequence[str]) -> Targets:
    """Return the targets of an audit that the command line names. The database was not asked yet."""
    if models:
        _refuse_both(options)
    elif not options.table:
        models = _configured_models()
    if models:
        targets = [_target(model) for model in models]
        return lambda _: targets
    if not options.table or not options.column:
        raise ConfigurationError(
            "which columns? Give --model MODULE:BASE for all of an application, or --table and --column"
        )
    chosen = choose_column(options, None)
    return lambda connection: [chosen.in_table(connection)]


def _configured_models() -> list[str]:
    return os.environ.get(MODEL_VARIABLE, "").split()


def _refuse_both(options: ColumnOptions) -> None:
    if options != ColumnOptions():
        raise ConfigurationError(
            "--model takes table, column, type and key ring from the application; leave out the options that say them "
            "again"
        )


def _type_of(options: ColumnOptions) -> EncryptedJWT:
    class_ = EncryptedJSON if options.type == "json" else EncryptedJWT
    return in_column(class_(**options.type_parameters), options.table or "", options.column or "")


def _mapped_column(model: str, source: str = "--model") -> ChosenColumn:
    attribute = _find(model)
    # A mapped attribute stands for its column; a Core column stands for itself.
    found: Any = attribute if isinstance(attribute, Column) else getattr(attribute, "expression", None)
    table, type_ = getattr(found, "table", None), getattr(found, "type", None)
    if not isinstance(table, Table) or not isinstance(type_, EncryptedJWT):
        raise ConfigurationError(
            f"{source}: {model} is no encrypted column of a table; give --model with one, such as app:Session.token"
        )
    name = f"--model {shlex.quote(model)}"
    return ChosenColumn(table.name, found.name, table.schema, type_, name, mapped=table.c[found.key])


def _target(model: str) -> Any:
    """Return the object of the application that a name stands for; of a declarative base, its MetaData."""
    target = _find(model)
    metadata = getattr(target, "metadata", None)
    is_base = isinstance(target, type) and inspect(target, raiseerr=False) is None
    return metadata if is_base and isinstance(metadata, MetaData) else target


def _find(model: str) -> Any:
    module_name, _, path = model.partition(":")
    if not module_name or not path:
        raise ConfigurationError(
            "--model has the form MODULE:NAME, as in app.models:Session.token, app.models:Session or app.models:Base"
        )
    try:
        return attrgetter(path)(_import_application(module_name))
    except AttributeError:
        raise ConfigurationError(f"--model: the module {module_name} has no {path}") from None


def _import_application(name: str) -> Any:
    """Import a module of the application, from the current directory too, as Alembic and Flask do."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        # Output of the module's import must not mix with the command's.
        with redirect_stdout(sys.stderr):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--model: there is no module {error.name} (looked for {name} in {here} and in the installed packages)"
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001
        # Settings that do not validate are often in the text of the error, passwords among them.
        raise ConfigurationError(
            f"--model: the module {name} cannot be imported ({type(error).__name__}); "
            f"'python -c \"import {name}\"' says why"
        ) from None
