"""Readiness: each fault is one finding, and nothing is said of an application that is ready."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

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
from jwt_column.cli.console import ExitCode
from jwt_column.database.clock import database_time
from jwt_column.providers import write_key_file
from tests.support.command_line import invoke, keys
from tests.support.models import table_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database


def sessions(**options: Any) -> sa.Table:
    return table_of(EncryptedJWT(context="sessions.token", **options))


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "jwt.keys"
    write_key_file(path, [generate_key()])
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
    return path


@pytest.fixture
def engine(sqlite: sa.Engine) -> sa.Engine:
    sessions().create(sqlite)
    return sqlite


def codes(engine: sa.Engine, table: sa.Table) -> list[str]:
    return [finding.code for finding in check_ready(table.metadata, engine)]


def test_nothing_is_said_of_an_application_that_is_ready(key_file: Path, engine: sa.Engine) -> None:
    assert codes(engine, sessions()) == []
    with engine.connect() as connection:
        assert check_ready(sessions().metadata, connection) == []


def test_each_fault_is_a_finding(key_file: Path, engine: sa.Engine) -> None:
    assert codes(engine, sessions(plaintext="read")) == ["plaintext-mode"]
    table = sessions(fingerprints=["token"])
    FingerprintIndex("ix_token", table.c.token)
    assert codes(engine, table) == ["index-missing"]
    elsewhere = sa.Table("absent", sa.MetaData(), sa.Column("token", EncryptedJWT()))
    assert codes(engine, elsewhere) == ["column-missing"]


def test_a_ring_that_does_not_load_is_a_finding_and_the_columns_are_checked_too(
    key_file: Path, engine: sa.Engine
) -> None:
    key_file.chmod(0o644)
    assert codes(engine, sessions(plaintext="read")) == ["ring-not-loaded", "plaintext-mode"]
    key_file.unlink()
    assert codes(engine, sessions()) == ["ring-unreachable"]


def test_old_and_compromised_keys_are_findings(
    tmp_path: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kek, ring = tmp_path / "kek.key", tmp_path / "ring.json"
    write_key_file(kek, [generate_key()])
    monkeypatch.setenv("JWT_COLUMN_KEKS", f"file:{kek}")
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{ring}")
    assert keys("init", "--wrapped-by", f"file:{kek}").exit_code == ExitCode.OK
    table = sessions(keyring=KeyRing.from_uri(f"file:{ring}"))
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
    assert keys("init", "--wrapped-by", f"file:{kek}").exit_code == ExitCode.OK
    return path


@pytest.mark.usefixtures("listed_keks")
def test_a_kek_that_is_not_allowed_is_a_finding(
    ring_file: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = sessions(keyring=KeyRing.from_uri(f"file:{ring_file}"))
    assert codes(engine, loaded) == []
    monkeypatch.setenv("JWT_COLUMN_KEKS", "file:/elsewhere")
    assert codes(engine, loaded) == ["kek-not-allowed"]
    set_default_keyring(None)
    (finding,) = check_ready(sessions().metadata, engine)
    assert finding.code == "kek-not-allowed"
    assert "set: JWT_COLUMN_KEKS=" in finding.message


def test_a_load_that_failed_is_a_finding(ring_file: Path, engine: sa.Engine) -> None:
    ring = KeyRing.from_uri(f"file:{ring_file}")
    good = ring_file.read_bytes()
    ring_file.write_bytes(b"{")
    with pytest.raises(KeyRingError):
        ring.reload()
    assert codes(engine, sessions(keyring=ring)) == ["ring-failing"]
    ring_file.write_bytes(good)
    ring.reload()
    assert codes(engine, sessions(keyring=ring)) == []


def test_a_refresh_under_uwsgi_needs_threads(
    ring_file: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the module that exists inside uWSGI only; tests/keys/test_uwsgi.py has a real one."""
    refreshed = sessions(keyring=KeyRing.from_uri(f"file:{ring_file}", refresh="watch"))
    by_request = sessions(keyring=KeyRing.from_uri(f"file:{ring_file}"))
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
    arguments = ["doctor", "--table", "sessions", "--column", "token"]
    done = invoke(*arguments, JWT_COLUMN_DATABASE_URL=str(engine.url))
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
    done = invoke(*arguments, JWT_COLUMN_DATABASE_URL=str(engine.url))
    assert (done.exit_code, done.stderr) == (ExitCode.OK, "")
    assert [line[0] for line in done.stdout.splitlines()] == ["✓", "✓"]
    key_file.chmod(0o644)
    set_default_keyring(None)  # A new process.
    done = invoke(*arguments, "--json", JWT_COLUMN_DATABASE_URL=str(engine.url))
    assert done.exit_code == ExitCode.FAILURE
    report = json.loads(done.stdout)
    assert report["ready"] is False
    assert [check["ok"] for check in report["checks"]] == [False, True]
    assert report["checks"][0]["findings"][0]["code"] == "ring-not-loaded"
