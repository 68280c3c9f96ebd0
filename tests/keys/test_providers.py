"""Where rings come from and who wraps keys: the table of schemes, what this machine holds, the key file's writer."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keyring as os_keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, NoKeyringError

from jwt_column import (
    ConfigurationError,
    JWTColumnError,
    KeyRing,
    KeyRingError,
    KeyUnavailableError,
    MissingExtraError,
    generate_key,
)
from jwt_column.format import base64url
from jwt_column.providers import (
    MODULE_OF_SCHEME,
    AssociatedData,
    WrappedKey,
    open_source,
    open_wrapper,
    write_key_file,
)
from tests.support import standin as third_party
from tests.support.tokens import chain_of, locals_shown_by, revealed_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.standin import Standin

FIRST, SECOND = (base64url.encode(bytes([number]) * 32) for number in (1, 2))
FIRST_ID, SECOND_ID = (KeyRing([key]).active for key in (FIRST, SECOND))

needs_posix = pytest.mark.skipif(os.name != "posix", reason="This system has no file modes.")


def refusal(uri: Any) -> JWTColumnError:
    """Return the error that a URI is refused with."""
    with pytest.raises(JWTColumnError) as caught:
        KeyRing.from_uri(uri)
    return caught.value


class TestSchemes:
    """The table of schemes."""

    @pytest.mark.parametrize("uri", ["", "keys", "/etc/app/jwt.keys", "env", "nope:x", ":", "://", " env:X"])
    def test_uri_without_a_known_scheme_is_refused_with_those_there_are(self, uri: str) -> None:
        error = refusal(uri)
        assert type(error) is ConfigurationError
        assert all(f"{scheme}:" in str(error) for scheme in MODULE_OF_SCHEME)

    @pytest.mark.parametrize("uri", [None, 5, b"env:X", Path("keys")], ids=lambda uri: type(uri).__name__)
    def test_uri_is_a_text(self, uri: Any) -> None:
        assert type(uri).__name__ in str(refusal(uri))

    def test_refused_uri_is_not_shown_because_it_may_hold_a_pin(self) -> None:
        for uri in ("nope:slot?pin-value=secret-pin-4711", "secret-pin-4711"):
            assert set() == revealed_by(refusal(uri), "secret-pin-4711")

    def test_scheme_may_be_written_in_any_case(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEYS", FIRST)
        assert KeyRing.from_uri("ENV:KEYS").active == FIRST_ID

    def test_nothing_is_read_before_the_source_is_loaded(self) -> None:
        assert open_source("env:NOT_SET").name == "env:NOT_SET"
        assert open_source("file:/nowhere").name == "file:/nowhere"


class TestWrappers:
    """The schemes that wrap keys."""

    @pytest.mark.parametrize("uri", ["", "keys", "pkcs11", "nope:x"])
    def test_uri_without_a_known_scheme_is_refused_with_those_there_are(self, uri: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            open_wrapper(uri)
        assert all(f"{scheme}:" in str(caught.value) for scheme in MODULE_OF_SCHEME)

    @pytest.mark.parametrize("uri", ["env:KEK", "file:/etc/kek.key", "keyring:jwt-column/kek"])
    def test_nothing_is_read_before_the_wrapper_is_used(self, uri: str) -> None:
        assert open_wrapper(uri).uri == uri

    @pytest.mark.parametrize("scheme", MODULE_OF_SCHEME)
    def test_every_scheme_of_the_table_wraps_or_holds_keys(self, scheme: str) -> None:
        module = import_module(f"jwt_column.keys.providers.{MODULE_OF_SCHEME[scheme]}")
        assert callable(module.open_wrapper)
        assert callable(getattr(module, "open_source", str))

    @pytest.mark.parametrize("scheme", sorted(set(MODULE_OF_SCHEME) - {"env", "file", "keyring"}))
    def test_scheme_that_only_wraps_is_no_ring_and_says_how_to_make_one(self, scheme: str) -> None:
        error = refusal(f"{scheme}:secret-pin-4711")
        assert type(error) is ConfigurationError
        assert "jwt-column keys init" in str(error)
        assert set() == revealed_by(error, "secret-pin-4711")


class TestOthers:
    """Providers that another distribution brings, found by its metadata."""

    def test_provider_of_another_distribution_holds_keys(self, standin: Standin) -> None:
        standin.keys = (bytes([1]) * 32,)
        assert KeyRing.from_uri("standin:ring").active == FIRST_ID
        assert KeyRing.from_uri("STANDIN:ring").uri == "standin:ring"

    def test_provider_of_another_distribution_wraps_keys(self, standin: Standin) -> None:
        associated = AssociatedData("sessions", FIRST_ID)
        wrapper = open_wrapper("standin:kek")
        wrapped = WrappedKey(wrapper.wrap(bytes(32), associated), associated)
        assert wrapper.unwrap([wrapped]) == [bytes(32)]

    def test_it_is_among_the_schemes_that_an_error_lists(self, standin: Standin) -> None:
        assert "standin:" in str(refusal("nope:x"))

    def test_it_is_gone_with_its_distribution(self) -> None:
        """The control: the scheme came from the metadata and from nowhere else."""
        assert "no provider" in str(refusal("standin:ring"))

    def test_it_cannot_take_the_place_of_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(third_party.install(tmp_path, scheme="env"))
        monkeypatch.setenv("KEYS", SECOND)
        assert KeyRing.from_uri("env:KEYS").active == SECOND_ID

    def test_two_distributions_of_one_scheme_are_refused_by_name(
        self, standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(third_party.install(tmp_path, name="another"))
        error = refusal("standin:ring")
        assert type(error) is ConfigurationError
        assert "another, standin" in str(error)

    @pytest.mark.parametrize("target", ["not_installed_4711", "tests.support.standin:nothing"])
    def test_provider_that_cannot_be_imported_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
    ) -> None:
        monkeypatch.syspath_prepend(third_party.install(tmp_path, target=target))
        error = refusal("standin:ring")
        assert type(error) is ConfigurationError
        assert target in str(error)

    def test_provider_that_only_holds_keys_wraps_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(third_party.install(tmp_path, target="tests.support.standin"))
        with pytest.raises(ConfigurationError, match="cannot wrap any"):
            open_wrapper("standin:kek")

    def test_what_it_raises_by_mistake_becomes_ours_and_shows_nothing(self, standin: Standin) -> None:
        standin.failure = ValueError(f"bad key {FIRST}")
        error = refusal("standin:ring")
        assert type(error) is KeyRingError
        assert "standin:ring" in str(error)
        assert "ValueError" in str(error)
        assert set() == revealed_by(error, FIRST)


class Store(KeyringBackend):
    """A key store of an operating system, in memory: this machine may have none."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.secrets: dict[tuple[str, str], str] = {}
        self.failure: Exception | None = None

    def get_password(self, service: str, username: str) -> str | None:
        if self.failure is not None:
            raise self.failure
        return self.secrets.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.secrets[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.secrets[service, username]


class TestOperatingSystem:
    """Keys in the key store of the operating system."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        before, store = os_keyring.get_keyring(), Store()
        os_keyring.set_keyring(store)
        yield store
        os_keyring.set_keyring(before)

    def test_keys_are_read_the_active_one_first(self, store: Store) -> None:
        os_keyring.set_password("jwt-column", "app", f"{SECOND},\n{FIRST}\n")
        ring = KeyRing.from_uri("keyring:jwt-column/app")
        assert ring.key_ids == (SECOND_ID, FIRST_ID)
        assert ring.uri == "keyring:jwt-column/app"

    def test_names_may_be_percent_encoded(self, store: Store) -> None:
        os_keyring.set_password("my app/test", "a@b", FIRST)
        ring = KeyRing.from_uri("keyring:my%20app%2Ftest/a%40b")
        assert ring.active == FIRST_ID
        assert ring.uri is not None
        assert KeyRing.from_uri(ring.uri).active == FIRST_ID

    @pytest.mark.parametrize("rest", ["", "app", "/app", "app/", "a/b/c"])
    def test_uri_without_service_and_user_is_refused(self, store: Store, rest: str) -> None:
        assert type(refusal(f"keyring:{rest}")) is ConfigurationError

    @pytest.mark.parametrize("secret", [None, "", " , "])
    def test_entry_without_a_key_is_named(self, store: Store, secret: str | None) -> None:
        if secret is not None:
            os_keyring.set_password("jwt-column", "app", secret)
        error = refusal("keyring:jwt-column/app")
        assert isinstance(error, KeyUnavailableError)
        assert not error.retryable
        assert "keyring:jwt-column/app" in str(error)

    def test_entry_that_is_no_key_is_shown_nowhere(self, store: Store) -> None:
        os_keyring.set_password("jwt-column", "app", f"{FIRST},{SECOND[:-1]}")
        error = refusal("keyring:jwt-column/app")
        assert type(error) is KeyRingError
        assert "key 2" in str(error)
        assert set() == revealed_by(error, FIRST, SECOND)

    @pytest.mark.parametrize(("failure", "retryable"), [(KeyringLocked, True), (NoKeyringError, False)])
    def test_store_that_is_locked_or_not_there_is_unavailable(
        self, store: Store, failure: type[Exception], retryable: bool
    ) -> None:
        store.failure = failure("its own words")
        error = refusal("keyring:jwt-column/app")
        assert isinstance(error, KeyUnavailableError)
        assert error.retryable is retryable
        assert failure.__name__ in str(error)

    def test_key_of_the_store_wraps_others(self, store: Store) -> None:
        os_keyring.set_password("jwt-column", "kek", FIRST)
        wrapper, associated = open_wrapper("keyring:jwt-column/kek"), AssociatedData("sessions", SECOND_ID)
        wrapped = WrappedKey(wrapper.wrap(bytes(32), associated), associated)
        assert wrapper.unwrap([wrapped]) == [bytes(32)]

    def test_extra_that_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "keyring", None)
        error = refusal("keyring:jwt-column/app")
        assert isinstance(error, MissingExtraError)
        assert 'pip install "jwt-column[keyring]"' in str(error)


class TestEnvironment:
    """Keys in an environment variable."""

    @pytest.mark.parametrize(
        ("value", "key_ids"),
        [
            (FIRST, (FIRST_ID,)),
            (f"{FIRST},{SECOND}", (FIRST_ID, SECOND_ID)),
            (f" {SECOND} ,\n{FIRST},", (SECOND_ID, FIRST_ID)),
        ],
        ids=["one", "two", "with white space"],
    )
    def test_keys_are_read_the_active_one_first(
        self, monkeypatch: pytest.MonkeyPatch, value: str, key_ids: tuple[str, ...]
    ) -> None:
        monkeypatch.setenv("KEYS", value)
        ring = KeyRing.from_uri("env:KEYS")
        assert key_ids == ring.key_ids
        assert "source='env:KEYS'" in repr(ring)

    @pytest.mark.parametrize("name", ["", " ", "1KEYS", "MY-KEYS", "KEYS ", "$KEYS", "KEYS=x", FIRST + "-"])
    def test_name_that_no_variable_has_is_refused_and_not_shown(self, name: str) -> None:
        """It may be a key that somebody put where the name belongs."""
        error = refusal(f"env:{name}")
        assert type(error) is ConfigurationError
        assert set() == revealed_by(error, FIRST)

    @pytest.mark.parametrize("value", [None, "", " ", ",", "\n"])
    def test_variable_without_a_key_is_named(
        self, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        if value is not None:
            monkeypatch.setenv("KEYS", value)
        error = refusal("env:KEYS")
        assert isinstance(error, KeyUnavailableError)
        assert not error.retryable
        assert "KEYS" in str(error)

    def test_key_that_is_none_is_named_by_its_number_and_shown_nowhere(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bad = SECOND[:-1]
        monkeypatch.setenv("KEYS", f"{FIRST},{bad}")
        error = refusal("env:KEYS")
        assert type(error) is KeyRingError
        assert "KEYS, key 2" in str(error)
        assert set() == revealed_by(error, FIRST, bad)
        assert bad not in locals_shown_by(error)

    def test_key_that_is_there_twice_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEYS", f"{FIRST},{FIRST}")
        assert FIRST_ID in str(refusal("env:KEYS"))

    @pytest.mark.skipif(os.name != "posix", reason="Only POSIX has environments of bytes.")
    def test_bytes_that_are_no_text_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEYS", FIRST[:-1] + "\udcff")
        error = refusal("env:KEYS")
        assert type(error) is KeyRingError
        assert not [one for one in chain_of(error) if isinstance(one, UnicodeError)]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with two keys that nobody but its owner may read."""
    path = tmp_path / "jwt.keys"
    path.touch(mode=0o600)
    path.write_text(f"# a comment\n\n  {FIRST}  \n#{SECOND}\n{SECOND}\r\n", encoding="utf-8")
    return path


class TestFile:
    """Keys in a file."""

    def test_keys_are_read_the_active_one_first(self, key_file: Path) -> None:
        ring = KeyRing.from_uri(f"file:{key_file}")
        assert ring.key_ids == (FIRST_ID, SECOND_ID)
        assert f"source='file:{key_file}'" in repr(ring)

    @pytest.mark.parametrize("form", ["file:{}", "file://{}", "FILE:{}"])
    def test_both_forms_of_a_file_uri_are_understood(self, key_file: Path, form: str) -> None:
        assert KeyRing.from_uri(form.format(key_file)).active == FIRST_ID

    def test_path_may_be_percent_encoded(self, key_file: Path) -> None:
        spaced = key_file.rename(key_file.with_name("j\u00e9 %.keys"))
        encoded = str(spaced.parent) + "/j%C3%A9%20%25.keys"
        assert KeyRing.from_uri(f"file:{encoded}").active == FIRST_ID
        assert KeyRing.from_uri(f"file://{encoded}").active == FIRST_ID

    def test_relative_path_counts_from_where_the_process_was_when_it_named_it(
        self, key_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(key_file.parent)
        ring = KeyRing.from_uri(f"file:{key_file.name}")
        monkeypatch.chdir("/")
        ring.reload()
        assert ring.active == FIRST_ID

    @pytest.mark.parametrize(
        "uri", ["file:", "file://", "file://host/etc/keys", "file://localhost/k", "file:////k", "file:/a%00b"]
    )
    def test_uri_that_is_no_path_of_this_machine_is_refused(self, uri: str) -> None:
        assert type(refusal(uri)) is ConfigurationError

    @needs_posix
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610, 0o601, 0o644, 0o777])
    def test_file_that_others_may_touch_is_refused_with_the_remedy(self, key_file: Path, mode: int) -> None:
        key_file.chmod(mode)
        error = refusal(f"file:{key_file}")
        assert type(error) is KeyRingError
        assert f"{mode:04o}" in str(error)
        assert f"chmod 600 {key_file}" in str(error)
        assert set() == revealed_by(error, FIRST, SECOND)

    @needs_posix
    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
    def test_file_of_its_owner_alone_is_read(self, key_file: Path, mode: int) -> None:
        key_file.chmod(mode)
        assert KeyRing.from_uri(f"file:{key_file}").active == FIRST_ID

    @needs_posix
    def test_mode_that_counts_is_that_of_the_file_behind_a_link(self, key_file: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(key_file)
        assert KeyRing.from_uri(f"file:{link}").active == FIRST_ID
        key_file.chmod(0o640)
        assert type(refusal(f"file:{link}")) is KeyRingError

    def test_missing_file_and_dangling_link_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "dangling").symlink_to(tmp_path / "missing")
        for name in ("missing", "dangling", "missing/below"):
            error = refusal(f"file:{tmp_path / name}")
            assert isinstance(error, KeyUnavailableError)
            assert not error.retryable
            assert str(tmp_path / name) in str(error)

    @needs_posix
    @pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="The superuser may read every file.")
    def test_file_that_may_not_be_read_is_unavailable(self, key_file: Path) -> None:
        key_file.chmod(0)
        assert isinstance(refusal(f"file:{key_file}"), KeyUnavailableError)

    def test_directory_is_refused(self, tmp_path: Path) -> None:
        assert isinstance(refusal(f"file:{tmp_path}"), KeyUnavailableError)

    @needs_posix
    def test_device_is_refused_before_it_is_read(self) -> None:
        assert "regular file" in str(refusal("file:/dev/zero"))

    @pytest.mark.parametrize("content", ["", "\n\n", "# nothing but\n  # comments\n"])
    def test_file_without_a_key_is_refused_with_the_remedy(self, key_file: Path, content: str) -> None:
        key_file.write_text(content, encoding="utf-8")
        error = refusal(f"file:{key_file}")
        assert type(error) is KeyRingError
        assert "jwt-column keys generate" in str(error)

    @pytest.mark.parametrize("bad", [SECOND[:-1], SECOND + " # my key", "password-of-the-database"])
    def test_bad_line_is_named_by_its_number_and_shown_nowhere(self, key_file: Path, bad: str) -> None:
        key_file.write_text(f"# comment\n{FIRST}\n\n{bad}\n", encoding="utf-8")
        error = refusal(f"file:{key_file}")
        assert type(error) is KeyRingError
        assert f"{key_file}, line 4" in str(error)
        assert set() == revealed_by(error, bad, FIRST)
        assert bad not in locals_shown_by(error)

    def test_file_that_is_no_text_is_refused_and_shown_nowhere(self, key_file: Path) -> None:
        """A UnicodeDecodeError would carry the whole file."""
        key_file.write_bytes(f"{FIRST}\n".encode() + b"\xff\xfe")
        error = refusal(f"file:{key_file}")
        assert type(error) is KeyRingError
        assert set() == revealed_by(error, FIRST)
        assert FIRST not in locals_shown_by(error)

    def test_file_that_is_too_large_for_a_key_file_is_refused(self, key_file: Path) -> None:
        comment = "#" * (64 * 1024 - len(FIRST) - 2)
        key_file.write_text(f"{comment}\n{FIRST}\n", encoding="utf-8")
        assert KeyRing.from_uri(f"file:{key_file}").active == FIRST_ID
        key_file.write_text(f"#{comment}\n{FIRST}\n", encoding="utf-8")
        assert "65536 bytes" in str(refusal(f"file:{key_file}"))

    def test_key_that_is_there_twice_is_refused(self, key_file: Path) -> None:
        key_file.write_text(f"{FIRST}\n{FIRST}\n", encoding="utf-8")
        assert FIRST_ID in str(refusal(f"file:{key_file}"))

    def test_reload_reads_the_file_again(self, key_file: Path) -> None:
        ring = KeyRing.from_uri(f"file:{key_file}")
        write_key_file(key_file, [SECOND, FIRST], overwrite=True)
        ring.reload()
        assert ring.key_ids == (SECOND_ID, FIRST_ID)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow past one byte, so that every write of more fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="This system cannot limit the size of a file.")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestWriteKeyFile:
    """A key file is written whole, for its owner alone, or not at all."""

    def test_written_file_is_a_ring_with_its_first_key_active(self, tmp_path: Path) -> None:
        path = tmp_path / "jwt.keys"
        write_key_file(path, [SECOND, bytes([1]) * 32])
        assert KeyRing.from_uri(f"file:{path}").key_ids == (SECOND_ID, FIRST_ID)
        assert [path] == list(tmp_path.iterdir())

    def test_generated_key_can_be_written(self, tmp_path: Path) -> None:
        key = generate_key()
        write_key_file(tmp_path / "jwt.keys", [key])
        assert KeyRing([key]).active == KeyRing.from_uri(f"file:{tmp_path / 'jwt.keys'}").active

    @needs_posix
    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
    def test_mode_is_0600_whatever_the_umask(self, tmp_path: Path, mask: int) -> None:
        before = os.umask(mask)
        try:
            write_key_file(tmp_path / "jwt.keys", [FIRST])
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "jwt.keys").stat().st_mode) == 0o600

    def test_file_that_is_there_is_not_replaced(self, key_file: Path) -> None:
        before = key_file.read_bytes()
        with pytest.raises(ConfigurationError, match="exists") as caught:
            write_key_file(key_file, [FIRST])
        assert before == key_file.read_bytes()
        assert [key_file] == list(key_file.parent.iterdir())
        assert set() == revealed_by(caught.value, FIRST)

    def test_dangling_link_counts_as_a_file_that_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "missing")
        with pytest.raises(ConfigurationError, match="exists"):
            write_key_file(tmp_path / "link", [FIRST])
        assert [tmp_path / "link"] == list(tmp_path.iterdir())

    def test_overwriting_replaces_keys_and_mode(self, key_file: Path) -> None:
        key_file.chmod(0o644)
        write_key_file(key_file, [SECOND], overwrite=True)
        assert KeyRing.from_uri(f"file:{key_file}").key_ids == (SECOND_ID,)
        assert [key_file] == list(key_file.parent.iterdir())

    def test_overwriting_makes_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        write_key_file(tmp_path / "jwt.keys", [FIRST], overwrite=True)
        assert KeyRing.from_uri(f"file:{tmp_path / 'jwt.keys'}").active == FIRST_ID

    def test_overwriting_through_a_link_replaces_the_file_behind_it(
        self, key_file: Path, tmp_path: Path
    ) -> None:
        link = tmp_path / "link"
        link.symlink_to(key_file.name)
        write_key_file(link, [SECOND], overwrite=True)
        assert link.is_symlink()
        assert KeyRing.from_uri(f"file:{key_file}").key_ids == (SECOND_ID,)

    def test_relative_path_is_written_where_the_process_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_key_file(Path("jwt.keys"), [FIRST])
        assert KeyRing.from_uri(f"file:{tmp_path / 'jwt.keys'}").active == FIRST_ID

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize(
        "keys", [[], ["no key"], [FIRST, FIRST], [FIRST, SECOND[:-1]], [f"{FIRST}\ud800"]], ids=len
    )
    def test_keys_that_could_not_be_loaded_are_not_written(
        self, key_file: Path, keys: list[str], overwrite: bool
    ) -> None:
        before = key_file.read_bytes()
        with pytest.raises(KeyRingError) as caught:
            write_key_file(key_file, keys, overwrite=overwrite)
        assert before == key_file.read_bytes()
        assert [key_file] == list(key_file.parent.iterdir())
        assert set() == revealed_by(caught.value, FIRST, SECOND)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_write_that_fails_leaves_no_part_of_a_file(self, tmp_path: Path, overwrite: bool) -> None:
        with full_disk(), pytest.raises(ConfigurationError, match="cannot be written") as caught:
            write_key_file(tmp_path / "jwt.keys", [FIRST], overwrite=overwrite)
        assert list(tmp_path.iterdir()) == []
        assert set() == revealed_by(caught.value, FIRST)

    def test_write_that_fails_leaves_the_old_file(self, key_file: Path) -> None:
        before = key_file.read_bytes()
        with full_disk(), pytest.raises(ConfigurationError, match="cannot be written"):
            write_key_file(key_file, [SECOND], overwrite=True)
        assert before == key_file.read_bytes()
        assert [key_file] == list(key_file.parent.iterdir())
        # The control: it was the disk, and nothing else, that stood in the way.
        write_key_file(key_file, [SECOND], overwrite=True)
        assert before != key_file.read_bytes()

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_directory_that_is_none_is_named(self, key_file: Path, overwrite: bool) -> None:
        for path in (key_file.parent / "missing" / "jwt.keys", key_file / "jwt.keys"):
            with pytest.raises(ConfigurationError, match="cannot be written") as caught:
                write_key_file(path, [FIRST], overwrite=overwrite)
            assert str(path) in str(caught.value)

    def test_directory_is_not_replaced_by_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "jwt.keys").mkdir()
        for overwrite in (False, True):
            with pytest.raises(ConfigurationError):
                write_key_file(tmp_path / "jwt.keys", [FIRST], overwrite=overwrite)
        assert [tmp_path / "jwt.keys"] == list(tmp_path.iterdir())

    @pytest.mark.skipif(
        sys.platform != "linux", reason="Only Linux has this directory that nobody writes to."
    )
    def test_directory_that_cannot_be_written_to_is_named(self) -> None:
        with pytest.raises(ConfigurationError, match="cannot be written"):
            write_key_file(Path("/proc/self/jwt.keys"), [FIRST])

    @needs_posix
    @pytest.mark.skipif(
        os.name == "posix" and os.geteuid() == 0, reason="The superuser may write everywhere."
    )
    def test_directory_that_may_not_be_written_to_is_named(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigurationError, match="cannot be written"):
            write_key_file(tmp_path / "jwt.keys", [FIRST])
        tmp_path.chmod(0o700)
        assert list(tmp_path.iterdir()) == []
