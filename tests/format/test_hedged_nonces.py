"""Nonces of processes that share their memory or their randomness, which differ wherever messages differ."""

from __future__ import annotations

import hashlib
import hmac
import sys
from functools import partial

import pytest

from jwt_column import KeyRing, encrypt_token
from jwt_column.format.aead import XAES256GCM
from jwt_column.keys.data_key import DataKey
from tests.support.forks import raw_fork
from tests.support.tokens import signed_token

KEY, NONCE_KEY = bytes(range(32)), bytes(range(32, 64))

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="This system has no fork.")


def constant(length: int) -> bytes:
    """Be a broken random source, which gives the same bytes each time."""
    return bytes(length)


def test_nonce_is_the_one_of_the_format() -> None:
    """envelope-v1, Frame: r, the frame's length in 4 bytes, frame and AAD under the nonce key."""
    frame, aad = b"frame" * 50, b"associated data"
    sealed = XAES256GCM(KEY, NONCE_KEY, random=lambda length: bytes([7]) * length).seal(frame, aad, b"before")
    r = bytes([7]) * 16
    half = hmac.digest(NONCE_KEY, r + len(frame).to_bytes(4, "big") + frame + aad, "sha256")[:12]
    assert sealed[:30] == b"before" + bytes([7]) * 12 + half


def test_nonce_key_of_a_data_key_is_derived_as_the_format_says() -> None:
    extracted = hmac.digest(bytes(32), KEY, "sha256")
    nonce_key = hmac.new(extracted, b"jwt-column/v1/nonce\x01", hashlib.sha256).digest()
    key = DataKey(KEY)
    key.aead._random = constant
    half = hmac.digest(nonce_key, bytes(16) + (5).to_bytes(4, "big") + b"frame" + b"aad", "sha256")[:12]
    assert key.aead.seal(b"frame", b"aad")[12:24] == half


def test_constant_random_source_never_repeats_a_nonce_for_another_message() -> None:
    xaes = XAES256GCM(KEY, NONCE_KEY, random=constant)
    messages = [(f"message {number}".encode(), aad) for number in range(500) for aad in (b"a", b"b")]
    # A message and its associated data may not run into each other.
    messages += [(b"frame", b"aad"), (b"framea", b"ad"), (b"", b"frameaad")]
    assert len({xaes.seal(*message)[:24] for message in messages}) == len(messages)
    # The control: the random source does repeat, so the same message has the same nonce.
    again = XAES256GCM(KEY, NONCE_KEY, random=constant)
    assert again.seal(b"frame", b"aad") == XAES256GCM(KEY, NONCE_KEY, random=constant).seal(b"frame", b"aad")


@needs_fork
def test_children_of_a_raw_fork_share_no_nonce_for_different_tokens() -> None:
    ring = KeyRing.generate()

    def nonce(subject: str) -> bytes:
        stored = encrypt_token(signed_token(sub=subject), ring, context="sessions.token")
        assert isinstance(stored, bytes)
        return stored[6:30]

    nonce("before the fork")
    nonces = [raw_fork(partial(nonce, name)) for name in ("alice", "bob", "carol", "dave")]
    nonces.append(nonce("erin"))
    assert len(set(nonces)) == 5
    # The control: the children did inherit the randomness, as their common prefix and an identical token show.
    assert len({one[:12] for one in nonces}) == 1
    assert raw_fork(partial(nonce, "alice")) == raw_fork(partial(nonce, "alice"))
