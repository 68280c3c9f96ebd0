"""The key-ring file: its format, what its keys say about it, its wrapping, and how it is written."""

from __future__ import annotations

import dataclasses
import hmac
import itertools
import json
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jwt_column import ConfigurationError, JWTColumnError, KeyRing, KeyRingError, KeyUnavailableError
from jwt_column.format import base64url
from jwt_column.keys.data_key import DataKey
from jwt_column.keys.ring_file import changes as _changes
from jwt_column.keys.ring_file import disk as _disk
from jwt_column.keys.ring_file.format import MAX_BYTES, MAX_KEYS, KeyEntry, KeyState, RingFile
from jwt_column.keys.ring_file.store import StoredRing, create_ring_file
from jwt_column.keys.ring_file.unwrapping import rewrap, try_unwrap, unwrap, wrap
from jwt_column.providers import AssociatedData, WrappedKey, open_wrapper
from tests.support import independent_envelope as independent
from tests.support.tokens import locals_shown_by, revealed_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.standin import Standin

FIRST, SECOND, THIRD, FOURTH = KEYS = tuple(bytes([number]) * 32 for number in (1, 2, 3, 4))
IDS = FIRST_ID, SECOND_ID, THIRD_ID, FOURTH_ID = tuple(independent.key_id(key) for key in KEYS)
KEK = bytes([9]) * 32
GOLDEN: Final = Path(__file__).parent.parent / "vectors" / "key_ring_v1.json"
NOW = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
LATER = datetime(2027, 2, 1, 8, 30, 15, tzinfo=UTC)

needs_posix = pytest.mark.skipif(os.name != "posix", reason="This system has no file modes.")


def data_keys(*secrets: bytes) -> dict[str, DataKey]:
    return {key.id: key for key in map(DataKey, secrets)}


def make_file(*secrets: bytes, uri: str = "standin:kek", ring: str = "sessions") -> RingFile:
    """Return a file with these keys, sealed; the first is active."""
    keys = data_keys(*secrets)
    wrapped = wrap(open_wrapper(uri), ring, list(keys.values()))
    file = _changes.created(ring, list(zip(keys, wrapped, strict=True)), uri, NOW)
    return file.sealed(keys)


@pytest.fixture
def ring_path(tmp_path: Path, standin: Standin) -> Path:
    """A key-ring file with three keys under a KEK of the stand-in."""
    path = tmp_path / "ring.json"
    create_ring_file(path, make_file(FIRST, SECOND, THIRD), data_keys(FIRST, SECOND, THIRD))
    standin.calls.clear()
    return path


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a file as somebody with an editor does."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def refusal(path: Path) -> JWTColumnError:
    with pytest.raises(JWTColumnError) as caught:
        KeyRing.from_uri(f"file:{path}")
    assert set() == revealed_by(caught.value, *KEYS)
    return caught.value


# -- a second implementation, from the page of the format alone ------------------------------------------------


def wrapped_independently(key: bytes, ring: str, nonce: bytes) -> bytes:
    """Wrap as the local wrapper does, under a nonce of the test's choice."""
    header = b"\x01" + bytes.fromhex(independent.key_id(KEK))
    associated = b"\x00".join((b"jwt-column/key-ring/v1", ring.encode(), independent.key_id(key).encode()))
    derived = independent.hkdf_sha256(KEK, b"jwt-column/key-ring/v1/local-kek", 32)
    return header + nonce + independent.xaes_encrypt(derived, nonce, key, header + associated)


def mac_independently(key: bytes, canonical: str) -> str:
    derived = independent.hkdf_sha256(key, b"jwt-column/key-ring/v1/integrity", 32)
    return independent.to_base64url(hmac.digest(derived, canonical.encode(), "sha256"))


def golden_text() -> str:
    """Return the golden file, put together by hand."""
    texts: list[dict[str, str]] = []
    for number, (key, members) in enumerate(
        (
            (
                FIRST,
                {"activated": "2026-01-02T03:04:05Z", "created": "2026-01-02T03:04:05Z", "state": "active"},
            ),
            (SECOND, {"created": "2026-03-01T00:00:00Z", "state": "pre-activation"}),
            (
                THIRD,
                {
                    "activated": "2026-02-01T00:00:00Z",
                    "created": "2026-02-01T00:00:00Z",
                    "state": "active",
                    "tenant": "acme",
                },
            ),
            (
                FOURTH,
                {
                    "activated": "2025-01-01T00:00:00Z",
                    "compromised": "2026-01-03T00:00:00Z",
                    "created": "2025-01-01T00:00:00Z",
                    "deactivated": "2026-01-02T03:04:05Z",
                    "state": "compromised",
                },
            ),
        )
    ):
        wrapped = wrapped_independently(key, "golden", bytes([number]) * 24)
        members |= {
            "id": independent.key_id(key),
            "wrapped": independent.to_base64url(wrapped),
            "wrapped_by": "env:GOLDEN_KEK",
        }
        texts.append(members)
    shown = [",".join(f'"{name}":"{one[name]}"' for name in sorted(one)) for one in texts]
    listed = ",".join(f"{{{one}}}" for one in shown)
    canonical = (
        f'{{"format":"jwt-column key ring","keys":[{listed}],"revision":7,"ring":"golden","version":1}}'
    )
    order = ("id", "state", "tenant", "created", "activated", "deactivated", "compromised")
    blocks = []
    for key, one in zip(KEYS, texts, strict=True):
        one["mac"] = mac_independently(key, canonical)
        names = [*(name for name in order if name in one), "wrapped_by", "wrapped", "mac"]
        lines = ",\n".join(f'      "{name}": "{one[name]}"' for name in names)
        blocks.append(f"    {{\n{lines}\n    }}")
    listed = ",\n".join(blocks)
    return (
        '{\n  "format": "jwt-column key ring",\n  "version": 1,\n  "ring": "golden",\n  "revision": 7,\n'
        f'  "keys": [\n{listed}\n  ]\n}}\n'
    )


class TestFormat:
    """Bytes and what they say."""

    def test_golden_file_is_what_the_page_of_the_format_says(self) -> None:
        assert golden_text() == GOLDEN.read_text()

    def test_golden_file_loads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It must, in every release to come."""
        monkeypatch.setenv("GOLDEN_KEK", base64url.encode(KEK))
        path = tmp_path / "ring.json"
        path.write_bytes(GOLDEN.read_bytes())
        ring = KeyRing.from_uri(f"file:{path}")
        assert ring.key_ids == (FIRST_ID, THIRD_ID, SECOND_ID, FOURTH_ID)
        assert ring.tenants == {"acme": THIRD_ID}
        assert [key.secret_material() for key in ring.keys] == [FIRST, THIRD, SECOND, FOURTH]

    def test_golden_file_is_written_as_it_was_read(self) -> None:
        data = GOLDEN.read_bytes()
        assert data == RingFile.from_bytes(data).to_bytes()

    def test_golden_file_is_sealed_as_it_was(self) -> None:
        file = RingFile.from_bytes(GOLDEN.read_bytes())
        bare = dataclasses.replace(file, keys=tuple(dataclasses.replace(key, mac=b"") for key in file.keys))
        assert file == bare.sealed(data_keys(*KEYS))

    def test_bytes_that_the_local_wrapper_made_open_independently(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KEK", base64url.encode(KEK))
        wrapped = open_wrapper("env:KEK").wrap(FIRST, AssociatedData("sessions", FIRST_ID))
        header, nonce, sealed = wrapped[:5], wrapped[5:29], wrapped[29:]
        associated = header + b"jwt-column/key-ring/v1\x00sessions\x00" + FIRST_ID.encode()
        derived = independent.hkdf_sha256(KEK, b"jwt-column/key-ring/v1/local-kek", 32)
        assert (len(wrapped), independent.xaes_decrypt(derived, nonce, sealed, associated)) == (77, FIRST)

    @given(
        name=st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
        revision=st.integers(1, 2**53 - 1),
        wrapped=st.binary(min_size=1, max_size=4096),
        uri=st.from_regex(r"[a-z][a-z0-9+.-]{0,9}:[!-~]{0,60}", fullmatch=True),
        tenants=st.lists(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True), max_size=3, unique=True),
        times=st.lists(
            st.datetimes(datetime(1000, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)),
            min_size=4,
            max_size=4,
        ),
    )
    def test_every_file_is_read_as_it_was_written(
        self,
        name: str,
        revision: int,
        wrapped: bytes,
        uri: str,
        tenants: list[str],
        times: list[datetime],
    ) -> None:
        created, activated, deactivated, compromised = (time.replace(microsecond=0) for time in times)
        keys = [KeyEntry("00000000", KeyState.ACTIVE, uri, wrapped, created, activated, mac=b"m" * 32)]
        for number, tenant in enumerate(tenants, 1):
            keys.append(
                KeyEntry(
                    f"{number:08x}", KeyState.ACTIVE, uri, wrapped, created, tenant=tenant, mac=b"m" * 32
                )
            )
        leaked = KeyEntry(
            "ffffffff", KeyState.COMPROMISED, uri, wrapped, created, activated, deactivated, compromised
        )
        keys.append(dataclasses.replace(leaked, mac=b"m"))
        file = RingFile(name, revision, tuple(keys))
        assert file == RingFile.from_bytes(file.to_bytes())

    @given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        with pytest.raises(KeyRingError):
            RingFile.from_bytes(data)


def without(name: str) -> Callable[[Any], None]:
    return lambda content: content.__delitem__(name)


def with_key(number: int = 0, /, **members: Any) -> Callable[[Any], None]:
    """Return a change of members of one key; ... takes one away."""

    def change(content: Any) -> None:
        for name, value in members.items():
            if value is ...:
                del content["keys"][number][name]
            else:
                content["keys"][number][name] = value

    return change


def with_top(**members: Any) -> Callable[[Any], None]:
    return lambda content: content.update(members)


NOT_A_FILE = {
    "other format": (with_top(format="keys"), "format"),
    "no format": (without("format"), "format"),
    "newer version": (with_top(version=2), "another version"),
    "version as text": (with_top(version="1"), "version"),
    "version true": (with_top(version=True), "version"),
    "no revision": (without("revision"), "revision"),
    "revision 0": (with_top(revision=0), "out of range"),
    "revision too large": (with_top(revision=2**53), "out of range"),
    "revision with a fraction": (with_top(revision=1.0), "integers"),
    "revision NaN": (with_top(revision=float("nan")), "integers"),
    "name with a space": (with_top(ring="my ring"), "name"),
    "name empty": (with_top(ring=""), "name"),
    "name with a line feed": (with_top(ring="ring\n"), "name"),
    "name too long": (with_top(ring="r" * 65), "name"),
    "member that nobody knows": (with_top(comment="hello"), "does not have"),
    "keys as an object": (with_top(keys={}), "keys"),
    "no keys": (with_top(keys=[]), "1 to"),
    "a key as a text": (with_top(keys=["key"]), "key 1"),
    "a key as a list": (with_top(keys=[["id"]]), "JSON object"),
    "id in capitals": (with_key(id="ABCDEF01"), "id"),
    "id too short": (with_key(id="abc"), "id"),
    "id twice": (with_key(1, id=FIRST_ID), "twice"),
    "state that is none": (with_key(state="destroyed"), "state"),
    "no state": (with_key(state=...), "state"),
    "two active keys": (with_key(1, state="active"), "2 active keys"),
    "no active key": (with_key(state="deactivated"), "0 active keys"),
    "tenant without an active key": (with_key(1, tenant="acme"), "the tenant acme has 0"),
    "tenant with a space": (with_key(1, tenant="a b"), "tenant"),
    "tenant null": (with_key(1, tenant=None), "tenant"),
    "no creation time": (with_key(created=...), "created"),
    "time with an offset": (with_key(created="2026-11-23T20:00:00+00:00"), "time"),
    "time with a fraction": (with_key(created="2026-11-23T20:00:00.5Z"), "time"),
    "time of one digit": (with_key(created="2026-1-23T20:00:00Z"), "time"),
    "time that is none": (with_key(activated="2026-02-30T20:00:00Z"), "activated"),
    "URI without a scheme": (with_key(wrapped_by="kek"), "wrapped_by"),
    "URI with a space": (with_key(wrapped_by="standin: kek"), "wrapped_by"),
    "URI too long": (with_key(wrapped_by="standin:" + "k" * 2001), "wrapped_by"),
    "wrapped as a number": (with_key(wrapped=5), "wrapped"),
    "wrapped empty": (with_key(wrapped=""), "wrapped"),
    "wrapped padded": (with_key(wrapped="AAA="), "wrapped"),
    "wrapped too long": (with_key(wrapped="AAAA" * 1366), "wrapped"),
    "no mac": (with_key(mac=...), "mac"),
    "key with a member that nobody knows": (with_key(note="x"), "does not have"),
}


class TestReading:
    """What is no key-ring file."""

    @pytest.mark.parametrize(("change", "what"), NOT_A_FILE.values(), ids=NOT_A_FILE)
    def test_what_the_format_does_not_allow_is_refused(
        self, ring_path: Path, change: Callable[[Any], Any], what: str
    ) -> None:
        edit(ring_path, change)
        error = refusal(ring_path)
        assert type(error) is KeyRingError
        assert what in str(error)
        assert str(error).startswith(f"{ring_path}: ")

    def test_the_same_file_unchanged_is_taken(self, ring_path: Path) -> None:
        """The control of the test above: it was not the editing."""
        edit(ring_path, lambda _: None)
        assert KeyRing.from_uri(f"file:{ring_path}").key_ids == (FIRST_ID, SECOND_ID, THIRD_ID)

    def test_name_that_is_there_twice_is_refused(self, ring_path: Path) -> None:
        """Of two values one library takes the first and another the last."""
        text = ring_path.read_text()
        ring_path.write_text(text.replace('"revision": 1', '"revision": 1, "revision": 1'))
        assert "twice" in str(refusal(ring_path))

    @pytest.mark.parametrize(
        "text",
        [
            '{"half an object',
            '{"deep": ' + "[" * 100_000,
            '{"format": "\ud800"}',
            '{"two": 1} {"objects": 2}',
            '{"long": 1' + "0" * 5_000 + "}",
        ],
        ids=["half", "deep", "surrogate", "two", "long number"],
    )
    def test_what_is_no_json_is_refused_and_shown_nowhere(self, ring_path: Path, text: str) -> None:
        ring_path.write_bytes(text.encode("utf-8", "surrogatepass" if "\ud800" in text else "strict"))
        error = refusal(ring_path)
        assert type(error) is KeyRingError
        assert repr(text[-12:])[1:-1] not in locals_shown_by(error)

    def test_white_space_before_the_file_is_no_matter(self, ring_path: Path) -> None:
        ring_path.write_bytes(b"\n\r\t " + ring_path.read_bytes())
        assert KeyRing.from_uri(f"file:{ring_path}").active == FIRST_ID

    def test_file_that_is_too_large_is_not_read(self, ring_path: Path) -> None:
        data = ring_path.read_bytes()
        ring_path.write_bytes(data.ljust(MAX_BYTES))
        assert KeyRing.from_uri(f"file:{ring_path}").active == FIRST_ID
        ring_path.write_bytes(data.ljust(MAX_BYTES + 1))
        assert f"{MAX_BYTES} bytes" in str(refusal(ring_path))

    def test_number_of_keys_is_limited(self) -> None:
        entry = KeyEntry("00000000", KeyState.PRE_ACTIVATION, "env:K", b"x", NOW)
        entries = [dataclasses.replace(entry, id=f"{number:08x}") for number in range(MAX_KEYS)]
        active = dataclasses.replace(entry, id="ffffffff", state=KeyState.ACTIVE)
        RingFile("r", 1, (active, *entries[1:])).check()
        with pytest.raises(KeyRingError, match=f"1 to {MAX_KEYS}"):
            RingFile("r", 1, (active, *entries)).check()

    @needs_posix
    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o640, 0o755])
    def test_others_may_read_the_file(self, ring_path: Path, mode: int) -> None:
        ring_path.chmod(mode)
        assert KeyRing.from_uri(f"file:{ring_path}").active == FIRST_ID

    @needs_posix
    @pytest.mark.parametrize("mode", [0o664, 0o646, 0o622, 0o777])
    def test_others_may_not_write_the_file(self, ring_path: Path, mode: int) -> None:
        ring_path.chmod(mode)
        error = refusal(ring_path)
        assert type(error) is KeyRingError
        assert f"{mode:04o}" in str(error)
        assert f"chmod go-w {ring_path}" in str(error)


class TestIntegrity:
    """Whoever can write the file and has no key cannot change what it says."""

    CHANGES: Final = {
        "another key is active": lambda content: (
            content["keys"][0].update(state="deactivated"),
            content["keys"][1].update(state="active"),
        ),
        "a key is gone": lambda content: content["keys"].pop(1),
        "the order": lambda content: content["keys"].reverse(),
        "a key belongs to a tenant": lambda content: content["keys"][1].update(state="active", tenant="acme"),
        "a key has leaked": lambda content: content["keys"][1].update(state="compromised"),
        "a key is younger": with_key(activated="2027-01-01T00:00:00Z"),
        "the revision": with_top(revision=2),
        "a mac": with_key(2, mac=base64url.encode(bytes(32))),
        "a mac is cut": lambda content: content["keys"][0].update(mac=content["keys"][0]["mac"][:4]),
    }

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_change_without_the_keys_is_noticed(self, ring_path: Path, change: Callable[[Any], Any]) -> None:
        edit(ring_path, lambda content: change(content) and None)
        error = refusal(ring_path)
        assert type(error) is KeyRingError
        assert "changed without its keys" in str(error)

    @pytest.mark.parametrize(
        "change", [with_top(ring="other"), with_key(1, wrapped_by="standin:other")], ids=["name", "KEK"]
    )
    def test_wrapped_key_of_another_ring_or_kek_does_not_unwrap(
        self, ring_path: Path, change: Callable[[Any], Any]
    ) -> None:
        edit(ring_path, change)
        assert "not a key of this KEK" in str(refusal(ring_path))

    def test_wrapped_key_that_was_moved_does_not_unwrap(self, ring_path: Path) -> None:
        def swap(content: Any) -> None:
            first, second, _ = content["keys"]
            first["wrapped"], second["wrapped"] = second["wrapped"], first["wrapped"]

        edit(ring_path, swap)
        assert "not a key of this KEK" in str(refusal(ring_path))

    def test_whoever_has_one_old_key_cannot_make_it_active_beside_the_others(self, ring_path: Path) -> None:
        """That is why every key vouches for the file, and not the active one alone."""
        file = StoredRing.read(ring_path).file
        forged = _changes.activated(file, SECOND_ID, LATER)
        # All macs under the one key that leaked.
        leaked = dict.fromkeys((FIRST_ID, SECOND_ID, THIRD_ID), DataKey(SECOND))
        ring_path.write_bytes(forged.sealed(leaked).to_bytes())
        assert "does not authenticate under key" in str(refusal(ring_path))
        # The control: with all three keys it is no forgery.
        ring_path.write_bytes(forged.sealed(data_keys(FIRST, SECOND, THIRD)).to_bytes())
        assert KeyRing.from_uri(f"file:{ring_path}").active == SECOND_ID

    def test_whoever_can_wrap_cannot_put_a_key_of_their_own_beside_the_others(self, ring_path: Path) -> None:
        file = StoredRing.read(ring_path).file
        (wrapped,) = wrap(open_wrapper("standin:kek"), "sessions", [DataKey(FOURTH)])
        forged = _changes.activated(
            _changes.added(file, FOURTH_ID, "standin:kek", wrapped, LATER), FOURTH_ID, LATER
        )
        theirs = dict.fromkeys((FIRST_ID, SECOND_ID, THIRD_ID, FOURTH_ID), DataKey(FOURTH))
        ring_path.write_bytes(forged.sealed(theirs).to_bytes())
        assert "does not authenticate under key" in str(refusal(ring_path))

    def test_older_whole_file_is_not_noticed(self, ring_path: Path) -> None:
        """What the page of the format says it does not catch."""
        older = ring_path.read_bytes()
        ring, keys = StoredRing.read(ring_path), data_keys(FIRST, SECOND, THIRD)
        ring.write(_changes.activated(ring.file, SECOND_ID, LATER), keys)
        assert KeyRing.from_uri(f"file:{ring_path}").active == SECOND_ID
        ring_path.write_bytes(older)
        assert KeyRing.from_uri(f"file:{ring_path}").active == FIRST_ID


class TestWrapping:
    """Keys into their wrapping and out of it."""

    def test_keys_come_back_by_their_ids(self, standin: Standin) -> None:
        keys = unwrap(make_file(FIRST, SECOND))
        assert {key_id: key.secret_material() for key_id, key in keys.items()} == {
            FIRST_ID: FIRST,
            SECOND_ID: SECOND,
        }

    def test_each_kek_is_asked_once_for_all_of_its_keys(self, standin: Standin) -> None:
        file = make_file(FIRST, SECOND, THIRD)
        (wrapped,) = wrap(open_wrapper("standin:other"), "sessions", [DataKey(FOURTH)])
        file = _changes.added(file, FOURTH_ID, "standin:other", wrapped, NOW).sealed(data_keys(*KEYS))
        standin.calls.clear()
        assert list(unwrap(file)) == list(IDS)
        assert standin.calls == [("unwrap", "standin:kek", 3), ("unwrap", "standin:other", 1)]

    @pytest.mark.parametrize(
        ("garble", "what"),
        [
            (lambda secrets: [secrets[1], secrets[0]], "holds another key"),
            (lambda secrets: [secrets[0], secrets[1][:31]], "32 bytes"),
        ],
        ids=["exchanged", "short"],
    )
    def test_key_that_is_not_what_it_is_called_is_refused(
        self, ring_path: Path, standin: Standin, garble: Callable[[list[bytes]], list[bytes]], what: str
    ) -> None:
        standin.after_unwrap = lambda secrets: [*garble(secrets), *secrets[2:]]
        assert what in str(refusal(ring_path))

    def test_wrapper_that_loses_keys_is_at_fault(self, ring_path: Path, standin: Standin) -> None:
        standin.after_unwrap = lambda secrets: secrets[:-1]
        assert type(refusal(ring_path)) is KeyRingError

    @pytest.mark.parametrize("retryable", [True, False])
    def test_kek_that_cannot_be_had_makes_the_ring_unavailable(
        self, ring_path: Path, standin: Standin, retryable: bool
    ) -> None:
        standin.failure = KeyUnavailableError("standin: sealed", retryable=retryable)
        error = refusal(ring_path)
        assert isinstance(error, KeyUnavailableError)
        assert error.retryable is retryable
        assert str(error) == f"{ring_path}: standin: sealed"

    def test_loaded_ring_goes_on_while_its_kek_cannot_be_had(self, ring_path: Path, standin: Standin) -> None:
        ring = KeyRing.from_uri(f"file:{ring_path}")
        standin.failure = KeyUnavailableError("standin: sealed", retryable=True)
        with pytest.raises(KeyUnavailableError):
            ring.reload()
        assert ring.key_ids == (FIRST_ID, SECOND_ID, THIRD_ID)

    @pytest.mark.parametrize(
        ("garble", "what"),
        [
            (lambda _: b"", "made 0 bytes"),
            (lambda _: bytes(4097), "made 4097 bytes"),
            (lambda wrapped: wrapped[:-1] + bytes([wrapped[-1] ^ 1]), "not a key of this KEK"),
        ],
        ids=["empty", "too long", "damaged"],
    )
    def test_what_does_not_unwrap_is_not_used(
        self, standin: Standin, garble: Callable[[bytes], bytes], what: str
    ) -> None:
        standin.after_wrap = garble
        with pytest.raises(KeyRingError, match=what):
            wrap(open_wrapper("standin:kek"), "sessions", [DataKey(FIRST)])

    def test_what_unwraps_to_another_key_is_not_used(self, standin: Standin) -> None:
        standin.after_unwrap = lambda _: [SECOND]
        with pytest.raises(KeyRingError, match="did not unwrap to the same key") as caught:
            wrap(open_wrapper("standin:kek"), "sessions", [DataKey(FIRST)])
        assert caught.value.key_id == FIRST_ID

    def test_rewrap_under_the_same_kek_is_left_to_a_system_that_can(self, standin: Standin) -> None:
        file = make_file(FIRST, SECOND)
        standin.version = 2
        standin.calls.clear()
        wrapped = rewrap(open_wrapper("standin:kek"), file, data_keys(FIRST, SECOND))
        assert [ciphertext[0] for ciphertext in wrapped] == [2, 2]
        assert standin.calls == [("rewrap", "standin:kek", 2), ("unwrap", "standin:kek", 2)]

    @pytest.mark.parametrize(("old", "new"), [("old", "old"), ("old", "kek"), ("kek", "other")])
    def test_rewrap_otherwise_wraps_anew(self, standin: Standin, old: str, new: str) -> None:
        file = make_file(FIRST, SECOND, uri=f"standin:{old}")
        standin.calls.clear()
        wrapped = rewrap(open_wrapper(f"standin:{new}"), file, data_keys(FIRST, SECOND))
        assert [what for what, *_ in standin.calls] == ["wrap", "wrap", "unwrap"]
        keys = data_keys(FIRST, SECOND)
        file = _changes.rewrapped(file, f"standin:{new}", wrapped).sealed(keys)
        assert list(unwrap(file)) == [FIRST_ID, SECOND_ID]

    def test_rewrap_that_damages_a_key_is_noticed(self, standin: Standin) -> None:
        file = make_file(FIRST)
        standin.after_unwrap = lambda _: [SECOND]
        with pytest.raises(KeyRingError, match="did not unwrap"):
            rewrap(open_wrapper("standin:kek"), file, data_keys(FIRST))

    def test_bad_key_does_not_hide_the_good_ones_from_whoever_looks(self, standin: Standin) -> None:
        file = make_file(FIRST, SECOND, THIRD)
        first, second, third = file.keys
        damaged = dataclasses.replace(second, wrapped=second.wrapped[:-1])
        unwrapped = try_unwrap(dataclasses.replace(file, keys=(first, damaged, third)))
        assert list(unwrapped.keys) == [FIRST_ID, THIRD_ID]
        assert "not a key of this KEK" in str(unwrapped.failures[SECOND_ID])

    def test_kek_that_cannot_be_had_is_asked_once(self, standin: Standin) -> None:
        file = make_file(FIRST, SECOND)
        standin.calls.clear()
        standin.failure = KeyUnavailableError("down")
        assert list(try_unwrap(file).failures) == [FIRST_ID, SECOND_ID]
        assert len(standin.calls) == 1

    def test_kek_whose_provider_is_not_there_fails_its_keys(self) -> None:
        entry = KeyEntry(FIRST_ID, KeyState.ACTIVE, "nobody:kek", b"wrapped", NOW, mac=bytes(32))
        (failure,) = try_unwrap(RingFile("r", 1, (entry,))).failures.values()
        assert isinstance(failure, ConfigurationError)

    def test_failures_show_no_key_in_their_frames(self, standin: Standin) -> None:
        file = make_file(FIRST, SECOND)
        standin.after_unwrap = lambda secrets: [*secrets[:-1], secrets[0]]
        with pytest.raises(KeyRingError) as direct:
            unwrap(file)
        # The control: asked directly, the frames are there, and a key in them.
        assert repr(FIRST) in locals_shown_by(direct.value)
        for failure in try_unwrap(file).failures.values():
            assert repr(FIRST) not in locals_shown_by(failure)
            assert set() == revealed_by(failure, FIRST, SECOND)


class TestLocalWrapper:
    """A KEK in a variable or a file."""

    @pytest.fixture(autouse=True)
    def kek(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEK", base64url.encode(KEK))

    def wrapped(self) -> WrappedKey:
        associated = AssociatedData("sessions", FIRST_ID)
        return WrappedKey(open_wrapper("env:KEK").wrap(FIRST, associated), associated)

    def test_wrapped_key_unwraps(self) -> None:
        assert open_wrapper("env:KEK").unwrap([self.wrapped()] * 2) == [FIRST] * 2

    def test_equal_keys_are_wrapped_differently(self) -> None:
        assert self.wrapped() != self.wrapped()

    @pytest.mark.parametrize("position", [0, 1, 5, 28, 29, 76])
    def test_any_changed_byte_is_noticed(self, position: int) -> None:
        wrapped = self.wrapped()
        changed = bytearray(wrapped.ciphertext)
        changed[position] ^= 1
        with pytest.raises(KeyRingError) as caught:
            open_wrapper("env:KEK").unwrap([wrapped._replace(ciphertext=bytes(changed))])
        assert caught.value.key_id == FIRST_ID
        assert set() == revealed_by(caught.value, FIRST, KEK)

    @pytest.mark.parametrize("length", [0, 1, 5, 44, 76])
    def test_cut_key_is_noticed(self, length: int) -> None:
        wrapped = self.wrapped()
        with pytest.raises(KeyRingError):
            open_wrapper("env:KEK").unwrap([wrapped._replace(ciphertext=wrapped.ciphertext[:length])])

    @pytest.mark.parametrize(
        "other", [AssociatedData("other", FIRST_ID), AssociatedData("sessions", SECOND_ID)]
    )
    def test_key_of_another_ring_or_id_is_noticed(self, other: AssociatedData) -> None:
        with pytest.raises(KeyRingError, match="another key ring or key id"):
            open_wrapper("env:KEK").unwrap([self.wrapped()._replace(associated_data=other)])

    def test_kek_is_replaced_by_putting_the_new_one_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrapped = self.wrapped()
        monkeypatch.setenv("KEK", f"{base64url.encode(SECOND)},{base64url.encode(KEK)}")
        assert open_wrapper("env:KEK").unwrap([wrapped, self.wrapped()]) == [FIRST, FIRST]
        monkeypatch.setenv("KEK", base64url.encode(SECOND))
        with pytest.raises(KeyRingError, match="does not hold the key"):
            open_wrapper("env:KEK").unwrap([wrapped])

    def test_kek_that_is_not_there_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KEK")
        assert open_wrapper("env:KEK").uri == "env:KEK"
        with pytest.raises(KeyUnavailableError, match="KEK"):
            open_wrapper("env:KEK").wrap(FIRST, AssociatedData("sessions", FIRST_ID))

    def test_key_ring_file_is_no_kek(self, ring_path: Path) -> None:
        """One that is under itself would never load."""
        wrapper = open_wrapper(f"file:{ring_path}")
        with pytest.raises(KeyRingError, match="cannot be KEKs"):
            wrapper.wrap(FIRST, AssociatedData("sessions", FIRST_ID))
        # The control: a file of plain keys is one.
        plain = ring_path.with_name("kek.key")
        plain.touch(mode=0o600)
        plain.write_text(base64url.encode(KEK))
        wrapper, associated = open_wrapper(f"file:{plain}"), AssociatedData("sessions", FIRST_ID)
        wrapped = WrappedKey(wrapper.wrap(FIRST, associated), associated)
        assert (wrapper.uri, wrapper.unwrap([wrapped])) == (f"file:{plain}", [FIRST])


class TestChanges:
    """What an operator can do to a file."""

    def file(self) -> RingFile:
        wrapped = [(FIRST_ID, b"1"), (SECOND_ID, b"2")]
        return _changes.created("sessions", wrapped, "env:KEK", NOW)

    def states(self, file: RingFile) -> list[str]:
        return [key.state.value for key in file.keys]

    def test_first_key_of_a_new_file_is_active(self) -> None:
        file = self.file()
        assert (file.revision, self.states(file)) == (1, ["active", "deactivated"])
        assert file.keys[0].activated == NOW

    def test_added_key_waits_to_be_activated(self) -> None:
        file = _changes.added(self.file(), THIRD_ID, "env:KEK", b"3", LATER)
        assert (file.revision, self.states(file)) == (2, ["active", "deactivated", "pre-activation"])
        assert (file.keys[2].created, file.keys[2].activated) == (LATER, None)

    def test_first_key_of_a_tenant_is_active_at_once_and_the_next_waits(self) -> None:
        file = _changes.added(self.file(), THIRD_ID, "env:KEK", b"3", LATER, tenant="acme")
        file = _changes.added(file, FOURTH_ID, "env:KEK", b"4", LATER, tenant="acme")
        assert self.states(file) == ["active", "deactivated", "active", "pre-activation"]
        file = _changes.activated(file, FOURTH_ID, LATER)
        assert self.states(file) == ["active", "deactivated", "deactivated", "active"]
        assert file.active_of("acme").id == FOURTH_ID
        assert file.active.id == FIRST_ID

    def test_activated_key_takes_the_place_of_the_active_one(self) -> None:
        file = _changes.added(self.file(), THIRD_ID, "env:KEK", b"3", NOW)
        file = _changes.activated(file, THIRD_ID, LATER)
        assert self.states(file) == ["deactivated", "deactivated", "active"]
        assert (file.keys[0].deactivated, file.keys[2].activated) == (LATER, LATER)

    def test_one_can_go_back_to_the_key_before(self) -> None:
        file = _changes.activated(_changes.activated(self.file(), SECOND_ID, NOW), FIRST_ID, LATER)
        assert self.states(file) == ["active", "deactivated"]
        assert (file.keys[0].activated, file.keys[0].deactivated) == (LATER, None)

    def test_leaked_key_is_marked_and_does_not_become_active_again(self) -> None:
        file = _changes.compromised(self.file(), SECOND_ID, LATER)
        assert self.states(file) == ["active", "compromised"]
        assert file.keys[1].compromised == LATER
        with pytest.raises(KeyRingError, match="does not become active again"):
            _changes.activated(file, SECOND_ID, LATER)
        with pytest.raises(KeyRingError, match="already"):
            _changes.compromised(file, SECOND_ID, LATER)

    def test_removed_keys_are_gone(self) -> None:
        file = _changes.removed(self.file(), [SECOND_ID])
        assert [key.id for key in file.keys] == [FIRST_ID]

    def test_all_keys_of_a_tenant_are_removed_together(self) -> None:
        file = _changes.added(self.file(), THIRD_ID, "env:KEK", b"3", LATER, tenant="acme")
        file = _changes.added(file, FOURTH_ID, "env:KEK", b"4", LATER, tenant="acme")
        with pytest.raises(KeyRingError, match="which has others") as caught:
            _changes.removed(file, [THIRD_ID])
        assert caught.value.key_id == THIRD_ID
        assert [key.id for key in _changes.removed(file, [FOURTH_ID]).keys] == [*IDS[:3]]
        assert [key.id for key in _changes.removed(file, [THIRD_ID, FOURTH_ID]).keys] == [*IDS[:2]]

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (lambda file: _changes.activated(file, FIRST_ID, LATER), "active already"),
            (lambda file: _changes.activated(file, THIRD_ID, LATER), "has no key"),
            (lambda file: _changes.compromised(file, FIRST_ID, LATER), "activate another key first"),
            (lambda file: _changes.compromised(file, THIRD_ID, LATER), "has no key"),
            (lambda file: _changes.removed(file, [FIRST_ID]), "the active key"),
            (lambda file: _changes.removed(file, [SECOND_ID, THIRD_ID]), "has no key"),
            (lambda file: _changes.added(file, FIRST_ID, "env:KEK", b"1", LATER), "twice"),
        ],
    )
    def test_change_that_makes_no_sense_is_refused(
        self, change: Callable[[RingFile], RingFile], what: str
    ) -> None:
        with pytest.raises(KeyRingError, match=what) as caught:
            change(self.file())
        assert caught.value.key_id in IDS


class TestWriting:
    """The file on disk."""

    def change(self, path: Path, *, keep_previous: bool = True) -> StoredRing:
        ring = StoredRing.read(path)
        keys = ring.unwrap()
        return ring.write(_changes.activated(ring.file, SECOND_ID, LATER), keys, keep_previous=keep_previous)

    def test_new_file_can_be_read_by_others_and_written_by_none(self, ring_path: Path) -> None:
        assert stat.S_IMODE(ring_path.stat().st_mode) == 0o644
        assert [ring_path] == list(ring_path.parent.iterdir())

    def test_file_that_is_there_is_not_replaced_by_a_new_one(self, ring_path: Path) -> None:
        before = ring_path.read_bytes()
        with pytest.raises(ConfigurationError, match="exists"):
            create_ring_file(ring_path, make_file(FOURTH), data_keys(FOURTH))
        assert before == ring_path.read_bytes()

    def test_next_revision_is_written_and_the_one_before_kept(self, ring_path: Path) -> None:
        before = ring_path.read_bytes()
        ring = self.change(ring_path)
        previous = ring_path.with_name("ring.json.previous")
        assert (ring.file.revision, ring.file.active.id) == (2, SECOND_ID)
        assert before == previous.read_bytes()
        assert KeyRing.from_uri(f"file:{previous}").active == FIRST_ID
        assert {ring_path, previous} == set(ring_path.parent.iterdir())

    def test_previous_version_can_be_left_out_and_an_older_one_goes(self, ring_path: Path) -> None:
        ring_path.with_name("ring.json.previous").write_text("older")
        self.change(ring_path, keep_previous=False)
        assert [ring_path] == list(ring_path.parent.iterdir())

    @needs_posix
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
    def test_mode_stays_as_it_was(self, ring_path: Path, mode: int) -> None:
        ring_path.chmod(mode)
        self.change(ring_path)
        for path in (ring_path, ring_path.with_name("ring.json.previous")):
            assert stat.S_IMODE(path.stat().st_mode) == mode

    @needs_posix
    @pytest.mark.skipif(
        os.name == "posix" and os.geteuid() != 0, reason="Only the superuser gives files away."
    )
    def test_owner_stays_as_it_was(self, ring_path: Path) -> None:
        """Else a command that root runs would take the file from the application's user."""
        os.chown(ring_path, 1234, 5678)
        self.change(ring_path)
        assert (ring_path.stat().st_uid, ring_path.stat().st_gid) == (1234, 5678)

    def test_file_behind_a_link_is_changed(self, ring_path: Path, tmp_path: Path) -> None:
        link = tmp_path / "link.json"
        link.symlink_to(ring_path.name)
        self.change(link)
        assert link.is_symlink()
        assert KeyRing.from_uri(f"file:{ring_path}").active == SECOND_ID
        assert ring_path.with_name("ring.json.previous").exists()

    def test_change_that_began_with_an_older_file_is_refused(self, ring_path: Path) -> None:
        ring = StoredRing.read(ring_path)
        keys = ring.unwrap()
        self.change(ring_path)
        after = ring_path.read_bytes()
        with pytest.raises(ConfigurationError, match="changed while this command ran"):
            ring.write(_changes.removed(ring.file, [THIRD_ID]), keys)
        assert after == ring_path.read_bytes()

    def test_of_changes_at_the_same_time_none_is_lost(self, ring_path: Path) -> None:
        """Each is made, or refused and made again: at the end all of them are there."""
        keys = data_keys(FIRST, SECOND, THIRD)
        start = threading.Barrier(8)

        def change(_: int) -> int:
            start.wait()
            for refused in itertools.count():
                ring = StoredRing.read(ring_path)
                new = dataclasses.replace(ring.file, revision=ring.file.revision + 1)
                try:
                    ring.write(new, keys)
                except ConfigurationError:
                    continue
                return refused
            raise AssertionError

        with ThreadPoolExecutor(8) as pool:
            refused = sum(pool.map(change, range(8)))
        assert StoredRing.read(ring_path).file.revision == 9
        # The control: they did get into each other's way.
        assert refused > 0

    def test_change_waits_for_one_that_is_being_written(
        self, ring_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that holds the lock holds up the change, and what it wrote is then noticed."""
        pytest.importorskip("fcntl")
        is_waiting = threading.Event()
        open_for_lock = _disk._open_for_lock

        def open_and_tell(path: Path) -> Any:
            is_waiting.set()
            return open_for_lock(path)

        monkeypatch.setattr(_disk, "_open_for_lock", open_and_tell)
        code = f"""
import fcntl, os, sys
path = {str(ring_path)!r}
with open(path, "rb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
    with open(path + ".new", "wb") as new:
        new.write(file.read() + b" ")
    os.replace(path + ".new", path)
"""
        command = [sys.executable, "-c", code]
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
            ThreadPoolExecutor(1) as pool,
        ):
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdout.readline()
            change = pool.submit(self.change, ring_path)
            assert is_waiting.wait(30)
            other.stdin.write(b"\n")
            other.stdin.flush()
            other.wait()
            with pytest.raises(ConfigurationError, match="changed while this command ran"):
                change.result(60)

    def test_full_disk_leaves_the_old_file_and_no_part_of_a_new_one(self, ring_path: Path) -> None:
        from tests.keys.test_providers import full_disk

        before = ring_path.read_bytes()
        with full_disk(), pytest.raises(ConfigurationError, match="cannot be written"):
            self.change(ring_path)
        assert before == ring_path.read_bytes()
        assert [ring_path] == list(ring_path.parent.iterdir())

    def test_file_that_would_not_load_is_not_written(self, ring_path: Path) -> None:
        ring = StoredRing.read(ring_path)
        keys = ring.unwrap()
        before = ring_path.read_bytes()
        first, *others = ring.file.keys
        # A time before the year 1000 is written with three digits, and not read.
        odd = dataclasses.replace(first, created=datetime(999, 1, 1, tzinfo=UTC))
        with pytest.raises(KeyRingError):
            ring.write(dataclasses.replace(ring.file, keys=(odd, *others)), keys)
        fraction = dataclasses.replace(first, created=NOW.replace(microsecond=5))
        with pytest.raises(KeyRingError, match="would not read back"):
            ring.write(dataclasses.replace(ring.file, keys=(fraction, *others)), keys)
        assert before == ring_path.read_bytes()

    def test_file_that_would_be_too_large_is_not_written(self, ring_path: Path) -> None:
        ring = StoredRing.read(ring_path)
        secrets = [number.to_bytes(32, "big") for number in range(1, 300)]
        entries = [
            KeyEntry(key_id, KeyState.PRE_ACTIVATION, "standin:kek", bytes(4096), NOW)
            for key_id in data_keys(*secrets)
        ]
        keys = {**ring.unwrap(), **data_keys(*secrets)}
        with pytest.raises(KeyRingError, match="at most"):
            ring.write(dataclasses.replace(ring.file, keys=(*ring.file.keys, *entries)), keys)

    def test_error_of_a_key_names_the_file(self, ring_path: Path, standin: Standin) -> None:
        standin.failure = KeyUnavailableError("standin: sealed", retryable=True)
        with pytest.raises(KeyUnavailableError, match=r"ring\.json: standin: sealed") as caught:
            StoredRing.read(ring_path).unwrap()
        assert caught.value.retryable

    def test_lock_is_taken_where_the_file_may_only_be_read(
        self, ring_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The owner of a file without a write permission may still replace it."""

        def refuse(path: Path) -> Any:
            raise PermissionError

        original = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda path, mode="r", **kw: refuse(path) if "+" in mode else original(path, mode, **kw),
        )
        assert self.change(ring_path).file.revision == 2

    def test_previous_version_is_named_after_the_file(self) -> None:
        assert _disk.previous_of(Path("/etc/app/ring.json")) == Path("/etc/app/ring.json.previous")
