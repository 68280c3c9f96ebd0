"""Write ``foreign_formats.json``: what other libraries stored. ``python -m tests.vectors.generate_foreign_formats``.

Every row was written by the library that it names, through the public interface that an application uses; the project
takes no part. The libraries draw their nonces at random, so a row is made once: the generator adds rows that are not in
the file yet, by their name, and never touches one that is. It needs all of ``cryptography``, ``SQLAlchemy-Utils``,
``advanced-alchemy``, ``jwcrypto`` and ``joserfc``; the tests need none of the last four.

The fields of a row: ``reader`` with its ``options`` is what reads it, ``key`` what ``key_from`` gives that reader,
``stored`` what lies in the column, ``token`` what was put in. The keys are derived from labels and protect nothing.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.metadata
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable

FILE = Path(__file__).parent / "foreign_formats.json"


class Row(TypedDict):
    """A stored value that *reader* opens with *key*."""

    name: str
    written_by: str
    reader: str
    options: dict[str, str]
    key: str
    token: str
    stored: str


def committed_rows() -> list[Row]:
    """Return the rows of the file, in their order."""
    rows: list[Row] = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else []
    return rows


# Material


def derived(label: str) -> str:
    """Return 32 bytes that stand for a label, in base64url without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(label.encode()).digest()).decode().rstrip("=")


FERNET_KEYS = [derived("the first Fernet key") + "=", derived("the second Fernet key") + "="]
PASSPHRASE = "a passphrase that somebody chose: größer, #1"
JWKS = {
    "keys": [
        {"kty": "oct", "kid": "2024", "alg": "A256GCM", "k": derived("the JWE key of 2024")},
        {"kty": "oct", "kid": "2025", "alg": "A256GCM", "k": derived("the JWE key of 2025")},
    ]
}
JWE_KEY = derived("the JWE key without a name")

_RFC_TOKENS = json.loads((FILE.parent / "rfc_tokens.json").read_text(encoding="utf-8"))["tokens"]
TOKENS: dict[str, str] = {row["name"]: row["token"] for row in _RFC_TOKENS}
SIGNED = TOKENS["A.1 HS256"]
ENCRYPTED = next(row["token"] for row in _RFC_TOKENS if row["kind"] == "JWE")
#: Opaque tokens whose length is 0, 1 and 15 modulo the block of AES.
OPAQUE = ["xK7~pQ2.vT9_mB4+", "xK7~pQ2.vT9_mB4+Z", "xK7~pQ2.vT9_mB4"]


# The libraries, each through what an application calls


def library(name: str) -> Any:
    """Import a library that the project does not depend on, whatever it is told about its use of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def write_fernet(token: str, keys: list[str]) -> str:
    """Encrypt under the first of the keys, as ``cryptography`` does."""
    fernet = library("cryptography.fernet")
    stored: bytes = fernet.MultiFernet([fernet.Fernet(key) for key in keys]).encrypt(token.encode())
    return stored.decode()


def write_sqlalchemy_utils(token: str, key: str, *, engine: str, padding: str | None = None) -> str:
    """Bind a parameter of ``StringEncryptedType``."""
    types = library("sqlalchemy_utils.types.encrypted.encrypted_type")
    column = types.StringEncryptedType(None, key, getattr(types, engine), padding)
    stored: str = column.process_bind_param(token, None)
    return stored


def write_advanced_alchemy(token: str, key: str) -> str:
    """Encrypt as ``EncryptedString`` does by default."""
    backend = library("advanced_alchemy.types.encrypted_string").FernetBackend()
    backend.mount_vault(key)
    stored: str = backend.encrypt(token)
    return stored


def write_jwcrypto(token: str, jwk: dict[str, str], header: dict[str, str]) -> str:
    """Encrypt with jwcrypto."""
    key = library("jwcrypto.jwk").JWK(**jwk)
    protected = {"alg": "dir", "enc": "A256GCM", **header}
    jwe = library("jwcrypto.jwe").JWE(token.encode(), json.dumps(protected), recipient=key)
    stored: str = jwe.serialize(compact=True)
    return stored


def write_joserfc(token: str, jwk: dict[str, str], header: dict[str, str]) -> str:
    """Encrypt with joserfc."""
    key = library("joserfc.jwk").OctKey.import_key(jwk)
    protected = {"alg": "dir", "enc": "A256GCM", **header}
    stored: str = library("joserfc.jwe").encrypt_compact(protected, token, key, algorithms=["dir", "A256GCM"])
    return stored


class Case(TypedDict):
    """A row that is to be there, and the call that makes what it stores."""

    row: Row
    write: Callable[[], str]


def _case(
    name: str,
    package: str,
    reader: str,
    key: str,
    token: str,
    write: Callable[[], str],
    **options: str,
) -> Case:
    row = Row(name=name, written_by=package, reader=reader, options=options, key=key, token=token, stored="")
    return Case(row=row, write=write)


def cases() -> list[Case]:
    """Return every row that belongs into the file, in order."""
    both_keys = ",".join(FERNET_KEYS)
    found = [
        _case(
            "Fernet",
            "cryptography",
            "FernetReader",
            FERNET_KEYS[0],
            SIGNED,
            lambda: write_fernet(SIGNED, FERNET_KEYS[:1]),
        ),
        _case(
            "MultiFernet, written under the second key",
            "cryptography",
            "FernetReader",
            both_keys,
            SIGNED,
            lambda: write_fernet(SIGNED, FERNET_KEYS[::-1]),
        ),
        _case(
            "Fernet around a JWE",
            "cryptography",
            "FernetReader",
            FERNET_KEYS[0],
            ENCRYPTED,
            lambda: write_fernet(ENCRYPTED, FERNET_KEYS[:1]),
        ),
        _case(
            "Advanced Alchemy",
            "advanced-alchemy",
            "SQLAlchemyUtilsReader",
            PASSPHRASE,
            SIGNED,
            lambda: write_advanced_alchemy(SIGNED, PASSPHRASE),
            engine="FernetEngine",
        ),
    ]
    paddings = ("naive", "pkcs5", "oneandzeroes", "zeroes")
    found += [_aes_case(padding, token) for padding in paddings for token in (SIGNED, *OPAQUE)]
    engines = ("AesGcmEngine", "FernetEngine")
    found += [_engine_case(engine, token) for engine in engines for token in (SIGNED, OPAQUE[0])]
    found += [_jwe_case(jwk) for jwk in JWKS["keys"]]
    unnamed = {"kty": "oct", "k": JWE_KEY}
    found += [
        _case(
            "JWE without kid",
            "jwcrypto",
            "JWEReader",
            JWE_KEY,
            SIGNED,
            lambda: write_jwcrypto(SIGNED, unnamed, {"cty": "JWT"}),
        ),
        _case(
            "JWE without kid and without cty",
            "joserfc",
            "JWEReader",
            json.dumps(unnamed),
            SIGNED,
            lambda: write_joserfc(SIGNED, unnamed, {}),
        ),
        _case(
            "JWE around a JWE",
            "joserfc",
            "JWEReader",
            JWE_KEY,
            ENCRYPTED,
            lambda: write_joserfc(ENCRYPTED, unnamed, {"cty": "JWT"}),
        ),
    ]
    return found


def _aes_case(padding: str, token: str) -> Case:
    return _case(
        f"AesEngine, {padding}, {len(token)} characters",
        "SQLAlchemy-Utils",
        "SQLAlchemyUtilsReader",
        PASSPHRASE,
        token,
        lambda: write_sqlalchemy_utils(token, PASSPHRASE, engine="AesEngine", padding=padding),
        engine="AesEngine",
        padding=padding,
    )


def _engine_case(engine: str, token: str) -> Case:
    return _case(
        f"{engine}, {len(token)} characters",
        "SQLAlchemy-Utils",
        "SQLAlchemyUtilsReader",
        PASSPHRASE,
        token,
        lambda: write_sqlalchemy_utils(token, PASSPHRASE, engine=engine),
        engine=engine,
    )


def _jwe_case(jwk: dict[str, str]) -> Case:
    return _case(
        f"JWE with kid {jwk['kid']}",
        "jwcrypto",
        "JWEReader",
        json.dumps(JWKS),
        SIGNED,
        lambda: write_jwcrypto(SIGNED, jwk, {"cty": "JWT", "kid": jwk["kid"]}),
    )


def main() -> None:
    """Add the rows that are missing."""
    rows = {row["name"]: row for row in committed_rows()}
    for case in cases():
        row = case["row"]
        if row["name"] not in rows:
            version = importlib.metadata.version(row["written_by"])
            rows[row["name"]] = {
                **row,
                "written_by": f"{row['written_by']} {version}",
                "stored": case["write"](),
            }
    text = json.dumps({"rows": list(rows.values())}, indent=2, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
