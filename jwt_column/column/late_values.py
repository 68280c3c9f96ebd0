"""Values that become fingerprints when a statement is executed, under the keys that the ring has then.

A compiled statement is used again and again, with other values and after the ring has learned keys. So the number of
fingerprints is open: they stand in an expanding parameter, as the values of ``in_()`` do. SQLAlchemy asks the compiled
statement for its parameters at every execution; that answer is changed here, so that drivers, logs and errors get
fingerprints and never a value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import LargeBinary, String
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter

from ..errors import JWTColumnError, UnsupportedComparisonError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.sql.compiler import SQLCompiler

    from ..keys.data_key import DataKey
    from .fingerprints import Fingerprints

__all__ = ["late_parameter", "place_of_stamps", "place_of_values", "sought_by"]

# Under this name a compiler keeps the late values of its statement.
_LATE: Final = "_jwt_column_late_values"

_BINARY: Final = LargeBinary()
_TEXT: Final = String()

# With several sets of parameters the statement's text is fixed before the first of them: places for as many keys.
_SPARE_PLACES: Final = 4

_KEPT_LENGTHS: Final = 32


def late_parameter(fingerprints: Fingerprints, given: Any, *, is_list: bool = False) -> BindParameter[Any]:
    """Return the parameter of a condition: for the values that are looked for, or for those of another parameter.

    Args:
        fingerprints: Those of the column.
        given: A parameter, or the values themselves.
        is_list: Whether the parameter takes a list.
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
            value = parameter.value
            parameter.value = fingerprints.sought_later(value, is_list=is_list)
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
        found = sought_by(fingerprints, parameter.effective_value, is_list=is_list).under(
            fingerprints.search_keys()
        )
        return _literals(compiler, fingerprints.constants(found))
    return _late_values(compiler).add(fingerprints, parameter, is_list=is_list, **kw)


def place_of_stamps(compiler: SQLCompiler, fingerprints: Fingerprints, **kw: Any) -> str:
    """Return the SQL of the list of stamps whose rows can be compared, filled likewise."""
    if kw.get("literal_binds"):
        return _literals(compiler, fingerprints.stamp_constants(fingerprints.search_keys()))
    parameter = _new_parameter(fingerprints, "stamp", ())
    return _late_values(compiler).add(fingerprints, parameter, is_list=None, **kw)


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


class _Place:
    """A parameter that is filled with fingerprints or, if ``is_list`` is None, with stamps."""

    __slots__ = ("_names", "fingerprints", "is_list")

    def __init__(
        self, fingerprints: Fingerprints, names: Sequence[str] = (), *, is_list: bool | None
    ) -> None:
        self.fingerprints = fingerprints
        self.is_list = is_list
        #: The parameters of single fingerprints, in a statement with several sets of parameters.
        self._names = names

    def fill(self, parameters: dict[str, Any], name: str, keys: tuple[DataKey, ...]) -> None:
        """Put fingerprints under these keys, or the stamps of these keys, in the place of a value.

        Raises:
            UnsupportedComparisonError: A value that no row can have; or too many keys for the statement's places.
        """
        fingerprints = self.fingerprints
        found: Sequence[Any]
        if self.is_list is None:
            found = fingerprints.stamps(keys)
        else:
            sought = sought_by(fingerprints, parameters[name], is_list=self.is_list)
            found = fingerprints.stored(sought.under(keys))
        if not self._names:
            parameters[name] = found
            return
        del parameters[name]
        if len(found) > len(self._names):
            raise UnsupportedComparisonError(
                f"{fingerprints.type.context}: the key ring has more keys than before, and this statement, compiled "
                "for several sets of parameters, would miss rows; call clear_compiled_cache() of the engine",
                context=fingerprints.type.context,
            )
        # The same fingerprint again: a NULL would change the answer.
        padding = [found[-1]] * (len(self._names) - len(found))
        parameters.update(zip(self._names, [*found, *padding], strict=True))


def _is_same(place: _Place, fingerprints: Fingerprints, *, is_list: bool | None) -> bool:
    """Return True if a parameter is filled with these fingerprints already."""
    other = place.fingerprints
    return (other.type, other.name, place.is_list) == (fingerprints.type, fingerprints.name, is_list)


class _LateValues:
    """The late values of one compiled statement.

    Args:
        compiler: That of the statement.
    """

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler
        self._places: dict[str, _Place] = {}
        self._expanded: dict[tuple[int, ...], Any] = {}
        self._names: tuple[tuple[str, ...], ...] | None = None
        self._construct_params = compiler.construct_params
        self._expand = compiler._process_parameters_for_postcompile  # noqa: SLF001
        # Of this compiled statement only.
        compiler.construct_params = self.construct_params
        compiler._process_parameters_for_postcompile = self.expand  # noqa: SLF001

    def add(self, fingerprints: Fingerprints, parameter: Any, *, is_list: bool | None, **kw: Any) -> str:
        """Return the SQL of a list of fingerprints or stamps, in brackets."""
        compiler = self._compiler
        if compiler.for_executemany:
            return self._add_fixed(fingerprints, parameter, is_list=is_list, **kw)
        name = self._name_of(parameter, fingerprints, is_list=is_list)
        self._places[name] = _Place(fingerprints, is_list=is_list)
        return self._process(parameter, **kw)

    def _add_fixed(
        self, fingerprints: Fingerprints, parameter: Any, *, is_list: bool | None, **kw: Any
    ) -> str:
        """Return a list with as many places as the ring has keys, and some for keys that it may learn."""
        if is_list:
            raise UnsupportedComparisonError(
                f"{fingerprints.type.context}: a list cannot be compared by a statement with several sets of "
                "parameters; execute it once for each list",
                context=fingerprints.type.context,
            )
        count = len(fingerprints.search_keys()) + _SPARE_PLACES
        places = [BindParameter("place", None, parameter.type, unique=True) for _ in range(count)]
        sql = f"({', '.join(self._compiler.process(place, **kw) for place in places)})"
        names = [self._compiler.bind_names[place] for place in places]
        alone = parameter._clone(maintain_key=True)  # noqa: SLF001
        alone.expanding = False
        name = self._name_of(alone, fingerprints, is_list=is_list)
        self._process(alone, **kw)
        self._places[name] = _Place(fingerprints, names, is_list=is_list)
        return sql

    def _name_of(self, parameter: Any, fingerprints: Fingerprints, *, is_list: bool | None) -> str:
        """Return the name of a parameter in the SQL text: another than the application's for its own value.

        The same parameter may be compared with several columns, and serve elsewhere too.
        """
        compiler = self._compiler
        if parameter.unique:
            return compiler._truncate_bindparam(parameter)  # type: ignore[no-any-return]  # noqa: SLF001
        base = re.sub(r"\W", "_", parameter.key)
        for number in range(len(self._places) + 1):
            name = f"{base}_fingerprint_{number}"
            place = self._places.get(name)
            if place is None or _is_same(place, fingerprints, is_list=is_list):
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
        names = self._expanding()
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
        return made._replace(parameters=parameters)

    def _expanding(self) -> tuple[str, ...] | None:
        """Return the names of the parameters with late values; None if the statement has other lists as well."""
        if self._names is None:
            compiler = self._compiler
            lists = {compiler.bind_names[one] for one in compiler.post_compile_params}
            is_alone = lists <= self._places.keys() and not compiler.literal_execute_params
            self._names = (tuple(lists),) if is_alone else ()
        return self._names[0] if self._names else None
