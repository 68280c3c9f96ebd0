"""Readers of other libraries' formats: known answers of those libraries, refusals, and whole tables adopted.

``vectors/foreign_formats.json`` holds what the real libraries wrote; ``vectors/generate_foreign_formats.py`` made it,
and says how. Where a library is installed, it also writes while the test runs.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import pickle
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from jwt_column import EncryptedJWT, KeyRing, decrypt_token, encrypt_token
from jwt_column.errors import (
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    KeyUnavailableError,
    PlaintextFoundError,
    ReencryptionError,
)
from jwt_column.format import base64url
from migrations_helpers import FernetReader, JWEReader, SQLAlchemyUtilsReader, formats
from migrations_helpers.engine.conversions import Adoption
from tests.support.models import table_of
from tests.support.tokens import compact, revealed_by, signed_token
from tests.vectors import generate_foreign_formats as foreign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.databases import Database
    from tests.vectors.generate_foreign_formats import Row

    AnyReader = FernetReader | SQLAlchemyUtilsReader | JWEReader

ROWS: Final = foreign.committed_rows()
every_row = pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in ROWS])

SIGNED: Final = foreign.SIGNED
ENCRYPTED: Final = foreign.ENCRYPTED
UNSIGNED: Final = compact({"alg": "none"}, {"sub": "alice"}, b"")
RAW_KEY: Final = hashlib.sha256(b"a key of the tests").digest()
OTHER_KEY: Final = hashlib.sha256(b"another key of the tests").digest()


def reader_of(row: Row, key: str | None = None) -> AnyReader:
    """Return the reader of a row, with another key if one is given."""
    return make_reader(row["reader"], key=row["key"] if key is None else key, **row["options"])


def make_reader(name: str, **options: Any) -> AnyReader:
    reader: AnyReader = getattr(formats, name)(**options)
    return reader


def wrong_key(row: Row) -> str:
    """Return a key of the same form that opens nothing."""
    if row["reader"] == "FernetReader":
        return Fernet.generate_key().decode()
    return base64url.encode(OTHER_KEY)


# -- writers: in the words of the formats, for values that no library would write ----------------------------------


def fernet_value(token: str, key: bytes = RAW_KEY) -> str:
    return Fernet(base64.urlsafe_b64encode(key)).encrypt(token.encode()).decode()


def aes_value(padded: bytes, passphrase: str = "a passphrase") -> str:
    """Return what AesEngine makes of bytes that are padded already."""
    key = hashlib.sha256(passphrase.encode()).digest()
    encryptor = Cipher(AES(key), CBC(key[:16])).encryptor()
    return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()


def naively_padded(token: str) -> bytes:
    return token.encode() + b"*" * (16 - len(token) % 16)


def aes_gcm_value(token: str, passphrase: str = "a passphrase") -> str:
    iv = os.urandom(12)
    sealed = AESGCM(hashlib.sha256(passphrase.encode()).digest()).encrypt(iv, token.encode(), None)
    return base64.b64encode(iv + sealed[-16:] + sealed[:-16]).decode()


def jwe_value(
    token: str,
    key: bytes = RAW_KEY,
    *,
    encrypted_key: bytes = b"",
    iv: bytes | None = None,
    tag_length: int = 16,
    **header: Any,
) -> str:
    """Return a JWE with this header over the usual one; a parameter that is None is left out."""
    merged = {"alg": "dir", "enc": "A256GCM", "cty": "JWT"} | header
    used = {name: value for name, value in merged.items() if value is not None}
    protected = base64url.encode(json.dumps(used).encode())
    iv = os.urandom(12) if iv is None else iv
    sealed = AESGCM(key).encrypt(iv, token.encode(), protected.encode())
    parts = (encrypted_key, iv, sealed[:-16], sealed[-16:][:tag_length])
    return ".".join((protected, *(base64url.encode(part) for part in parts)))


# -- known answers -------------------------------------------------------------------------------------------------


class TestKnownAnswers:
    """What the libraries wrote."""

    @every_row
    def test_text_is_read(self, row: Row) -> None:
        assert row["token"] == reader_of(row)(row["stored"])

    @every_row
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_bytes_are_read(self, row: Row, kind: Callable[[bytes], object]) -> None:
        """``EncryptedType`` and drivers store and give bytes."""
        assert row["token"] == reader_of(row)(kind(row["stored"].encode()))

    @every_row
    def test_wrong_key_opens_nothing(self, row: Row) -> None:
        with pytest.raises(DecryptionError) as caught:
            reader_of(row, wrong_key(row))(row["stored"])
        assert not revealed_by(caught.value, row["stored"], row["key"], row["token"])

    @every_row
    def test_changed_character_opens_nothing(self, row: Row) -> None:
        """Of AES-CBC too, as far as single characters of these rows go."""
        reader, stored = reader_of(row), row["stored"]
        for position, character in enumerate(stored):
            changed = stored[:position] + ("B" if character == "A" else "A") + stored[position + 1 :]
            with pytest.raises(DecryptionError):
                reader(changed)

    @every_row
    def test_part_of_a_value_opens_nothing(self, row: Row) -> None:
        reader, stored = reader_of(row), row["stored"]
        for length in range(len(stored)):
            with pytest.raises(DecryptionError):
                reader(stored[:length])
        for start in range(1, len(stored)):
            with pytest.raises(DecryptionError):
                reader(stored[start:])

    def test_every_case_of_the_generator_is_committed(self) -> None:
        made = {case["row"]["name"]: case["row"] for case in foreign.cases()}
        committed = {row["name"]: row for row in ROWS}
        assert list(made) == list(committed)
        for name, row in made.items():
            for part in ("reader", "options", "key", "token"):
                assert row[part] == committed[name][part]


@pytest.mark.parametrize("case", foreign.cases(), ids=lambda case: case["row"]["name"])
def test_what_the_library_writes_today_is_read(case: foreign.Case) -> None:
    row = case["row"]
    module = {"SQLAlchemy-Utils": "sqlalchemy_utils", "advanced-alchemy": "advanced_alchemy"}.get(
        row["written_by"], row["written_by"]
    )
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{row['written_by']} is not installed; its rows in foreign_formats.json stand for it")
    assert row["token"] == reader_of(row)(case["write"]())


# -- what is refused -----------------------------------------------------------------------------------------------

READERS: Final[list[AnyReader]] = [
    FernetReader(key=Fernet.generate_key()),
    *(
        SQLAlchemyUtilsReader(key="p", padding=padding)
        for padding in ("naive", "pkcs5", "oneandzeroes", "zeroes")
    ),
    SQLAlchemyUtilsReader(key="p", engine="AesGcmEngine"),
    SQLAlchemyUtilsReader(key="p", engine="FernetEngine"),
    JWEReader(key=RAW_KEY),
]
every_reader = pytest.mark.parametrize("reader", READERS, ids=repr)


class TestRefusals:
    """Nothing is half read."""

    @every_reader
    @pytest.mark.parametrize("value", [None, 5, 1.5, True, [], {}, object()], ids=lambda v: type(v).__name__)
    def test_neither_text_nor_bytes(self, reader: AnyReader, value: object) -> None:
        with pytest.raises(DecryptionError, match=f"not this {type(value).__name__}"):
            reader(value)

    @every_reader
    @pytest.mark.parametrize(
        "value",
        [
            "",
            " ",
            "ä",
            "A",
            "AAAA",
            "A" * 24,
            "*" * 64,
            b"",
            b"\x00",
            b"\xff" * 32,
            "gAAAAA",
            "....",
            "a.b.c",
        ],
    )
    def test_what_is_of_no_format(self, reader: AnyReader, value: str | bytes) -> None:
        with pytest.raises(DecryptionError):
            reader(value)

    @every_reader
    def test_envelope(self, reader: AnyReader) -> None:
        ring = KeyRing([RAW_KEY])
        for storage in ("text", "binary"):
            with pytest.raises(DecryptionError):
                reader(encrypt_token(SIGNED, ring, context="sessions.token", storage=storage))


class TestAesEngine:
    """AES-CBC has nothing but its padding and the characters of a token to say that a value is one."""

    reader: Final = SQLAlchemyUtilsReader(key="a passphrase")

    def test_control(self) -> None:
        assert reader_reads(self.reader, aes_value(naively_padded(SIGNED))) == SIGNED

    @pytest.mark.parametrize(
        ("padding", "padded"),
        [
            ("naive", b"x" * 16),
            ("naive", b"*" * 16),
            ("naive", b"x" * 8 + b"*" * 24),
            ("naive", b"x\x7fx" + b"*" * 13),
            ("naive", b"x\nx" + b"*" * 13),
            ("naive", "größe".encode() + b"*" * 9),
            ("pkcs5", b"x" * 16),
            ("pkcs5", b"x" * 15 + b"\x00"),
            ("pkcs5", b"x" * 15 + b"\x02"),
            ("pkcs5", b"x" * 15 + b"\x11"),
            ("pkcs5", b"\x10" * 16),
            ("pkcs5", b"x" * 15 + b"\x11" * 17),
            ("zeroes", b"x" * 16),
            ("zeroes", b"x" * 15 + b"\x00"),
            ("zeroes", b"x" * 14 + b"\x01\x02"),
            ("zeroes", b"x" * 15 + b"\x00" * 16 + b"\x11"),
            ("zeroes", b"\x00" * 15 + b"\x10"),
            ("oneandzeroes", b"x" * 16),
            ("oneandzeroes", b"x" * 8 + b"\x00" * 8),
            ("oneandzeroes", b"x" * 15 + b"\x80" + b"\x00" * 16),
            ("oneandzeroes", b"x" * 14 + b"\x80\x80"),
            ("oneandzeroes", b"\x80" + b"\x00" * 15),
        ],
    )
    def test_what_the_library_would_not_have_padded_so(self, padding: Any, padded: bytes) -> None:
        with pytest.raises(DecryptionError):
            SQLAlchemyUtilsReader(key="a passphrase", padding=padding)(aes_value(padded))

    def test_shape_of_a_token_is_the_last_net(self) -> None:
        """Where padding and characters pass by chance, the column still refuses what is no JWT."""
        stored = aes_value(naively_padded("visible noise"))
        assert reader_reads(self.reader, stored) == "visible noise"
        type_ = EncryptedJWT(KeyRing([RAW_KEY]), context="sessions.token", storage="text")
        conversion = Adoption(type_, sa.column("token"), self.reader)
        with pytest.raises(InvalidTokenError):
            conversion.convert(stored)


def reader_reads(reader: AnyReader, stored: str) -> str:
    return reader(stored)


class TestJWE:
    """RFC 7516 section 5.2, step by step."""

    reader: Final = JWEReader(key=RAW_KEY)

    def test_control(self) -> None:
        assert reader_reads(self.reader, jwe_value(SIGNED)) == SIGNED

    @pytest.mark.parametrize(
        "parts",
        [
            {"alg": "A256KW"},
            {"alg": "DIR"},
            {"enc": "A128GCM"},
            {"enc": "a256gcm"},
            {"enc": "A256CBC-HS512"},
            {"zip": "DEF"},
            {"crit": ["exp"], "exp": 1},
            {"crit": []},
            {"cty": "json"},
            {"cty": 1},
            {"encrypted_key": b"\x00"},
            {"iv": bytes(16)},
            {"tag_length": 12},
            {"tag_length": 0},
        ],
        ids=repr,
    )
    def test_header_that_is_not_ours(self, parts: dict[str, Any]) -> None:
        with pytest.raises(DecryptionError):
            self.reader(jwe_value(SIGNED, **parts))

    @pytest.mark.parametrize("cty", [None, "JWT", "jwt", "application/jwt"])
    def test_content_type_of_a_nested_token(self, cty: str | None) -> None:
        assert self.reader(jwe_value(SIGNED, cty=cty)) == SIGNED

    @pytest.mark.parametrize("moved", [1, 16, 17])
    def test_tag_in_another_place(self, moved: int) -> None:
        """Ciphertext and tag are authenticated together; where one ends and the other begins is not."""
        *start, ciphertext, tag = jwe_value(SIGNED).split(".")
        body = base64url.decode(ciphertext) or b""
        body += base64url.decode(tag) or b""
        for cut in (len(body) - 16 + moved, len(body) - 16 - moved):
            with pytest.raises(DecryptionError):
                self.reader(".".join([*start, base64url.encode(body[:cut]), base64url.encode(body[cut:])]))

    def test_more_segments(self) -> None:
        with pytest.raises(DecryptionError):
            self.reader(jwe_value(SIGNED) + ".AAAA")

    def test_header_without_alg(self) -> None:
        with pytest.raises(DecryptionError):
            self.reader(jwe_value(SIGNED, alg=None))

    @pytest.mark.parametrize(
        "key",
        [
            RAW_KEY,
            base64url.encode(RAW_KEY),
            base64url.encode(RAW_KEY).encode() + b"\n",
            {"kty": "oct", "k": base64url.encode(RAW_KEY)},
            json.dumps({"kty": "oct", "k": base64url.encode(RAW_KEY), "kid": "a"}),
            json.dumps({"keys": [{"kty": "oct", "k": base64url.encode(RAW_KEY)}]}).encode(),
            {
                "keys": [
                    {"kty": "EC"},
                    {"kty": "oct", "k": "AA"},
                    5,
                    {"kty": "oct", "k": base64url.encode(RAW_KEY)},
                ]
            },
            {"a": RAW_KEY},
            {"a": base64url.encode(RAW_KEY)},
        ],
        ids=lambda key: type(key).__name__,
    )
    def test_forms_of_a_key(self, key: Any) -> None:
        assert JWEReader(key=key)(jwe_value(SIGNED)) == SIGNED
        assert JWEReader(key_from=lambda: key)(jwe_value(SIGNED)) == SIGNED

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "short",
            b"\xff" * 31,
            "{",
            "[]",
            "{}",
            {},
            {"keys": []},
            {"keys": [{"kty": "RSA"}]},
            {"keys": [{"kty": "oct", "k": base64url.encode(key)} for key in (RAW_KEY, OTHER_KEY)]},
            {"a": "short"},
            {"a": 5},
            5,
        ],
        ids=repr,
    )
    def test_malformed_key(self, key: Any) -> None:
        with pytest.raises(ConfigurationError):
            JWEReader(key=key)

    def test_key_is_chosen_by_kid(self) -> None:
        reader = JWEReader(key={"a": RAW_KEY, "b": OTHER_KEY})
        assert reader(jwe_value(SIGNED, RAW_KEY, kid="a")) == SIGNED
        assert reader(jwe_value(SIGNED, OTHER_KEY, kid="b")) == SIGNED
        for header in ({"kid": "b"}, {"kid": "c"}, {"kid": 1}, {"kid": ["a"]}, {}):
            with pytest.raises(DecryptionError):
                reader(jwe_value(SIGNED, RAW_KEY, **header))

    def test_single_key_without_kid_is_the_one(self) -> None:
        assert self.reader(jwe_value(SIGNED, kid="anything")) == SIGNED

    def test_single_key_with_a_kid_is_not_tried_for_another(self) -> None:
        with pytest.raises(DecryptionError):
            JWEReader(key={"a": RAW_KEY})(jwe_value(SIGNED, kid="b"))

    def test_key_without_kid_among_others(self) -> None:
        jwks = [
            {"kty": "oct", "k": base64url.encode(RAW_KEY)},
            {"kty": "oct", "k": base64url.encode(OTHER_KEY), "kid": "b"},
        ]
        reader = JWEReader(key={"keys": jwks})
        assert reader(jwe_value(SIGNED, RAW_KEY)) == SIGNED
        assert reader(jwe_value(SIGNED, OTHER_KEY, kid="b")) == SIGNED
        with pytest.raises(DecryptionError):
            reader(jwe_value(SIGNED, RAW_KEY, kid="c"))


class TestPlaintext:
    """Tokens in the clear among encrypted ones."""

    @every_reader
    @pytest.mark.parametrize("token", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
    def test_token_in_the_clear_is_given_as_it_is(self, reader: AnyReader, token: str) -> None:
        """Whether it may be unsigned is for the column to say."""
        assert token == reader(token)
        assert token == reader(token.encode())

    @pytest.mark.parametrize("name", ["FernetReader", "SQLAlchemyUtilsReader", "JWEReader"])
    def test_refused_where_it_is_not_expected(self, name: str) -> None:
        key = Fernet.generate_key() if name == "FernetReader" else base64url.encode(RAW_KEY)
        with pytest.raises(PlaintextFoundError) as caught:
            make_reader(name, key=key, plaintext="refuse")(SIGNED)
        assert f"({len(SIGNED)} characters)" in str(caught.value)
        assert not revealed_by(caught.value, SIGNED)

    @every_reader
    def test_jwe_in_the_clear(self, reader: AnyReader) -> None:
        """Base64 has no dots, so beside the other formats a JWE is a token; the JWE reader takes it for its own."""
        if isinstance(reader, JWEReader):
            with pytest.raises(DecryptionError):
                reader(ENCRYPTED)
        else:
            assert reader(ENCRYPTED) == ENCRYPTED

    def test_jwe_of_the_issuer_beside_our_own(self) -> None:
        reader = JWEReader(key=RAW_KEY, other_jwe="adopt")
        assert reader(ENCRYPTED) == ENCRYPTED
        assert reader(jwe_value(SIGNED)) == SIGNED
        with pytest.raises(DecryptionError):
            reader(jwe_value(SIGNED, OTHER_KEY))
        with pytest.raises(PlaintextFoundError):
            JWEReader(key=RAW_KEY, other_jwe="adopt", plaintext="refuse")(ENCRYPTED)


# -- keys ----------------------------------------------------------------------------------------------------------

FERNET_KEY: Final = base64.urlsafe_b64encode(RAW_KEY).decode()


def fail(error: Exception) -> str:
    raise error


def old_key() -> str:
    """Return the Fernet key, as a function of a module that every process can import."""
    return FERNET_KEY


class TestKeys:
    """Where the key comes from, and where it does not go."""

    def test_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader = FernetReader(key_from="env:OLD_KEYS")
        monkeypatch.setenv("OLD_KEYS", f"{Fernet.generate_key().decode()}, {FERNET_KEY}\n")
        assert reader(fernet_value(SIGNED)) == SIGNED

    def test_from_a_function(self, tmp_path: Path) -> None:
        path = tmp_path / "old_key"
        path.write_text(f"{FERNET_KEY}\n")
        assert FernetReader(key_from=path.read_text)(fernet_value(SIGNED)) == SIGNED
        assert FernetReader(key_from=path.read_bytes)(fernet_value(SIGNED)) == SIGNED

    def test_key_is_fetched_once_and_only_when_it_is_needed(self) -> None:
        fetched: list[None] = []

        def fetch() -> list[str]:
            fetched.append(None)
            return [FERNET_KEY]

        reader = FernetReader(key_from=fetch)
        assert reader(SIGNED) == SIGNED
        assert not fetched
        for _ in range(3):
            assert reader(fernet_value(SIGNED)) == SIGNED
        assert len(fetched) == 1

    @pytest.mark.parametrize("value", [None, "", "no key at all", FERNET_KEY + ",short"])
    @pytest.mark.parametrize("name", ["FernetReader", "JWEReader"])
    def test_missing_or_malformed_is_no_fault_of_the_row(
        self, name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run stops at it; a DecryptionError would have every row listed."""
        monkeypatch.delenv("OLD_KEYS", raising=False)
        if value is not None:
            monkeypatch.setenv("OLD_KEYS", value)
        with pytest.raises(KeyUnavailableError, match="OLD_KEYS") as caught:
            make_reader(name, key_from="env:OLD_KEYS")("AAAA")
        assert not caught.value.retryable
        assert not revealed_by(caught.value, FERNET_KEY)

    @pytest.mark.parametrize("error", [OSError("secret"), ValueError("secret"), ConfigurationError("secret")])
    def test_function_that_fails(self, error: Exception) -> None:
        with pytest.raises(
            KeyUnavailableError, match=rf"key_from \(fail\).*{type(error).__name__}"
        ) as caught:
            FernetReader(key_from=named(fail, error))("AAAA")
        assert not revealed_by(caught.value, "secret", window=6)

    def test_key_server_that_is_down(self) -> None:
        """What a function says about itself is passed on."""
        with pytest.raises(KeyUnavailableError) as caught:
            FernetReader(key_from=partial(fail, KeyUnavailableError("down", retryable=True)))("AAAA")
        assert caught.value.retryable

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({}, "one of the two"),
            ({"key": FERNET_KEY, "key_from": "env:A"}, "one of the two"),
            ({"key_from": FERNET_KEY}, "env:"),
            ({"key_from": "env:"}, "env:"),
            ({"key_from": "env:OLD-KEY"}, "env:"),
            ({"key_from": 5}, "not int"),
            ({"key": "short"}, "44 characters"),
            ({"key": [FERNET_KEY, "short"]}, "44 characters"),
            ({"key": []}, "44 characters"),
            ({"key": [5]}, "44 characters"),
            ({"key": 5}, "44 characters"),
            ({"key": b"\xff"}, "44 characters"),
            ({"key": FERNET_KEY, "plaintext": "read"}, "'adopt' or 'refuse'"),
        ],
    )
    def test_options_that_cannot_be(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigurationError, match=says) as caught:
            FernetReader(**options)
        assert not revealed_by(caught.value, FERNET_KEY)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("SQLAlchemyUtilsReader", {"key": ""}),
            ("SQLAlchemyUtilsReader", {"key": 5}),
            ("SQLAlchemyUtilsReader", {"key": "\ud800 secret"}),
            ("SQLAlchemyUtilsReader", {"key": "p", "engine": "Aes"}),
            ("SQLAlchemyUtilsReader", {"key": "p", "padding": "none"}),
            ("JWEReader", {"key": RAW_KEY, "other_jwe": "read"}),
        ],
    )
    def test_options_of_one_reader_that_cannot_be(self, name: str, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError) as caught:
            make_reader(name, **options)
        assert not revealed_by(caught.value, " secret", window=6)

    @pytest.mark.parametrize("key", [b"bytes of a key", "a text of a key\n"])
    def test_passphrase_is_taken_to_the_letter(self, key: str | bytes) -> None:
        material = key.encode() if isinstance(key, str) else key
        value = fernet_value(SIGNED, hashlib.sha256(material).digest())
        assert SQLAlchemyUtilsReader(key=key, engine="FernetEngine")(value) == SIGNED

    def test_repr_shows_no_key(self) -> None:
        given = [
            FernetReader(key=FERNET_KEY, plaintext="refuse"),
            FernetReader(key_from=partial(str, FERNET_KEY)),
            FernetReader(key_from="env:OLD_KEYS"),
            SQLAlchemyUtilsReader(key_from="env:OLD_KEY", engine="AesGcmEngine"),
        ]
        given[1](fernet_value(SIGNED))
        assert [repr(reader) for reader in given] == [
            "FernetReader(key=..., plaintext='refuse')",
            "FernetReader(key_from=...)",
            "FernetReader(key_from='env:OLD_KEYS')",
            "SQLAlchemyUtilsReader(key_from='env:OLD_KEY', engine='AesGcmEngine')",
        ]

    @pytest.mark.parametrize("source", ["env:OLD_KEY", old_key], ids=["environment", "function"])
    def test_reader_travels_without_its_key(
        self, source: str | Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OLD_KEY", FERNET_KEY)
        reader = FernetReader(key_from=source, plaintext="refuse")
        assert reader(fernet_value(SIGNED)) == SIGNED
        travelled = pickle.dumps(reader)
        assert FERNET_KEY.encode() not in travelled
        assert RAW_KEY not in travelled
        arrived = pickle.loads(travelled)
        assert arrived(fernet_value(SIGNED)) == SIGNED
        assert repr(arrived) == repr(reader)

    @every_reader
    def test_reader_that_was_given_its_key_does_not_travel(self, reader: AnyReader) -> None:
        with pytest.raises(ConfigurationError, match="give key_from"):
            pickle.dumps(reader)


def named(function: Callable[..., str], *arguments: object) -> Callable[[], str]:
    """Return a function that is called as another one is, and passes arguments to it."""

    def call() -> str:
        return function(*arguments)

    call.__qualname__ = function.__qualname__
    return call


# -- whole tables --------------------------------------------------------------------------------------------------

ENV_PY: Final = """
from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import migrations_helpers

engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""

REVISION: Final = """
import sqlalchemy as sa
from alembic import op

from jwt_column import EncryptedJWT
from migrations_helpers import FernetReader, JWEReader, SQLAlchemyUtilsReader

revision = {number!r}
down_revision = {before!r}

def upgrade():
    {upgrade}
"""


class Project:
    """A directory of migrations, and the database that they are for."""

    def __init__(self, directory: Path, url: sa.URL) -> None:
        self._versions = directory / "migrations" / "versions"
        self._versions.mkdir(parents=True)
        (self._versions.parent / "env.py").write_text(ENV_PY)
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)
        self._config = Config()
        self._config.set_main_option("script_location", str(self._versions.parent))
        self._config.set_main_option("path_separator", "os")
        self._config.attributes["url"] = url
        self._revisions = 0

    def revision(self, upgrade: str) -> None:
        """Write a revision that follows the last one."""
        before, self._revisions = self._revisions, self._revisions + 1
        text = REVISION.format(
            number=str(self._revisions), before=str(before) if before else None, upgrade=upgrade
        )
        (self._versions / f"{self._revisions}.py").write_text(text)

    def upgrade(self, revision: str = "head") -> None:
        """Run ``alembic upgrade``."""
        command.upgrade(self._config, revision)

    def current(self) -> str | None:
        """Return the revision that the database is at."""
        with self.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()


@dataclass(frozen=True)
class Format:
    """One format: how it is written, what reads it in a revision, and the key in ``OLD_KEY``."""

    name: str
    write: Callable[[str], str]
    reader: str
    key: str


JWE_KEYS: Final = json.dumps({"keys": [{"kty": "oct", "kid": "a", "k": base64url.encode(RAW_KEY)}]})
FORMATS: Final = [
    Format("Fernet", fernet_value, "FernetReader(key_from='env:OLD_KEY')", FERNET_KEY),
    Format(
        "AesEngine",
        lambda token: aes_value(naively_padded(token)),
        "SQLAlchemyUtilsReader(key_from='env:OLD_KEY')",
        "a passphrase",
    ),
    Format(
        "AesGcmEngine",
        aes_gcm_value,
        "SQLAlchemyUtilsReader(key_from='env:OLD_KEY', engine='AesGcmEngine')",
        "a passphrase",
    ),
    Format(
        "FernetEngine",
        lambda token: fernet_value(token, hashlib.sha256(b"a passphrase").digest()),
        "SQLAlchemyUtilsReader(key_from='env:OLD_KEY', engine='FernetEngine')",
        "a passphrase",
    ),
    Format("JWE", lambda token: jwe_value(token, kid="a"), "JWEReader(key_from='env:OLD_KEY')", JWE_KEYS),
]
every_format = pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)

NEW_RING: Final = KeyRing([OTHER_KEY])
# The ring of a URI is kept for the life of a process, so this name belongs to this file.
TYPE: Final = "EncryptedJWT('env:FORMATS_KEYS', storage={!r})"
CORRUPT: Final = 44


class OldTable:
    """A table that another library has written.

    Rows 1 to 40 hold its values, every seventh NULL; then come a signed token in the clear, an encrypted one in the
    clear (beside JWEs another signed one), an envelope, and a value that was changed.
    """

    def __init__(self, project: Project, format_: Format, storage: Any) -> None:
        self.engine = project.engine
        self.storage = storage
        self.format = format_
        self.raw = table_of(sa.Text if storage == "text" else sa.LargeBinary)
        self.tokens: dict[int, str | None] = {
            number: None if number % 7 == 0 else signed_token(sub=f"user-{number}") for number in range(1, 41)
        }
        stored: dict[int, Any] = {n: token and format_.write(token) for n, token in self.tokens.items()}
        self.tokens |= {
            41: SIGNED,
            42: SIGNED if format_.name == "JWE" else ENCRYPTED,
            43: signed_token(sub="adopted already"),
            CORRUPT: signed_token(sub="corrupt"),
        }
        stored |= {41: self.tokens[41], 42: self.tokens[42]}
        stored[43] = encrypt_token(str(self.tokens[43]), NEW_RING, context="sessions.token", storage=storage)
        whole = format_.write(str(self.tokens[CORRUPT]))
        stored[CORRUPT] = whole[:-60] + ("B" if whole[-60] == "A" else "A") + whole[-59:]
        with self.engine.begin() as connection:
            self.raw.create(connection)
            connection.execute(
                self.raw.insert(), [{"id": n, "token": self._raw(value)} for n, value in stored.items()]
            )

    def _raw(self, value: Any) -> Any:
        return value.encode() if self.storage == "binary" and isinstance(value, str) else value

    def stored(self) -> dict[int, Any]:
        with self.engine.connect() as connection:
            return {row.id: row.token for row in connection.execute(self.raw.select())}

    def put(self, number: int, value: str | None) -> None:
        change = self.raw.update().where(self.raw.c.id == number).values(token=self._raw(value))
        with self.engine.begin() as connection:
            connection.execute(change)

    def opened(self, stored: dict[int, Any]) -> dict[int, str | None]:
        """Return what the envelopes hold."""
        return {
            number: None if value is None else str(decrypt_token(value, NEW_RING, context="sessions.token"))
            for number, value in stored.items()
        }

    def adopt(self, **options: Any) -> str:
        """Return the line of a revision that adopts the table."""
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        return (
            f"op.encrypt_jwt_column('sessions', 'token', type_={TYPE.format(self.storage)}, "
            f"decrypt_with={self.format.reader}{given})"
        )


@pytest.fixture
def project(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FORMATS_KEYS", base64url.encode(OTHER_KEY))
    return Project(tmp_path, database.url())


def adopt_and_check(table: OldTable, project: Project, **options: Any) -> None:
    """Adopt a table with a corrupt row, mend the row, adopt it, and adopt it again."""
    before = table.stored()
    project.revision("pass")
    project.revision(table.adopt(**options))
    with pytest.raises(ReencryptionError) as caught:
        project.upgrade()
    report: Any = caught.value.report
    assert report.undecryptable == [CORRUPT]
    # What is in the clear is called so, and nothing else is.
    assert report.by_key_id == {"foreign": 35, "plaintext": 2}
    assert project.current() == "1"
    after = table.stored()
    assert before[CORRUPT] == after.pop(CORRUPT)
    assert before[43] == after[43]
    tokens = dict(table.tokens)
    mended = tokens.pop(CORRUPT)
    assert tokens == table.opened(after)

    table.put(CORRUPT, table.format.write(str(mended)))
    project.upgrade()
    assert project.current() == "2"
    adopted = table.stored()
    assert table.tokens == table.opened(adopted)
    assert after.items() <= adopted.items()

    project.revision(table.adopt())
    project.upgrade()
    assert project.current() == "3"
    assert adopted == table.stored()


class TestWholeTables:
    """``op.encrypt_jwt_column(..., decrypt_with=...)`` in a real upgrade."""

    @every_format
    @pytest.mark.parametrize("storage", ["text", "binary"])
    def test_adopted_in_place(
        self, project: Project, format_: Format, storage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OLD_KEY", format_.key)
        adopt_and_check(OldTable(project, format_, storage), project)

    @pytest.mark.processes
    @pytest.mark.parametrize("format_", FORMATS[::2], ids=lambda format_: format_.name)
    def test_adopted_in_shards(
        self, project: Project, format_: Format, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The reader travels to processes, each of which fetches the key for itself."""
        monkeypatch.setenv("OLD_KEY", format_.key)
        adopt_and_check(OldTable(project, format_, "text"), project, shards=2)

    @every_format
    def test_wrong_key_changes_nothing(
        self, project: Project, format_: Format, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = {"Fernet": Fernet.generate_key().decode(), "JWE": base64url.encode(OTHER_KEY)}
        monkeypatch.setenv("OLD_KEY", other.get(format_.name, "another passphrase"))
        table = OldTable(project, format_, "text")
        for number in (41, 42, 43):
            table.put(number, None)
        before = table.stored()
        project.revision(table.adopt())
        with pytest.raises(ReencryptionError) as caught:
            project.upgrade()
        report: Any = caught.value.report
        assert [number for number, value in before.items() if value is not None] == sorted(
            report.undecryptable
        )
        assert report.reencrypted == 0
        assert before == table.stored()
        assert not revealed_by(caught.value, *(value for value in before.values() if value))

    def test_missing_key_ends_the_run_at_once(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OLD_KEY", raising=False)
        table = OldTable(project, FORMATS[0], "text")
        table.put(41, None)
        table.put(42, None)
        before = table.stored()
        project.revision(table.adopt())
        with pytest.raises(KeyUnavailableError, match="OLD_KEY is not set"):
            project.upgrade()
        assert before == table.stored()

    def test_empty_table_needs_no_key(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OLD_KEY", raising=False)
        monkeypatch.delenv("FORMATS_KEYS")
        project.revision(
            "op.create_table('sessions', sa.Column('id', sa.Integer, primary_key=True), sa.Column('token', sa.Text))"
        )
        project.revision(
            f"op.encrypt_jwt_column('sessions', 'token', type_={TYPE.format('text')}, "
            "decrypt_with=FernetReader(key_from='env:OLD_KEY'))"
        )
        project.upgrade()
        assert project.current() == "2"

    @pytest.mark.parametrize("start", ["jc01", "JC01", "jc01abcdefab"])
    def test_base64_that_begins_like_an_envelope(
        self, project: Project, start: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One nonce in 16 million does: a row that would be passed over, and could not be read afterwards."""
        format_ = FORMATS[2]
        monkeypatch.setenv("OLD_KEY", format_.key)
        table = OldTable(project, format_, "text")
        token = signed_token(sub="unlucky")
        iv = base64.b64decode(start.ljust(16, "A"))
        sealed = AESGCM(hashlib.sha256(format_.key.encode()).digest()).encrypt(iv, token.encode(), None)
        value = base64.b64encode(iv + sealed[-16:] + sealed[:-16]).decode()
        assert value.startswith(start)
        table.put(CORRUPT, value)
        table.tokens[CORRUPT] = token
        project.revision(table.adopt())
        project.upgrade()
        assert table.tokens == table.opened(table.stored())

    @pytest.mark.processes
    def test_shards_refuse_a_reader_that_was_given_its_key(self, project: Project) -> None:
        table = OldTable(project, FORMATS[0], "text")
        before = table.stored()
        project.revision(table.adopt(shards=2).replace("key_from='env:OLD_KEY'", f"key={FERNET_KEY!r}"))
        with pytest.raises(ConfigurationError, match="give key_from") as caught:
            project.upgrade()
        assert not revealed_by(caught.value, FERNET_KEY)
        assert before == table.stored()
