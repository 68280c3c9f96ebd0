"""``keys fleet``, and the changes of a ring that wait for every process of the fleet."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import KeyRing, generate_key
from jwt_column.cli.console import ExitCode
from jwt_column.cli.options import DATABASE_VARIABLE
from jwt_column.fleet import Fleet
from jwt_column.providers import write_key_file
from jwt_column.testing import fake_kek
from tests.support.command_line import invoke, keys
from tests.support.models import table_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database


def shown(*arguments: str) -> dict[str, Any]:
    result = keys(*arguments, "--json")
    assert result.stderr == ""
    value: dict[str, Any] = json.loads(result.stdout)
    return value


@pytest.fixture
def engine(sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    table_of(sa.LargeBinary).create(sqlite)
    monkeypatch.setenv(DATABASE_VARIABLE, str(sqlite.url))
    return sqlite


@pytest.fixture
def fleet(engine: sa.Engine) -> Fleet:
    fleet = Fleet(engine)
    fleet.table.create(engine)
    return fleet


@pytest.fixture(params=["plain", "wrapped"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a ring with one key."""
    path = tmp_path / "ring"
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
    with fake_kek() as kek:
        if request.param == "plain":
            write_key_file(path, [generate_key()])
        else:
            assert keys("init", "--wrapped-by", kek.uri).exit_code == ExitCode.OK
        yield path


def process(path: Path, fleet: Fleet) -> KeyRing:
    """Return the ring of a process that has reported it, and reports again when it is refreshed."""
    ring = KeyRing.from_uri(f"file:{path}", refresh=3600, report_to=fleet)
    ring.acknowledge()
    return ring


def test_a_rotation_waits_for_every_process(path: Path, fleet: Fleet) -> None:
    first, second = process(path, fleet), process(path, fleet)
    (old,) = first.key_ids
    new = shown("add")["added"]
    first.refresh()
    refused = keys("activate", new)
    assert refused.exit_code == ExitCode.FAILURE
    assert f"1 of 2 live processes lacks key {new}: " in refused.stderr
    assert f"has {old}; nothing was changed" in refused.stderr
    assert shown("list")["active"] == old
    second.refresh()
    assert shown("activate", new, "--expect", "2")["active"] == new
    first.refresh()
    removal = ("remove", old, "--table", "sessions", "--column", "token")
    refused = keys(*removal)
    assert refused.exit_code == ExitCode.FAILURE
    assert f"1 of 2 live processes may write under key {old}: " in refused.stderr
    second.refresh()
    assert shown(*removal)["removed"] == [old]


def test_a_command_waits_as_long_as_it_is_told(path: Path, fleet: Fleet) -> None:
    ring = process(path, fleet)
    new = shown("add")["added"]
    begun = time.monotonic()
    later = threading.Timer(0.5, ring.refresh)
    later.start()
    assert shown("activate", new, "--timeout", "30")["active"] == new
    assert time.monotonic() - begun < 15
    later.join()


def test_silent_processes_are_counted_by_expect(path: Path, fleet: Fleet) -> None:
    new = shown("add")["added"]
    # The table is there, and nobody reports: that is no proof that nobody runs.
    assert "0 live processes report, and 1 must (--expect)" in keys("activate", new).stderr
    process(path, fleet)
    assert "1 live process reports, and 3 must" in keys("activate", new, "--expect", "3").stderr
    assert keys("activate", new, "--expect", "3", "--no-fleet").exit_code == ExitCode.OK


def test_a_stopped_fleet_is_none_to_wait_for(path: Path, fleet: Fleet) -> None:
    new = shown("add")["added"]
    assert keys("activate", new, "--expect", "0").exit_code == ExitCode.OK


def test_without_the_table_nothing_is_asked(path: Path, engine: sa.Engine) -> None:
    new = shown("add")["added"]
    for option in (["--expect", "1"], ["--fleet-table", "main.other"]):
        refused = keys("activate", new, *option)
        assert refused.exit_code == ExitCode.USAGE
        assert "op.create_jwt_fleet_table() creates it" in refused.stderr
    assert keys("activate", new).exit_code == ExitCode.OK


def test_a_database_that_cannot_be_asked_stops_the_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    new = shown("add")["added"]
    refused = keys("activate", new, "--database", f"sqlite:///{tmp_path / 'absent'}")
    assert refused.exit_code == ExitCode.DATABASE
    assert "--no-fleet does without" in refused.stderr
    assert shown("list")["active"] != new
    # The control, without any database.
    assert keys("activate", new).exit_code == ExitCode.OK


def test_a_fleet_is_listed(path: Path, fleet: Fleet, engine: sa.Engine) -> None:
    ring = process(path, fleet)
    report = shown("fleet")
    assert (report["ok"], report["live"], report["expected"]) == (True, 1, None)
    (one,) = report["processes"]
    assert (one["pid"], one["keys"], one["up_to_date"]) == (ring.report().pid, list(ring.key_ids), True)
    assert "up to date" in keys("fleet").stdout
    assert shown("fleet", "--expect", "2")["ok"] is False
    added = shown("add")["added"]
    assert shown("fleet")["processes"][0]["up_to_date"] is False
    listed = keys("fleet")
    assert (listed.exit_code, "behind" in listed.stdout) == (ExitCode.FAILURE, True)
    ring.refresh()
    assert shown("fleet")["ok"] is True
    shown("activate", added)
    assert shown("fleet")["ok"] is False
    with engine.begin() as connection:
        connection.execute(fleet.table.update().values(mac="A" * 43))
    assert "not authentic" in keys("fleet").stdout
    with engine.begin() as connection:
        connection.execute(fleet.table.delete())
    assert "0 live processes" in keys("fleet").stdout


APPLICATION = """
import os
import sqlalchemy as sa
from jwt_column import EncryptedJWT, KeyRing
from jwt_column.fleet import Fleet

engine = sa.create_engine(os.environ["JWT_COLUMN_DATABASE_URL"])
ring = KeyRing.from_uri(os.environ["JWT_COLUMN_KEYRING"], refresh="watch", report_to=Fleet(engine))
table = sa.Table("sessions", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True),
                 sa.Column("token", EncryptedJWT(ring)))
token = table.c.token
"""


def test_a_command_is_no_process_of_the_fleet(
    path: Path, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports the application, whose ring would report; it ends soon, and would then stand in the way."""
    module = f"application_of_{path.parent.name}"
    (tmp_path / f"{module}.py").write_text(APPLICATION)
    monkeypatch.syspath_prepend(tmp_path)
    done = invoke("reencrypt", "--model", f"{module}:token")
    assert done.exit_code == ExitCode.OK
    ring = sys.modules[module].ring
    ring.acknowledge()
    assert shown("fleet")["live"] == 0
    # The control: a process of the application does.
    del sys.modules[module]
    importlib.import_module(module).ring.acknowledge()
    assert shown("fleet")["live"] == 1
    del sys.modules[module]


def test_a_fleet_needs_a_database_with_its_table(
    path: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "has the table of the fleet" in keys("fleet").stderr
    monkeypatch.delenv(DATABASE_VARIABLE)
    assert "--database" in keys("fleet").stderr


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_servers_are_asked_too(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database: Database = request.getfixturevalue(f"{name}_database")
    engine = sa.create_engine(database.url())
    fleet = Fleet(engine, table="loaded")
    fleet.table.create(engine)
    write_key_file(tmp_path / "keys", [generate_key()])
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{tmp_path / 'keys'}")
    monkeypatch.setenv(DATABASE_VARIABLE, database.url().render_as_string(hide_password=False))
    ring = process(tmp_path / "keys", fleet)
    new = shown("add")["added"]
    options = ("--fleet-table", "loaded", "--expect", "1")
    assert keys("activate", new, *options).exit_code == ExitCode.FAILURE
    ring.refresh()
    assert keys("activate", new, *options).exit_code == ExitCode.OK
    engine.dispose()
