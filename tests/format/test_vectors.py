"""The vectors of envelope v1, and both implementations reading each other.

``tests/vectors/README.md`` says where each file comes from. The rows of envelope v1 are made by
:mod:`tests.support.independent_envelope`, so a row that passes here shows that two implementations agree.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import jwt
import pytest
from hypothesis import example, given

from jwt_column import KeyRing, decrypt_token, encrypt_token, errors
from jwt_column.column.binding import binding_of
from jwt_column.column.cipher import TokenCipher
from jwt_column.column.spec import ColumnSpec
from tests.support import independent_envelope as independent
from tests.support.cases import in_one_test
from tests.support.tokens import chain_of
from tests.vectors import generate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.vectors.generate import AcceptRow, BoundRow, RejectRow

ACCEPT: list[AcceptRow] = generate.committed_rows(generate.ACCEPT)
REJECT: list[RejectRow] = generate.committed_rows(generate.REJECT)
RFC_TOKENS: list[dict[str, Any]] = json.loads(
    (generate.HERE / "rfc_tokens.json").read_text(encoding="utf-8")
)["tokens"]

KEY = generate.FIRST_KEY
CONTEXT = generate.CONTEXT

accept_rows = in_one_test("row", ACCEPT, ids=lambda row: row["name"])
reject_rows = in_one_test("row", REJECT, ids=lambda row: row["name"])
rfc_tokens = pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in RFC_TOKENS])


def stored_of(row: AcceptRow | RejectRow) -> bytes | str:
    """Return what lies in the column."""
    return row["stored"] if row["storage"] == "text" else bytes.fromhex(row["stored"])


def ring_of(row: AcceptRow | RejectRow) -> KeyRing:
    """Return a ring that holds the row's key alone."""
    return KeyRing([bytes.fromhex(row["key"])])


def project_opens(
    stored: bytes | str, ring: KeyRing, *, context: str, binding: Sequence[BoundRow] = ()
) -> str:
    """Open with the project: by the public function, or by the column's cipher where row values are bound."""
    if binding:
        return TokenCipher(ColumnSpec(context=context)).decrypt(
            stored, ring, binding_of(generate.bound_values(binding))
        )
    return decrypt_token(stored, ring, context=context)


def project_seals(
    token: str,
    key: bytes,
    *,
    context: str,
    fingerprints: Sequence[str] = (),
    expose_expiry: bool = False,
    storage: independent.Storage = "binary",
    binding: independent.Binding = (),
) -> bytes | str:
    """Seal with the project, whatever kind of token it is."""
    cipher = TokenCipher(
        ColumnSpec(
            context=context,
            fingerprints=fingerprints,
            expose_expiry=expose_expiry,
            storage=storage,
            allow_opaque=True,
            allow_unsigned=True,
        )
    )
    return cipher.encrypt(token, KeyRing([key]), binding_of(binding))


class TestFiles:
    """What is committed is what the generator makes, and stays so."""

    def test_committed_accept_rows_are_generated(self) -> None:
        assert generate.accept_rows() == ACCEPT

    def test_committed_reject_rows_are_generated(self) -> None:
        assert generate.reject_rows() == REJECT

    def test_new_row_is_appended_and_the_old_ones_stay_first(self) -> None:
        first, second, third = ACCEPT[:3]
        assert [second, third, first] == generate.appended([second, third], [first, second, third])

    def test_generator_refuses_to_change_a_row(self) -> None:
        changed: AcceptRow = {**ACCEPT[0], "stored": "00"}
        with pytest.raises(generate.ChangedRowError):
            generate.appended([changed], ACCEPT)

    def test_generator_refuses_to_drop_a_row(self) -> None:
        with pytest.raises(generate.ChangedRowError):
            generate.appended(ACCEPT, ACCEPT[1:])

    def test_generator_refuses_two_rows_of_one_name(self) -> None:
        with pytest.raises(generate.ChangedRowError):
            generate.appended([], [ACCEPT[0], ACCEPT[0]])

    def test_generator_writes_nothing_when_a_row_would_change(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        accept, reject = tmp_path / "accept.json", tmp_path / "reject.json"
        reject.write_text(
            generate.render([], [{**REJECT[0], "error": "AuthenticationError"}]), encoding="utf-8"
        )
        before = reject.read_bytes()
        monkeypatch.setattr(generate, "ACCEPT", accept)
        monkeypatch.setattr(generate, "REJECT", reject)
        assert generate.main() == 1
        assert before == reject.read_bytes()
        assert not accept.exists()
        assert repr(REJECT[0]["name"]) in capsys.readouterr().err

    def test_generator_writes_the_committed_files_to_the_byte(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = [generate.ACCEPT.read_bytes(), generate.REJECT.read_bytes()]
        accept, reject = tmp_path / "accept.json", tmp_path / "reject.json"
        monkeypatch.setattr(generate, "ACCEPT", accept)
        monkeypatch.setattr(generate, "REJECT", reject)
        assert generate.main() == 0
        assert expected == [accept.read_bytes(), reject.read_bytes()]

    def test_every_named_error_is_one_of_the_project(self) -> None:
        expected = {
            "MalformedEnvelopeError",
            "UnsupportedVersionError",
            "UnknownKeyError",
            "AuthenticationError",
        }
        assert expected == {row["error"] for row in REJECT}
        assert expected <= set(errors.__all__)


class TestAccept:
    """Every accept row opens to its token."""

    @accept_rows
    def test_independent_reader_opens_the_row(self, row: AcceptRow) -> None:
        opened = independent.open_(
            stored_of(row),
            bytes.fromhex(row["key"]),
            context=row["context"],
            binding=generate.bound_values(row["binding"]),
        )
        assert row["token"] == opened

    @accept_rows
    def test_projects_reader_opens_the_row(self, row: AcceptRow) -> None:
        opened = project_opens(stored_of(row), ring_of(row), context=row["context"], binding=row["binding"])
        assert row["token"] == opened

    @accept_rows
    def test_row_opens_under_a_ring_in_which_another_key_is_active(self, row: AcceptRow) -> None:
        ring = KeyRing([bytes(range(32)), generate.SECOND_KEY, generate.FIRST_KEY])
        opened = project_opens(stored_of(row), ring, context=row["context"], binding=row["binding"])
        assert row["token"] == opened

    @accept_rows
    def test_project_derives_the_key_id_of_the_row(self, row: AcceptRow) -> None:
        assert row["key_id"] == ring_of(row).active

    @accept_rows
    def test_projects_writer_writes_the_header_and_the_frame_of_the_row(self, row: AcceptRow) -> None:
        """All but the nonce is determined by the format, so all but the nonce is compared.

        The frame is compared with what a writer must choose; one row holds the frame that it must not.
        """
        key = bytes.fromhex(row["key"])
        binding = generate.bound_values(row["binding"])
        stored = project_seals(
            row["token"],
            key,
            context=row["context"],
            fingerprints=row["fingerprints"],
            expose_expiry=row["expose_expiry"],
            storage=row["storage"],
            binding=binding,
        )
        written, expected = independent.parse(stored), independent.parse(stored_of(row))
        assert expected.header == written.header
        frame = independent.xaes_decrypt(
            independent.encryption_key(key),
            written.nonce,
            written.sealed,
            independent.associated_data(written.header, row["context"], binding),
        )
        assert independent.frame_of(row["token"]) == frame
        opened = independent.open_(stored, key, context=row["context"], binding=binding)
        assert row["token"] == opened

    @in_one_test("forms", zip(ACCEPT[::2], ACCEPT[1::2], strict=True), ids=lambda forms: forms[0]["name"])
    def test_both_forms_of_a_row_hold_the_same_bytes(self, forms: tuple[AcceptRow, AcceptRow]) -> None:
        binary, text = forms
        assert text["stored"] == independent.to_text(bytes.fromhex(binary["stored"]))
        assert binary["stored"] == independent.to_binary(text["stored"]).hex()


class TestReject:
    """Every reject row is refused, for the reason given, and the refusal gives nothing away."""

    @reject_rows
    def test_independent_reader_refuses_the_row_for_its_reason(self, row: RejectRow) -> None:
        with pytest.raises(ValueError) as caught:
            independent.open_(
                stored_of(row),
                bytes.fromhex(row["key"]),
                context=row["context"],
                binding=generate.bound_values(row["binding"]),
            )
        assert row["reason"] == str(caught.value)

    @reject_rows
    def test_projects_reader_raises_the_named_error(self, row: RejectRow) -> None:
        with pytest.raises(errors.JWTColumnError) as caught:
            project_opens(stored_of(row), ring_of(row), context=row["context"], binding=row["binding"])
        assert row["error"] == type(caught.value).__name__

    @reject_rows
    def test_refusal_holds_no_byte_of_key_ciphertext_or_frame(self, row: RejectRow) -> None:
        stored = stored_of(row)
        with pytest.raises(errors.JWTColumnError) as caught:
            project_opens(stored, ring_of(row), context=row["context"], binding=row["binding"])
        body = stored.partition(".")[2] if isinstance(stored, str) else stored[44:].hex()
        secrets = [row["key"], bytes.fromhex(row["key"]).decode("latin-1")]
        # A shorter piece than this is found in any text by chance.
        secrets += [body[at : at + 12] for at in range(0, len(body) - 12, 12)]
        for error in chain_of(caught.value):
            # A UnicodeError carries the whole of what it could not convert, and error reporters print it.
            assert not isinstance(error, UnicodeError)
            held = (str(error), *error.args, *vars(error).values())
            shown = " ".join(part.hex() if isinstance(part, bytes) else repr(part) for part in held)
            assert not [secret for secret in secrets if secret in shown]

    def test_every_flipped_bit_of_a_row_is_refused(self) -> None:
        row = next(row for row in ACCEPT if row["expose_expiry"] and len(row["fingerprints"]) == 2)
        stored = bytes.fromhex(row["stored"])
        assert row["token"] == decrypt_token(stored, ring_of(row), context=row["context"])
        ring = ring_of(row)
        for position in range(len(stored)):
            for bit in range(8):
                with pytest.raises((errors.DecryptionError, errors.UnknownKeyError)):
                    decrypt_token(generate.flipped(stored, position, bit), ring, context=row["context"])

    def test_every_truncation_of_a_row_is_refused(self) -> None:
        row = next(row for row in ACCEPT if row["expose_expiry"] and len(row["fingerprints"]) == 2)
        ring = ring_of(row)
        binary = bytes.fromhex(row["stored"])
        for form in (binary, independent.to_text(binary)):
            for end in range(len(form)):
                with pytest.raises(errors.DecryptionError):
                    decrypt_token(form[:end], ring, context=row["context"])


ring = KeyRing([KEY])
contexts = st.text(min_size=1, max_size=40).filter(lambda text: "\0" not in text)
names = st.text(min_size=1, max_size=12)
storages: st.SearchStrategy[independent.Storage] = st.sampled_from(["binary", "text"])
claims = st.dictionaries(
    st.sampled_from(["jti", "sub", "uid"]) | names, st.text(max_size=20) | st.integers(), max_size=5
)
expiries = st.none() | st.integers(0, 2**48 - 2) | st.floats(0, 2**48 - 2)
bindings = st.lists(
    st.tuples(names, st.text(max_size=20) | st.integers() | st.uuids() | st.binary(max_size=20)), max_size=3
)


@st.composite
def signed_tokens(draw: st.DrawFn) -> str:
    """Compact JWS with any claims that a header can carry."""
    payload: dict[str, object] = dict(draw(claims))
    expiry = draw(expiries)
    payload.pop("exp", None)
    if expiry is not None:
        payload["exp"] = expiry
    header = {"alg": draw(st.sampled_from(["HS256", "RS256", "EdDSA"]))}
    parts = [json.dumps(part, ensure_ascii=draw(st.booleans())).encode() for part in (header, payload)]
    parts.append(draw(st.binary(min_size=1, max_size=80)))
    return ".".join(independent.to_base64url(part) for part in parts)


class TestRoundTrips:
    """Whatever one implementation writes the other reads."""

    @given(
        token=signed_tokens(),
        context=contexts,
        fingerprints=st.lists(
            st.sampled_from(["token", "jti", "sub", "uid"]) | names, max_size=7, unique=True
        ),
        expose_expiry=st.booleans(),
        storage=storages,
        binding=bindings,
    )
    def test_independent_reader_opens_what_the_project_writes(
        self,
        token: str,
        context: str,
        fingerprints: list[str],
        expose_expiry: bool,
        storage: independent.Storage,
        binding: list[tuple[str, independent.BoundValue]],
    ) -> None:
        # A claim called exp may be drawn as a float, which no fingerprint carries.
        fingerprints = [name for name in fingerprints if name != "exp"]
        stored = project_seals(
            token,
            KEY,
            context=context,
            fingerprints=fingerprints,
            expose_expiry=expose_expiry,
            storage=storage,
            binding=binding,
        )
        expected = independent.header_of(
            token, KEY, context=context, fingerprints=fingerprints, expose_expiry=expose_expiry
        )
        assert expected == independent.parse(stored).header
        assert token == independent.open_(stored, KEY, context=context, binding=binding)

    @given(
        token=signed_tokens(),
        context=contexts,
        fingerprints=st.lists(st.sampled_from(["token", "jti", "sub"]), max_size=3, unique=True),
        expose_expiry=st.booleans(),
        storage=storages,
        nonce=st.binary(min_size=24, max_size=24),
    )
    def test_project_opens_what_the_independent_writer_writes(
        self,
        token: str,
        context: str,
        fingerprints: list[str],
        expose_expiry: bool,
        storage: independent.Storage,
        nonce: bytes,
    ) -> None:
        stored = independent.seal(
            token,
            KEY,
            context=context,
            fingerprints=fingerprints,
            expose_expiry=expose_expiry,
            storage=storage,
            nonce=nonce,
        )
        assert token == decrypt_token(stored, ring, context=context)

    @given(
        token=st.text(alphabet="AEQgwBe0-_.=+/ ", max_size=30) | st.text(max_size=30),
        nonce=st.binary(min_size=24, max_size=24),
    )
    @example(token="", nonce=bytes(24))
    @example(token="..", nonce=bytes(24))
    @example(token="." * 254, nonce=bytes(24))
    @example(token="." * 255, nonce=bytes(24))
    @example(token="QQ.QR", nonce=bytes(24))
    def test_project_reads_back_every_character_of_any_text(self, token: str, nonce: bytes) -> None:
        stored = independent.seal(token, KEY, context=CONTEXT, nonce=nonce)
        assert token == decrypt_token(stored, ring, context=CONTEXT)

    @given(frame=st.binary(max_size=40) | st.binary(max_size=40).map(b"\x01".__add__))
    @example(frame=b"\x01\x01")
    @example(frame=b"\x01\x03\x00\x00\x00\x00")
    @example(frame=b"\x01\xff" + bytes(508))
    def test_both_readers_say_the_same_of_any_frame(self, frame: bytes) -> None:
        header = independent.header_of("", KEY, context=CONTEXT)
        stored = independent.seal_frame(frame, header, KEY, context=CONTEXT, nonce=bytes(24))
        try:
            expected = independent.token_of(frame)
        except ValueError:
            with pytest.raises(errors.MalformedEnvelopeError):
                decrypt_token(stored, ring, context=CONTEXT)
        else:
            assert expected == decrypt_token(stored, ring, context=CONTEXT)

    @given(
        stored=st.binary(max_size=120) | st.binary(max_size=120).map(b"\x01".__add__) | st.text(max_size=120)
    )
    @example(stored="jc" + "01" * 6 + "." + "A" * 80)
    def test_nothing_but_the_projects_own_errors_leaves_the_reader(self, stored: bytes | str) -> None:
        with pytest.raises((errors.DecryptionError, errors.KeyRingError)):
            decrypt_token(stored, ring, context=CONTEXT)

    @pytest.mark.parametrize("storage", ["binary", "text"])
    @rfc_tokens
    def test_public_functions_carry_the_tokens_of_the_rfcs(
        self, row: dict[str, Any], storage: independent.Storage
    ) -> None:
        if row["kind"] == "unsecured":
            with pytest.raises(errors.InvalidTokenError):
                encrypt_token(row["token"], ring, context=CONTEXT, storage=storage)
            return
        stored = encrypt_token(
            row["token"], ring, context=CONTEXT, fingerprints=["token"], expose_expiry=True, storage=storage
        )
        assert row["token"] == decrypt_token(stored, ring, context=CONTEXT)
        assert row["token"] == independent.open_(stored, KEY, context=CONTEXT)


class TestRfcTokens:
    """The example tokens are those of the RFCs, to the letter."""

    @pytest.mark.parametrize(
        "row", [pytest.param(row, id=row["name"]) for row in RFC_TOKENS if row["jwk"] is not None]
    )
    def test_signature_verifies_under_the_key_of_the_rfc(self, row: dict[str, Any]) -> None:
        key = jwt.PyJWK({**row["jwk"], "alg": row["alg"]}).key
        payload = jwt.PyJWS().decode(row["token"], key, algorithms=[row["alg"]])
        _, encoded, _ = row["token"].split(".")
        assert independent.decode_canonically(encoded) == payload

    @rfc_tokens
    def test_header_names_the_algorithm_of_the_row(self, row: dict[str, Any]) -> None:
        assert row["alg"] == jwt.PyJWS().get_unverified_header(_as_jws(row["token"]))["alg"]

    @rfc_tokens
    def test_token_has_the_segments_of_its_kind(self, row: dict[str, Any]) -> None:
        expected = 5 if row["kind"].endswith("JWE") else 3
        assert expected == len(row["token"].split("."))


def _as_jws(token: str) -> str:
    """Keep the header of a token and replace what follows, for a reader that knows a JWS only."""
    return token.partition(".")[0] + ".."
