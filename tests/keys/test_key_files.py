"""Key files that are not as they should be: each is refused with the cure, and none hangs the process."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING

import pytest

from jwt_column import ConfigurationError, KeyRing, KeyRingError, generate_key, providers
from jwt_column.keys.data_key import DataKey
from jwt_column.keys.providers.pin import read_pin
from jwt_column.keys.providers.vault_login import _read
from tests.keys.test_search import write_ring

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FIRST, SECOND = generate_key(), generate_key()
IDS = (DataKey(FIRST).id, DataKey(SECOND).id)

posix = pytest.mark.skipif(os.name != "posix", reason="This system has no such files, owners and modes.")


def load(path: Path) -> KeyRing:
    return KeyRing.from_uri(f"file:{path}")


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


@posix
def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys", 0o600)
    errors: list[Exception] = []

    def work() -> None:
        try:
            load(tmp_path / "keys")
        except KeyRingError as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert "not a regular file" in str(errors[0])
    with pytest.raises(KeyRingError, match="not a regular file"):
        load(tmp_path.joinpath("/dev/null"))


@posix
@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda path: read_pin(f"file:{path}"), "PIN file .* not a regular file"),
        (lambda path: _read(path, "role_id_file"), "role_id_file= names .* not a regular file"),
    ],
)
def test_credentials_in_a_fifo_or_a_device_do_not_hang(
    tmp_path: Path, read: Callable[[Path], str], message: str
) -> None:
    """The control is the same text in a file."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    write(tmp_path / "file", b"47\n")
    found: list[str] = []

    def work() -> None:
        for path in (tmp_path / "file", tmp_path / "fifo", tmp_path.joinpath("/dev/zero")):
            try:
                found.append(read(path))
            except ConfigurationError as error:
                found.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert found[0] == "47"
    assert len(found) == 3
    assert all(re.search(message, text) for text in found[1:])


@posix
def test_link_that_everyone_may_replace_is_refused(tmp_path: Path) -> None:
    """Its target may be in a good directory. The control is the sticky bit."""
    providers.write_key_file(tmp_path / "keys", [FIRST])
    directory = tmp_path / "open"
    directory.mkdir()
    (directory / "link").symlink_to(tmp_path / "keys")
    directory.chmod(0o777)
    with pytest.raises(KeyRingError, match=f"chmod o-w {directory}"):
        load(directory / "link")
    directory.chmod(0o1777)
    assert load(directory / "link").active == IDS[0]


@posix
@pytest.mark.parametrize("kind", ["plain", "wrapped"])
def test_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "keys"
    if kind == "plain":
        providers.write_key_file(path, [FIRST])
    else:
        providers.write_key_file(tmp_path / "kek", [SECOND])
        write_ring(path, FIRST, kek=f"file:{tmp_path / 'kek'}")
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert load(path).active == IDS[0]
    if owner == 0:
        # Root's file is anyone's to use; make it that of a third user.
        os.chown(path, 12_345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(KeyRingError, match="chown 54321"):
        load(path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load(path).active == IDS[0]


@posix
@pytest.mark.parametrize("depth", [1, 2])
def test_directory_in_which_everyone_may_replace_the_file_is_refused(tmp_path: Path, depth: int) -> None:
    directory = tmp_path / "open"
    place = directory if depth == 1 else directory / "inner"
    place.mkdir(parents=True)
    providers.write_key_file(place / "keys", [FIRST])
    directory.chmod(0o777)
    with pytest.raises(KeyRingError, match=f"chmod o-w {directory}"):
        load(place / "keys")
    # The control: with the sticky bit, as /tmp has it, only the owner replaces a file.
    directory.chmod(0o1777)
    assert load(place / "keys").active == IDS[0]
    directory.chmod(0o755)
    assert load(place / "keys").active == IDS[0]


def test_comment_without_a_line_feed_does_not_swallow_an_appended_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    write(path, f"{FIRST}\n# the key of May".encode() + f"{SECOND}\n".encode())
    with pytest.raises(KeyRingError, match="line 2: a key follows a comment") as caught:
        load(path)
    assert SECOND not in str(caught.value)
    # One mounted secret serves both.
    monkeypatch.setenv("KEYS", path.read_text())
    with pytest.raises(KeyRingError, match="KEYS, line 2: a key follows a comment"):
        KeyRing.from_uri("env:KEYS")
    # The controls: a key that was commented out, and comments that only look long.
    for comment in (f"# {FIRST}", f"#{FIRST}", "# " + "-" * 60, "# " + "=" * 60, "# " + "_" * 60):
        write(path, f"{SECOND}\n{comment}".encode())
        monkeypatch.setenv("KEYS", path.read_text())
        assert load(path).key_ids == KeyRing.from_uri("env:KEYS").key_ids == IDS[1:]


def test_byte_order_mark_is_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write(path, f"\ufeff{FIRST}\n{SECOND}\n".encode())
    assert load(path).key_ids == IDS
    write(path, f"{FIRST}\n".encode("utf-16"))
    with pytest.raises(KeyRingError, match="UTF-16"):
        load(path)
    providers.write_key_file(tmp_path / "kek", [SECOND])
    write_ring(tmp_path / "ring", FIRST, kek=f"file:{tmp_path / 'kek'}")
    (tmp_path / "ring").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "ring").read_bytes())
    assert load(tmp_path / "ring").active == IDS[0]


@pytest.mark.parametrize(
    "form",
    [
        "{0},{1}",
        " {0} , {1} ",
        "{0} {1}",
        "{0}\n{1}\n",
        "{0}\r\n\r\n{1}",
        "\ufeff# first, second\n{0}\n{1}\n",
    ],
)
def test_variable_takes_the_text_of_a_key_file(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("JWT_COLUMN_KEYS", form.format(FIRST, SECOND))
    assert KeyRing.from_uri("env:JWT_COLUMN_KEYS").key_ids == IDS


def test_one_mounted_secret_serves_file_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    providers.write_key_file(path, [FIRST, SECOND])
    monkeypatch.setenv("JWT_COLUMN_KEYS", path.read_text())
    assert KeyRing.from_uri("env:JWT_COLUMN_KEYS").key_ids == load(path).key_ids == IDS
