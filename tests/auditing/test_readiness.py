"""Readiness: each fault is one finding, and nothing is said of an application that is ready."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from jwt_column import (
    ConfigurationError,
    EncryptedJWT,
    FingerprintIndex,
    KeyRing,
    KeyRingError,
    check_ready,
    generate_key,
    set_default_keyring,
)
from jwt_column.auditing import readiness
from jwt_column.cli.app import app
from jwt_column.cli.console import ExitCode
from jwt_column.cli.options import DATABASE_VARIABLE
from jwt_column.database.clock import database_time
from jwt_column.providers import write_key_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database


def table_of(**options: Any) -> sa.Table:
    type_ = EncryptedJWT(context="sessions.token", **options)
    return sa.Table(
        "sessions", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("token", type_)
    )


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "jwt.keys"
    write_key_file(path, [generate_key()])
    monkeypatch.delenv("JWT_COLUMN_KEYS", raising=False)
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
    set_default_keyring(None)
    yield path
    set_default_keyring(None)


@pytest.fixture
def engine(sqlite_database: Database) -> Iterator[sa.Engine]:
    engine = sa.create_engine(sqlite_database.url())
    table_of().metadata.create_all(engine)
    yield engine
    engine.dispose()


def codes(engine: sa.Engine, table: sa.Table) -> list[str]:
    return [finding.code for finding in check_ready(table.metadata, engine)]


def test_nothing_is_said_of_an_application_that_is_ready(key_file: Path, engine: sa.Engine) -> None:
    assert codes(engine, table_of()) == []
    with engine.connect() as connection:
        assert check_ready(table_of().metadata, connection) == []


def test_each_fault_is_a_finding(key_file: Path, engine: sa.Engine) -> None:
    assert codes(engine, table_of(plaintext="read")) == ["plaintext-mode"]
    table = table_of(fingerprints=["token"])
    FingerprintIndex("ix_token", table.c.token)
    assert codes(engine, table) == ["index-missing"]
    elsewhere = sa.Table("absent", sa.MetaData(), sa.Column("token", EncryptedJWT()))
    assert codes(engine, elsewhere) == ["column-missing"]


def test_a_ring_that_does_not_load_is_a_finding_and_the_columns_are_checked_too(
    key_file: Path, engine: sa.Engine
) -> None:
    key_file.chmod(0o644)
    assert codes(engine, table_of(plaintext="read")) == ["ring-not-loaded", "plaintext-mode"]
    key_file.unlink()
    assert codes(engine, table_of()) == ["ring-unreachable"]


def test_old_and_compromised_keys_are_findings(
    tmp_path: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kek, ring = tmp_path / "kek.key", tmp_path / "ring.json"
    write_key_file(kek, [generate_key()])
    monkeypatch.setenv("JWT_COLUMN_KEKS", f"file:{kek}")
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{ring}")
    keys = CliRunner()
    assert keys.invoke(app, ["keys", "init", "--wrapped-by", f"file:{kek}"]).exit_code == ExitCode.OK
    table = table_of(keyring=KeyRing.from_uri(f"file:{ring}"))
    assert codes(engine, table) == []
    monkeypatch.setattr(readiness, "MAX_KEY_AGE", -1)
    assert codes(engine, table) == ["key-old"]
    monkeypatch.undo()


@pytest.fixture
def ring_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key-ring file whose KEK is allowed."""
    kek, path = tmp_path / "kek.key", tmp_path / "ring.json"
    write_key_file(kek, [generate_key()])
    monkeypatch.setenv("JWT_COLUMN_KEKS", f"file:{kek}")
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
    assert CliRunner().invoke(app, ["keys", "init", "--wrapped-by", f"file:{kek}"]).exit_code == ExitCode.OK
    return path


@pytest.mark.usefixtures("listed_keks")
def test_a_kek_that_is_not_allowed_is_a_finding(
    ring_file: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = table_of(keyring=KeyRing.from_uri(f"file:{ring_file}"))
    assert codes(engine, loaded) == []
    monkeypatch.setenv("JWT_COLUMN_KEKS", "file:/elsewhere")
    assert codes(engine, loaded) == ["kek-not-allowed"]
    set_default_keyring(None)
    (finding,) = check_ready(table_of().metadata, engine)
    assert finding.code == "kek-not-allowed"
    assert "set: JWT_COLUMN_KEKS=" in finding.message


def test_a_load_that_failed_is_a_finding(ring_file: Path, engine: sa.Engine) -> None:
    ring = KeyRing.from_uri(f"file:{ring_file}")
    good = ring_file.read_bytes()
    ring_file.write_bytes(b"{")
    with pytest.raises(KeyRingError):
        ring.reload()
    assert codes(engine, table_of(keyring=ring)) == ["ring-failing"]
    ring_file.write_bytes(good)
    ring.reload()
    assert codes(engine, table_of(keyring=ring)) == []


def test_a_refresh_under_uwsgi_needs_threads(
    ring_file: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the module that exists inside uWSGI only; tests/keys/test_uwsgi.py has a real one."""
    refreshed = table_of(keyring=KeyRing.from_uri(f"file:{ring_file}", refresh="watch"))
    by_request = table_of(keyring=KeyRing.from_uri(f"file:{ring_file}"))
    assert codes(engine, refreshed) == []
    for options, expected in (
        ({b"processes": b"4"}, ["refresh-without-threads"]),
        ({"processes": "4"}, ["refresh-without-threads"]),
        ({b"enable-threads": True}, []),
        ({"threads": "2"}, []),
    ):
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))
        assert codes(engine, refreshed) == expected
        assert codes(engine, by_request) == []


def test_a_key_ring_file_has_lines_of_its_own(ring_file: Path, engine: sa.Engine) -> None:
    set_default_keyring(None)
    arguments = ["doctor", "--table", "sessions", "--column", "token"]
    done = CliRunner().invoke(app, arguments, env={DATABASE_VARIABLE: str(engine.url)})
    lines = [line.removeprefix("✓ the default ring: ").split(" ")[:3] for line in done.stdout.splitlines()]
    assert lines[:3] == [["it", "loads", "with"], ["allowed", "to", "be"], ["active", "for", "0"]]


def test_clocks_that_differ_are_a_finding(database: Database) -> None:
    now = datetime.now(UTC).timestamp()
    for time, expected in ((now, []), (now - 120, ["clock-differs"]), (now + 120, ["clock-differs"])):
        assert [finding.code for finding in readiness._clock_check(time).findings] == expected
    engine = sa.create_engine(database.url())
    with engine.connect() as connection:
        assert abs(database_time(connection) - datetime.now(UTC).timestamp()) < 5
    engine.dispose()


def test_a_target_without_an_encrypted_column_is_refused(engine: sa.Engine) -> None:
    with pytest.raises(ConfigurationError):
        check_ready(sa.MetaData(), engine)


def test_the_command_prints_one_line_for_each_check(key_file: Path, engine: sa.Engine) -> None:
    arguments = ["doctor", "--table", "sessions", "--column", "token"]
    done = CliRunner().invoke(app, arguments, env={DATABASE_VARIABLE: str(engine.url)})
    assert (done.exit_code, done.stderr) == (ExitCode.OK, "")
    assert [line[0] for line in done.stdout.splitlines()] == ["✓", "✓"]
    key_file.chmod(0o644)
    set_default_keyring(None)  # A new process.
    done = CliRunner().invoke(app, [*arguments, "--json"], env={DATABASE_VARIABLE: str(engine.url)})
    assert done.exit_code == ExitCode.FAILURE
    report = json.loads(done.stdout)
    assert report["ready"] is False
    assert [check["ok"] for check in report["checks"]] == [False, True]
    assert report["checks"][0]["findings"][0]["code"] == "ring-not-loaded"
