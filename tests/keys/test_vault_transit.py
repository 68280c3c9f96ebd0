"""``vault-transit:``: a key of a real OpenBao server wraps data keys."""

from __future__ import annotations

import base64
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from jwt_column import ConfigurationError, KeyRingError, KeyUnavailableError
from jwt_column.errors import MissingExtraError
from jwt_column.keys.providers.vault_transit import DerivedTransitWrapper, TransitWrapper, open_wrapper
from jwt_column.keys.providers.vault_uri import KEKName, parse
from jwt_column.providers import AssociatedData, KeyWrapper, Rewrapper, WrappedKey
from tests.support.kms import AnyWrapper, failure_of
from tests.support.tokens import locals_shown_by, revealed_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.vault import OpenBao, PersistentOpenBao

KEY = bytes(range(32))
OTHER_KEY = bytes(range(100, 132))
BOUND = AssociatedData("sessions", "b01065a6")
ELSEWHERE = AssociatedData("sessions", "b01065a7")
#: What the server authenticates, in the base64 in which it takes it.
BOUND_TEXT = base64.b64encode(b"jwt-column/key-ring/v1\0sessions\0b01065a6").decode()

_VARIABLES = ("ADDR", "TOKEN", "CACERT", "NAMESPACE", "ROLE_ID", "SECRET_ID")


@pytest.fixture(autouse=True)
def no_vault_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(f"VAULT_{name}", raising=False)


@pytest.fixture
def root(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> OpenBao:
    """The server, which this process may do anything on."""
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    return openbao


def derived(server: OpenBao, **query: str) -> TransitWrapper:
    return open_wrapper(server.rest(server.new_key(derived=True), **query))


def underived(server: OpenBao, **query: str) -> TransitWrapper:
    return open_wrapper(server.rest(server.new_key(), derived="false", **query))


@pytest.fixture(params=[derived, underived], ids=["derived", "underived"])
def wrapper(request: pytest.FixtureRequest, root: OpenBao) -> TransitWrapper:
    """A key bound by its context, and one bound by associated data."""
    make: Callable[[OpenBao], TransitWrapper] = request.param
    return make(root)


def refusal(rest: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        open_wrapper(rest)
    return caught.value


def unavailable(wrapper: KeyWrapper, *, retryable: bool) -> str:
    """Return the text of the error that a wrapper gives, which must be of this kind."""
    error = failure_of(wrapper)
    assert type(error) is KeyUnavailableError, error
    assert error.retryable is retryable
    assert wrapper.uri in str(error)
    return str(error)


class TestURI:
    """Server, key and login."""

    def test_every_parameter_is_read(self) -> None:
        rest = (
            "//vault.example:8300/team/transit/keys/jwt-kek?auth=approle&auth_mount=team/approle&ca=/etc/ca.pem"
            "&derived=false&namespace=team%2Fa&role_id_file=/etc/role&secret_id_file=/etc/secret&timeout=2.5&tls=off"
            "&token_file=/etc/token"
        )
        expected = KEKName(
            host="vault.example:8300",
            mount="team/transit",
            key="jwt-kek",
            derived="false",
            tls="off",
            ca="/etc/ca.pem",
            namespace="team/a",
            auth="approle",
            auth_mount="team/approle",
            token_file="/etc/token",
            role_id_file="/etc/role",
            secret_id_file="/etc/secret",
            timeout=2.5,
        )
        assert parse(rest) == expected

    def test_what_is_left_out_has_a_default(self) -> None:
        name = parse("transit/keys/kek")
        assert (name.host, name.mount, name.key) == (None, "transit", "kek")
        assert (name.derived, name.tls) == ("true", "on")
        assert (name.auth, name.auth_mount) == (None, "approle")
        assert name.timeout == 10.0

    @pytest.mark.parametrize(
        ("rest", "address"),
        [
            ("//vault.example/transit/keys/kek", "https://vault.example:8200"),
            ("//vault.example:443/transit/keys/kek", "https://vault.example:443"),
            ("//[::1]:8200/transit/keys/kek", "https://[::1]:8200"),
            ("//vault.example/transit/keys/kek?tls=off", "http://vault.example:8200"),
        ],
    )
    def test_address_of_a_uri(self, rest: str, address: str) -> None:
        assert parse(rest).address() == address

    @pytest.mark.parametrize(
        "address",
        [
            "https://vault.example:8200",
            "http://127.0.0.1:8200",
            "http://localhost:8200",
            "http://[::1]:8200",
        ],
    )
    def test_address_of_the_environment(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAULT_ADDR", f"{address}/")
        assert parse("transit/keys/kek").address() == address

    def test_plain_http_to_another_machine_has_to_be_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for address in ("http://vault.example:8200", "http://10.0.0.1:8200"):
            monkeypatch.setenv("VAULT_ADDR", address)
            with pytest.raises(ConfigurationError, match="is not encrypted"):
                parse("transit/keys/kek").address()
            assert parse("transit/keys/kek?tls=off").address() == address

    def test_the_environment_forbids_any_other_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever can write the key-ring file must not choose where this process sends its token."""
        monkeypatch.setenv("VAULT_ADDR", "https://vault.example:8200")
        assert parse("//vault.example/transit/keys/kek").address() == "https://vault.example:8200"
        for rest in ("//evil.example/transit/keys/kek", "//vault.example/transit/keys/kek?tls=off"):
            with pytest.raises(ConfigurationError, match="VAULT_ADDR names another"):
                parse(rest).address()

    def test_no_server(self) -> None:
        with pytest.raises(ConfigurationError, match="no Vault server is named"):
            parse("transit/keys/kek").address()

    @pytest.mark.parametrize(
        "address", ["vault.example:8200", "ftp://vault.example", "https://", "https://user:pw@vault.example"]
    )
    def test_variable_that_is_no_url(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAULT_ADDR", address)
        with pytest.raises(ConfigurationError, match="VAULT_ADDR is a URL") as caught:
            parse("transit/keys/kek").address()
        assert "user:pw" not in str(caught.value)

    @pytest.mark.parametrize(
        ("rest", "hint"),
        [
            ("", "server and key"),
            ("kek", "server and key"),
            ("transit/kek", "server and key"),
            ("/transit/keys/kek", "server and key"),
            ("//vault.example/keys/kek", "server and key"),
            ("//vault.example/transit/keys/", "server and key"),
            ("//vault.example/transit/keys/a/b", "server and key"),
            ("//user@vault.example/transit/keys/kek", "server and key"),
            ("//vault.example:x/transit/keys/kek", "server and key"),
            ("https://vault.example/transit/keys/kek", "server and key"),
            ("../sys/keys/kek", "server and key"),
            ("transit/../sys/keys/kek", "server and key"),
            ("transit/./a/keys/kek", "server and key"),
            ("transit/keys/..", "server and key"),
            ("transit//a/keys/kek", "server and key"),
            ("transit/keys/kek#x", "server and key"),
            ("transit/keys/kek?tls=maybe", "tls="),
            ("transit/keys/kek?auth=ldap", "auth="),
            ("transit/keys/kek?derived=yes", "derived="),
            ("transit/keys/kek?auth_mount=../sys", "auth_mount="),
            ("transit/keys/kek?timeout=0", "timeout="),
            ("transit/keys/kek?token=hvs.secret-4711", "token_file"),
            ("transit/keys/kek?", "token_file"),
            ("hvs.secret-4711", "server and key"),
        ],
    )
    def test_anything_else_is_refused_and_not_shown(self, rest: str, hint: str) -> None:
        error = refusal(rest)
        assert hint in str(error)
        assert set() == revealed_by(error, "hvs.secret-4711")

    def test_uri_is_kept_as_it_was_given(self) -> None:
        rest = "//vault.example:8200/transit/keys/kek?auth=approle"
        assert open_wrapper(rest).uri == f"vault-transit:{rest}"

    def test_only_a_derived_key_is_rewrapped_by_the_server(self) -> None:
        wrapper = open_wrapper("transit/keys/kek")
        assert type(wrapper) is DerivedTransitWrapper
        assert isinstance(wrapper, Rewrapper)
        other = open_wrapper("transit/keys/kek?derived=false")
        assert type(other) is TransitWrapper
        assert not isinstance(other, Rewrapper)


class TestWrapping(AnyWrapper):
    """What is wrapped, and that nothing else opens it."""

    def test_context_of_a_derived_key_is_what_others_send(self, root: OpenBao) -> None:
        name = root.new_key(derived=True)
        wrapper = open_wrapper(root.rest(name))
        wrapped = wrapper.wrap(KEY, BOUND)
        answer = root.write(f"transit/decrypt/{name}", ciphertext=wrapped.decode(), context=BOUND_TEXT)
        assert base64.b64decode(answer["data"]["plaintext"]) == KEY
        plaintext = base64.b64encode(OTHER_KEY).decode()
        made = root.write(f"transit/encrypt/{name}", plaintext=plaintext, context=BOUND_TEXT)["data"][
            "ciphertext"
        ]
        assert wrapper.unwrap([WrappedKey(made.encode(), BOUND)]) == [OTHER_KEY]

    def test_associated_data_is_what_others_send(self, root: OpenBao) -> None:
        name = root.new_key()
        wrapper = open_wrapper(root.rest(name, derived="false"))
        wrapped = wrapper.wrap(KEY, BOUND)
        answer = root.write(
            f"transit/decrypt/{name}", ciphertext=wrapped.decode(), associated_data=BOUND_TEXT
        )
        assert base64.b64decode(answer["data"]["plaintext"]) == KEY

    @pytest.mark.parametrize("kind", ["aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"])
    def test_types_of_keys(self, root: OpenBao, kind: str) -> None:
        for rest in (
            root.rest(root.new_key(type=kind, derived=True)),
            root.rest(root.new_key(type=kind), derived="false"),
        ):
            wrapper = open_wrapper(rest)
            assert wrapper.unwrap([WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)]) == [KEY]

    def test_wrapped_key_fits_into_a_file(self, wrapper: TransitWrapper) -> None:
        wrapped = wrapper.wrap(KEY, BOUND)
        assert wrapped.startswith(b"vault:v1:")
        assert len(wrapped) == 89

    def test_many_keys_come_back_in_order(self, root: OpenBao) -> None:
        """More than one request can hold: the server refuses 250 items in one."""
        name = root.new_key(derived=True)
        wrapper = open_wrapper(root.rest(name))
        bound = [AssociatedData("ring", f"{number:08x}") for number in range(260)]
        keys = [sha256(one.key_id.encode()).digest() for one in bound]
        wrapped: list[WrappedKey] = []
        for start in range(0, 260, 65):
            items = [
                {
                    "plaintext": base64.b64encode(key).decode(),
                    "context": base64.b64encode(one.to_bytes()).decode(),
                }
                for key, one in zip(keys[start : start + 65], bound[start : start + 65], strict=True)
            ]
            answers = root.write(f"transit/encrypt/{name}", batch_input=items)["data"]["batch_results"]
            wrapped += [
                WrappedKey(answer["ciphertext"].encode(), one)
                for answer, one in zip(answers, bound[start : start + 65], strict=True)
            ]
        assert wrapper.unwrap(wrapped) == keys

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[:-4] + b"AAA=",
            lambda text: b"vault:v1:AAAA",
            lambda text: b"vault:v1:",
            lambda text: b"vault:v1:!",
            lambda text: text.replace(b":v1:", b":v9:"),
            lambda text: text.replace(b"vault:", b"other:"),
            lambda text: b"",
            lambda text: b"vault:v1:\xff",
            lambda text: b"\x01" + text,
        ],
    )
    def test_any_change_is_noticed(self, wrapper: TransitWrapper, change: Callable[[bytes], bytes]) -> None:
        changed = change(wrapper.wrap(KEY, BOUND))
        with pytest.raises(KeyRingError) as caught:
            wrapper.unwrap([WrappedKey(changed, BOUND)])
        assert type(caught.value) is KeyRingError
        assert caught.value.key_id == BOUND.key_id

    def test_what_another_kek_wrapped_does_not_open(self, root: OpenBao) -> None:
        for make in (derived, underived):
            wrapped = WrappedKey(make(root).wrap(KEY, BOUND), BOUND)
            with pytest.raises(KeyRingError) as caught:
                make(root).unwrap([wrapped])
            assert type(caught.value) is KeyRingError

    def test_threads_share_a_wrapper(self, wrapper: TransitWrapper) -> None:
        def work(number: int) -> bool:
            one = AssociatedData("ring", f"{number:08x}")
            key = sha256(one.key_id.encode()).digest()
            return wrapper.unwrap([WrappedKey(wrapper.wrap(key, one), one)]) == [key]

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(work, range(24)))


class TestKEK:
    """Which key, of which kind and version."""

    def test_a_key_that_derives_nothing_is_refused_as_derived(self, root: OpenBao) -> None:
        """It would take the context and ignore it, so that a wrapped key could be moved."""
        name = root.new_key()
        error = failure_of(open_wrapper(root.rest(name)))
        assert isinstance(error, ConfigurationError)
        assert "was not made with derived=true" in str(error)
        ignored = root.write(f"transit/encrypt/{name}", plaintext="AAAA", context=BOUND_TEXT)["data"][
            "ciphertext"
        ]
        assert root.write(f"transit/decrypt/{name}", ciphertext=ignored)["data"]["plaintext"] == "AAAA"

    def test_a_derived_key_is_refused_as_underived(self, root: OpenBao) -> None:
        name = root.new_key(derived=True)
        wrapper = open_wrapper(root.rest(name, derived="false"))
        wrapped = WrappedKey(open_wrapper(root.rest(name)).wrap(KEY, BOUND), BOUND)
        for call in (lambda: wrapper.wrap(KEY, BOUND), lambda: wrapper.unwrap([wrapped])):
            with pytest.raises(ConfigurationError, match="remove derived=false"):
                call()

    @pytest.mark.parametrize("kind", ["rsa-2048", "ed25519"])
    def test_a_key_of_another_kind(self, root: OpenBao, kind: str) -> None:
        error = failure_of(open_wrapper(root.rest(root.new_key(type=kind), derived="false")))
        assert isinstance(error, ConfigurationError)
        assert "a key of this type cannot wrap data keys" in str(error)

    def test_that_is_not_there(self, root: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a policy as in the documentation: whoever may create keys makes one by encrypting under its name."""
        monkeypatch.setenv("VAULT_TOKEN", root.token_for("nokek"))
        wrapper = open_wrapper(root.rest("nokek"))
        with pytest.raises(KeyUnavailableError, match="there is no such key") as caught:
            wrapper.unwrap([WrappedKey(b"vault:v1:" + b"A" * 80, BOUND)])
        assert not caught.value.retryable

    def test_engine_that_is_not_mounted(self, root: OpenBao) -> None:
        rest = root.rest("kek").replace("/transit/", "/nowhere/")
        assert "no secrets engine is mounted at nowhere" in unavailable(open_wrapper(rest), retryable=False)

    def test_rewrap_goes_to_the_newest_version(self, root: OpenBao) -> None:
        name = root.new_key(derived=True)
        wrapper = open_wrapper(root.rest(name))
        assert isinstance(wrapper, Rewrapper)
        old = [WrappedKey(wrapper.wrap(key, one), one) for key, one in ((KEY, BOUND), (OTHER_KEY, ELSEWHERE))]
        root.write(f"transit/keys/{name}/rotate")
        new = [
            WrappedKey(text, one.associated_data) for text, one in zip(wrapper.rewrap(old), old, strict=True)
        ]
        assert all(one.ciphertext.startswith(b"vault:v2:") for one in new)
        assert wrapper.unwrap(new) == [KEY, OTHER_KEY]
        assert wrapper.unwrap(old) == [KEY, OTHER_KEY]
        # What is bound stays bound, and what is not what it says is not rewrapped.
        with pytest.raises(KeyRingError):
            wrapper.unwrap([WrappedKey(new[0].ciphertext, ELSEWHERE)])
        with pytest.raises(KeyRingError) as caught:
            wrapper.rewrap([old[0], WrappedKey(old[0].ciphertext, ELSEWHERE)])
        assert caught.value.key_id == ELSEWHERE.key_id

    def test_a_version_that_was_retired(self, root: OpenBao) -> None:
        name = root.new_key(derived=True)
        wrapper = open_wrapper(root.rest(name))
        old = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        root.write(f"transit/keys/{name}/rotate")
        root.write(f"transit/keys/{name}/config", min_decryption_version=2)
        with pytest.raises(KeyUnavailableError, match="min_decryption_version") as caught:
            wrapper.unwrap([old])
        assert caught.value.key_id == BOUND.key_id
        assert not caught.value.retryable
        root.write(f"transit/keys/{name}/config", min_decryption_version=1)
        assert wrapper.unwrap([old]) == [KEY]


class TestLogin:
    """Tokens and AppRole, with rights to one key."""

    def test_token_of_the_environment(self, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
        wrapper = derived(openbao)
        error = failure_of(wrapper)
        assert isinstance(error, ConfigurationError)
        assert "set VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID" in str(error)
        only_token = failure_of(derived(openbao, auth="token"))
        assert "set VAULT_TOKEN, or add token_file=" in str(only_token)
        monkeypatch.setenv("VAULT_TOKEN", openbao.token)
        assert wrapper.wrap(KEY, BOUND).startswith(b"vault:")

    def test_address_of_the_environment(self, root: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAULT_ADDR", root.address)
        wrapper = open_wrapper(f"transit/keys/{root.new_key(derived=True)}")
        assert wrapper.unwrap([WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)]) == [KEY]

    def test_rights_to_encrypt_decrypt_and_rewrap_are_enough(
        self, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = openbao.new_key(derived=True)
        monkeypatch.setenv("VAULT_TOKEN", openbao.token_for(name))
        wrapper = open_wrapper(openbao.rest(name))
        assert isinstance(wrapper, DerivedTransitWrapper)
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        assert wrapper.unwrap([wrapped]) == [KEY]
        assert len(wrapper.rewrap([wrapped])) == 1
        # Of another key it is refused.
        assert "refuses this caller" in unavailable(derived(openbao), retryable=False)

    def test_token_that_is_none(self, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAULT_TOKEN", "secret-token-4711")
        wrapper = derived(openbao)
        assert "refuses this caller" in unavailable(wrapper, retryable=False)
        error = failure_of(wrapper)
        assert set() == revealed_by(error, "secret-token-4711")
        assert "secret-token-4711" not in locals_shown_by(error)

    def test_token_file_is_read_again_when_its_token_has_expired(
        self, openbao: OpenBao, tmp_path: Path
    ) -> None:
        """An agent beside the application puts a new token there."""
        name, file = openbao.new_key(derived=True), tmp_path / "token"
        first = openbao.token_for(name)
        file.write_text(f"{first}\n")
        wrapper = open_wrapper(openbao.rest(name, token_file=str(file)))
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        openbao.client().auth.token.revoke(first)
        assert "refuses this caller" in unavailable(wrapper, retryable=False)
        file.write_text(openbao.token_for(name))
        assert wrapper.unwrap([wrapped]) == [KEY]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [(b"", "it is empty"), (b"\n", "it is empty"), (b"\xff", "not in ASCII"), (None, "No such")],
    )
    def test_token_file_without_a_token(
        self, openbao: OpenBao, tmp_path: Path, content: bytes | None, problem: str
    ) -> None:
        file = tmp_path / "token"
        if content is not None:
            file.write_bytes(content)
        error = failure_of(derived(openbao, token_file=str(file)))
        assert isinstance(error, ConfigurationError)
        assert problem in str(error)

    def test_approle(self, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        name = openbao.new_key(derived=True)
        role_id, secret_id = openbao.new_role(name)
        wrapper = open_wrapper(openbao.rest(name, auth="approle"))
        assert "VAULT_ROLE_ID" in str(failure_of(wrapper))
        monkeypatch.setenv("VAULT_ROLE_ID", role_id)
        assert "VAULT_SECRET_ID" in str(failure_of(wrapper))
        monkeypatch.setenv("VAULT_SECRET_ID", secret_id)
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        monkeypatch.delenv("VAULT_ROLE_ID")
        monkeypatch.delenv("VAULT_SECRET_ID")
        (tmp_path / "role").write_text(role_id)
        (tmp_path / "secret").write_text(secret_id)
        files = {"role_id_file": f"{tmp_path}/role", "secret_id_file": f"{tmp_path}/secret"}
        assert open_wrapper(openbao.rest(name, auth="approle", **files)).unwrap([wrapped]) == [KEY]

    def test_one_uri_serves_hosts_that_log_in_differently(
        self, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = openbao.new_key(derived=True)
        role_id, secret_id = openbao.new_role(name)
        rest = openbao.rest(name)
        monkeypatch.setenv("VAULT_ROLE_ID", role_id)
        monkeypatch.setenv("VAULT_SECRET_ID", secret_id)
        wrapped = WrappedKey(open_wrapper(rest).wrap(KEY, BOUND), BOUND)
        # A token that was given comes first: an operator's, on a host where applications use AppRole.
        monkeypatch.setenv("VAULT_SECRET_ID", "no longer valid")
        monkeypatch.setenv("VAULT_TOKEN", openbao.token)
        assert open_wrapper(rest).unwrap([wrapped]) == [KEY]
        assert "refuses the login by AppRole" in unavailable(
            open_wrapper(f"{rest}&auth=approle"), retryable=False
        )

    def test_approle_logs_in_again_when_its_token_has_expired(
        self, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = openbao.new_key(derived=True)
        role_id, secret_id = openbao.new_role(name)
        monkeypatch.setenv("VAULT_ROLE_ID", role_id)
        monkeypatch.setenv("VAULT_SECRET_ID", secret_id)
        wrapper = open_wrapper(openbao.rest(name, auth="approle"))
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        first = wrapper._token
        assert first is not None
        openbao.client().auth.token.revoke(first)
        assert wrapper.unwrap([wrapped]) == [KEY]
        assert wrapper._token != first

    def test_approle_that_is_refused(self, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
        name = openbao.new_key(derived=True)
        role_id, _ = openbao.new_role(name)
        monkeypatch.setenv("VAULT_ROLE_ID", role_id)
        monkeypatch.setenv("VAULT_SECRET_ID", "secret-id-4711")
        wrapper = open_wrapper(openbao.rest(name, auth="approle"))
        assert "refuses the login by AppRole" in unavailable(wrapper, retryable=False)
        assert set() == revealed_by(failure_of(wrapper), "secret-id-4711")
        elsewhere = open_wrapper(openbao.rest(name, auth="approle", auth_mount="nowhere"))
        assert "check role id, secret id and auth_mount" in unavailable(elsewhere, retryable=False)

    def test_without_hvac(self, root: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
        wrapper = derived(root)
        monkeypatch.setitem(sys.modules, "hvac", None)
        error = failure_of(wrapper)
        assert isinstance(error, MissingExtraError)
        assert "jwt-column[vault]" in str(error)


class TestTrouble:
    """A server that is sealed, slow, gone, or another one."""

    @pytest.fixture
    def server(
        self, persistent_openbao: PersistentOpenBao, monkeypatch: pytest.MonkeyPatch
    ) -> PersistentOpenBao:
        monkeypatch.setenv("VAULT_TOKEN", persistent_openbao.token)
        return persistent_openbao

    def test_sealed(self, server: PersistentOpenBao) -> None:
        wrapper = derived(server)
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        server.seal()
        try:
            assert "Vault is sealed" in unavailable(wrapper, retryable=True)
            with pytest.raises(KeyUnavailableError):
                wrapper.unwrap([wrapped])
        finally:
            server.unseal()
        assert wrapper.unwrap([wrapped]) == [KEY]

    def test_gone_and_started_again(self, server: PersistentOpenBao) -> None:
        wrapper = derived(server)
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        server.kill()
        try:
            assert "Vault was not reached (ConnectionError)" in unavailable(wrapper, retryable=True)
            server.start_sealed()
            assert "Vault is sealed" in unavailable(wrapper, retryable=True)
            server.unseal()
        except BaseException:
            server.start()
            raise
        assert wrapper.unwrap([wrapped]) == [KEY]

    def test_one_that_comes_back_within_the_time_is_waited_for(self, server: PersistentOpenBao) -> None:
        """It is frozen until the first attempt has given up; a later one is answered."""
        wrapper = derived(server, timeout="4")
        attempts: list[float] = []

        with server.frozen():
            thawed = threading.Event()

            def use(client: Any) -> bytes:
                attempts.append(1)
                if len(attempts) == 2:
                    thawed.set()
                data = wrapper._post(client, "encrypt", {"plaintext": "AAAA", "context": BOUND_TEXT})
                return str(data["ciphertext"]).encode()

            with ThreadPoolExecutor(1) as threads:
                answer = threads.submit(wrapper._ask, use)
                assert thawed.wait(30.0)
                server.thaw()
                assert answer.result().startswith(b"vault:v1:")
        assert len(attempts) == 2

    def test_slow(self, server: PersistentOpenBao) -> None:
        wrapper = derived(server, timeout="0.5")
        with server.frozen():
            text = unavailable(wrapper, retryable=True)
        assert "not reached (ReadTimeout)" in text or "did not answer within 0.5 s" in text

    def test_certificate_that_is_not_trusted(
        self, server: PersistentOpenBao, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rest = server.rest(server.new_key(derived=True), ca="")
        assert "certificate is not trusted" in unavailable(open_wrapper(rest), retryable=False)
        assert server.ca is not None
        monkeypatch.setenv("VAULT_CACERT", str(server.ca))
        assert open_wrapper(rest).wrap(KEY, BOUND).startswith(b"vault:v1:")
        monkeypatch.setenv("VAULT_CACERT", "/nowhere/ca.pem")
        assert "trusted certificates /nowhere/ca.pem does not exist" in str(failure_of(open_wrapper(rest)))

    def test_https_to_a_server_without_it(self, root: OpenBao) -> None:
        wrapper = open_wrapper(root.rest(root.new_key(derived=True)).replace("?tls=off", ""))
        assert isinstance(failure_of(wrapper), KeyUnavailableError)

    def test_http_to_a_server_that_wants_https(self, server: PersistentOpenBao) -> None:
        wrapper = open_wrapper(f"//{server.authority}/transit/keys/kek?tls=off")
        assert "Vault refuses the request" in unavailable(wrapper, retryable=False)


class _Answers(BaseHTTPRequestHandler):
    """A server that gives one answer to everything."""

    status: int
    body: bytes
    kind: str
    namespaces: list[str | None]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.namespaces.append(self.headers.get("X-Vault-Namespace"))
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.cloud
class TestAnswers:
    """What OpenBao does not say here, said by a server that is made up."""

    @pytest.fixture
    def answering(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TransitWrapper]]:
        pytest.importorskip("hvac", reason="No hvac for this test (the extra vault).")
        monkeypatch.setenv("VAULT_TOKEN", "any")
        handler: Any = type("Answers", (_Answers,), {"namespaces": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def answer(status: int, body: Any, kind: str = "application/json", query: str = "") -> TransitWrapper:
            handler.status, handler.kind = status, kind
            handler.body = body if isinstance(body, bytes) else json.dumps(body).encode()
            return open_wrapper(
                f"//127.0.0.1:{server.server_port}/transit/keys/kek?tls=off&derived=false&timeout=5{query}"
            )

        answer.namespaces = handler.namespaces  # type: ignore[attr-defined]
        try:
            yield answer
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    @pytest.mark.parametrize(
        ("status", "retryable"),
        [
            (412, True),
            (429, True),
            (472, True),
            (473, True),
            (500, True),
            (502, True),
            (503, True),
            (401, False),
        ],
    )
    def test_statuses(
        self, answering: Callable[..., TransitWrapper], status: int, *, retryable: bool
    ) -> None:
        unavailable(answering(status, {"errors": ["something of the server"]}), retryable=retryable)

    @pytest.mark.parametrize(
        "body",
        [
            b"<html>",
            b"[]",
            {},
            {"data": None},
            {"data": []},
            {"data": {}},
            {"data": {"ciphertext": None}},
            {"data": {"ciphertext": "wrapped"}},
            {"data": {"ciphertext": "vault:v1:é"}},
        ],
    )
    def test_what_is_no_answer_of_encrypt(self, answering: Callable[..., TransitWrapper], body: Any) -> None:
        assert "transit engine" in unavailable(answering(200, body), retryable=False)

    @pytest.mark.parametrize(
        "results",
        [
            None,
            {},
            [],
            [{"plaintext": ""}, {"plaintext": ""}],
            [{}],
            [{"plaintext": None}],
            [{"plaintext": "é"}],
            [{"plaintext": "!"}],
            [{"plaintext": "c2VjcmV0LTQ3MTE="}],
            ["text"],
        ],
        ids=str,
    )
    @pytest.mark.parametrize("status", [200, 400])
    def test_what_is_no_answer_of_decrypt(
        self, answering: Callable[..., TransitWrapper], status: int, results: Any
    ) -> None:
        wrapper = answering(status, {"data": {"batch_results": results}})
        with pytest.raises(KeyUnavailableError, match="transit engine") as caught:
            wrapper.unwrap([WrappedKey(b"vault:v1:AAAA", BOUND)])
        assert set() == revealed_by(caught.value, "c2VjcmV0LTQ3MTE=", "secret-4711")

    def test_words_of_the_server_are_not_repeated(self, answering: Callable[..., TransitWrapper]) -> None:
        wrapper = answering(400, {"errors": ["the plaintext secret-4711 is bad"]})
        assert set() == revealed_by(failure_of(wrapper), "secret-4711")
        assert "Vault refuses the request" in unavailable(wrapper, retryable=False)

    def test_namespace_is_sent(
        self, answering: Callable[..., TransitWrapper], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VAULT_NAMESPACE", "of/environment")
        body = {"data": {"ciphertext": "vault:v1:AAAA"}}
        answering(200, body).wrap(KEY, BOUND)
        answering(200, body, query="&namespace=of/uri").wrap(KEY, BOUND)
        assert answering.namespaces == ["of/environment", "of/uri"]  # type: ignore[attr-defined]


class TestLeaks:
    """Nothing of tokens and keys in what a process shows."""

    def test_no_error_shows_token_or_key(self, root: OpenBao) -> None:
        wrapper = derived(root)
        wrapped = wrapper.wrap(KEY, BOUND)
        calls = {
            wrapper: [WrappedKey(wrapped, BOUND), WrappedKey(wrapped, ELSEWHERE)],
            open_wrapper(root.rest("nokek", timeout="0.001")): [WrappedKey(wrapped, BOUND)],
        }
        errors = []
        for one, keys in calls.items():
            with pytest.raises(KeyRingError) as caught:
                one.unwrap(keys)
            errors.append(caught.value)
        for error in errors:
            assert set() == revealed_by(error, root.token, KEY, base64.b64encode(KEY).decode())
            shown = locals_shown_by(error)
            assert root.token not in shown
            assert base64.b64encode(KEY).decode() not in shown
            assert repr(KEY)[2:-1] not in shown
