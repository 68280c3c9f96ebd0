"""Checks of one token's header and claims. No signature is verified, because the issuer's key is not known.

Header segments repeat from token to token, so each is checked once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..format.claims import LATEST_EXPIRY, expiry_of
from ..format.shape import Kind
from ..format.token import JWT, read_claims

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

# The codes of header parameters with which a token brings its own key, or says where to fetch it (RFC 7515 sections
# 4.1.2, 4.1.3, 4.1.5, 4.1.6), or that there are extensions which must be understood (4.1.11).
_PARAMETERS: Final = {
    "jku": "header-jku",
    "x5u": "header-x5u",
    "jwk": "header-jwk",
    "x5c": "header-x5c",
    "crit": "header-crit",
}

# Characters that escape from a path, a quoted string or a command line. Base64, UUIDs and URLs have none of them.
_HOSTILE: Final = re.compile(r"\.\.[/\\]|[\x00-\x1f\x7f\\'\"`;|$<>]")

# Headers with a part of their own (a JWE's ephemeral key) fill the cache; it is then thrown away whole.
_CACHED: Final = 1024
_LONGEST_CACHED: Final = 4096


class _Header(NamedTuple):
    """The verdict on a header segment: the kind of its tokens, their number of dots, and the codes of findings."""

    kind: Kind
    dots: int
    codes: Sequence[str]


class TokenChecks:
    """Checks tokens one by one, by the options of an audit. Without ``iat`` a lifetime counts from *now*."""

    def __init__(
        self,
        now: datetime,
        algorithms: Collection[str] | None = None,
        max_lifetime: timedelta | None = None,
        compromised_kids: Collection[str] = (),
    ) -> None:
        self._now = now.timestamp()
        self._algorithms = algorithms
        self._limit = None if max_lifetime is None else max_lifetime.total_seconds()
        self._compromised_kids = compromised_kids
        self._headers: dict[str, _Header] = {}

    def check(self, token: JWT) -> tuple[Sequence[str], str | int | None]:
        """Return the codes of a token's findings, and its ``jti``."""
        segment = token.partition(".")[0]
        header = self._headers.get(segment)
        if header is None or token.count(".") != header.dots:
            kind = token.kind
            if kind is Kind.OPAQUE:
                return (), None
            found = tuple(self._of_header(token.unverified_header))
            header = _Header(kind, 4 if kind is Kind.ENCRYPTED else 2, found)
            self._keep(segment, header)
        if header.kind is Kind.ENCRYPTED:
            return header.codes, None
        # The kind of a token follows from its header, and to find it out anew takes as long as to read the claims.
        claims = read_claims(token, header.kind) or {}
        jti = claims.get("jti")
        return (*header.codes, *self._claims(claims)), jti if type(jti) in (str, int) else None

    def _keep(self, segment: str, header: _Header) -> None:
        if len(segment) <= _LONGEST_CACHED:
            if len(self._headers) >= _CACHED:
                self._headers.clear()
            self._headers[segment] = header

    def _of_header(self, header: Mapping[str, Any]) -> Iterator[str]:
        algorithm = header["alg"]
        if algorithm.lower() == "none":
            yield "alg-none"
        elif self._algorithms is not None and algorithm not in self._algorithms:
            yield "alg-not-allowed"
        for name, code in _PARAMETERS.items():
            if name in header:
                yield code
        kid = header.get("kid")
        if kid is not None and (not isinstance(kid, str) or _HOSTILE.search(kid)):
            yield "header-kid"
        if isinstance(kid, str) and kid in self._compromised_kids:
            yield "compromised-kid"

    def _claims(self, claims: dict[str, Any]) -> Iterator[str]:
        expiry = expiry_of(claims)
        if expiry is None:
            yield "exp-invalid" if "exp" in claims else "exp-missing"
        elif expiry > LATEST_EXPIRY:
            yield "exp-invalid"
        elif self._limit is not None and expiry - self._begin(claims) > self._limit:
            yield "lifetime"

    def _begin(self, claims: dict[str, Any]) -> float:
        """Return the beginning of a token's lifetime: ``iat``, else ``nbf``, else now."""
        for name in ("iat", "nbf"):
            begin = claims.get(name)
            if isinstance(begin, int | float) and not isinstance(begin, bool):
                return begin
        return self._now
