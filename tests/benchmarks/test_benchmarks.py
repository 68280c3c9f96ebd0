"""The benchmarks keep working. What they measure is not looked at: no test may depend on a time."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import Figure, Table
from tests.benchmarks.reencryption import contents, samples, server_cpu, speed, stores, subjects
from tests.benchmarks.report import print_limits, print_table, write_markdown
from tests.support.databases import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.benchmarks

SMALL = ("--rows", "20", "--samples", "1")
SUBJECTS = {
    "EncryptedJWT, binary",
    "EncryptedJWT, text",
    "EncryptedJWT, jti and expiry",
    "cryptography Fernet",
    "the floor itself",
}


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JWT_COLUMN_TEST_POSTGRESQL_URL", raising=False)


@pytest.mark.parametrize("is_rich", [True, False], ids=["with Rich", "without Rich"])
def test_whole_report_is_printed_in_80_columns(
    is_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    main(SMALL)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert all(subject in printed for subject in SUBJECTS)
    for expected in ("20 rows of 1 KB on SQLite", "PostgreSQL was left out", "at most", "3.40x"):
        assert expected in printed


@pytest.mark.parametrize("is_rich", [True, False], ids=["with Rich", "without Rich"])
def test_what_does_not_fit_continues_below(
    is_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A busy machine has large figures: not one of them is cut off or runs over the edge."""
    if not is_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    kinds = [f"what {number}" for number in range(12)]
    figures = [
        Figure(subject, what, 1_234_567_000.0 + number, unit="us")
        for subject in SUBJECTS
        for number, what in enumerate(kinds)
    ]
    print_table(Table("12 columns", figures))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for number in range(len(kinds)):
        assert printed.count(f"1,234,567,{number:03} us") == len(SUBJECTS)
    # Each part has the names again and, beside up to 28 characters of them, three figures of 17.
    assert printed.count("the floor itself") == printed.count("12 columns") == 4
    # The control: what fits is one part.
    print_table(Table("2 columns", [Figure("a", "b", 1.0), Figure("a", "c", 1.0)]))
    assert capsys.readouterr().out.count("2 columns") == 1


def test_json_holds_every_figure_and_says_which_peers_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy_utils.types.encrypted.encrypted_type", None)
    main(["columns", *SMALL, "--only", "values", "--json", str(tmp_path / "report.json")])
    assert "sqlalchemy-utils was left out" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    times, sizes = report["tables"]
    assert {figure["subject"] for figure in times["figures"]} == SUBJECTS
    # Bind and load at three sizes; no floor for stored bytes.
    assert len(times["figures"]) == 6 * len(SUBJECTS)
    assert len(sizes["figures"]) == 3 * (len(SUBJECTS) - 1)


def test_tables_are_measured_on_postgresql(
    postgresql_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*SMALL, "--only", "tables", "--postgresql", text_of(postgresql_database)])
    assert "20 rows of 1 KB on PostgreSQL" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "is_met"), [(2.2, True), (2.204, True), (2.206, False), (9.0, False)])
def test_a_limit_is_kept_as_far_as_the_figure_is_printed(value: float, is_met: bool) -> None:
    assert Figure("column", "bind", value, at_most=2.2).is_met is is_met


def test_a_figure_without_a_limit_keeps_none() -> None:
    assert Figure("column", "bind", 2.2).is_met is None


def test_lookup_is_measured_on_both_databases(
    postgresql_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["lookup", "--rows", "300", "--samples", "1", "--postgresql", text_of(postgresql_database)])
    printed = capsys.readouterr().out
    for expected in (
        "300 rows on sqlite",
        "300 rows on postgresql",
        "postgresql, Fernet and hashes, two keys",
    ):
        assert expected in printed


def test_access_trail_is_measured_and_written_as_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["access-trail", "--rows", "20", "--samples", "1", "--markdown", str(tmp_path / "report.md")])
    assert "SELECT of 20 tokens" in capsys.readouterr().out
    title, _, *table = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert title.startswith("SELECT of 20 tokens")
    assert table[:2] == ["|  | Core select |", "| --- | --- |"]
    assert len(table) == 4


# -- a live service, and many rows ---------------------------------------------------------------------------------


def test_a_service_is_measured_beside_a_run(
    postgresql_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--postgresql", text_of(postgresql_database))
    main(["service", "--rows", "2000", "--rounds", "1", "--seconds", "1", *url])
    printed = capsys.readouterr().out
    for expected in ("no run", "nice=0", "nice=1", "max_latency", "short batches", "p99"):
        assert expected in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_many_rows_are_measured_and_every_token_is_checked(
    postgresql_database: Database, tmp_path: Path
) -> None:
    sizes = ("--rows", "3000", "--purge-rows", "200", "--bloat-rows", "500", "--seconds", "1")
    url = ("--postgresql", text_of(postgresql_database))
    main(["scale", *sizes, *url, "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    figures = {
        (figure["subject"], figure["what"]): figure["value"]
        for table in report["tables"]
        for figure in table["figures"]
    }
    for name in ("one process", "two shards"):
        assert (figures[name, "rows checked"], figures[name, "wrong tokens"]) == (3_000, 0)
    assert ("vacuum=False, no autovacuum", "table after against before") in figures
    assert (figures["purge_expired", "removed"], figures["purge_expired", "left"]) == (200, 200)


# -- re-encryption -------------------------------------------------------------------------------------------------

TINY = ("reencryption", "--rounds", "1", "--transactions", "3")


def text_of(database: Database) -> str:
    return database.url().render_as_string(hide_password=False)


def reencryption_figures(path: Path, *arguments: str) -> dict[tuple[str, str, str], float]:
    """Run the benchmark, and return its figures by table, subject and what was measured."""
    main([*TINY, *arguments, "--json", str(path / "report.json")])
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    return {
        (table["where"], figure["subject"], figure["what"]): figure["value"]
        for table in report["tables"]
        for figure in table["figures"]
    }


def test_reencryption_is_measured_on_sqlite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = reencryption_figures(tmp_path, "--only", "sqlite", "--rows", "150,100")
    assert {subject for where, subject, _ in figures if where == "sqlite, 100 rows"} == {
        "reencrypt, sqlite3",
        "the floor itself",
        "naive ORM loop",
        "MultiFernet.rotate",
    }
    # The largest table has what is compared with its limits, and no more.
    assert {key[1:] for key in figures if key[0] == "sqlite, 150 rows"} >= {
        ("reencrypt, sqlite3", "against floor"),
        ("reencrypt, sqlite3", "time against 100 rows"),
        ("the floor itself", "time against 100 rows"),
        ("reencrypt, sqlite3", "memory over 100 rows"),
    }
    assert ("sqlite, 150 rows", "naive ORM loop", "time per row") not in figures
    assert figures["sqlite", "reencrypt", "rows lost"] == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_reencryption_is_measured_on_postgresql(
    postgresql_database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = reencryption_figures(
        tmp_path, "--only", "postgresql", "--rows", "100,150", "--postgresql", text_of(postgresql_database)
    )
    printed = capsys.readouterr().out
    for driver in ("psycopg", "psycopg2", "asyncpg"):
        assert ("postgresql, 100 rows", f"reencrypt, {driver}", "against floor") in figures
    assert ("postgresql, 150 rows", "reencrypt, psycopg", "shards 2 against 1") in figures
    assert ("postgresql, 100 rows", "pgcrypto, pgp_sym", "time per row") in figures or (
        "extension pgcrypto cannot be created" in printed
    )
    assert figures["postgresql", "reencrypt", "rows lost"] == 0


def test_servers_time_for_a_closed_connection_counts(postgresql_database: Database) -> None:
    """A run of ours closes its connection, and the process that served it ends."""
    engine = sa.create_engine(postgresql_database.url())
    clock = server_cpu.ServerClock(engine)
    with engine.connect() as connection:
        open_time = clock.read()
        connection.invalidate()
        closed_time = clock.read()
    engine.dispose()
    if open_time is None:
        pytest.skip("the processes of a server on another machine cannot be read")
    assert closed_time is not None
    assert closed_time >= open_time > 0


def test_reencryption_is_measured_on_mariadb(
    mariadb_database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = reencryption_figures(
        tmp_path, "--only", "mariadb", "--rows", "100", "--mariadb", text_of(mariadb_database)
    )
    assert ("mariadb, 100 rows", "naive ORM loop", "time per row") in figures
    assert figures["mariadb", "reencrypt", "rows lost"] == 0


def test_what_a_server_cannot_do_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class WithoutFernet(stores.SQLite):
        def template(self, content: contents.Content, rows: int) -> Any:
            if content is contents.FERNET:
                raise Unavailable("no such thing here")
            return super().template(content, rows)

    table, *_ = speed.measure_speed(WithoutFernet(), [100], 1)
    assert "no MultiFernet.rotate: no such thing here" in capsys.readouterr().out
    assert "MultiFernet.rotate" not in {figure.subject for figure in table.figures}


@pytest.mark.parametrize("subject", [subjects.OURS, "naive ORM loop", "MultiFernet.rotate"])
def test_every_subject_rewrites_every_row(subject: str) -> None:
    """The others are no faster for leaving rows out."""
    content = contents.FERNET if "Fernet" in subject else contents.ENVELOPES
    store = stores.SQLite()
    with store.template(content, 100) as template, store.copy(template) as url:
        engine = stores.open_engine(url)
        with engine.connect() as connection:
            before = connection.exec_driver_sql("SELECT id, token FROM sessions ORDER BY id").all()
        sample = samples.run_in_child(subject, url, 100, [60, 40])
        assert sum(sample.batches) == 100
        with engine.connect() as connection:
            after = connection.exec_driver_sql("SELECT id, token FROM sessions ORDER BY id").all()
        engine.dispose()
    assert len(after) == 100
    assert not set(before) & set(after)
    if content is contents.ENVELOPES:
        # The control: what is still under the old key counts as a failure.
        assert contents.count_opened(before) == (100, 100)
        assert contents.count_opened(after) == (100, 0)


def test_limits_name_their_table_where_several_have_the_same_figure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figure = Figure("reencrypt", "rows lost", 3, "rows", at_most=0)
    print_limits([Table("a long title", [figure], "sqlite")])
    printed = capsys.readouterr().out
    assert "sqlite: rows lost" in printed
    assert "3 rows" in printed
    assert "missed" in printed


def test_limits_stand_in_the_markdown_too(tmp_path: Path) -> None:
    figure = Figure("reencrypt", "rows lost", 0, "rows", at_most=0)
    write_markdown(tmp_path / "report.md", [Table("a title", [figure], "sqlite")])
    assert (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()[-1] == (
        "| sqlite: rows lost | 0 rows | 0 rows | ok |  |"
    )
