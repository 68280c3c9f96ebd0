"""JWE compact serialization (RFC 7516) with ``alg: dir`` and ``enc: A256GCM`` (RFC 7518 sections 4.5 and 5.3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from cryptography.exceptions import InvalidTag

from jwt_column.errors import ConfigurationError, InvalidTokenError
from jwt_column.format import base64url
from jwt_column.format.shape import Kind, shape_of
from jwt_column.format.token import JWT
from jwt_column.keys.providers.sdk import import_sdk
from jwt_column.option_values import choice

from ._reader import Reader, ascii_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._reader import Opener

    #: A key id of RFC 7517 section 4.5; None for a key that has none.
    Kid = str | None
    KeyText = str | bytes


_ALG: Final = "dir"
_ENC: Final = "A256GCM"
_KEY: Final = 32
# Characters of a segment, above any max_length of a column.
_LARGEST: Final = 2**24


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class JWEReader(Reader):
    """Reads a token that was nested in a JWE with ``"alg": "dir"`` and ``"enc": "A256GCM"`` (RFC 7519 section 5.2).

    Decrypts with joserfc: needs the extra ``jwe``. Refused are ``zip``, ``crit``, and a ``cty`` that is there and is
    not ``JWT``. The key is looked up by the header's ``kid``; where either the header or the keys have none, a single
    key is taken as the one.

    A JWE is a compact JWT itself, so only the caller knows whether the application encrypted the one in the column,
    or its issuer did and the column keeps it as it is. Five segments are read as the former here.

    Args:
        key_from: Where the keys are: ``"env:NAME"``, or a function without arguments. Best in a revision.
        key: The keys themselves, as ``key_from`` gives them: 32 bytes, or their base64url, 43 characters; a JWK or
            JWK Set (RFC 7517), as JSON or parsed, of which other keys than ``oct`` with 32 bytes are passed over; or
            a mapping from ``kid`` to one of the first two. Secret. A reader that has them cannot be pickled, so it
            does not work in shards.
        plaintext: ``"adopt"`` takes rows that hold a JWS in the clear as they are; ``"refuse"`` lists them.
        other_jwe: ``"refuse"`` lists rows that hold a JWE with another ``alg`` or ``enc``; ``"adopt"`` takes them as
            they are: tokens that their issuer encrypted.

    Raises:
        ConfigurationError: Neither or both of ``key_from`` and ``key``, or no such key.
        MissingExtraError: The extra ``jwe`` is not installed.
    """

    key: KeyText | Mapping[str, Any] | None = None
    key_from: str | Callable[[], KeyText | Mapping[str, Any]] | None = None
    other_jwe: Literal["refuse", "adopt"] = "refuse"

    def __post_init__(self) -> None:
        choice("refuse", "adopt").check(other_jwe=self.other_jwe)
        # A missing extra is found where the reader is made, and not at the first row.
        _jwk()
        super().__post_init__()

    def _is_plaintext(self, text: str) -> bool:
        if not super()._is_plaintext(text):
            return False
        if shape_of(text).kind is not Kind.ENCRYPTED:
            return True
        return self.other_jwe == "adopt" and not _is_ours(JWT(text).unverified_header)

    def _opener(self, key: Any) -> Opener:
        keys = {kid: _jwk().OctKey.import_key(material) for kid, material in _read_keys(key).items()}
        jwe = import_sdk("joserfc.jwe", "jwe")
        registry = jwe.JWERegistry(algorithms=[_ALG, _ENC], strict_check_header=False)
        # The column's own max_length is the limit.
        registry.max_ciphertext_length = registry.max_protected_header_length = _LARGEST
        refusals = (import_sdk("joserfc.errors", "jwe").JoseError, InvalidTag, ValueError)

        def open_token(text: str) -> str | None:
            header = _header_of(text)
            # No extension is understood here, so none may be critical (RFC 7516 section 4.1.13).
            if header is None or "crit" in header or "zip" in header or not _is_nested(header):
                return None
            chosen = _choose(keys, header.get("kid"))
            if chosen is None:
                return None
            try:
                return ascii_text(jwe.decrypt_compact(text, chosen, registry=registry).plaintext)
            except refusals:
                return None

        return open_token


def _jwk() -> Any:
    return import_sdk("joserfc.jwk", "jwe")


def _header_of(text: str) -> Mapping[str, Any] | None:
    """Return the header of a JWE with ``dir`` and A256GCM, None of anything else."""
    try:
        header = JWT(text).unverified_header
    except InvalidTokenError:
        return None
    return header if _is_ours(header) else None


def _is_ours(header: Mapping[str, Any]) -> bool:
    return header.get("alg") == _ALG and header.get("enc") == _ENC


def _is_nested(header: Mapping[str, Any]) -> bool:
    """Return True if the content may be a JWT; names of media types have no case (RFC 7519 section 5.2)."""
    cty = header.get("cty", "JWT")
    return isinstance(cty, str) and cty.lower() in ("jwt", "application/jwt")


def _choose(keys: Mapping[Kid, Any], kid: object) -> Any:
    """Return the key with this id. Without an id on either side, a single key must be the one."""
    if kid is None:
        return next(iter(keys.values())) if len(keys) == 1 else keys.get(None)
    if isinstance(kid, str) and kid in keys:
        return keys[kid]
    return keys[None] if len(keys) == 1 and None in keys else None


# -- keys --------------------------------------------------------------------------------------------------------


def _read_keys(given: Any) -> dict[Kid, bytes]:
    """Return 32-byte keys by their key id.

    Raises:
        ConfigurationError: There is none, one is malformed, or two have one id.
    """
    if isinstance(given, bytes | str) and len(given) != _KEY:
        given = _parse_json(given)
    if isinstance(given, Mapping):
        if isinstance(given.get("keys"), list):
            return _read_jwk_set(given["keys"])
        if "kty" in given:
            return _read_jwk_set([given])
        return {kid: _read_key(key) for kid, key in given.items()} or _refuse()
    return {None: _read_key(given)}


def _read_jwk_set(jwks: list[Any]) -> dict[Kid, bytes]:
    keys: dict[Kid, bytes] = {}
    for jwk in jwks:
        material = base64url.decode(k) if isinstance(k := _part(jwk, "k"), str) else None
        # RFC 7517 section 5: keys of a set that are not understood are passed over.
        if _part(jwk, "kty") != "oct" or material is None or len(material) != _KEY:
            continue
        kid = _part(jwk, "kid")
        kid = kid if isinstance(kid, str) else None
        if kid in keys:
            raise ConfigurationError("two keys of the JWK Set have one kid, or none")
        keys[kid] = material
    return keys or _refuse()


def _part(jwk: Any, name: str) -> Any:
    return jwk.get(name) if isinstance(jwk, Mapping) else None


def _read_key(key: Any) -> bytes:
    material = base64url.decode(key.strip()) if isinstance(key, str) else key
    return material if isinstance(material, bytes) and len(material) == _KEY else _refuse()


def _parse_json(given: bytes | str) -> Any:
    """Return a text as the JSON object that it is, else as it is; a JSONDecodeError would carry the key along."""
    text = given if isinstance(given, str) else ascii_text(given)
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _refuse() -> Any:
    raise ConfigurationError(
        "the key is no A256GCM key: 32 bytes, their base64url (43 characters), an oct JWK or a JWK Set"
    )
