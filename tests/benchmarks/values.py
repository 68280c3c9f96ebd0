"""One value: what a column's processors do with a token, against AES-256-GCM over the token's bytes and no more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy.engine.default import DefaultDialect

from tests.benchmarks.measure import Figure, Table, Work, compare
from tests.benchmarks.subjects import BINARY, TEXT, WITH_FIELDS, encrypted_jwt, make_tokens, peer_types

if TYPE_CHECKING:
    from collections.abc import Callable

    Function = Callable[[Any], Any]

__all__ = ["measure_values"]

# An RS256 signature alone has 342 characters, so the shortest token is signed with ES256.
_TOKENS: Final = {"300 B": ("ES256", 300), "1 KB": ("RS256", 1000), "4 KB": ("RS256", 4000)}

# Different tokens, and more of them than the innermost cache of a processor holds.
_COUNT: Final = 200

_LIMITS: Final = {
    (BINARY, "bind 1 KB"): 3.4,
    (BINARY, "load 1 KB"): 4.5,
    (BINARY, "stored 1 KB"): 0.82,
    (TEXT, "stored 1 KB"): 1.10,
}


def _processors() -> dict[str, tuple[Function, Function]]:
    """Return what binds and what loads a value, by the names of the subjects."""
    # Of no database: what a driver wants around bytes is not the column type's doing.
    dialect = DefaultDialect()
    types = {
        BINARY: encrypted_jwt(),
        TEXT: encrypted_jwt(storage="text"),
        WITH_FIELDS: encrypted_jwt(fingerprints=["jti"], expose_expiry=True),
        **peer_types(),
    }
    functions: dict[str, tuple[Function, Function]] = {}
    for subject, type_ in types.items():
        bind, load = type_.bind_processor(dialect), type_.result_processor(dialect, None)
        assert bind is not None
        assert load is not None
        functions[subject] = bind, load
    fernet = Fernet(Fernet.generate_key())
    functions["cryptography Fernet"] = (
        lambda token: fernet.encrypt(token.encode()),
        lambda stored: fernet.decrypt(stored).decode(),
    )
    return functions


def _each(function: Function, values: list[Any]) -> Work:
    """Return the work of calling a function with one value after another."""

    def run() -> None:
        for value in values:
            function(value)

    return Work(run)


def _floors(tokens: list[str]) -> tuple[Work, Work]:
    """Return the work of encrypting these tokens, and of decrypting them, and nothing else."""
    gcm = AESGCM(os.urandom(32))
    messages = [token.encode() for token in tokens]
    sealed = [(nonce := os.urandom(12), gcm.encrypt(nonce, message, None)) for message in messages]

    def encrypt() -> None:
        for message in messages:
            gcm.encrypt(os.urandom(12), message, None)

    def decrypt() -> None:
        for nonce, message in sealed:
            gcm.decrypt(nonce, message, None)

    return Work(encrypt), Work(decrypt)


def measure_values(samples: int) -> list[Table]:
    """Measure every subject with tokens of every size."""
    processors = _processors()
    times: list[Figure] = []
    sizes: list[Figure] = []
    for size, (algorithm, length) in _TOKENS.items():
        tokens = make_tokens(algorithm, length, _COUNT)
        encrypt, decrypt = _floors(tokens)
        for subject, (bind, load) in processors.items():
            stored = [bind(token) for token in tokens]
            assert [load(value) for value in stored] == tokens
            for floor, function, values, what in (
                (encrypt, bind, tokens, f"bind {size}"),
                (decrypt, load, stored, f"load {size}"),
            ):
                measured = compare(floor, _each(function, values), samples=samples)
                if subject == BINARY:
                    times.append(Figure.of_floor(measured, what, "us", _COUNT))
                times.append(Figure.of(measured, subject, what, _LIMITS.get((subject, what))))
            what = f"stored {size}"
            per_character = sum(map(len, stored)) / sum(map(len, tokens))
            sizes.append(Figure(subject, what, per_character, "", _LIMITS.get((subject, what))))
    # Binding at every size, then loading at every size.
    times.sort(key=lambda figure: figure.what.split()[0])
    return [
        Table("One value, against AES-256-GCM over the token's bytes and nothing else", times),
        Table("Stored bytes for each character of a token", sizes),
    ]
