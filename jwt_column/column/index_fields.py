"""Index fields: the expiry and the fingerprints that an envelope's header shows.

A claim that cannot be indexed counts as absent; see :mod:`jwt_column.format.claims`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..format.claims import LATEST_EXPIRY, claim_input, expiry_of, parse_object
from ..format.envelope import EXPIRY_LENGTH, FINGERPRINT_LENGTH, NO_EXPIRY, NO_FINGERPRINT
from ..format.frame import unpack
from .spec import WHOLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.hmac import HMAC

    from ..keys.data_key import DataKey
    from .spec import ColumnSpec

_NO_MACS: Final[Sequence[tuple[str, HMAC]]] = ()


class IndexFields:
    """Works out the index fields of the tokens of one column; *expiry_name* is the claim that is the expiry."""

    __slots__ = ("_context", "_expiry_name", "_expose_expiry", "_macs", "_names", "_needs_claims")

    def __init__(self, spec: ColumnSpec, expiry_name: str = "exp") -> None:
        self._expiry_name = expiry_name
        self._context = spec.context or ""
        self._names = tuple(spec.fingerprints)
        self._expose_expiry = spec.expose_expiry
        self._needs_claims = spec.expose_expiry or self._names != (WHOLE,)
        # The key of the last token, and for each fingerprint its name and an HMAC under that key, to be copied.
        # Replaced whole: another thread must not see one key beside the HMACs of another.
        self._macs: tuple[DataKey | None, Sequence[tuple[str, HMAC]]] = None, _NO_MACS

    def of(
        self, payload: bytes | None, frame: bytes, key: DataKey, token: str | None, expiry: bytes | None
    ) -> bytes:
        """Return expiry and fingerprints, as the layout has them.

        Args:
            payload: The token's claims as JSON; None for a token without readable claims.
            frame: The token's frame.
            key: The key of its envelope.
            token: The token; None takes it from the frame.
            expiry: The expiry field of a token without readable claims, if one was given.
        """
        last_key, macs = self._macs
        if key is not last_key:
            macs = [(name, key.fingerprint_mac(self._context, name)) for name in self._names]
            self._macs = key, macs
        claims = parse_object(payload) if payload is not None and self._needs_claims else None
        fields = b""
        if self._expose_expiry:
            if claims is None:
                fields = NO_EXPIRY if expiry is None else expiry
            else:
                seconds = expiry_of(claims, self._expiry_name)
                fields = NO_EXPIRY if seconds is None else seconds.to_bytes(EXPIRY_LENGTH, "big")
        for name, mac in macs:
            if name == WHOLE:
                data: bytes | None = (token or unpack(frame) or "").encode()
            else:
                data = None if claims is None else claim_input(claims.get(name))
            fields += NO_FINGERPRINT if data is None else fingerprint_of(mac, data)
        return fields

    def unindexed(self, payload: bytes | None) -> tuple[Sequence[str], bool]:
        """Return the claims that are there and have no fingerprint, and whether the expiry is no time to search for.

        Such an expiry is no number of seconds, or a time after the year 9999, as one in milliseconds is.
        """
        claims = (parse_object(payload) if payload is not None and self._needs_claims else None) or {}
        missing = [
            name
            for name in self._names
            if name != WHOLE and name in claims and claim_input(claims[name]) is None
        ]
        expiry = expiry_of(claims, self._expiry_name)
        is_wrong = self._expiry_name in claims and (expiry is None or expiry > LATEST_EXPIRY)
        return missing, self._expose_expiry and is_wrong


def fingerprint_of(mac: HMAC, data: bytes) -> bytes:
    """Return the 16-byte fingerprint of some data: HMAC-SHA256 under the key of :meth:`DataKey.fingerprint_mac`."""
    # A copy costs a third of hmac.digest(), which looks its algorithm up at every call.
    mac = mac.copy()
    mac.update(data)
    return mac.finalize()[:FINGERPRINT_LENGTH]
