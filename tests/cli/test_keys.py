"""``jwt-column keys``: what each command does to a ring, what it refuses, and how it ends, for people and scripts."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from jwt_column import (
    EncryptedJWT,
    KeyRing,
    KeyUnavailableError,
    UnknownKeyError,
    decrypt_token,
    encrypt_token,
    generate_key,
)
from jwt_column.cli.console import ExitCode
from jwt_column.cli.keys.showing import age
from jwt_column.format import base64url
from jwt_column.keys.ring_file.format import KeyEntry, KeyState
from jwt_column.providers import write_key_file
from tests.support.command_line import environment, invoke, program_path, type_in_terminal
from tests.support.command_line import keys as run
from tests.support.command_line import keys_output as done
from tests.support.command_line import keys_report as shown
from tests.support.docs_examples import ROOT
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.standin import Standin

KEY = re.compile(r"[A-Za-z0-9_-]{43}")


def refused(*arguments: str, code: ExitCode = ExitCode.USAGE) -> str:
    """Run a command that is refused, and return why, as one line."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert re.fullmatch(r"jwt-column: .*\n", result.stderr)
    return result.stderr


def states() -> dict[str, str]:
    return {key["id"]: key["state"] for key in shown("list")["keys"]}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the key ring of the environment is, or will be."""
    path = tmp_path / "ring.json"
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
    return path


@pytest.fixture
def ring(path: Path, standin: Standin) -> str:
    """The active key's id of a new key-ring file."""
    key_id: str = shown("init", "--wrapped-by", "standin:kek", "--name", "sessions")["active"]
    return key_id


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    """A file of two plain keys, in the environment."""
    file = tmp_path / "jwt.keys"
    write_key_file(file, [generate_key(), generate_key()])
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{file}")
    return KeyRing.from_uri(f"file:{file}")


def added(*arguments: str) -> str:
    key_id: str = shown("add", *arguments)["added"]
    return key_id


# -- init ------------------------------------------------------------------------------------------------------


def test_init_writes_a_ring_that_loads(path: Path, standin: Standin) -> None:
    output = done("init", "--wrapped-by", "standin:kek")
    ring = KeyRing.from_uri(f"file:{path}")
    assert f"ring ring, active key {ring.active}, wrapped by standin:kek" in output
    assert f"export JWT_COLUMN_KEYRING=file:{path}" in output
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    # The file's own texts, wrapped keys and macs, are no data keys; nothing else that long was printed.
    assert not KEY.search(output.replace(str(path), ""))


def test_init_names_the_ring(ring: str) -> None:
    assert shown("list")["ring"] == "sessions"


def test_init_replaces_no_file(ring: str, path: Path) -> None:
    before = path.read_bytes()
    assert "exists" in refused("init", "--wrapped-by", "standin:kek")
    assert before == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--wrapped-by", "standin:kek", "--name", "my ring"), "--name"),
        (("--wrapped-by", "kek"), "begins with one of"),
        (("--wrapped-by", "standin:k k"), "printable ASCII"),
        (("--wrapped-by", "env:NOT_SET"), "NOT_SET"),
        (("--wrapped-by", "standin:kek", "--from", "env:NOT_SET"), "NOT_SET"),
    ],
)
def test_init_that_cannot_be_done_writes_nothing(
    path: Path, standin: Standin, arguments: tuple[str, ...], what: str
) -> None:
    assert what in refused("init", *arguments)
    assert list(path.parent.iterdir()) == []


def test_init_takes_over_the_keys_of_another_ring(path: Path, standin: Standin, plain: KeyRing) -> None:
    """So that an application with a plain key file can move on."""
    value = signed_token()
    stored = encrypt_token(value, plain, context="c")
    made = shown("init", "--file", str(path), "--wrapped-by", "standin:kek", "--from", plain.uri or "")
    assert [(key["id"], key["state"]) for key in made["keys"]] == [
        (plain.key_ids[0], "active"),
        (plain.key_ids[1], "deactivated"),
    ]
    assert value == decrypt_token(stored, KeyRing.from_uri(f"file:{path}"), context="c")


def test_init_takes_over_tenants(ring: str, path: Path, tmp_path: Path) -> None:
    first, second = added("--tenant", "acme"), added("--tenant", "acme")
    before = KeyRing.from_uri(f"file:{path}")
    new = tmp_path / "new.json"
    made = shown("init", "--file", str(new), "--wrapped-by", "standin:other", "--from", f"file:{path}")
    assert [(key["id"], key["state"], key.get("tenant")) for key in made["keys"]] == [
        (ring, "active", None),
        (first, "active", "acme"),
        (second, "deactivated", "acme"),
    ]
    after = KeyRing.from_uri(f"file:{new}")
    assert (after.key_ids, after.tenants) == (before.key_ids, before.tenants)


def test_init_of_a_ring_that_does_not_unwrap_writes_nothing(path: Path, standin: Standin) -> None:
    standin.after_unwrap = lambda _: [bytes(32)]
    assert "did not unwrap" in refused("init", "--wrapped-by", "standin:kek")
    assert list(path.parent.iterdir()) == []


# -- which ring ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", [None, "", "env:JWT_COLUMN_KEYS", "vault-transit:x"])
@pytest.mark.parametrize(
    "arguments", [("list",), ("add",), ("check",), ("rewrap",), ("init", "--wrapped-by", "standin:kek")]
)
def test_command_without_a_file_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, uri: str | None, arguments: tuple[str, ...]
) -> None:
    if uri is not None:
        monkeypatch.setenv("JWT_COLUMN_KEYRING", uri)
    assert "which key ring?" in refused(*arguments)


def test_file_comes_before_the_environment(ring: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.json")
    assert shown("init", "--file", other, "--wrapped-by", "standin:kek")["active"] != ring
    assert shown("list", "--file", other)["ring"] == "other"
    assert shown("list")["ring"] == "sessions"


def test_file_that_is_not_there_or_no_ring_is_named(path: Path) -> None:
    assert str(path) in refused("list")
    path.write_text('{"format": "something else"}')
    assert str(path) in refused("list")


# -- list ------------------------------------------------------------------------------------------------------


def test_list_shows_keys_without_asking_the_kek(ring: str, standin: Standin, path: Path) -> None:
    new = added()
    standin.failure = KeyUnavailableError("down")
    lines = done("list").splitlines()
    assert lines[0] == f"sessions, revision 2: {path}"
    rows = [line.split() for line in lines[4:]]
    assert rows == [
        [ring, "active", "0", "h", "standin:kek"],
        [new, "pre-activation", "0", "h", "standin:kek"],
    ]


def test_list_shows_tenants_where_there_are_some(ring: str) -> None:
    new = added("--tenant", "acme")
    (row,) = [line.split() for line in done("list").splitlines() if new in line]
    assert row == [new, "active", "0", "h", "acme", "standin:kek"]


def test_list_as_json_has_everything_but_keys(ring: str, path: Path) -> None:
    new = added("--tenant", "acme")
    value = shown("list")
    assert KEY.search(json.dumps(value)) is None
    first, second = value["keys"]
    times = {first.pop(name) for name in ("created", "activated")}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time) for time in times)
    assert first == {"id": ring, "state": "active", "wrapped_by": "standin:kek"}
    assert (second["id"], second["tenant"]) == (new, "acme")
    expected = {"file": str(path), "uri": f"file:{path}", "ring": "sessions", "revision": 2, "active": ring}
    assert expected.items() <= value.items()


def test_list_of_a_plain_file_says_so(plain: KeyRing) -> None:
    output = done("list")
    assert "in the clear" in output
    assert "unknown" in output
    assert states() == {plain.key_ids[0]: "active", plain.key_ids[1]: "decrypts only"}
    assert "revision" not in shown("list")


@pytest.mark.parametrize(
    ("seconds", "expected"), [(-5, "0 h"), (0, "0 h"), (7_300, "2 h"), (86_400, "1 d"), (90 * 86_400, "90 d")]
)
def test_age_is_in_hours_on_the_first_day(seconds: int, expected: str) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    assert (
        age(KeyEntry("00000000", KeyState.ACTIVE, "", b"", now - timedelta(seconds=seconds)), now) == expected
    )


# -- add, activate, compromise ---------------------------------------------------------------------------------


def test_keys_are_added_activated_and_removed(ring: str, path: Path) -> None:
    loaded = KeyRing.from_uri(f"file:{path}")
    new = added()
    assert states() == {ring: "active", new: "pre-activation"}
    loaded.reload()
    assert (loaded.active, loaded.key_ids) == (ring, (ring, new))
    assert new in done("activate", new)
    assert states() == {new: "active", ring: "deactivated"}
    loaded.reload()
    assert (loaded.active, loaded.key_ids) == (new, (new, ring))
    done("remove", ring, "--force", "--confirm", ring)
    assert states() == {new: "active"}
    assert shown("list")["revision"] == 4


def test_added_key_says_what_comes_next(ring: str) -> None:
    output = done("add")
    (key_id,) = re.findall(r"Added key (\w+) \(pre-activation\)", output)
    assert f"jwt-column keys activate {key_id}" in output
    assert "ring.using(ring.tenants['acme'])" in done("add", "--tenant", "acme")


def test_key_may_be_wrapped_by_another_kek(ring: str, standin: Standin, path: Path) -> None:
    new = added("--wrapped-by", "standin:other")
    assert {key["id"]: key["wrapped_by"] for key in shown("list")["keys"]} == {
        ring: "standin:kek",
        new: "standin:other",
    }
    assert KeyRing.from_uri(f"file:{path}").key_ids == (ring, new)


def test_leaked_key_is_marked(ring: str) -> None:
    new = added()
    assert "activate another key first" in refused("compromise", ring)
    done("activate", new)
    assert "compromised" in done("compromise", ring)
    assert states() == {new: "active", ring: "compromised"}
    assert "does not become active again" in refused("activate", ring)


@pytest.mark.parametrize("arguments", [("activate", "00000000"), ("compromise", "00000000")])
def test_key_that_is_not_there_is_named_beside_those_that_are(ring: str, arguments: tuple[str, ...]) -> None:
    assert ring in refused(*arguments)


@pytest.mark.parametrize("arguments", [("add", "--tenant", "a b"), ("add", "--wrapped-by", "nope:x")])
def test_add_that_makes_no_sense_is_refused(ring: str, path: Path, arguments: tuple[str, ...]) -> None:
    before = path.read_bytes()
    refused(*arguments)
    assert before == path.read_bytes()


@pytest.mark.parametrize("retryable", [True, False])
@pytest.mark.parametrize("arguments", [("add",), ("activate", "{new}"), ("rewrap",), ("compromise", "{new}")])
def test_command_whose_kek_cannot_be_had_changes_nothing(
    ring: str, path: Path, standin: Standin, retryable: bool, arguments: tuple[str, ...]
) -> None:
    new = added()
    before = path.read_bytes()
    standin.failure = KeyUnavailableError("standin: sealed", retryable=retryable)
    code = ExitCode.UNREACHABLE if retryable else ExitCode.USAGE
    message = refused(*(word.format(new=new) for word in arguments), code=code)
    assert message == f"jwt-column: {path}: standin: sealed\n"
    assert before == path.read_bytes()


def test_file_that_was_changed_without_its_keys_is_not_signed_again(ring: str, path: Path) -> None:
    """Else a command would vouch for what somebody has put there."""
    new = added()
    content = json.loads(path.read_text())
    content["keys"][1]["state"] = "compromised"
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    for arguments in (("add",), ("activate", new), ("rewrap",), ("remove", new, "--force", "--confirm", new)):
        assert "changed without its keys" in refused(*arguments)
    assert before == path.read_bytes()


# -- plain files -----------------------------------------------------------------------------------------------


def test_plain_file_is_changed_too(plain: KeyRing, tmp_path: Path) -> None:
    first, second = plain.key_ids
    third = added()
    done("activate", third)
    path = tmp_path / "jwt.keys"
    assert KeyRing.from_uri(f"file:{path}").key_ids == (third, first, second)
    done("remove", first, second, "--force", "--confirm", first, "--confirm", second)
    assert KeyRing.from_uri(f"file:{path}").key_ids == (third,)
    assert checks()["previous"] is True
    for name in ("jwt.keys", "jwt.keys.previous"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("activate", "{active}"), "active already"),
        (("activate", "00000000"), "has no key"),
        (("remove", "{active}", "--force", "--confirm", "{active}"), "not removed"),
        (("add", "--tenant", "acme"), "no tenants"),
        (("add", "--wrapped-by", "env:KEK"), "no KEK"),
        (("compromise", "{active}"), "keys init"),
        (("rewrap",), "keys init"),
    ],
)
def test_what_a_plain_file_cannot_do_is_refused(
    plain: KeyRing, arguments: tuple[str, ...], what: str
) -> None:
    before = plain.key_ids
    assert what in refused(*(word.format(active=plain.active) for word in arguments))
    plain.reload()
    assert before == plain.key_ids


# -- rewrap ----------------------------------------------------------------------------------------------------


def test_rewrap_puts_every_key_under_the_new_kek(ring: str, path: Path, standin: Standin) -> None:
    new = added()
    assert "2 keys are wrapped by standin:other" in done("rewrap", "--wrapped-by", "standin:other")
    assert {key["wrapped_by"] for key in shown("list")["keys"]} == {"standin:other"}
    standin.calls.clear()
    assert KeyRing.from_uri(f"file:{path}").key_ids == (ring, new)
    assert standin.calls == [("unwrap", "standin:other", 2)]


def test_rewrap_without_a_kek_takes_the_newest_version_of_the_same(
    ring: str, path: Path, standin: Standin
) -> None:
    standin.version = 2
    standin.calls.clear()
    assert "1 key is wrapped by standin:kek" in done("rewrap")
    assert [what for what, *_ in standin.calls] == ["unwrap", "rewrap", "unwrap"]
    wrapped = json.loads(path.read_text())["keys"][0]["wrapped"]
    assert (base64url.decode(wrapped) or b"")[0] == 2
    assert KeyRing.from_uri(f"file:{path}").active == ring


# -- remove ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rotated(ring: str) -> tuple[str, str]:
    """The ids of a deactivated key and of the active one after it."""
    new = added()
    done("activate", new)
    return ring, new


@pytest.fixture
def rows(rotated: tuple[str, str], path: Path, engine: sa.Engine) -> sa.URL:
    """A database with two rows under the deactivated key and one under the active one."""
    ring, metadata = KeyRing.from_uri(f"file:{path}"), sa.MetaData()
    table = sa.Table("sessions", metadata, sa.Column("id", sa.Integer, primary_key=True))
    table.append_column(sa.Column("token", EncryptedJWT(ring)))
    metadata.create_all(engine)
    with engine.begin() as connection:
        for number, key_id in enumerate((rotated[0], rotated[0], rotated[1]), 1):
            with ring.using(key_id):
                connection.execute(table.insert(), {"id": number, "token": signed_token(sub=str(number))})
        # Under no key at all.
        plain = sa.table("sessions", sa.column("id"), sa.column("token", sa.LargeBinary()))
        connection.execute(plain.insert(), {"id": 4, "token": signed_token().encode()})
    return engine.url


@pytest.fixture
def column(rows: sa.URL, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The options that name the column, with the database in the environment."""
    monkeypatch.setenv("JWT_COLUMN_DATABASE_URL", rows.render_as_string(hide_password=False))
    return ("--table", "sessions", "--column", "token")


def test_rows_are_counted_by_key(rotated: tuple[str, str], column: tuple[str, ...]) -> None:
    old, new = rotated
    value = shown("list", *column)
    assert [(key["id"], key["rows"]) for key in value["keys"]] == [(new, 1), (old, 2)]
    assert value["missing"] == []
    line = next(line for line in done("list", *column).splitlines() if old in line)
    assert line.split()[4] == "2"


def test_rows_under_a_key_that_the_ring_lacks_are_shown(
    rotated: tuple[str, str], column: tuple[str, ...]
) -> None:
    old, _ = rotated
    done("remove", old, "--force", "--confirm", old)
    assert shown("list", *column)["missing"] == [{"id": old, "rows": 2}]
    assert f"2 rows are under {old}, a key that the ring lacks." in done("list", *column)


def test_key_with_rows_under_it_is_not_removed(
    rotated: tuple[str, str], column: tuple[str, ...], path: Path
) -> None:
    old, _ = rotated
    before = path.read_bytes()
    message = refused("remove", old, *column, code=ExitCode.FAILURE)
    assert f"2 rows are under key {old}" in message
    assert "jwt-column reencrypt" in message
    assert before == path.read_bytes()


def test_key_without_rows_is_removed(
    rotated: tuple[str, str], column: tuple[str, ...], path: Path, rows: sa.URL
) -> None:
    """After a re-encryption, as the last step of a rotation."""
    old, new = rotated
    reencrypted = invoke("reencrypt", *column)
    assert reencrypted.exit_code == 0, reencrypted.stderr
    output = done("remove", old, *column)
    assert f"Removed key {old}." in output
    assert f"{path}.previous still holds the removed keys" in output
    assert states() == {new: "active"}


def test_all_databases_and_columns_that_are_named_are_asked(
    rotated: tuple[str, str], rows: sa.URL, tmp_path: Path
) -> None:
    old, _ = rotated
    empty = tmp_path / "empty.sqlite3"
    engine = sa.create_engine(f"sqlite:///{empty}")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE sessions (id INTEGER PRIMARY KEY, token BLOB)"))
    engine.dispose()
    options = ("--table", "sessions", "--column", "token", "--database", f"sqlite:///{empty}")
    full = rows.render_as_string(hide_password=False)
    counted = shown("list", *options, "--database", full, "--database", full)
    assert {key["id"]: key["rows"] for key in counted["keys"]}[old] == 4
    assert "2 rows" in refused("remove", old, *options, "--database", full, code=ExitCode.FAILURE)
    # The control: in the empty database alone there is no row in the way.
    done("remove", old, *options)


def test_column_is_named_by_its_model(
    rotated: tuple[str, str], rows: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app_of_keys.py").write_text("""
import sqlalchemy as sa
from jwt_column import EncryptedJWT
table = sa.Table("sessions", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("token", EncryptedJWT()))
class App:
    token = table.c.token
""")
    monkeypatch.syspath_prepend(tmp_path)
    url = rows.render_as_string(hide_password=False)
    options = ("--model", "app_of_keys:App.token", "--database", url)
    assert "2 rows" in refused("remove", rotated[0], *options, code=ExitCode.FAILURE)


def test_a_key_is_not_removed_while_columns_of_the_model_are_not_counted(
    rotated: tuple[str, str], rows: sa.URL, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is a column of another ring."""
    module = f"app_of_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(f"""
import sqlalchemy as sa
from jwt_column import EncryptedJWT
metadata = sa.MetaData()
def table(name, uri):
    return sa.Table(name, metadata, sa.Column("id", sa.Integer), sa.Column("token", EncryptedJWT(uri))).c.token
first, second = table("first", "file:{path}"), table("second", "file:{path}")
elsewhere = table("elsewhere", "env:NO_SUCH_KEYS")
""")
    monkeypatch.syspath_prepend(tmp_path)
    engine = sa.create_engine(rows)
    for name in ("first", "second"):
        columns = sa.Column("id", sa.Integer), sa.Column("token", sa.LargeBinary)
        sa.Table(name, sa.MetaData(), *columns).create(engine)
    engine.dispose()
    before, database = path.read_bytes(), ("--database", rows.render_as_string(hide_password=False))
    message = refused("remove", rotated[0], "--model", f"{module}:first", *database)
    assert "second.token is under the ring" in message
    assert "elsewhere" not in message
    assert before == path.read_bytes()
    done("remove", rotated[0], "--model", f"{module}:first", "--model", f"{module}:second", *database)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ((), "are there rows under this key?"),
        (("--database", "sqlite:///x"), "which rows?"),
        (("--table", "sessions"), "which column?"),
        (("--table", "sessions", "--column", "token"), "no database"),
    ],
)
def test_removal_wants_to_know_where_to_look(
    rotated: tuple[str, str], path: Path, options: tuple[str, ...], what: str
) -> None:
    before = path.read_bytes()
    assert what in refused("remove", rotated[0], *options)
    assert before == path.read_bytes()


@pytest.mark.parametrize(
    ("table", "name", "what"),
    [
        ("nowhere", "token", "there is no table nowhere"),
        ("sessions", "jwt", "there is no column sessions.jwt"),
        ("sessions", "id", "neither bytes nor text"),
    ],
)
def test_removal_looks_at_columns_that_are_there(
    rotated: tuple[str, str], column: tuple[str, ...], table: str, name: str, what: str
) -> None:
    assert what in refused("remove", rotated[0], "--table", table, "--column", name)


def test_database_that_cannot_be_reached_keeps_the_key(rotated: tuple[str, str], tmp_path: Path) -> None:
    options = ("--table", "s", "--column", "t", "--database", f"sqlite:///{tmp_path / 'nowhere.db'}")
    refused("remove", rotated[0], *options, code=ExitCode.DATABASE)
    assert rotated[0] in states()


def test_active_key_is_never_removed(rotated: tuple[str, str]) -> None:
    _, new = rotated
    assert "active key" in refused("remove", new, "--force", "--confirm", new)


def test_force_wants_each_id_once_more(rotated: tuple[str, str], path: Path) -> None:
    old, new = rotated
    before = path.read_bytes()
    for confirm in ((), ("--confirm", new), ("--confirm", old[:-1])):
        assert f"--confirm {old}" in refused("remove", old, "--force", *confirm)
    assert before == path.read_bytes()
    done("remove", old, "--force", "--confirm", old)
    assert old not in states()


def test_force_removes_a_key_with_rows_under_it(
    rotated: tuple[str, str], column: tuple[str, ...], path: Path
) -> None:
    old, _ = rotated
    assert shown("remove", old, *column, "--force", "--confirm", old)["removed"] == [old]
    with pytest.raises(UnknownKeyError):
        KeyRing.from_uri(f"file:{path}").key(bytes.fromhex(old))


def test_removed_key_is_kept_in_the_previous_version_unless_that_is_not_wanted(
    rotated: tuple[str, str], path: Path
) -> None:
    old, _ = rotated
    assert "previous" not in done("remove", old, "--force", "--confirm", old, "--no-previous")
    assert [path] == list(path.parent.iterdir())


def test_key_whose_kek_is_lost_is_removed_by_force_only(ring: str, standin: Standin, path: Path) -> None:
    lost, other = added("--wrapped-by", "standin:lost"), added()
    standin.destroyed.add("standin:lost")
    assert "destroyed" in refused("activate", other)
    # Another key is not removed while one that stays cannot say whether the file is as it should be.
    assert "destroyed" in refused("remove", other, "--force", "--confirm", other)
    assert f"Key {lost}: standin:lost was destroyed" in run("check").stdout
    done("remove", lost, "--force", "--confirm", lost)
    assert KeyRing.from_uri(f"file:{path}").key_ids == (ring, other)


def test_key_that_does_not_unwrap_needs_force_although_no_row_is_under_it(
    rotated: tuple[str, str], column: tuple[str, ...], standin: Standin
) -> None:
    lost = added("--wrapped-by", "standin:lost")
    standin.destroyed.add("standin:lost")
    assert "destroyed" in refused("remove", lost, *column)


def in_terminal(*arguments: str, typed: str, path: Path, site: Path) -> tuple[str, int]:
    """Run a command on a real terminal where somebody types."""
    return type_in_terminal(
        "keys",
        *arguments,
        prompt="to remove it:",
        typed=typed,
        JWT_COLUMN_KEYRING=f"file:{path}",
        JWT_COLUMN_KEKS="standin:kek standin:other",
        PYTHONPATH=os.pathsep.join([str(site), *sys.path]),
    )


@pytest.mark.parametrize("answer", ["right", "wrong"])
def test_terminal_is_asked_to_type_the_id(
    rotated: tuple[str, str], path: Path, tmp_path_factory: pytest.TempPathFactory, answer: str
) -> None:
    from tests.support.standin import install

    old, new = rotated
    output, code = in_terminal(
        "remove",
        old,
        "--force",
        typed=old if answer == "right" else "yes",
        path=path,
        site=install(tmp_path_factory.mktemp("terminal")),
    )
    assert f"Without key {old} nothing that is under it can be read again." in output
    if answer == "right":
        assert (code, states()) == (0, {new: "active"})
    else:
        assert "nothing was removed" in output
        assert (code, set(states())) == (ExitCode.USAGE, {old, new})


# -- check -----------------------------------------------------------------------------------------------------


def checks() -> dict[str, bool]:
    """Run ``check`` as a script does, and return what it found by name; of several findings, the worst."""
    result = run("check", "--json")
    value = json.loads(result.stdout)
    assert value["ok"] == (result.exit_code == 0) == all(check["ok"] for check in value["checks"])
    found: dict[str, bool] = {}
    for check in value["checks"]:
        found[check["name"]] = found.get(check["name"], True) and check["ok"]
    return found


def test_check_of_a_good_ring(ring: str) -> None:
    added()
    output = done("check")
    assert "FAILED" not in output
    assert "✗" not in output
    assert f"Key {ring} unwraps." in output
    assert "The MACs of the file are right under 2 keys." in output
    assert checks() == {"permissions": True, "unwraps": True, "integrity": True, "age": True}


def test_check_names_the_key_that_does_not_unwrap(ring: str, path: Path) -> None:
    new = added()
    content = json.loads(path.read_text())
    content["keys"][1]["wrapped"] = content["keys"][0]["wrapped"]
    path.write_text(json.dumps(content))
    result = run("check")
    assert result.exit_code == ExitCode.FAILURE
    assert f"Key {ring} unwraps." in result.stdout
    assert f"Key {new}: standin:kek: not a key of this KEK" in result.stdout
    assert checks() == {"permissions": True, "unwraps": False, "integrity": False, "age": True}


def test_check_notices_a_file_that_was_changed(ring: str, path: Path) -> None:
    path.write_text(path.read_text().replace('"revision": 1', '"revision": 2'))
    assert checks()["integrity"] is False


def test_check_notices_a_kek_that_cannot_be_had(ring: str, standin: Standin) -> None:
    standin.failure = KeyUnavailableError("destroyed", retryable=False)
    assert checks() == {"permissions": True, "unwraps": False, "integrity": False, "age": True}
    assert run("check").exit_code == ExitCode.FAILURE
    # Not the ring's fault, and whoever watches over it may try again.
    standin.failure = KeyUnavailableError("down", retryable=True)
    assert checks() == {"permissions": True, "unwraps": False, "integrity": False, "age": True}
    assert run("check").exit_code == ExitCode.UNREACHABLE


def test_check_notices_a_key_that_is_too_old(ring: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "jwt_column.cli.keys.checking.now", lambda: datetime.now(UTC) + timedelta(days=91, hours=1)
    )
    assert checks()["age"] is False
    assert f"Key {ring} has been active for 91 days, more than 90" in run("check").stdout
    assert run("check", "--max-age", "91").exit_code == 0


def test_check_notices_a_leaked_key(rotated: tuple[str, str]) -> None:
    old, _ = rotated
    done("compromise", old)
    assert checks()["compromised"] is False
    done("remove", old, "--force", "--confirm", old)
    assert "compromised" not in checks()


def test_check_mentions_a_removed_key_that_is_still_around(rotated: tuple[str, str], path: Path) -> None:
    old, _ = rotated
    assert "previous" not in checks()
    done("remove", old, "--force", "--confirm", old)
    assert checks()["previous"] is True
    assert f"ring.json.previous still holds the removed {old}." in done("check")


def test_check_of_others_rights(ring: str, path: Path) -> None:
    path.chmod(0o666)
    assert "chmod go-w" in refused("check")


def test_check_of_a_plain_file(plain: KeyRing) -> None:
    assert checks() == {"permissions": True, "keys": True}
    assert "2 keys in the clear" in done("check")


# -- generate --------------------------------------------------------------------------------------------------


def test_generate_as_json(tmp_path: Path) -> None:
    (made,) = shown("generate")["keys"]
    assert KeyRing([made["key"]]).active == made["id"]
    written = shown("generate", "--count", "2", "--file", str(tmp_path / "jwt.keys"))
    ring = KeyRing.from_uri(written["uri"])
    assert written == {
        "file": str(tmp_path / "jwt.keys"),
        "uri": f"file:{tmp_path / 'jwt.keys'}",
        "active": ring.active,
        "keys": [
            {"id": ring.key_ids[0], "state": "active"},
            {"id": ring.key_ids[1], "state": "decrypts only"},
        ],
    }


# -- what every command has ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["generate", "init", "list", "add", "activate", "compromise", "remove", "rewrap", "check"]
)
def test_every_command_tells_its_exit_codes_and_takes_json(name: str) -> None:
    text = " ".join(done(name, "--help").split())
    assert "Exit codes: 0 done;" in text
    assert "--json" in text


def test_nothing_secret_is_printed_or_left_on_disk(
    path: Path, standin: Standin, capfd: pytest.CaptureFixture[str]
) -> None:
    """No data key is in any output or file of a ring's life."""
    outputs = [done("init", "--wrapped-by", "standin:kek")]
    secrets: set[str] = set()

    def note() -> None:
        keys = KeyRing.from_uri(f"file:{path}").keys
        secrets.update(base64url.encode(key.secret_material()) for key in keys)
        secrets.update(key.secret_material().hex() for key in keys)

    note()
    outputs.append(done("add"))
    note()
    old, new = states()
    commands: tuple[tuple[str, ...], ...] = (
        ("list",),
        ("activate", new),
        ("compromise", old),
        ("rewrap", "--wrapped-by", "standin:other"),
        ("remove", old, "--force", "--confirm", old),
        ("check",),
    )
    for arguments in commands:
        outputs += [done(*arguments)] if arguments[0] != "check" else [run(*arguments).stdout]
    outputs += [file.read_text() for file in path.parent.iterdir()]
    outputs += capfd.readouterr()
    assert len(secrets) == 4
    assert not any(secret in output for secret in secrets for output in outputs)


def test_commands_are_usable_by_name_in_a_shell(
    tmp_path: Path, standin_site: Callable[[], dict[str, str]]
) -> None:
    """The whole life of a ring as a script, in processes of its own."""
    script = """
set -e
run() { jwt-column keys "$@"; }
id() { python -c "import json, sys; print(json.load(sys.stdin)[sys.argv[1]])" "$1"; }
old=$(run init --wrapped-by standin:kek --json | id active)
new=$(run add --json | id added)
run activate "$new" > /dev/null
if run remove "$old" < /dev/null 2> /dev/null; then exit 9; fi
run remove "$old" --force --confirm "$old" --json | id revision
"""
    variables = {"JWT_COLUMN_KEYRING": f"file:{tmp_path / 'ring.json'}", "PATH": program_path()}
    variables["JWT_COLUMN_KEKS"] = "standin:kek"
    finished = subprocess.run(
        ["sh", "-c", script],
        env=environment({**variables, **standin_site()}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "4\n", "")


@pytest.fixture
def standin_site(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, str]]:
    """What another process needs to find the stand-in."""
    from tests.support.standin import install

    site = install(tmp_path_factory.mktemp("shell"))
    return lambda: {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}


# -- the recipes of the documentation ------------------------------------------------------------------------------

RECIPE = re.compile(r"^\$ jwt-column keys (add|activate|remove)\b", re.MULTILINE)


@pytest.mark.parametrize("page", ["tutorial.md", "how-to/rotate-keys.md"])
def test_the_recipe_of_a_page_retires_the_old_key_the_second_time_too(page: str, tmp_path: Path) -> None:
    """On a file of plain keys with a comment, as the pages have it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition("## With a key-ring file")[0]
    assert RECIPE.findall(text) == ["add", "activate", "remove"]
    assert "sed " not in text
    path = tmp_path / "jwt.keys"
    write_key_file(path, [generate_key()])
    for _ in range(2):
        (old,) = KeyRing.from_uri(f"file:{path}").key_ids
        new = added("--file", str(path))
        assert run("activate", new, "--file", str(path)).exit_code == ExitCode.OK
        removal = run("remove", old, "--file", str(path), "--force", "--confirm", old)
        assert removal.exit_code == ExitCode.OK
        assert KeyRing.from_uri(f"file:{path}").key_ids == (new,)


def test_lines_moved_by_hand_leave_the_old_key_the_second_time(tmp_path: Path) -> None:
    """The control: the recipe of earlier pages, where a comment stood last after the first round."""
    path = tmp_path / "jwt.keys"
    write_key_file(path, [generate_key()])
    for _ in range(2):
        old = KeyRing.from_uri(f"file:{path}").active
        lines = [*path.read_text(encoding="ascii").splitlines(), generate_key()]
        path.write_text("\n".join([lines[-1], *lines[:-1]][:-1]) + "\n", encoding="ascii")
    assert old in KeyRing.from_uri(f"file:{path}").key_ids
