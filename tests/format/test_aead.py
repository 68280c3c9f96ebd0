"""XAES-256-GCM: published vectors, an independent implementation, and the rules about nonces.

The vectors and their sources stand in ``tests/vectors/README.md``.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import cryptography
import hypothesis.strategies as st
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given

from jwt_column.format.aead import XAES256GCM
from tests.support import independent_envelope as independent
from tests.support.threads import in_four_threads

VECTORS = Path(__file__).parent.parent / "vectors"
XAES: dict[str, Any] = json.loads((VECTORS / "xaes_256_gcm.json").read_text(encoding="utf-8"))
WYCHEPROOF: dict[str, Any] = json.loads((VECTORS / "wycheproof_aes_gcm.json").read_text(encoding="utf-8"))

KEY = bytes(range(32))
NONCE_KEY = bytes(range(32, 64))
NONCE = bytes(range(100, 124))

CRYPTOGRAPHY = int(cryptography.__version__.partition(".")[0])

#: What one nonce prefix may serve at most, says the format.
MESSAGES_PER_PREFIX = 2**16

keys = st.binary(min_size=32, max_size=32)
nonces = st.binary(min_size=24, max_size=24)
messages = st.binary(max_size=300)

known_answers = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row["name"]) for row in XAES["known_answers"]]
)
wycheproof_cases = pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"tcId-{case['tcId']}") for case in WYCHEPROOF["tests"]]
)


def unhex(row: dict[str, Any], *names: str) -> tuple[bytes, ...]:
    """Return fields of a vector as bytes."""
    return tuple(bytes.fromhex(row[name]) for name in names)


def xor(left: bytes, right: bytes) -> bytes:
    """Return the bitwise difference of two texts of one length."""
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def encrypt(xaes: XAES256GCM, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    """Return ciphertext and tag under a nonce that is given: seal() chooses its own."""
    return xaes._subkey(nonce[:12]).encrypt(nonce[12:], data, aad)


class TestKnownAnswers:
    """The vectors of the C2SP page."""

    @known_answers
    def test_encrypts_to_the_published_ciphertext(self, row: dict[str, Any]) -> None:
        key, nonce, plaintext, aad, ciphertext = unhex(row, "key", "nonce", "plaintext", "aad", "ciphertext")
        assert ciphertext == encrypt(XAES256GCM(key, NONCE_KEY), nonce, plaintext, aad)

    @known_answers
    def test_opens_the_published_ciphertext_behind_its_nonce(self, row: dict[str, Any]) -> None:
        key, nonce, plaintext, aad, ciphertext = unhex(row, "key", "nonce", "plaintext", "aad", "ciphertext")
        assert plaintext == XAES256GCM(key, NONCE_KEY).open(nonce + ciphertext, aad)

    @known_answers
    def test_published_intermediate_values_lead_to_the_ciphertext(self, row: dict[str, Any]) -> None:
        """The vector is held against itself and the independent route; the project takes no part."""
        key, nonce, plaintext, aad = unhex(row, "key", "nonce", "plaintext", "aad")
        block = Cipher(AES(key), ECB()).encryptor().update
        subkey = b"".join(block(xor(*unhex(row, counter, "K1"))) for counter in ("M1", "M2"))
        assert row["L"] == block(bytes(16)).hex()
        assert row["Kx"] == subkey.hex()
        assert row["Kx"] == independent.xaes_subkey(key, nonce).hex()
        assert row["Nx"] == nonce[12:].hex()
        assert row["ciphertext"] == AESGCM(subkey).encrypt(nonce[12:], plaintext, aad).hex()

    def test_vectors_cover_both_doublings_of_the_cmac_subkey(self) -> None:
        assert {0, 1} == {int(row["L"], 16) >> 127 for row in XAES["known_answers"]}


def accumulated(iterations: int) -> str:
    """Run the accumulated randomized test of the C2SP page and return its digest in hex."""
    # hashlib gives the whole stream or nothing; an iteration reads 313 bytes on average.
    stream = memoryview(hashlib.shake_128(b"").digest(320 * iterations))
    assert XAES["accumulated"]["stream_begins"] == stream[:16].hex()
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        position += length
        return bytes(stream[position - length : position])

    digest = hashlib.shake_128()
    for _ in range(iterations):
        key, nonce = read(32), read(24)
        plaintext = read(read(1)[0])
        aad = read(read(1)[0])
        digest.update(encrypt(XAES256GCM(key, NONCE_KEY), nonce, plaintext, aad))
    assert position <= len(stream)
    return digest.hexdigest(32)


class TestAccumulated:
    """The accumulated randomized test of the C2SP page, one digest for each number of iterations."""

    digests = {row["iterations"]: row["digest"] for row in XAES["accumulated"]["digests"]}  # noqa: RUF012

    def test_10_000_iterations_give_the_published_digest(self) -> None:
        assert self.digests[10_000] == accumulated(10_000)

    @pytest.mark.slow
    def test_1_000_000_iterations_give_the_published_digest(self) -> None:
        assert self.digests[1_000_000] == accumulated(1_000_000)


class TestWycheproof:
    """The AES-256-GCM cases of Wycheproof, at the two places where they say something.

    XAES-256-GCM chooses its AES-GCM key itself, so a case cannot be put through it as it stands. Each case is
    run through the AES-GCM that the module builds on, which shows that the installed library is a sound one.
    Then its sizes, its message and its damage are carried over to XAES-256-GCM, which shows that the module
    passes on what AES-GCM needs, and passes back what AES-GCM refuses.
    """

    @wycheproof_cases
    def test_the_library_gives_the_result_of_the_case(self, case: dict[str, Any]) -> None:
        key, nonce, aad, message, ciphertext, tag = unhex(case, "key", "iv", "aad", "msg", "ct", "tag")
        if case["result"] == "valid":
            assert ciphertext + tag == AESGCM(key).encrypt(nonce, message, aad)
            assert message == AESGCM(key).decrypt(nonce, ciphertext + tag, aad)
        else:
            with pytest.raises(InvalidTag):
                AESGCM(key).decrypt(nonce, ciphertext + tag, aad)

    @wycheproof_cases
    def test_xaes_gives_the_result_of_the_case_under_its_derived_key(self, case: dict[str, Any]) -> None:
        key, half, aad, message, ciphertext, tag = unhex(case, "key", "iv", "aad", "msg", "ct", "tag")
        nonce = NONCE[:12] + half
        expected = AESGCM(independent.xaes_subkey(key, nonce)).encrypt(half, message, aad)
        xaes = XAES256GCM(key, NONCE_KEY)
        assert expected == encrypt(xaes, nonce, message, aad)
        # What the case does to its own right answer is done to ours; a valid case does nothing.
        damage = xor(AESGCM(key).encrypt(half, message, aad), ciphertext + tag)
        presented = xor(expected, damage)
        if case["result"] == "valid":
            assert message == xaes.open(nonce + presented, aad)
        else:
            with pytest.raises(InvalidTag):
                xaes.open(nonce + presented, aad)

    def test_the_cases_hold_both_results(self) -> None:
        results = collections.Counter(case["result"] for case in WYCHEPROOF["tests"])
        assert results == {"valid": 39, "invalid": 27}


class TestAgreement:
    """The project and the independent implementation read each other."""

    @given(key=keys, nonce=nonces, message=messages, aad=messages)
    def test_both_encrypt_to_the_same_bytes(
        self, key: bytes, nonce: bytes, message: bytes, aad: bytes
    ) -> None:
        expected = independent.xaes_encrypt(key, nonce, message, aad)
        assert expected == encrypt(XAES256GCM(key, NONCE_KEY), nonce, message, aad)

    @given(key=keys, message=messages, aad=messages)
    def test_independent_reader_opens_what_seal_makes(self, key: bytes, message: bytes, aad: bytes) -> None:
        sealed = XAES256GCM(key, NONCE_KEY).seal(message, aad)
        assert 24 + len(message) + 16 == len(sealed)
        assert message == independent.xaes_decrypt(key, sealed[:24], sealed[24:], aad)

    @given(key=keys, nonce=nonces, message=messages, aad=messages)
    def test_open_reads_what_the_independent_writer_makes(
        self, key: bytes, nonce: bytes, message: bytes, aad: bytes
    ) -> None:
        sealed = nonce + independent.xaes_encrypt(key, nonce, message, aad)
        assert message == XAES256GCM(key, NONCE_KEY).open(sealed, aad)

    def test_more_nonce_prefixes_than_any_cache_holds_still_open(self) -> None:
        xaes = XAES256GCM(KEY, NONCE_KEY)
        sealed = []
        for number in range(2_000):
            nonce = number.to_bytes(12, "big") + NONCE[12:]
            sealed.append(nonce + independent.xaes_encrypt(KEY, nonce, nonce, b""))
        for _ in range(2):
            assert [one[:24] for one in sealed] == [xaes.open(one, b"") for one in sealed]


class TestRefusals:
    """What is not exactly what was sealed does not open."""

    @given(data=st.data(), message=messages, aad=messages)
    def test_one_flipped_bit_anywhere_is_refused(
        self, data: st.DataObject, message: bytes, aad: bytes
    ) -> None:
        xaes = XAES256GCM(KEY, NONCE_KEY)
        sealed = bytearray(xaes.seal(message, aad))
        bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
        sealed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidTag):
            xaes.open(bytes(sealed), aad)

    @given(message=messages, aad=messages, other=messages)
    def test_other_associated_data_is_refused(self, message: bytes, aad: bytes, other: bytes) -> None:
        xaes = XAES256GCM(KEY, NONCE_KEY)
        sealed = xaes.seal(message, aad)
        if other == aad:
            assert message == xaes.open(sealed, other)
        else:
            with pytest.raises(InvalidTag):
                xaes.open(sealed, other)

    def test_another_key_is_refused(self) -> None:
        with pytest.raises(InvalidTag):
            XAES256GCM(KEY[::-1], NONCE_KEY).open(XAES256GCM(KEY, NONCE_KEY).seal(b"message", b""), b"")

    @pytest.mark.parametrize("length", range(40))
    def test_less_than_nonce_and_tag_is_refused_like_any_other_damage(self, length: int) -> None:
        xaes = XAES256GCM(KEY, NONCE_KEY)
        with pytest.raises(InvalidTag):
            xaes.open(xaes.seal(b"", b"")[:length], b"")

    @pytest.mark.parametrize("length", [0, 1, 16, 24, 31, 33, 64])
    def test_key_of_another_size_is_refused(self, length: int) -> None:
        with pytest.raises(ValueError, match="32"):
            XAES256GCM(bytes(length), NONCE_KEY)

    def test_repr_shows_no_key(self) -> None:
        shown = repr(XAES256GCM(KEY, NONCE_KEY))
        assert KEY.hex() not in shown
        assert repr(KEY) not in shown


def drawn_nonces(xaes: XAES256GCM, count: int) -> list[bytes]:
    """Return the nonces of this many sealed messages."""
    return [xaes.seal(b"", b"")[:24] for _ in range(count)]


def prefixes(drawn: list[bytes]) -> set[bytes]:
    """Return the different first halves of nonces."""
    return {nonce[:12] for nonce in drawn}


def nonces_of_forked_child(xaes: XAES256GCM, count: int) -> list[bytes]:
    """Fork, let the child seal this many messages, and return the child's nonces."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside other threads, and a test runner may have some. The child below
        # takes no lock but the interpreter's own.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        # Nothing of the test runner may run in the child, so it leaves by _exit whatever happens.
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(b"".join(drawn_nonces(xaes, count)))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        drawn = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert 24 * count == len(drawn)
    return [drawn[at : at + 24] for at in range(0, len(drawn), 24)]


class TestNonces:
    """Nonces are fresh in every message, process and thread."""

    def test_nonces_never_repeat_and_a_prefix_serves_at_most_65_536_messages(self) -> None:
        drawn = drawn_nonces(XAES256GCM(KEY, NONCE_KEY), 70_000)
        assert len(set(drawn)) == 70_000
        assert len({nonce[12:] for nonce in drawn}) == 70_000
        by_prefix = collections.Counter(nonce[:12] for nonce in drawn)
        assert sorted(by_prefix.values(), reverse=True) == [MESSAGES_PER_PREFIX, 70_000 - MESSAGES_PER_PREFIX]

    def test_two_ciphers_under_one_key_share_no_prefix(self) -> None:
        first, second = (drawn_nonces(XAES256GCM(KEY, NONCE_KEY), 10) for _ in range(2))
        assert set() == prefixes(first) & prefixes(second)

    def test_reading_does_not_make_a_foreign_prefix_ones_own(self) -> None:
        """A writer that adopted the prefix of what it reads would share it with the process that wrote it."""
        xaes = XAES256GCM(KEY, NONCE_KEY)
        foreign = XAES256GCM(KEY, NONCE_KEY).seal(b"", b"")
        xaes.open(foreign, b"")
        assert foreign[:12] not in prefixes(drawn_nonces(xaes, 10))

    @pytest.mark.skipif(
        not hasattr(os, "fork"), reason="This system has no fork, so nothing can inherit a nonce."
    )
    @pytest.mark.parametrize("before", [0, 1, 256, 300])
    def test_forked_children_draw_other_nonces_than_their_parent_and_each_other(self, before: int) -> None:
        """The numbers stop the parent before, inside and at the end of whatever it draws ahead."""
        xaes = XAES256GCM(KEY, NONCE_KEY)
        drawn = drawn_nonces(xaes, before)
        first = nonces_of_forked_child(xaes, 600)
        second = nonces_of_forked_child(xaes, 600)
        drawn += drawn_nonces(xaes, 600)
        assert before + 3 * 600 == len({*drawn, *first, *second})
        # A random draw repeats with a chance of 2**-96 or so; a repeated half shows what was inherited.
        assert before + 3 * 600 == len({nonce[12:] for nonce in (*drawn, *first, *second)})
        assert set() == prefixes(drawn) & prefixes(first)
        assert set() == prefixes(drawn) & prefixes(second)
        assert set() == prefixes(first) & prefixes(second)

    @pytest.mark.skipif(
        not hasattr(os, "fork"), reason="This system has no fork, so nothing can inherit a nonce."
    )
    def test_forked_child_opens_what_its_parent_sealed(self) -> None:
        xaes = XAES256GCM(KEY, NONCE_KEY)
        sealed = xaes.seal(b"message", b"aad")
        child = nonces_of_forked_child(xaes, 1)
        assert xaes.open(sealed, b"aad") == b"message"
        assert sealed[:24] not in child

    def test_threads_share_a_cipher_without_sharing_a_nonce(self) -> None:
        xaes = XAES256GCM(KEY, NONCE_KEY)
        drawn = [nonce for part in in_four_threads(lambda _: drawn_nonces(xaes, 20_000)) for nonce in part]
        assert len(set(drawn)) == 80_000
        by_prefix = collections.Counter(nonce[:12] for nonce in drawn)
        assert max(by_prefix.values()) <= MESSAGES_PER_PREFIX

    def test_threads_that_derive_keys_at_once_read_what_was_written(self) -> None:
        """Each thread opens messages of its own prefixes, so that every one of them is a derivation."""
        xaes = XAES256GCM(KEY, NONCE_KEY)
        prefixes = [number.to_bytes(12, "little") for number in range(4 * 2_000)]
        sealed = [
            prefix + NONCE[12:] + independent.xaes_encrypt(KEY, prefix + NONCE[12:], prefix, b"")
            for prefix in prefixes
        ]

        def work(place: int) -> list[bytes]:
            return [xaes.open(one, b"") for one in sealed[place::4]]

        for place, opened in enumerate(in_four_threads(work)):
            assert prefixes[place::4] == opened

    @pytest.mark.skipif(CRYPTOGRAPHY >= 50, reason="cryptography 50 locks its contexts.")
    def test_control_threads_that_share_an_encryptor_fail(self) -> None:
        """The danger is real: cryptography's contexts are for one thread, and the one for CMAC was shared."""
        update = Cipher(AES(KEY), ECB()).encryptor().update

        def work(_: int) -> None:
            for _ in range(50_000):
                update(KEY)

        with pytest.raises(RuntimeError, match="Already borrowed"):
            in_four_threads(work)


def test_derived_keys_are_kept_up_to_a_limit() -> None:
    """Each foreign prefix leaves one; a table of many writers would fill the memory."""
    cipher = XAES256GCM(bytes(32), bytes(32))
    for number in range(600):
        encrypt(cipher, number.to_bytes(24, "little"), b"", b"")
        # Before the limit all of them are kept: a derivation costs more than a decryption.
        assert len(cipher._subkeys) == number + 1 if number < 512 else len(cipher._subkeys) <= 512
    assert cipher.open(bytes(24) + encrypt(cipher, bytes(24), b"x", b""), b"") == b"x"


def test_opener_opens_the_messages_of_one_prefix() -> None:
    cipher = XAES256GCM(bytes(32), bytes(32))
    sealed = [cipher.seal(data, b"aad", b"before") for data in (b"one", b"", b"x" * 1_000)]
    opener = cipher.opener(sealed[0][6:18])
    assert [opener(one, 18, b"aad") for one in sealed] == [b"one", b"", b"x" * 1_000]
    elsewhere = XAES256GCM(bytes(32), bytes(32)).seal(b"one", b"aad", b"before")
    for changed, aad in ((sealed[0], b"other"), (sealed[0][:-1], b"aad"), (elsewhere, b"aad")):
        with pytest.raises(InvalidTag):
            opener(changed, 18, aad)
