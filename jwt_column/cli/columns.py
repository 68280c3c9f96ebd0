"""The encrypted column that a command works on: named by table and column, or by the application's model."""

from __future__ import annotations

import importlib
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, MetaData, Table, inspect, select
from sqlalchemy.exc import OperationalError

from migrations_helpers.engine.reencryption import in_column
from migrations_helpers.engine.reflection import find_table

from ..census import encrypted_type
from ..column.header_sql import HeaderSQL
from ..column.row_binding import python_type_of
from ..column.types import EncryptedJWT
from ..errors import ConfigurationError, ReencryptionError
from ..format.envelope import HEADER_LENGTHS, LAYOUT_FIELD, Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from ..format.envelope import Storage

__all__ = ["ChosenColumn", "ColumnOptions", "choose_column", "import_application"]


@dataclass(frozen=True)
class ColumnOptions:
    """What the command line says about the column; None and empty where it says nothing."""

    table: str | None = None
    column: str | None = None
    schema: str | None = None
    model: str | None = None
    storage: Storage | None = None
    context: str | None = None
    fingerprint: tuple[str, ...] = ()
    expose_expiry: bool = False
    allow_opaque: bool = False
    allow_unsigned: bool = False
    bound_to: tuple[str, ...] = ()
    keyring: str | None = None

    @property
    def arguments(self) -> str:
        """The options as a command line has them; without the key ring, whose URI may hold a password."""
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            option = f"--{field.name.replace('_', '-')}"
            if field.name == "keyring" or not value:
                continue
            if value is True:
                words.append(option)
            else:
                for one in (value,) if isinstance(value, str) else value:
                    words += [option, shlex.quote(one)]
        return " ".join(words)


@dataclass(frozen=True)
class ChosenColumn:
    """An encrypted column.

    Attributes:
        table: The table's name in the database.
        column: The column's name in the database.
        schema: The table's schema, or None for the default.
        type_: The column's type, in its context.
        storage: The storage form that the model or the command line names, or None.
        is_from_model: Whether the application's model says what the type is, and not the command line.
        arguments: What names the column on a command line.
    """

    table: str
    column: str
    schema: str | None
    type_: EncryptedJWT
    storage: Storage | None = None
    is_from_model: bool = False
    arguments: str = ""

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
        self, connection: Connection, *, key_columns: Sequence[str], preserve: Sequence[str]
    ) -> ChosenColumn:
        """Return the column as the database has it.

        Raises:
            ConfigurationError: It is not there, or not of a type that holds tokens; or a run would change what it
                must not. Nothing was done.
        """
        try:
            find_table(
                connection,
                self.table,
                self.column,
                self.type_,
                schema=self.schema,
                key_columns=key_columns,
                preserve=preserve,
            )
        except ReencryptionError as error:
            # Before a run it is the command line that is wrong, and not the rows.
            raise ConfigurationError(str(error)) from None
        except OperationalError:
            # Other databases have no tables in a schema that is not there; SQLite has an error.
            if self.schema is None or connection.dialect.name != "sqlite":
                raise
            raise ConfigurationError(f"there is no schema {self.schema}; nothing was done") from None
        found = replace(self, type_=_stored_type(connection, self))
        if not self.is_from_model:
            _refuse_lost_fields(connection, found)
        return found

    def counted_in(self, connection: Connection) -> ChosenColumn:
        """Return the column as the database has it, for statements that count its rows and change none.

        Raises:
            ConfigurationError: It is not there, or not of a type that holds tokens.
        """
        inspector = inspect(connection)
        if not inspector.has_table(self.table, schema=self.schema):
            raise ConfigurationError(f"there is no table {self.name.rpartition('.')[0]}")
        if self.column not in {
            info["name"] for info in inspector.get_columns(self.table, schema=self.schema)
        }:
            raise ConfigurationError(f"there is no column {self.name}")
        return replace(self, type_=_stored_type(connection, self))


def _stored_type(connection: Connection, chosen: ChosenColumn) -> EncryptedJWT:
    """Return a column's type in the storage form that the database asks for.

    Raises:
        ConfigurationError: The database's column holds neither bytes nor text, or not what was said.
    """
    columns = inspect(connection).get_columns(chosen.table, schema=chosen.schema)
    in_database = next(info["type"] for info in columns if info["name"] == chosen.column)
    held = python_type_of(in_database)
    needed: Storage | None = "binary" if held is bytes else "text" if held is str else None
    if needed is None and chosen.storage is None:
        # SQLite takes any word for a type, so it may be right all the same.
        raise ConfigurationError(
            f"{chosen.name} is {in_database!r}, which is neither bytes nor text; if it holds tokens, give --storage "
            "as the model has it"
        )
    if needed is None or needed == chosen.type_.storage:
        return chosen.type_
    if chosen.storage is not None:
        holds = "bytes" if needed == "binary" else "text"
        raise ConfigurationError(
            f"{chosen.name} is a column of {holds}, which goes with storage={needed!r} and not with "
            f"{chosen.storage!r}; nothing was done"
        )
    type_ = chosen.type_
    return EncryptedJWT(
        type_.keyring,
        storage=needed,
        context=type_.context,
        fingerprints=type_.fingerprints,
        expose_expiry=type_.expose_expiry,
        allow_opaque=type_.allow_opaque,
        allow_unsigned=type_.allow_unsigned,
        bound_to=type_.bound_to,
    )


def _refuse_lost_fields(connection: Connection, chosen: ChosenColumn) -> None:
    """Refuse to drop what SQL finds rows by: a command line forgets it more easily than a model.

    Raises:
        ConfigurationError: Rows have an expiry or fingerprints that the type does not have.
    """
    typed = chosen.typed()
    stored = HeaderSQL(typed, chosen.type_)
    statement = (
        select(stored.field(LAYOUT_FIELD)).select_from(typed.table).where(stored.is_envelope()).distinct()
    )
    for value in connection.execute(statement).scalars():
        byte = int(value, 16) if isinstance(value, str) else bytes(value)[0]
        if byte not in HEADER_LENGTHS:
            continue
        layout, names = Layout(bool(byte & 1), byte >> 1), len(chosen.type_.fingerprints)
        lost = []
        if layout.has_expiry and not chosen.type_.expose_expiry:
            lost.append("a readable expiry (--expose-expiry)")
        if layout.fingerprints > names:
            lost.append(f"{layout.fingerprints} fingerprints where {names} are named (--fingerprint)")
        if lost:
            raise ConfigurationError(
                f"{chosen.name}: there are rows with {' and '.join(lost)}, which this run would drop. Say it as the "
                "model does, or give --model, which takes it from there; nothing was done"
            )


def choose_column(options: ColumnOptions) -> ChosenColumn:
    """Return the column that the command line names. The database was not asked yet.

    Raises:
        ConfigurationError: It names none or two, or the application's model is no encrypted column.
    """
    if options.model is not None:
        return _from_model(options)
    if not options.table or not options.column:
        raise ConfigurationError("which column? Give --model module:Class.attribute, or --table and --column")
    type_ = EncryptedJWT(
        options.keyring,
        storage=options.storage or "binary",
        context=options.context,
        fingerprints=options.fingerprint,
        expose_expiry=options.expose_expiry,
        allow_opaque=options.allow_opaque,
        allow_unsigned=options.allow_unsigned,
        bound_to=options.bound_to,
    )
    type_ = in_column(type_, options.table, options.column)
    return ChosenColumn(
        options.table, options.column, options.schema, type_, options.storage, arguments=options.arguments
    )


def _from_model(options: ColumnOptions) -> ChosenColumn:
    model = options.model or ""
    if options != ColumnOptions(model=options.model):
        raise ConfigurationError(
            "--model takes table, column, type and key ring from the application; leave out the options that say them "
            "again"
        )
    module_name, _, path = model.partition(":")
    if not module_name or "." not in path:
        raise ConfigurationError(
            "--model has the form module:Class.attribute, as in app.models:Session.token"
        )
    try:
        attribute: Any = attrgetter(path)(import_application(module_name))
    except AttributeError:
        raise ConfigurationError(f"--model: the module {module_name} has no {path}") from None
    type_ = encrypted_type(attribute)
    # A mapped attribute stands for its column; a Core column stands for itself.
    found: Any = attribute if isinstance(attribute, Column) else getattr(attribute, "expression", None)
    table = getattr(found, "table", None)
    if not isinstance(table, Table):
        raise ConfigurationError(f"--model: {path} is no column of a table")
    return ChosenColumn(
        table.name,
        found.name,
        table.schema,
        type_,
        type_.storage,
        is_from_model=True,
        arguments=options.arguments,
    )


def import_application(name: str) -> Any:
    """Import a module of the application, from the current directory too, as Alembic and Flask do."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        # What a module prints when it is imported is no part of our output.
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
