"""The members of a JSON document that holds nothing else, read without a word of it in an error."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from datetime import UTC, datetime
from typing import Any, Final

from ...errors import KeyRingError
from ...format import base64url

#: The form of a time, in UTC to the second.
TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class Members:
    """The members of a JSON object. Each is taken once; leftovers are refused."""

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise KeyRingError(f"{where or 'the file '}is not a JSON object")
        self._left = dict(value)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def error(self, name: str, problem: str) -> KeyRingError:
        """Return an error that names a member and does not show its value."""
        return KeyRingError(f'{self.where}"{name}" {problem}')

    def take(self, name: str, kind: type[Any]) -> Any:
        """Return a member of exactly this type: a ``bool`` is not taken for an ``int``."""
        if name not in self._left:
            raise self.error(name, "is missing")
        value = self._left.pop(name)
        if type(value) is not kind:
            raise self.error(name, f"is a {type(value).__name__}, not a {kind.__name__}")
        return value

    def take_time(self, name: str) -> datetime:
        """Return a time. Only the spelling of :meth:`RingFile.to_bytes` is accepted."""
        text: str = self.take(name, str)
        try:
            time = datetime.strptime(text, TIME).replace(tzinfo=UTC)
        except ValueError:
            time = None
        # strptime also accepts digits of other scripts, and single digits.
        if time is None or time.strftime(TIME) != text:
            raise self.error(name, "is not a time as in 2026-11-23T19:57:00Z")
        return time

    def take_bytes(self, name: str, most: int) -> bytes:
        """Return the bytes of a base64url text."""
        data = base64url.decode_canonical(self.take(name, str))
        if data is None or not 1 <= len(data) <= most:
            raise self.error(name, f"is not 1 to {most} bytes in base64url")
        return data

    def refuse_others(self) -> None:
        """Refuse unknown members: this release would lose their meaning when it writes the file."""
        if self._left:
            raise KeyRingError(f"{self.where}there are members that this version of the format does not have")


def parse(data: bytes) -> object:
    """Return the JSON value of a file. Errors of the JSON library are dropped: they hold the file's text."""
    try:
        return json.loads(
            data.removeprefix(BOM_UTF8).decode(),
            object_pairs_hook=_unique,
            parse_float=_refuse,
            parse_constant=_refuse,
        )
    except _RepeatedNameError:
        problem = "it has a JSON object with one name twice"
    except (ValueError, RecursionError):
        problem = "it is not JSON in UTF-8, or it has numbers that are not integers"
    raise KeyRingError(problem)


class _RepeatedNameError(Exception):
    """Two members of an object have one name; JSON libraries disagree about the one that counts."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _RepeatedNameError
    return members


def _refuse(_text: str) -> Any:
    raise ValueError
