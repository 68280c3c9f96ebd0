"""``pkcs11:``: an AES key of a real SoftHSM2 token wraps data keys."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap

from jwt_column import ConfigurationError, KeyRingError, KeyUnavailableError
from jwt_column.errors import MissingExtraError
from jwt_column.keys.providers import pkcs11_module as _pkcs11_module
from jwt_column.keys.providers.pin import read_pin
from jwt_column.keys.providers.pkcs11 import PKCS11Wrapper, open_wrapper
from jwt_column.keys.providers.pkcs11_uri import KEKName, parse, pin_source
from jwt_column.providers import AssociatedData, KeyWrapper, Rewrapper, WrappedKey
from tests.support.kms import AnyWrapper, failure_of
from tests.support.tokens import locals_shown_by, revealed_by

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hsm import HSM, Token

KEY = bytes(range(32))
OTHER_KEY = bytes(range(100, 132))
KEK_BYTES = bytes(range(200, 232))
IV = bytes(range(12))
BOUND = AssociatedData("sessions", "b01065a6")
ELSEWHERE = AssociatedData("sessions", "b01065a7")
GCM, KEY_WRAP = b"\x01", b"\x02"

needs_posix = pytest.mark.skipif(os.name != "posix", reason="This system has no file modes.")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="This system has no fork.")


@pytest.fixture(autouse=True)
def no_pkcs11_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JWT_COLUMN_PKCS11_MODULE", "JWT_COLUMN_PKCS11_PIN_SOURCE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def token(hsm: HSM) -> Token:
    """A token with a KEK of each form, for tests that change nothing of it."""
    token = hsm.new_token()
    token.new_kek()
    token.new_kek("wrapping", b"\x02", ENCRYPT=False, DECRYPT=False, WRAP=True, UNWRAP=True)
    return token


@pytest.fixture(params=["kek", "wrapping"])
def wrapper(request: pytest.FixtureRequest, token: Token) -> PKCS11Wrapper:
    """A KEK for AES-GCM, and one for AES key wrap."""
    return open_wrapper(token.rest(f"object={request.param}"))


def refusal(rest: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        open_wrapper(rest)
    return caught.value


class TestURI:
    """RFC 7512, and what of it names a KEK."""

    def test_every_attribute_is_read(self) -> None:
        rest = (
            "token=App%20keys;manufacturer=Mueller%20%26%20S%C3%B6hne;model=A-1;serial=06bf:89;slot-id=7;"
            "object=kek%3Bone;id=%01a%ff;type=secret-key"
            "?module-path=/usr/lib/p%20k.so&pin-source=file:///etc/app/pin&timeout=2.5"
        )
        expected = KEKName(
            token="App keys",
            manufacturer="Mueller & Söhne",
            model="A-1",
            serial="06bf:89",
            slot_id=7,
            label="kek;one",
            id=b"\x01a\xff",
            module_path="/usr/lib/p k.so",
            pin_source="file:/etc/app/pin",
            timeout=2.5,
        )
        assert parse(rest) == expected

    def test_what_is_left_out_is_open(self) -> None:
        name = parse("object=kek")
        assert (name.token, name.serial, name.slot_id, name.id, name.module_path, name.pin_source) == (
            None,
        ) * 6
        assert name.timeout == 10.0

    def test_a_plus_sign_is_no_space(self) -> None:
        """RFC 7512 has percent-encoding only, not that of HTML forms."""
        assert parse("object=a+b?module-path=/a+b.so") == parse("object=a%2Bb?module-path=/a%2Bb.so")

    def test_order_does_not_matter(self) -> None:
        assert parse("id=%01;token=t;object=o") == parse("object=o;token=t;id=%01")

    @pytest.mark.parametrize(
        ("rest", "hint"),
        [
            ("", "names the KEK"),
            ("?timeout=1", "names the KEK"),
            ("token=app", "names the KEK"),
            ("object=", "empty"),
            ("object=a;", "joined by ;"),
            ("object=a;;id=%01", "joined by ;"),
            ("object=a;object=a", "once at most"),
            ("object=a?timeout=1&timeout=1", "once at most"),
            ("object=a b", "percent-encoded"),
            ("object=a/b", "percent-encoded"),
            ("object=a%2", "percent-encoded"),
            ("object=a%zz", "percent-encoded"),
            ("object=a#b", "percent-encoded"),
            ("object=ü", "percent-encoded"),
            ("object=%ff", "UTF-8"),
            ("object=a%00", "UTF-8"),
            ("object=a;type=private", "type=secret-key"),
            ("object=a;type=Secret-Key", "type=secret-key"),
            ("object=a;slot-id=x", "decimal"),
            ("object=a;slot-id=-1", "decimal"),
            ("object=a;library-manufacturer=x", "token, manufacturer"),
            ("object=a;Object=a", "token, manufacturer"),
            ("object=a;module-path=/x.so", "token, manufacturer"),
            ("object=a?", "module-path, pin-source"),
            ("object=a?module-name=softhsm2", "module-path, pin-source"),
            ("object=a?timeout=0", "timeout"),
            ("object=a?timeout=nan", "timeout"),
            ("object=a?module-path=/x.so?y=z&", "joined by &"),
        ],
    )
    def test_anything_else_is_refused(self, rest: str, hint: str) -> None:
        assert hint in str(refusal(rest))

    @pytest.mark.parametrize(
        "rest",
        [
            "object=a?pin-value=secret-pin-4711",
            "object=a;pin-value=secret-pin-4711",
            "object=a?pin-source=secret-pin-4711",
            "object=a?pin-source=env:secret-pin-4711",
            "object=a?pin-source=file:secret-pin-4711",
            "object=a?pin-source=file://secret-pin-4711",
            "object=a?pin-source=|echo%20secret-pin-4711",
            "object=a?PIN-VALUE=secret-pin-4711",
            "object=a?pin=secret-pin-4711",
            "object=a?timeout=secret-pin-4711",
            "secret-pin-4711",
        ],
    )
    def test_a_pin_in_it_is_refused_and_not_shown(self, rest: str) -> None:
        assert set() == revealed_by(refusal(rest), "secret-pin-4711")

    def test_a_refused_pin_says_where_it_belongs(self) -> None:
        assert "pin-source=file:/PATH or pin-source=env:NAME" in str(refusal("object=a?pin-value=1234"))

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("file:/etc/pin", "file:/etc/pin"),
            ("file:///etc/pin", "file:/etc/pin"),
            ("/etc/pin", "file:/etc/pin"),
            ("env:HSM_PIN", "env:HSM_PIN"),
        ],
    )
    def test_sources_of_a_pin(self, source: str, expected: str) -> None:
        assert pin_source(source) == expected

    def test_uri_is_kept_as_it_was_given(self) -> None:
        rest = "token=app;object=kek?pin-source=env:HSM_PIN"
        assert open_wrapper(rest).uri == f"pkcs11:{rest}"

    def test_nothing_is_reached_before_the_first_call(self) -> None:
        assert isinstance(open_wrapper("object=kek?module-path=/nowhere.so"), PKCS11Wrapper)


class TestPIN:
    """The PIN's file or variable."""

    def write(self, directory: Path, content: bytes, mode: int = 0o600) -> str:
        path = directory / "pin"
        path.write_bytes(content)
        path.chmod(mode)
        return f"file:{path}"

    @pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
    def test_file_may_end_with_a_line_feed(self, tmp_path: Path, end: bytes) -> None:
        assert read_pin(self.write(tmp_path, b" pin 47 " + end)) == " pin 47 "

    def test_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HSM_PIN", "1234\n")
        assert read_pin("env:HSM_PIN") == "1234"

    def test_variable_that_is_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HSM_PIN", raising=False)
        with pytest.raises(ConfigurationError, match="HSM_PIN holds no PIN"):
            read_pin("env:HSM_PIN")

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "holds no PIN"),
            (b"\n", "holds no PIN"),
            (b"x" * 1025, "too long"),
            (b"hidden\xff", "not a text"),
            (b"hidden\0", "not a text"),
        ],
    )
    def test_file_without_a_pin(self, tmp_path: Path, content: bytes, problem: str) -> None:
        with pytest.raises(ConfigurationError, match=problem) as caught:
            read_pin(self.write(tmp_path, content))
        shown = str(caught.value).replace(str(tmp_path), "")
        assert "hidden" not in shown

    def test_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="No such file"):
            read_pin(f"file:{tmp_path}/nowhere")

    @needs_posix
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
    def test_file_that_others_can_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        with pytest.raises(ConfigurationError, match=f"mode {mode:04o}.*chmod 600"):
            read_pin(self.write(tmp_path, b"1234", mode))


class TestWrapping(AnyWrapper):
    """What is wrapped, and that nothing else opens it."""

    def test_it_is_a_key_wrapper_and_no_rewrapper(self, wrapper: PKCS11Wrapper) -> None:
        accepted: KeyWrapper = wrapper
        assert not isinstance(accepted, Rewrapper)

    def test_aes_gcm_is_what_others_make_of_the_same_key(self, token: Token) -> None:
        token.new_kek("known", b"\x03", VALUE=KEK_BYTES)
        wrapper = open_wrapper(token.rest("object=known"))
        bound = GCM + b"jwt-column/key-ring/v1\0sessions\0b01065a6"
        expected = GCM + IV + AESGCM(KEK_BYTES).encrypt(IV, KEY, bound)
        assert wrapper._wrap(KEY, BOUND, IV) == expected
        assert len(expected) == 61
        assert wrapper.unwrap([WrappedKey(expected, BOUND)]) == [KEY]

    def test_aes_key_wrap_is_what_others_make_of_the_same_key(self, token: Token) -> None:
        attributes: dict[str, Any] = {"ENCRYPT": False, "DECRYPT": False, "WRAP": True, "UNWRAP": True}
        token.new_kek("known-wrapping", b"\x04", VALUE=KEK_BYTES, **attributes)
        wrapper = open_wrapper(token.rest("object=known-wrapping"))
        bound = KEY_WRAP + b"jwt-column/key-ring/v1\0sessions\0b01065a6"
        expected = KEY_WRAP + aes_key_wrap(KEK_BYTES, KEY + sha256(bound).digest())
        assert wrapper.wrap(KEY, BOUND) == expected
        assert len(expected) == 73
        assert aes_key_unwrap(KEK_BYTES, expected[1:])[:32] == KEY
        assert wrapper.unwrap([WrappedKey(expected, BOUND)]) == [KEY]

    def test_ivs_are_random(self, token: Token) -> None:
        wrapper = open_wrapper(token.rest())
        assert len({wrapper.wrap(KEY, BOUND)[1:13] for _ in range(5)}) == 5

    def test_any_change_is_noticed(self, wrapper: PKCS11Wrapper) -> None:
        ciphertext = wrapper.wrap(KEY, BOUND)
        changed = [
            ciphertext[:at] + bytes([ciphertext[at] ^ 1]) + ciphertext[at + 1 :]
            for at in (0, 1, 12, 13, 44, 45, len(ciphertext) - 1)
        ]
        for bad in [
            *changed,
            b"",
            ciphertext[:1],
            ciphertext[:-1],
            ciphertext + b"\0",
            b"vault:v1:" + ciphertext,
        ]:
            with pytest.raises(KeyRingError) as caught:
                wrapper.unwrap([WrappedKey(bad, BOUND)])
            assert type(caught.value) is KeyRingError, bad[:1]

    def test_what_another_kek_wrapped_does_not_open(self, token: Token) -> None:
        """Each KEK says so of what the other one wrapped, also where it lacks the mechanism."""
        gcm, wrapping = (open_wrapper(token.rest(f"object={name}")) for name in ("kek", "wrapping"))
        token.new_kek("another", b"\x05")
        another = open_wrapper(token.rest("object=another"))
        with pytest.raises(KeyRingError) as caught:
            another.unwrap([WrappedKey(gcm.wrap(KEY, BOUND), BOUND)])
        assert type(caught.value) is KeyRingError
        for one, other in ((gcm, wrapping), (wrapping, gcm)):
            with pytest.raises(KeyRingError) as caught:
                other.unwrap([WrappedKey(one.wrap(KEY, BOUND), BOUND)])
            assert type(caught.value) is KeyRingError

    @pytest.mark.parametrize("may_not", ["ENCRYPT", "WRAP"])
    def test_a_kek_that_unwraps_only(self, hsm: HSM, may_not: str) -> None:
        """A retired KEK serves old files until they are rewrapped."""
        token = hsm.new_token()
        is_gcm = may_not == "ENCRYPT"
        attributes: dict[str, Any] = {
            "ENCRYPT": is_gcm,
            "DECRYPT": is_gcm,
            "WRAP": not is_gcm,
            "UNWRAP": not is_gcm,
        }
        token.new_kek(VALUE=KEK_BYTES, **attributes)
        wrapper = open_wrapper(token.rest())
        ciphertext = wrapper.wrap(KEY, BOUND)
        token.remove_keys()
        token.new_kek(VALUE=KEK_BYTES, **attributes | {may_not: False})
        assert wrapper.unwrap([WrappedKey(ciphertext, BOUND)]) == [KEY]
        with pytest.raises(KeyRingError) as caught:
            wrapper.unwrap([WrappedKey(ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]), BOUND)])
        assert type(caught.value) is KeyRingError
        assert isinstance(failure_of(wrapper), ConfigurationError)

    def test_no_object_is_left_in_the_token(self, token: Token) -> None:
        import pkcs11

        with token.session() as session:
            before = len(list(session.get_objects()))
        wrapper = open_wrapper(token.rest("object=wrapping"))
        ciphertext = wrapper.wrap(KEY, BOUND)
        wrapper.unwrap([WrappedKey(ciphertext, BOUND)])
        with pytest.raises(KeyRingError):
            wrapper.unwrap([WrappedKey(ciphertext, ELSEWHERE)])
        with token.session() as session:
            assert len(list(session.get_objects())) == before
            (kek,) = session.get_objects({pkcs11.Attribute.LABEL: "kek"})
            with pytest.raises(pkcs11.AttributeSensitive):
                kek[pkcs11.Attribute.VALUE]


class TestKEK:
    """Which key of which token."""

    def test_by_id_alone(self, token: Token) -> None:
        wrapped = open_wrapper(token.rest("id=%01")).wrap(KEY, BOUND)
        assert open_wrapper(token.rest("object=kek")).unwrap([WrappedKey(wrapped, BOUND)]) == [KEY]

    @pytest.mark.parametrize("path", ["object=nokek", "id=%77", "object=kek;id=%02"])
    def test_that_is_not_there(self, token: Token, path: str) -> None:
        error = failure_of(open_wrapper(token.rest(path)))
        assert isinstance(error, KeyUnavailableError)
        assert not error.retryable
        assert "has no such private AES key" in str(error)

    def test_two_of_one_name_are_refused_until_the_id_tells_them_apart(self, hsm: HSM) -> None:
        token = hsm.new_token()
        token.new_kek("twin", b"\x01")
        token.new_kek("twin", b"\x02")
        assert "2 keys of the token match" in str(failure_of(open_wrapper(token.rest("object=twin"))))
        first, second = (open_wrapper(token.rest(f"object=twin;id={name}")) for name in ("%01", "%02"))
        wrapped = WrappedKey(first.wrap(KEY, BOUND), BOUND)
        assert first.unwrap([wrapped]) == [KEY]
        with pytest.raises(KeyRingError):
            second.unwrap([wrapped])

    def test_one_that_anybody_could_have_put_there_does_not_count(self, hsm: HSM) -> None:
        """Public objects are made without a PIN: one must not take the place of the KEK, nor stand in its way."""
        token = hsm.new_token()
        token.new_kek("kek", b"\x01", PRIVATE=False, VALUE=KEK_BYTES)
        wrapper = open_wrapper(token.rest())
        assert "no such private AES key" in str(failure_of(wrapper))
        token.new_kek("kek", b"\x01")
        wrapped = wrapper.wrap(KEY, BOUND)
        assert wrapper.unwrap([WrappedKey(wrapped, BOUND)]) == [KEY]

    @pytest.mark.parametrize(
        "attributes",
        [{"EXTRACTABLE": True}, {"SENSITIVE": False}, {"VALUE_LEN": 16}],
        ids=lambda attributes: next(iter(attributes)),
    )
    def test_one_that_can_leave_the_token_or_is_short_does_not_wrap(
        self, hsm: HSM, attributes: dict[str, Any]
    ) -> None:
        token = hsm.new_token()
        token.new_kek(**attributes)
        error = failure_of(open_wrapper(token.rest()))
        assert isinstance(error, ConfigurationError)
        assert "cannot be a KEK" in str(error)

    def test_one_that_may_neither_encrypt_nor_wrap(self, hsm: HSM) -> None:
        token = hsm.new_token()
        token.new_kek(ENCRYPT=False, DECRYPT=True)
        error = failure_of(open_wrapper(token.rest()))
        assert isinstance(error, ConfigurationError)
        assert "CKA_ENCRYPT and CKA_DECRYPT" in str(error)

    def test_a_token_without_aes_gcm_wraps_by_aes_key_wrap(self, hsm: HSM) -> None:
        token = hsm.new_token()
        token.new_kek(WRAP=True, UNWRAP=True)
        wrapper = open_wrapper(token.rest())
        old = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        assert old.ciphertext[:1] == GCM
        with hsm.with_mechanisms_only("CKM_AES_KEY_WRAP", "CKM_AES_CBC"):
            new = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
            assert new.ciphertext[:1] == KEY_WRAP
            assert wrapper.unwrap([new]) == [KEY]
        assert wrapper.unwrap([old, new]) == [KEY, KEY]

    def test_by_everything_that_names_a_token(self, token: Token) -> None:
        import pkcs11

        with token.session() as session:
            serial, slot = session.token.serial.decode(), session.token.slot.slot_id
            assert isinstance(session.token, pkcs11.Token)
        path = f"manufacturer=SoftHSM%20project;model=SoftHSM%20v2;serial={serial};slot-id={slot};object=kek"
        assert len(open_wrapper(token.rest(path)).wrap(KEY, BOUND)) == 61

    @pytest.mark.parametrize("other", ["serial=0", "slot-id=4711", "model=x", "manufacturer=x"])
    def test_a_token_that_is_another_in_one_thing_is_not_taken(self, token: Token, other: str) -> None:
        error = failure_of(open_wrapper(token.rest(f"{other};object=kek")))
        assert isinstance(error, KeyUnavailableError)
        assert error.retryable
        assert "no such token" in str(error)

    def test_two_tokens_of_one_label_are_refused_until_the_serial_number_tells_them_apart(
        self, hsm: HSM
    ) -> None:
        first, second = hsm.new_token("twins"), hsm.new_token("twins")
        error = failure_of(open_wrapper(first.rest()))
        assert isinstance(error, ConfigurationError)
        assert "2 tokens match" in str(error)
        assert second.label == first.label

    def test_an_uninitialized_slot_is_passed_over(self, token: Token) -> None:
        """SoftHSM2 always shows one, and without a token= it is looked at, too."""
        rest = token.rest().replace(f"token={token.label};", "")
        assert f"object=kek?module-path={token.hsm.module}" in rest
        assert "tokens match" in str(failure_of(open_wrapper(rest)))

    def test_a_token_that_is_pulled_while_it_is_looked_for(self, token: Token) -> None:
        """SoftHSM2's slots all keep what they show, so the slot that does not is made up."""
        import pkcs11

        class Emptied:
            def get_token(self) -> None:
                raise pkcs11.TokenNotPresent

        class Library:
            def __init__(self, library: Any) -> None:
                self.so = library.so
                self._library = library

            def get_slots(self, *, token_present: bool) -> list[Any]:
                return [Emptied(), *self._library.get_slots(token_present=token_present)]

        with token.session() as session:
            library = Library(pkcs11.lib(str(token.hsm.module)))
            assert open_wrapper(token.rest())._token(pkcs11, library).serial == session.token.serial


class TestModule:
    """Which library is loaded."""

    def test_from_the_environment(self, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
        wrapper = open_wrapper(token.rest(**{"module-path": ""}))
        assert "no PKCS#11 module is named" in str(failure_of(wrapper))
        monkeypatch.setenv("JWT_COLUMN_PKCS11_MODULE", str(token.hsm.module))
        assert len(wrapper.wrap(KEY, BOUND)) == 61

    def test_the_environment_forbids_any_other(self, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever can write the key-ring file must not choose what code this process runs."""
        wrapper = open_wrapper(token.rest())
        monkeypatch.setenv("JWT_COLUMN_PKCS11_MODULE", str(token.hsm.module))
        assert len(wrapper.wrap(KEY, BOUND)) == 61
        monkeypatch.setenv("JWT_COLUMN_PKCS11_MODULE", "/usr/lib/of-the-hsm.so")
        error = failure_of(wrapper)
        assert isinstance(error, ConfigurationError)
        assert "module-path" in str(error)

    @pytest.mark.parametrize("path", ["/nowhere/module.so", sys.executable])
    def test_that_is_none(self, token: Token, path: str) -> None:
        error = failure_of(open_wrapper(token.rest(**{"module-path": path})))
        assert isinstance(error, ConfigurationError)
        assert f"the PKCS#11 module {path} cannot be used" in str(error)

    def test_without_the_binding(self, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pkcs11", None)
        error = failure_of(open_wrapper(token.rest()))
        assert isinstance(error, MissingExtraError)
        assert "jwt-column[pkcs11]" in str(error)


class TestLogin:
    """PINs, and logins of others."""

    def test_pin_source_from_the_environment(self, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
        wrapper = open_wrapper(token.rest(**{"pin-source": ""}))
        error = failure_of(wrapper)
        assert isinstance(error, ConfigurationError)
        assert "no PIN source" in str(error)
        monkeypatch.setenv("JWT_COLUMN_PKCS11_PIN_SOURCE", "env:HSM_PIN")
        monkeypatch.setenv("HSM_PIN", token.pin)
        assert len(wrapper.wrap(KEY, BOUND)) == 61

    def test_a_wrong_pin_is_tried_once_in_this_process(self, hsm: HSM) -> None:
        token = hsm.new_token()
        token.new_kek()
        token.pin_file.write_text("secret-pin-4711")
        wrapper = open_wrapper(token.rest())
        first = failure_of(wrapper)
        assert isinstance(first, KeyUnavailableError)
        assert not first.retryable
        assert "refused the PIN (PinIncorrect)" in str(first)
        second = failure_of(open_wrapper(token.rest()))
        assert isinstance(second, KeyUnavailableError)
        assert "does not repeat it" in str(second)
        for error in (first, second):
            assert set() == revealed_by(error, "secret-pin-4711")
            assert "secret-pin-4711" not in locals_shown_by(error)
        # A corrected PIN is tried.
        token.pin_file.write_text(token.pin)
        assert len(wrapper.wrap(KEY, BOUND)) == 61

    def test_the_last_try_of_a_token_is_left_to_a_person(self, token: Token) -> None:
        """SoftHSM2 never locks, so the token that says so is the one thing here that is made up."""
        import pkcs11

        class LastTry:
            serial = b"4711"
            flags = pkcs11.TokenFlag.USER_PIN_FINAL_TRY | pkcs11.TokenFlag.LOGIN_REQUIRED

            def open(self, user_pin: str) -> None:
                raise AssertionError("it was tried")

        wrapper = open_wrapper(token.rest())
        with pytest.raises(KeyUnavailableError, match="one more wrong PIN would lock the token"):
            wrapper._open(pkcs11, LastTry(), "module", login=True)

    def test_trouble_at_the_login_is_not_taken_for_a_wrong_pin(self, token: Token) -> None:
        """A token that fails in that moment cannot be had from SoftHSM2, so this one is made up."""
        import pkcs11

        class Failing:
            serial = b"4711"
            flags = pkcs11.TokenFlag.LOGIN_REQUIRED
            tries = 0

            def open(self, user_pin: str) -> None:
                self.tries += 1
                raise pkcs11.DeviceError

        wrapper, failing = open_wrapper(token.rest()), Failing()
        for _ in range(2):
            with pytest.raises(pkcs11.DeviceError):
                wrapper._open(pkcs11, failing, "module", login=True)
        assert failing.tries == 2

    def test_it_logs_out_behind_itself(self, token: Token) -> None:
        import pkcs11

        wrapper = open_wrapper(token.rest())
        wrapper.wrap(KEY, BOUND)
        with _pkcs11_module.turn(5.0, "late"):
            library = pkcs11.lib(str(token.hsm.module))
            with library.get_token(token_label=token.label).open() as session:
                assert list(session.get_objects({pkcs11.Attribute.LABEL: "kek"})) == []

    def test_the_login_of_the_application_is_used_and_left(self, token: Token) -> None:
        import pkcs11

        wrapper = open_wrapper(token.rest(**{"pin-source": "env:NO_SUCH_PIN"}))
        library = pkcs11.lib(str(token.hsm.module))
        with library.get_token(token_label=token.label).open(user_pin=token.pin) as session:
            wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
            assert wrapper.unwrap([wrapped]) == [KEY]
            assert len(list(session.get_objects({pkcs11.Attribute.LABEL: "kek"}))) == 1
        # The control: without that login the PIN is asked for.
        assert "NO_SUCH_PIN" in str(failure_of(wrapper))

    def test_a_key_that_is_missing_beside_the_login_of_the_application(self, token: Token) -> None:
        import pkcs11

        library = pkcs11.lib(str(token.hsm.module))
        with library.get_token(token_label=token.label).open(user_pin=token.pin):
            assert "no such private AES key" in str(failure_of(open_wrapper(token.rest("object=nokek"))))


class TestTrouble:
    """Tokens that go away, modules that hang."""

    def test_a_token_that_was_away_works_again(self, hsm: HSM) -> None:
        token = hsm.new_token()
        token.new_kek()
        wrapper = open_wrapper(token.rest())
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        with hsm.unplugged():
            with pytest.raises(KeyUnavailableError) as caught:
                wrapper.unwrap([wrapped])
            assert caught.value.retryable
            assert wrapper.uri in str(caught.value)
            assert isinstance(failure_of(open_wrapper(token.rest())), KeyUnavailableError)
        assert wrapper.unwrap([wrapped]) == [KEY]

    def test_a_token_that_goes_while_keys_are_unwrapped(self, token: Token) -> None:
        """What the token says is then not taken for the fault of a wrapped key."""
        import pkcs11

        wrapper = open_wrapper(token.rest())
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        attempts = []

        def use(kek: Any) -> bytes:
            attempts.append(kek)
            if len(attempts) == 1:
                # Another part of the application closes the sessions of the process.
                pkcs11.lib(str(token.hsm.module)).reinitialize()
            key: bytes = kek.unwrap(wrapped)
            return key

        assert wrapper._with_kek(use) == KEY
        assert len(attempts) == 2

    def test_a_module_that_another_thread_holds_ends_in_time(self, token: Token) -> None:
        wrapper = open_wrapper(token.rest(timeout="0.2"))
        assert len(wrapper.wrap(KEY, BOUND)) == 61
        with _pkcs11_module.turn(5.0, "late"):
            error = failure_of(wrapper)
        assert isinstance(error, KeyUnavailableError)
        assert error.retryable
        assert "did not answer within 0.2 s" in str(error)
        assert len(wrapper.wrap(KEY, BOUND)) == 61

    def test_a_turn_is_not_waited_for_without_end(self) -> None:
        with (
            _pkcs11_module.turn(1.0, "late"),
            pytest.raises(KeyUnavailableError, match="late"),
            _pkcs11_module.turn(-1.0, "late"),
        ):
            raise AssertionError("two turns at once")

    def test_threads_share_a_wrapper(self, token: Token) -> None:
        """Without the lock this ends the process: see the next test."""
        wrappers = [open_wrapper(token.rest(f"object={name}")) for name in ("kek", "wrapping")]
        bound = [AssociatedData("ring", f"{number:08x}") for number in range(8)]

        def work(number: int) -> bool:
            wrapper, one = wrappers[number % 2], bound[number % 8]
            key = sha256(one.key_id.encode()).digest()
            return wrapper.unwrap([WrappedKey(wrapper.wrap(key, one), one)]) == [key]

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(work, range(120)))

    @pytest.mark.slow
    def test_without_the_lock_threads_end_the_process(self, token: Token) -> None:
        """The control of the test before; it is not certain to crash, so it is given several tries."""
        script = f"""
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from jwt_column.providers import AssociatedData, WrappedKey, _pkcs11_module
from jwt_column.keys.providers.pkcs11 import open_wrapper

@contextmanager
def no_turn(seconds, late):
    yield

_pkcs11_module.turn = no_turn
wrapper = open_wrapper({token.rest("object=wrapping")!r})
bound = AssociatedData("ring", "00000000")
wrapped = WrappedKey(wrapper.wrap(bytes(32), bound), bound)
with ThreadPoolExecutor(8) as threads:
    list(threads.map(lambda _: wrapper.unwrap([wrapped]), range(2000)))
"""
        codes = [
            subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL, check=False).returncode
            for _ in range(3)
        ]
        assert any(codes)

    def test_a_spawned_process_logs_in_for_itself(self, token: Token) -> None:
        wrapper = open_wrapper(token.rest())
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(unwrap_in_child, (token.rest(), wrapped)) == KEY

    @needs_fork
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_child_has_a_module_of_its_own(self, token: Token) -> None:
        """Also when another thread of the parent was in the middle of a call."""
        wrapper = open_wrapper(token.rest())
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with _pkcs11_module.turn(5.0, "late"):
                held.set()
                release.wait(30.0)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(5.0)
        try:
            assert in_forked_child(lambda: wrapper.unwrap([wrapped]) == [KEY])
        finally:
            release.set()
            holder.join()
        assert wrapper.unwrap([wrapped]) == [KEY]

    @needs_fork
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_child_uses_nothing_that_the_parent_opened(self, token: Token) -> None:
        """The parent is logged in, and a network HSM would take the child's calls on that connection for its own."""
        import pkcs11

        wrapper = open_wrapper(token.rest(**{"pin-source": "env:NO_SUCH_PIN"}))
        library = pkcs11.lib(str(token.hsm.module))
        with library.get_token(token_label=token.label).open(user_pin=token.pin) as session:
            assert len(wrapper.wrap(KEY, BOUND)) == 61
            assert in_forked_child(lambda: "NO_SUCH_PIN" in str(failure_of(wrapper)))
            # Nor does the child end what the parent has.
            assert len(list(session.get_objects({pkcs11.Attribute.LABEL: "kek"}))) == 1


def unwrap_in_child(rest: str, wrapped: WrappedKey) -> bytes:
    return open_wrapper(rest).unwrap([wrapped])[0]


def in_forked_child(check: Any) -> bool:
    """Say whether a check holds in a child of this process that was forked."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


class TestLeaks:
    """Nothing of PIN or key in what a process shows."""

    def test_no_error_shows_pin_or_key(self, token: Token, hsm: HSM) -> None:
        wrapper = open_wrapper(token.rest())
        wrapped = wrapper.wrap(KEY, BOUND)
        errors = [failure_of(open_wrapper(token.rest("object=nokek")))]
        with pytest.raises(KeyRingError) as moved:
            wrapper.unwrap([WrappedKey(wrapped, BOUND), WrappedKey(wrapped, ELSEWHERE)])
        with hsm.unplugged(), pytest.raises(KeyUnavailableError) as gone:
            wrapper.unwrap([WrappedKey(wrapped, BOUND)])
        for error in (*errors, moved.value, gone.value):
            assert set() == revealed_by(error, token.pin, KEY)
            assert token.pin not in locals_shown_by(error)
        for error in (moved.value, gone.value):
            assert repr(KEY)[2:-1] not in locals_shown_by(error)

    def test_repr_shows_neither(self, token: Token) -> None:
        wrapper = open_wrapper(token.rest())
        wrapper.wrap(KEY, BOUND)
        assert token.pin not in repr(vars(wrapper))
        assert not re.search(r"pin-value", wrapper.uri)
