"""``pkcs11:`` URIs (RFC 7512), parsed strictly: one secret key of one token, its module, and the source of its PIN.

URIs appear in key-ring files and in logs, so one that holds a PIN (``pin-value``) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from ...errors import ConfigurationError
from .parameters import seconds_of

# RFC 7512 section 2.3: pk11-pchar of the path, and of the query.
_CHARACTER: Final = r"[A-Za-z0-9\-._~:\[\]@!$'()*+,=%s]|%%[0-9A-Fa-f]{2}"
_PATH_VALUE: Final = re.compile(rf"(?:{_CHARACTER % '&'})*")
_QUERY_VALUE: Final = re.compile(rf"(?:{_CHARACTER % '/?|'})*")
_NUMBER: Final = re.compile(r"[0-9]{1,20}")
_VARIABLE: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")

_OF_PATH: Final = ("token", "manufacturer", "model", "serial", "slot-id", "object", "id", "type")
_OF_QUERY: Final = ("module-path", "pin-source", "timeout")


@dataclass(frozen=True)
class KEKName:
    """A parsed URI. None stands for an absent attribute, which matches anything.

    Attributes:
        token: Label of the token, which the next four describe too.
        label: Label of the key, its CKA_LABEL.
        id: Identifier of the key, its CKA_ID.
        module_path: The PKCS#11 module: a path, or a name that the dynamic linker finds.
        pin_source: ``file:/PATH`` or ``env:NAME``, the place of the PIN and never the PIN.
        timeout: Time limit of a call in seconds, retries included.
    """

    token: str | None
    manufacturer: str | None
    model: str | None
    serial: str | None
    slot_id: int | None
    label: str | None
    id: bytes | None
    module_path: str | None
    pin_source: str | None
    timeout: float

    def matches(self, token: Any) -> bool:
        """Return True if the URI matches a token of the binding."""
        pairs = (
            (self.token, token.label),
            (self.manufacturer, token.manufacturer_id),
            (self.model, token.model),
            (self.serial, token.serial.decode("utf-8", "replace")),
            (self.slot_id, token.slot.slot_id),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)


def parse(rest: str) -> KEKName:
    """Parse a ``pkcs11:`` URI, given without its scheme.

    Raises:
        ConfigurationError: It breaks the grammar, has an unknown attribute, or names no key. Values are not shown: a
            PIN may be among them.
    """
    path, mark, query = rest.partition("?")
    of_path = _attributes(path, ";", _OF_PATH, _PATH_VALUE) if path else {}
    of_query = _attributes(query, "&", _OF_QUERY, _QUERY_VALUE) if mark else {}
    text = {name: _text(name, value) for name, value in (of_path | of_query).items() if name != "id"}
    slot_id = text.get("slot-id")
    if slot_id is not None and not _NUMBER.fullmatch(slot_id):
        raise ConfigurationError("slot-id= of a pkcs11: URI is a decimal number")
    if text.get("type", "secret-key") != "secret-key":
        raise ConfigurationError(
            "a KEK is of type=secret-key; other types of a pkcs11: URI wrap no data keys"
        )
    if "object" not in of_path and "id" not in of_path:
        raise ConfigurationError(
            "a pkcs11: URI names the KEK by object= (its label), id= or both, as in pkcs11:token=app;object=jwt-kek"
        )
    return KEKName(
        token=text.get("token"),
        manufacturer=text.get("manufacturer"),
        model=text.get("model"),
        serial=text.get("serial"),
        slot_id=None if slot_id is None else int(slot_id),
        label=text.get("object"),
        id=unquote_to_bytes(of_path["id"]) if "id" in of_path else None,
        module_path=text.get("module-path"),
        pin_source=pin_source(text["pin-source"]) if "pin-source" in text else None,
        timeout=seconds_of(text),
    )


def _attributes(
    part: str, separator: str, known: tuple[str, ...], grammar: re.Pattern[str]
) -> dict[str, str]:
    """Return the attributes of the path or of the query, still percent-encoded."""
    attributes: dict[str, str] = {}
    for attribute in part.split(separator):
        name, equals, value = attribute.partition("=")
        if name == "pin-value":
            raise ConfigurationError(
                "a pkcs11: URI appears in files and logs and must not hold a PIN; replace pin-value by "
                "pin-source=file:/PATH or pin-source=env:NAME"
            )
        if not equals or name not in known:
            where = "behind ?" if separator == "&" else "before ?"
            raise ConfigurationError(
                f"{where} a pkcs11: URI has name=value of {', '.join(known)}, joined by {separator}"
            )
        if name in attributes:
            raise ConfigurationError(f"a pkcs11: URI has {name}= once at most (RFC 7512 section 2.3)")
        if not value or not grammar.fullmatch(value):
            raise ConfigurationError(
                f"{name}= of a pkcs11: URI is empty, or has a character that must be percent-encoded "
                "(RFC 7512 section 2.3)"
            )
        attributes[name] = value
    return attributes


def _text(name: str, value: str) -> str:
    try:
        text = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigurationError(f"{name}= of a pkcs11: URI is not a text in UTF-8")
    return text


def pin_source(source: str) -> str:
    """Return the source of a PIN as ``file:/PATH`` or ``env:NAME``.

    Raises:
        ConfigurationError: Another form. RFC 7512 also allows programs, but a key-ring file must not start one.
    """
    path = source.removeprefix("file:").removeprefix("//")
    if path.startswith("/") and not path.startswith("//"):
        return f"file:{path}"
    if not _VARIABLE.fullmatch(source):
        raise ConfigurationError(
            "the pin-source of a pkcs11: URI is file:/PATH or env:NAME; the given value may be the PIN and is not shown"
        )
    return source
