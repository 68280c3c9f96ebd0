"""Values that become fingerprints when a statement is executed, under the keys that the ring has then.

A compiled statement is used again and again, with other values and after the ring has learned keys. So the number of
fingerprints is open: they stand in an expanding parameter, as the values of ``in_()`` do. SQLAlchemy asks the compiled
statement for its parameters at every execution; that answer is changed here, so that drivers, logs and errors get
fingerprints and never a value.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import LargeBinary, String
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import ExpandedState
from sqlalchemy.sql.elements import BindParameter

from ..errors import JWTColumnError, UnsupportedComparisonError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.sql.compiler import SQLCompiler

    from ..keys.data_key import DataKey
    from .fingerprints import Fingerprints

# Under this name a compiler keeps the late values of its statement.
_LATE: Final = "_jwt_column_late_values"

_BINARY: Final = LargeBinary()
_TEXT: Final = String()

# With several sets of parameters the statement's text is fixed before the first of them: places for as many keys.
_SPARE_PLACES: Final = 4

_KEPT_LENGTHS: Final = 32


def late_parameter(fingerprints: Fingerprints, given: Any, *, is_list: bool = False) -> BindParameter[Any]:
    """Return the parameter of a condition: for the values that are looked for, or for those of another parameter.

    The latter takes a list if *is_list*.
    """
    parameter: Any
    if not isinstance(given, BindParameter):
        parameter = _new_parameter(fingerprints, "fingerprint", fingerprints.sought(given))
    else:
        # Of the same key, so that values which are given to the statement by name reach it.
        parameter = given._clone(maintain_key=True)  # noqa: SLF001 - SQLAlchemy's own way to give it another type
        # Not as its clone, which would keep the other with its value.
        for name in ("_is_clone_of", "_cloned_set"):
            parameter.__dict__.pop(name, None)
        parameter.type = _type_of(fingerprints)
        parameter.expanding = True
        # Written into the statement's text, a value would be written as it is.
        parameter.literal_execute = False
        if parameter.callable is None and not parameter.required:
            parameter.value = fingerprints.sought_later(parameter.value, is_list=is_list)
        parameter.expand_op = operators.in_op
    return parameter  # type: ignore[no-any-return]


def _new_parameter(fingerprints: Fingerprints, key: str, value: Any) -> Any:
    parameter: Any = BindParameter(key, value, _type_of(fingerprints), unique=True, expanding=True)
    parameter.expand_op = operators.in_op
    return parameter


def _type_of(fingerprints: Fingerprints) -> Any:
    return _TEXT if fingerprints.type.storage == "text" else _BINARY


def place_of_values(
    compiler: SQLCompiler, fingerprints: Fingerprints, parameter: Any, *, is_list: bool, **kw: Any
) -> str:
    """Return the SQL of a list of fingerprints, in brackets, and have it filled at each execution."""
    if kw.get("literal_binds"):
        if parameter.required:
            raise CompileError(f"the parameter {parameter.key!r} has no value that could be written out")
        sought = sought_by(fingerprints, parameter.effective_value, is_list=is_list)
        return _literals(compiler, fingerprints.constants(sought.under(fingerprints.search_keys())))
    return _late_values(compiler).add(_Place(fingerprints, is_list), parameter, **kw)


def place_of_stamps(compiler: SQLCompiler, fingerprints: Fingerprints, **kw: Any) -> str:
    """Return the SQL of the list of stamps whose rows can be compared, filled likewise."""
    if kw.get("literal_binds"):
        stamps = fingerprints.stamps(fingerprints.search_keys())
        return _literals(compiler, fingerprints.constants(stamps, prefix=True))

    parameter = _new_parameter(fingerprints, "stamp", ())
    return _late_values(compiler).add(_Place(fingerprints, None), parameter, **kw)


def _literals(compiler: SQLCompiler, constants: Sequence[Any]) -> str:
    """Return a list that is written out; an empty one as SQLAlchemy does it, for a condition in brackets."""
    return f"({', '.join(map(compiler.process, constants)) or 'NULL) AND (1 != 1'})"


def sought_by(fingerprints: Fingerprints, value: object, *, is_list: bool) -> Any:
    """Return the values that a parameter's value looks for.

    Raises:
        UnsupportedComparisonError: A value that no row can have.
    """
    return value if hasattr(value, "under") else fingerprints.sought_later(value, is_list=is_list)


def _late_values(compiler: Any) -> _LateValues:
    found: _LateValues | None = compiler.__dict__.get(_LATE)
    if found is None:
        found = compiler.__dict__[_LATE] = _LateValues(compiler)
    return found


class _Place(NamedTuple):
    """A parameter that is filled with fingerprints or, if ``is_list`` is None, with stamps.

    In a statement with several sets of parameters ``names`` are the parameters of single fingerprints.
    """

    fingerprints: Fingerprints
    is_list: bool | None
    names: Sequence[str] = ()

    def is_filled_as(self, other: _Place) -> bool:
        """Return True if another parameter gets the same fingerprints."""
        mine, theirs = self.fingerprints, other.fingerprints
        return (mine.type, mine.name, self.is_list) == (theirs.type, theirs.name, other.is_list)

    def fill(self, parameters: dict[str, Any], name: str, keys: tuple[DataKey, ...]) -> None:
        """Put fingerprints under these keys, or the stamps of these keys, in the place of a value.

        Raises:
            UnsupportedComparisonError: A value that no row can have; or too many keys for the statement's places.
        """
        fingerprints = self.fingerprints
        if self.is_list is None:
            found = fingerprints.stored(fingerprints.stamps(keys), prefix=True)
        else:
            sought = sought_by(fingerprints, parameters[name], is_list=self.is_list)
            found = fingerprints.stored(sought.under(keys), prefix=False)

        if not self.names:
            parameters[name] = found
            return
        del parameters[name]
        if len(found) > len(self.names):
            raise UnsupportedComparisonError(
                f"{fingerprints.type.context}: the key ring has more keys than before, and this statement, compiled "
                "for several sets of parameters, would miss rows; call clear_compiled_cache() of the engine",
                context=fingerprints.type.context,
            )
        # The same fingerprint again: a NULL would change the answer.
        padding = [found[-1]] * (len(self.names) - len(found))
        parameters.update(zip(self.names, [*found, *padding], strict=True))


class _LateValues:
    """The late values of one compiled statement."""

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler
        self._places: dict[str, _Place] = {}
        self._expanded: dict[tuple[int, ...], Any] = {}
        self._construct_params = compiler.construct_params
        self._expand = compiler._process_parameters_for_postcompile  # noqa: SLF001
        # Of this compiled statement only.
        compiler.construct_params = self.construct_params
        compiler._process_parameters_for_postcompile = self.expand  # noqa: SLF001

    def add(self, place: _Place, parameter: Any, **kw: Any) -> str:
        """Return the SQL of a list of fingerprints or stamps, in brackets."""
        if self._compiler.for_executemany:
            return self._add_fixed(place, parameter, **kw)
        self._places[self._name_of(parameter, place)] = place
        return self._process(parameter, **kw)

    def _add_fixed(self, place: _Place, parameter: Any, **kw: Any) -> str:
        """Return a list with as many places as the ring has keys, and some for keys that it may learn."""
        if place.is_list:
            context = place.fingerprints.type.context
            raise UnsupportedComparisonError(
                f"{context}: a list cannot be compared by a statement with several sets of parameters; execute it once "
                "for each list",
                context=context,
            )
        count = len(place.fingerprints.search_keys()) + _SPARE_PLACES
        places = [BindParameter("place", None, parameter.type, unique=True) for _ in range(count)]
        sql = f"({', '.join(self._compiler.process(one, **kw) for one in places)})"
        names = [self._compiler.bind_names[one] for one in places]
        alone = parameter._clone(maintain_key=True)  # noqa: SLF001
        alone.expanding = False
        name = self._name_of(alone, place)
        self._process(alone, **kw)
        self._places[name] = place._replace(names=names)
        return sql

    def _name_of(self, parameter: Any, place: _Place) -> str:
        """Return the name of a parameter in the SQL text: another than the application's for its own value.

        The same parameter may be compared with several columns, and serve elsewhere too.
        """
        compiler = self._compiler
        if parameter.unique:
            return compiler._truncate_bindparam(parameter)  # type: ignore[no-any-return]  # noqa: SLF001
        base = re.sub(r"\W", "_", parameter.key)
        for number in range(len(self._places) + 1):
            name = f"{base}_fingerprint_{number}"
            other = self._places.get(name)
            if other is None or other.is_filled_as(place):
                break
        compiler.bind_names[parameter] = name
        return name

    def _process(self, parameter: Any, **kw: Any) -> str:
        """Return the SQL of a parameter, and leave its key to another parameter that has it."""
        binds = self._compiler.binds
        other = binds.pop(parameter.key, None)
        sql: str = self._compiler.process(parameter, **kw)
        if other is not None:
            binds[parameter.key] = other
        elif not parameter.unique:
            del binds[parameter.key]
        return sql

    def construct_params(self, *args: Any, **kw: Any) -> Any:
        """Return the parameters of one execution, with fingerprints in the place of values."""
        parameters = self._construct_params(*args, **kw)
        failure = None
        # Once for each ring: another thread may reload it meanwhile.
        keys: dict[int, tuple[DataKey, ...]] = {}
        try:
            for name, place in self._places.items():
                ring = id(place.fingerprints.type.keyring)
                if ring not in keys:
                    keys[ring] = place.fingerprints.search_keys()
                # In a statement that was written out with its lists, they are filled already.
                if name in parameters:
                    place.fill(parameters, name, keys[ring])
        except JWTColumnError as error:
            failure = error.with_traceback(None)
        if failure is None:
            return parameters
        if kw.get("_check", True):
            del parameters, args, kw  # Error reporters show local variables.
            raise failure
        # The parameters are only shown.
        return {
            name: "redacted" if name in self._places and value is not None else value
            for name, value in parameters.items()
        }

    def expand(self, parameters: Any, *args: Any, **kw: Any) -> Any:
        """Return the statement with a parameter for each fingerprint: made once for lists of one length.

        SQLAlchemy makes it at every execution, which takes longer than the fingerprints.
        """
        names = self._expanding
        if names is None or args or kw:
            return self._expand(parameters, *args, **kw)
        lengths = tuple([len(parameters[name]) for name in names])
        made = self._expanded.get(lengths)
        if made is None:
            made = self._expand(parameters)
            if len(self._expanded) < _KEPT_LENGTHS:
                self._expanded[lengths] = made._replace(parameters={})
            return made
        for name in names:
            parameters.update(zip(made.parameter_expansion[name], parameters.pop(name), strict=True))
        return ExpandedState(made.statement, parameters, *made[2:])

    @cached_property
    def _expanding(self) -> tuple[str, ...] | None:
        """The names of the parameters with late values; None if the statement has other lists as well."""
        compiler = self._compiler
        lists = {compiler.bind_names[one] for one in compiler.post_compile_params}
        is_alone = lists <= self._places.keys() and not compiler.literal_execute_params
        return tuple(lists) if is_alone else None
