"""A stored value that was not opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from ..errors import ConfigurationError, DecryptionError, JWTColumnError
from ..format import envelope
from ..frames import hides_locals
from .binding import binding_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..format.envelope import Storage
    from ..format.token import JWT
    from ..keys.ring import KeyRing
    from .binding import BoundValue
    from .cipher import TokenCipher


@final
class SealedJWT:
    """A stored value that a column with ``undecryptable="sealed"`` loads in place of a token that it cannot open.

    The row can be listed, deleted and given a new token; written back, the value is stored as it was.

    A column with ``bound_to`` gives it for a bare ``select(Session.token)`` too, where nothing says which row
    it is.
    """

    __slots__ = ("_binding", "_bound_to", "_cipher", "_get_ring", "_stored", "reason")

    def __init__(
        self,
        stored: bytes | str,
        cipher: TokenCipher,
        get_ring: Callable[[], KeyRing],
        reason: JWTColumnError,
        *,
        bound_to: tuple[str, ...] = (),
        binding: bytes | None = b"",
    ) -> None:
        self._stored = stored
        self._cipher = cipher
        self._get_ring = get_ring
        self._bound_to = bound_to
        self._binding = binding
        #: The error that ``undecryptable="raise"`` would have raised.
        self.reason: JWTColumnError = reason

    @property
    def key_id(self) -> str | None:
        """The key id that the envelope names, 8 hex digits; None without an envelope."""
        try:
            return envelope.parse(self._stored).key_id
        except DecryptionError:
            return None

    @property
    def awaits_row(self) -> bool:
        """Whether the value is bound to its row, and nothing said yet which row that is."""
        return self._binding is None

    @hides_locals
    def reveal(self, **bound: BoundValue) -> JWT:
        """Open the value now, for instance after its key came back.

        Args:
            **bound: The values of its row that it is bound to, by the names in ``bound_to``; not needed where
                the ORM loaded it.

        Raises:
            ConfigurationError: Other names than those in ``bound_to``.
            JWTColumnError: As ``undecryptable="raise"`` would have.
        """
        binding = self._binding_from(bound) if bound or self._binding is None else self._binding
        value: JWT = self._cipher.load(self._stored, self._get_ring(), binding)
        return value

    def in_row(self, bound: Mapping[str, BoundValue]) -> JWT | SealedJWT:
        """Return the token, now that its row is known; else a sealed value with the reason."""
        binding = None
        try:
            binding = self._binding_from(bound)
            value: JWT = self._cipher.load(self._stored, self._get_ring(), binding)
        except JWTColumnError as error:
            reason = error
        else:
            return value
        return SealedJWT(
            self._stored,
            self._cipher,
            self._get_ring,
            reason.with_traceback(None),
            bound_to=self._bound_to,
            binding=binding,
        )

    def _binding_from(self, bound: Mapping[str, BoundValue]) -> bytes:
        if set(bound) != set(self._bound_to):
            names = ", ".join(f"{name}=..." for name in self._bound_to)
            raise ConfigurationError(
                f"{self._cipher.context}: open this value with reveal({names})", context=self._cipher.context
            )
        return binding_of((name, bound[name]) for name in self._bound_to)

    def stored_as(self, storage: Storage, context: str) -> bytes | str:
        """Return the stored value, to be written back into the column that it came from.

        Raises:
            DecryptionError: It came from another column, where it was authenticated for another context.
        """
        if context != self._cipher.context:
            raise DecryptionError(
                f"{context}: a sealed value of {self._cipher.context} cannot be moved; reveal() it first",
                context=context,
                key_id=self.key_id,
            )
        if (storage == "text") == isinstance(self._stored, str):
            return self._stored
        if isinstance(self._stored, str):
            return envelope.to_binary(self._stored)
        return envelope.to_text(self._stored, envelope.split(self._stored))

    def __repr__(self) -> str:
        return f"SealedJWT(key_id={self.key_id!r}, {type(self.reason).__name__})"

    def __str__(self) -> str:
        raise self._not_a_token()

    def __format__(self, spec: str) -> str:
        raise self._not_a_token()

    def _not_a_token(self) -> JWTColumnError:
        """Return the error for a text made of this value, such as an ``Authorization`` header; ``!r`` is allowed."""
        return JWTColumnError(
            f"{self._cipher.context}: a sealed value is no token and has no text: {type(self.reason).__name__}; "
            "test for SealedJWT, or reveal() it",
            context=self._cipher.context,
            key_id=self.key_id,
        )

    def __copy__(self) -> SealedJWT:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SealedJWT:
        return self  # Immutable; a copy would take a key ring along.

    @property
    def _parents(self) -> dict[Any, Any]:
        # SQLAlchemy's Mutable notes here whose value this is, to report its changes; it has none.
        return {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SealedJWT) and other._stored == self._stored

    def __hash__(self) -> int:
        return hash(self._stored)

    def __reduce__(self) -> Any:
        raise JWTColumnError("a sealed token cannot be pickled: it would take its key ring along")
