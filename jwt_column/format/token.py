"""JSON Web Tokens as values: :class:`JWT`. Nothing is verified except by :meth:`JWT.verify`, with PyJWT."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self

from ..errors import ConfigurationError, InvalidTokenError
from ..frames import hides_locals
from ..option_values import AWARE_TIME, number, texts_of
from .base64url import decode
from .claims import LATEST_EXPIRY, expiry_of, parse_object
from .shape import Kind, check_characters, check_text, parse_header, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_core import CoreSchema, SchemaSerializer

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class RedactedText(str):
    """A slice of a token, or a text of a JSON document. Its repr is redacted too.

    Debuggers shorten a string before they show it.
    """

    __slots__ = ()

    def __getitem__(self, index: Any) -> str:
        return RedactedText(str.__getitem__(self, index))

    def __repr__(self) -> str:
        return f"<redacted, {len(self)} characters>"


_LEEWAY: Final = number("a number of seconds, at least 0")


class JWT(str):
    """A JSON Web Token: a ``str`` whose ``repr`` shows nothing of it.

    ``str(token)`` and string formatting give the characters, as an ``Authorization`` header needs them;
    ``repr``, and with it parameter dumps, debug logs and tracebacks that show local variables, do not.

    Args:
        value: A compact JWS or JWE. Its shape is checked, its signature is not.

    Raises:
        InvalidTokenError: Not a ``str``, not a compact JWS or JWE, or not signed (``alg: none``).

    >>> token = JWT("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl")
    >>> token
    JWT(redacted, 54 characters)
    >>> token.unverified_claims
    {'sub': 'alice'}
    """

    __slots__ = ("_expiry", "_frame", "_kind")
    #: The expiry of a token without readable claims, in seconds since 1970, if it was given.
    _expiry: int
    #: The frame that the check made, until :func:`take_frame`.
    _frame: bytes | None
    _kind: Kind

    def __new__(cls, value: str) -> Self:
        """Check the shape of *value*, and make the token."""
        kind = failure = None
        try:
            kind = shape_of(value).kind
        except InvalidTokenError as error:
            failure = error.with_traceback(None)
        if kind is Kind.UNSIGNED:
            failure = InvalidTokenError(
                "not a token that can be trusted: its algorithm is none; only a column with "
                "allow_unsigned=True takes it",
                reason="unsigned",
            )
        if failure is not None:
            value = ""  # Error reporters show local variables.
            raise failure
        token = str.__new__(cls, str.__str__(value))
        if kind is not None:
            token._kind = kind  # noqa: SLF001 - of the object made here
        return token

    @classmethod
    @hides_locals
    def opaque(cls, text: str, *, expires_at: datetime | float | None = None) -> Self:
        """Return a token that need not be a JWT, such as an opaque refresh token, with the expiry that came with it.

        The column has to take it: ``allow_opaque=True``. One with ``expose_expiry=True`` stores the expiry as it stores
        the ``exp`` of a JWT. A text that is a JWT with readable claims keeps the ``exp`` of its own.

        Args:
            text: The token. Not empty, without white space around it, and without line breaks, tabs, other control
                characters and invisible ones in it.
            expires_at: The expiry, timezone-aware or in seconds since 1970; rounded down to whole seconds. None keeps
                the one that a JWT was given before.

        Raises:
            InvalidTokenError: Not a text that a token can be, or a time that no envelope holds.
        """
        if not isinstance(text, str):
            raise InvalidTokenError(
                f"not a token: expected str, got {type(text).__name__}", reason="not a str"
            )
        check_text(text)
        check_characters(text)
        token = str.__new__(cls, str.__str__(text))
        expiry = given_expiry(text) if expires_at is None else _seconds(expires_at)
        if expiry is not None:
            token._expiry = expiry  # noqa: SLF001 - of the object made here
        return token

    @classmethod
    def inner(cls, text: str) -> JWT | None:
        """Return the JWT that a text wraps: an SD-JWT, ``ghs_<id>_<jwt>``, a token with padding; None without one.

        Never a part of a token: None also if the first token of the text goes on in characters that are not base64url,
        such as ``+`` and ``/``, or on a second line.

        The text itself is an opaque token to a column. The inner token has its claims and expiry, for
        ``JWT.opaque(text, expires_at=inner.expires_at)``. Padding is left out, so the signature of a token that was
        signed with it, as by the load balancer of AWS, does not verify.
        """
        from .readable import inner_token  # Its patterns take longer to compile than all of this module.

        found = inner_token(text) if isinstance(text, str) else None
        text = ""  # Error reporters show local variables.
        try:
            return None if found is None else JWT(found)
        except InvalidTokenError:
            return None

    def __repr__(self) -> str:
        return f"JWT(redacted, {len(self)} characters)"

    def __getitem__(self, index: Any) -> str:
        return RedactedText(str.__getitem__(self, index))

    def __copy__(self) -> JWT:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> JWT:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # An opaque or unsigned token of a column that allows it must survive a pickle: no shape check here.
        return unchecked_jwt, (str(self), None, None, given_expiry(self))

    @property
    def kind(self) -> Kind:
        """The kind of the token, by its shape. ``Kind.OPAQUE`` for a token that is no JWT."""
        try:
            return self._kind
        except AttributeError:
            try:
                self._kind = kind = shape_of(self).kind
            except InvalidTokenError:
                self._kind = kind = Kind.OPAQUE
            return kind

    @property
    def unverified_header(self) -> dict[str, Any]:
        """The header (RFC 7515 section 4, RFC 7516 section 4), parsed at each access. Not verified.

        Raises:
            InvalidTokenError: The token is opaque.
        """
        if self.kind is Kind.OPAQUE:
            raise InvalidTokenError("an opaque token has no header", reason="opaque")
        return parse_header(self.partition(".")[0])

    @property
    def unverified_claims(self) -> dict[str, Any]:
        """The claims of the payload (RFC 7519 section 4), parsed at each access. Not verified.

        Raises:
            InvalidTokenError: The payload cannot be read: a JWE, an opaque token, a payload that is not a
                JSON object.
        """
        claims = read_claims(self)
        if claims is None:
            raise InvalidTokenError(
                f"this {self.kind.value} has no readable claims", reason="no readable claims"
            )
        return claims

    @property
    def expires_at(self) -> datetime | None:
        """The ``exp`` claim (RFC 7519 section 4.1.4) in UTC, whole seconds, not verified; else that of :meth:`opaque`.

        It is the expiry that a column with ``expose_expiry`` stores: None without a readable payload, without ``exp``,
        and for an ``exp`` that is not a number of seconds from 0 to 2**48 - 2. A time past the year 9999 is shown as
        its end.
        """
        claims = read_claims(self)
        seconds = given_expiry(self) if claims is None else expiry_of(claims)
        if seconds is None:
            return None
        try:
            return _EPOCH + timedelta(seconds=seconds)
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)

    def is_expired(self, *, at: datetime | None = None, leeway: float = 0) -> bool:
        """Return True if ``exp`` has passed, as PyJWT decides it; a token without ``exp`` never expires.

        PyJWT takes ``int(exp)``, so that an ``exp`` of text digits expires too, although no envelope indexes it.

        Args:
            at: The time to compare with, timezone-aware; None means now.
            leeway: Seconds that the clocks may differ by.

        Raises:
            InvalidTokenError: ``exp`` is no number, so that PyJWT refuses the token.
        """
        AWARE_TIME.or_none.check(at=at)
        _LEEWAY.check(leeway=leeway)
        claims = read_claims(self)
        if claims is None:
            given = given_expiry(self)
            claims = {} if given is None else {"exp": given}
        if "exp" not in claims:
            return False
        try:
            seconds = int(claims["exp"])
        except (TypeError, ValueError, OverflowError):
            seconds = None
        claims = None
        if seconds is None:
            raise InvalidTokenError("the exp claim is not a number of seconds", reason="exp")
        return seconds <= ((at or datetime.now(UTC)) - _EPOCH).total_seconds() - leeway

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> CoreSchema:
        """Let pydantic validate a field of this type by its shape, and mask it when it is serialized."""
        from .pydantic_schema import core_schema_of

        return core_schema_of(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: object, _handler: object) -> dict[str, Any]:
        """Describe a field of this type in a JSON schema."""
        from .pydantic_schema import JSON_SCHEMA

        return dict(JSON_SCHEMA)

    @property
    def __pydantic_serializer__(self) -> SchemaSerializer:
        """Let pydantic mask a token where no field declares it: in ``Any``, or with ``serialize_as_any``."""
        from .pydantic_schema import serializer_of

        try:
            return serializer_of(JWT)
        except ImportError:
            raise AttributeError("there is no pydantic") from None

    def verify(self, key: Any, algorithms: Sequence[str], **options: Any) -> dict[str, Any]:
        """Verify signature and registered claims with PyJWT, and return the claims.

        Args:
            key: The verification key, as :func:`jwt.decode` takes it.
            algorithms: The algorithms to accept, e.g. ``["RS256"]``. Never taken from the token.
            **options: Further arguments of :func:`jwt.decode`: ``audience``, ``issuer``, ``leeway``.

        Raises:
            ConfigurationError: ``algorithms`` is no list of algorithms, is empty, or has ``"none"``.
            jwt.PyJWTError: The token is not valid; the subclass says why.
        """
        accepted = texts_of("algorithms", algorithms, 'algorithms, such as ["RS256"]')
        if not accepted or "none" in map(str.lower, accepted):
            fault = 'has "none", with which anyone can sign' if accepted else "is empty"
            raise ConfigurationError(
                f'algorithms {fault}: name those that the issuer signs with, such as ["RS256"]'
            )
        import jwt  # PyJWT takes a tenth of a second to import, and most processes only store.

        try:
            claims: dict[str, Any] = jwt.decode(str(self), key, algorithms=list(accepted), **options)
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error.with_traceback(None)
        else:
            return claims
        # PyJWT's frames hold the token in local variables, which error reporters show, and so do those of the
        # errors that this one was raised from; ours holds a redacted token.
        failure.__context__ = None
        raise failure from None


def redacted(value: Any) -> Any:
    """Return a JSON value with a redacted ``repr`` for each text in it; a text in three or five parts becomes a JWT."""
    if isinstance(value, str):
        return unchecked_jwt(value) if value.count(".") in (2, 4) else RedactedText(value)
    if isinstance(value, list):
        return [redacted(one) for one in value]
    if isinstance(value, dict):
        return {name: redacted(one) for name, one in value.items()}
    return value


def is_redacted(value: object) -> bool:
    """Return True for a token, a slice of one, and a text of a JSON document: a text whose ``repr`` is redacted."""
    return isinstance(value, JWT | RedactedText)


def unchecked_jwt(
    value: str,
    kind: Kind | None = None,
    frame: bytes | None = None,
    expiry: int | None = None,
    *,
    cls: type[JWT] = JWT,
) -> JWT:
    """Return a JWT without a shape check: of a stored value, or of one whose *kind*, *frame* or *expiry* are known."""
    # str() of an enumeration's member is its name, not the characters that it stands for.
    token = str.__new__(cls, str.__str__(value))
    if kind is not None:
        token._kind = kind  # noqa: SLF001 - of the object made here
    if frame is not None:
        token._frame = frame  # noqa: SLF001
    if expiry is not None:
        token._expiry = expiry  # noqa: SLF001
    return token


def given_expiry(token: object) -> int | None:
    """Return the expiry that a token without readable claims was made or loaded with, in seconds since 1970."""
    return getattr(token, "_expiry", None)


def _seconds(time: datetime | float) -> int:
    """Return a time in seconds since 1970, if an envelope can hold it."""
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise InvalidTokenError(
                "expires_at has no time zone: give datetime.now(UTC) + ..., or seconds since 1970",
                reason="exp",
            )
        time = (time - _EPOCH).total_seconds()
    if type(time) not in (int, float) or not 0 <= time < LATEST_EXPIRY + 1:
        raise InvalidTokenError(
            "expires_at is a datetime from 1970 on, or seconds since then as a number; not a text, not milliseconds",
            reason="exp",
        )
    return int(time)


def read_claims(token: JWT, kind: Kind | None = None) -> dict[str, Any] | None:
    """Return the claims of a JWS, not verified; None without a payload that is a JSON object."""
    if (kind or token.kind) not in (Kind.SIGNED, Kind.UNSIGNED):
        return None
    payload = decode(token.split(".")[1])
    return None if payload is None else parse_object(payload)


def take_frame(token: JWT) -> bytes | None:
    """Return the frame that the check of a column kept, once: no token goes on to hold its characters twice."""
    try:
        frame, token._frame = token._frame, None  # noqa: SLF001 - the class above
    except AttributeError:
        return None
    return frame
