"""``jwt-column audit``: what it chooses, what it says, how it ends; and ``--watch``."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import re
import shutil
import signal
import threading
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa

from jwt_column import AuditReport, EncryptedJWT, KeyRing, audit
from jwt_column.auditing.columns import columns_of
from jwt_column.auditing.prometheus import to_prometheus
from jwt_column.auditing.report import Severity
from jwt_column.auditing.sarif import to_sarif
from jwt_column.cli import audit as audit_module
from jwt_column.cli import watch
from jwt_column.cli.columns import choose_targets
from jwt_column.cli.console import ExitCode, make_console
from jwt_column.cli.options import ColumnOptions
from jwt_column.cli.progress import shown_progress
from jwt_column.cli.watch import WatchedColumn, watch_columns
from jwt_column.column.binding import binding_of
from tests.support.audit_reports import HOSTILE, finding
from tests.support.audit_reports import column as audited_column
from tests.support.audit_reports import report as report_of
from tests.support.audited import AFTER
from tests.support.command_line import invoke_on, run, run_in_terminal, start, stop_when, stopped_here
from tests.support.models import table_of
from tests.support.workload import (
    NEW,
    NEW_KEY,
    OLD,
    PATIENCE,
    column_type,
    create_sessions,
    seal,
    token,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from typer.testing import Result

    from tests.support.workload import Sessions

ROWS: Final = 20
TABLE: Final = ("--table", "sessions", "--column", "token")
invoke = partial(invoke_on, name="audit")

pytestmark = pytest.mark.usefixtures("key_file")

APP: Final = """
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from jwt_column import JWT, EncryptedJWT

class Base(DeclarativeBase): ...

class Session(Base):
    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(context="sessions.token"))

class Refresh(Base):
    __tablename__ = "refresh_tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(context="refresh_tokens.token"))

metadata = Base.metadata
table = Session.__table__
nothing = MetaData()
"""


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module with models, in the current directory."""
    name = f"audited_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(APP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.fixture
def sessions(sqlite: sa.Engine) -> Sessions:
    """A table on SQLite, every row of which is under the old key; and an empty one beside it."""
    sessions = create_sessions(sqlite, ROWS)
    with sqlite.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE refresh_tokens (id INTEGER PRIMARY KEY, token BLOB)")
    return sessions


def put(engine: sa.Engine, number: int, stored: object) -> None:
    with engine.begin() as connection:
        statement = sa.text("INSERT INTO sessions (id, token) VALUES (:id, :token)")
        connection.execute(statement, {"id": number, "token": stored})


def clear(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM sessions")


def codes(result: Result) -> list[str]:
    return [finding["code"] for finding in json.loads(result.stdout)["findings"]]


# -- what it chooses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["Base"], ["refresh_tokens.token", "sessions.token"]),
        (["metadata"], ["refresh_tokens.token", "sessions.token"]),
        (["Base.metadata"], ["refresh_tokens.token", "sessions.token"]),
        (["Session"], ["sessions.token"]),
        (["table"], ["sessions.token"]),
        (["Session.token"], ["sessions.token"]),
        (["Session.token", "Refresh"], ["refresh_tokens.token", "sessions.token"]),
    ],
)
def test_models_of_the_application_are_audited(
    sqlite: sa.Engine, sessions: Sessions, application: str, names: list[str], columns: list[str]
) -> None:
    arguments = [part for name in names for part in ("--model", f"{application}:{name}")]
    report = json.loads(invoke(sqlite.url, *arguments, "--json").stdout)
    assert [column["column"] for column in report["columns"]] == columns


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_a_column_is_named_by_its_table(engine: sa.Engine, storage: str) -> None:
    """Its storage form is the one that the database asks for, on every database."""
    create_sessions(engine, ROWS, storage=storage)
    report = json.loads(invoke(engine.url, *TABLE, "--json", "--deep").stdout)
    assert report["columns"][0]["configuration"]["storage"] == storage
    assert report["columns"][0]["keys"] == [{"key_id": OLD, "state": "stale", "rows": ROWS}]
    assert report["columns"][0]["examined"] == ROWS


def test_the_type_of_a_named_column_is_said(sqlite: sa.Engine) -> None:
    """With a composite key and a bound column, which are found in the database."""
    options = {"fingerprints": ["jti"], "expose_expiry": True, "bound_to": ["owner"]}
    table = sa.Table(
        "sessions",
        sa.MetaData(),
        sa.Column("a", sa.Integer, primary_key=True),
        sa.Column("b", sa.Integer, primary_key=True),
        sa.Column("owner", sa.Text),
        sa.Column("token", sa.LargeBinary),
    )
    type_ = column_type(KeyRing([NEW_KEY]), **options)
    sealed = type_.cipher().encrypt(token(1), type_.ring(), binding_of([("owner", "alice")]))
    with sqlite.begin() as connection:
        table.create(connection)
        connection.execute(table.insert().values(a=1, b=2, owner="alice", token=sealed))
        connection.execute(table.insert().values(a=1, b=3, owner="bob", token=sealed))
    arguments = (
        "--fingerprint",
        "jti",
        "--expose-expiry",
        "--bound-to",
        "owner",
        "--context",
        "sessions.token",
    )
    result = invoke(sqlite.url, *TABLE, *arguments, "--deep", "--json")
    findings = {finding["code"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert findings["undecryptable"]["primary_keys"] == [[1, 3]]
    assert "stale" not in findings
    missing = invoke(sqlite.url, *TABLE, "--bound-to", "nobody")
    assert (missing.exit_code, missing.stderr) == (
        ExitCode.USAGE,
        "jwt-column: there is no column nobody beside sessions.token\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which columns? Give --model MODULE:BASE"),
        (("--table", "sessions"), "which columns?"),
        (("--table", "absent", "--column", "token"), "there is no table absent"),
        (("--table", "sessions", "--column", "absent"), "there is no column sessions.absent"),
        (("--table", "sessions", "--column", "id"), "neither bytes nor text"),
        (("--model", "app"), "--model has the form MODULE:NAME"),
        (("--model", "app:"), "--model has the form MODULE:NAME"),
        (("--model", "{}:Nothing"), "has no Nothing"),
        (("--model", "{}:Session.nothing"), "has no Session.nothing"),
        (("--model", "{}:nothing"), "this MetaData is no column of type EncryptedJWT"),
        (("--model", "{}:Base", "--table", "sessions"), "leave out the options that say them again"),
        (("--model", "{}:Base", "--retired", "x"), "a key id is 8 lower-case hex digits"),
        (("--model", "{}:Base", "--retired", "00000000", "--deep"), "run --deep by itself"),
        (("--model", "{}:Base", "--watch", "--json"), "run the audit by itself"),
        (("--model", "{}:Base", "--watch", "--deep"), "run the audit by itself"),
        (("--model", "{}:Base", "--watch", "--html", "x.html"), "run the audit by itself"),
        (("--model", "{}:Base", "--watch", "--active", "x"), "a key id is 8 lower-case hex digits"),
        (("--model", "{}:Base", "--sample", "5"), "ask for a deep audit"),
        (
            ("--model", "{}:Base", "--deep", "--max-lifetime", "1w"),
            "--max-lifetime is a number and s, m, h or d",
        ),
        (("--model", "{}:Base", "--baseline", "absent.json"), "absent.json cannot be read: No such file"),
        (("--model", "{}:Base", "--html", "absent/report.html"), "there is no directory"),
        (("--model", "{}:Base", "--html", "."), "cannot be written"),
        (("--model", "{}:Base", "--keyring", "nowhere:"), "leave out the options"),
    ],
)
def test_wrong_usage_ends_with_2(
    sqlite: sa.Engine, sessions: Sessions, application: str, arguments: tuple[str, ...], message: str
) -> None:
    result = invoke(sqlite.url, *(argument.format(application) for argument in arguments))
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_database_that_cannot_be_reached_ends_with_3(application: str) -> None:
    url = sa.make_url("postgresql+psycopg://user:s3cr3t@127.0.0.1:1/nothing")
    result = invoke(url, "--model", f"{application}:Base")
    assert (result.exit_code, result.stdout) == (ExitCode.DATABASE, "")
    assert "cannot be reached" in result.stderr


def test_an_asynchronous_driver_will_do(sqlite: sa.Engine, sessions: Sessions, application: str) -> None:
    url = sqlite.url.set(drivername="sqlite+aiosqlite")
    result = invoke(url, "--model", f"{application}:Base", "--json", "--deep")
    assert codes(result) == ["exp-missing", "stale"]


# -- what it says --------------------------------------------------------------------------------------------------


def test_the_report_on_a_terminal(sqlite: sa.Engine, sessions: Sessions, application: str) -> None:
    """A known answer, of 80 columns."""
    put(sqlite, 1000, token(1).encode())
    put(sqlite, 1001, seal(token(2), KeyRing([NEW_KEY])))
    result = invoke(sqlite.url, "--model", f"{application}:Base")
    assert result.exit_code == ExitCode.FAILURE
    assert result.stderr == ""
    expected = f"""\
{sqlite.url}
  2 columns, 22 rows, active key {NEW}

  column                 key id     state       rows
  ──────────────────────────────────────────────────
  refresh_tokens.token              no token       0
  sessions.token         {NEW}   current        1
                         {OLD}   stale         20
                         none       plaintext      1

  critical  plaintext
    sessions.token: 1 row is in the clear. Primary key: 1000
    Encrypt them: jwt-column encrypt, or op.encrypt_jwt_column().

  warning  stale
    sessions.token: 20 rows are stale: under another key than the active one, or
    of another layout. Primary keys: KEYS, ...
    Re-encrypt them: jwt-column reencrypt, or op.reencrypt_jwt_column().

  ✗ Findings: 1 critical one, 1 warning.
"""
    with sqlite.connect() as connection:
        first = connection.exec_driver_sql("SELECT id FROM sessions ORDER BY id LIMIT 5").scalars()
        expected = expected.replace("KEYS", ", ".join(map(str, first)))
    assert result.stdout == expected
    assert max(map(len, expected.splitlines()[1:])) <= 80


def test_columns_of_one_kind_share_its_sentence(
    sqlite: sa.Engine, sessions: Sessions, application: str
) -> None:
    with sqlite.begin() as connection:
        statement = sa.text("INSERT INTO refresh_tokens (id, token) VALUES (7, :token)")
        connection.execute(statement, {"token": seal(token(1))})
        last = connection.exec_driver_sql("DELETE FROM sessions WHERE id > 3").rowcount
    assert last == ROWS - 3
    assert (
        """
  warning  stale
    Rows are stale: under another key than the active one, or of another layout.
    refresh_tokens.token: 1 row. Primary key: 7
    sessions.token: 3 rows. Primary keys: 1, 2, 3
    Re-encrypt them: jwt-column reencrypt, or op.reencrypt_jwt_column().
"""
        in invoke(sqlite.url, "--model", f"{application}:Base").stdout
    )


def test_the_report_of_a_clean_database(sqlite: sa.Engine, sessions: Sessions, application: str) -> None:
    clear(sqlite)
    result = invoke(sqlite.url, "--model", f"{application}:Base", "--deep")
    assert result.exit_code == ExitCode.OK
    assert result.stdout.endswith("\n\n  ✓ Nothing was found.\n")
    assert f"\n  2 columns, 0 rows, 0 opened, active key {NEW}\n" in result.stdout


def test_composite_keys_are_shown_in_brackets(sqlite: sa.Engine) -> None:
    with sqlite.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE sessions (a INT, b TEXT, token BLOB, PRIMARY KEY (a, b))")
        connection.exec_driver_sql("INSERT INTO sessions VALUES (1, 'x', 'nonsense'), (1, 'y', 'nonsense')")
    assert "Primary keys: (1, x), (1, y)" in invoke(sqlite.url, *TABLE).stdout


def test_json_is_the_report_and_nothing_else(sqlite: sa.Engine, sessions: Sessions, application: str) -> None:
    result = invoke(sqlite.url, "--model", f"{application}:Base", "--json")
    assert result.exit_code == ExitCode.FAILURE
    report = AuditReport.from_dict(json.loads(result.stdout))
    assert [finding.code for finding in report.findings] == ["stale"]


def test_a_baseline_stands_beside_the_rows(
    sqlite: sa.Engine, sessions: Sessions, application: str, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier.json"
    content = json.loads(invoke(sqlite.url, "--model", f"{application}:Base", "--json").stdout)
    earlier.write_text(json.dumps(content | {"created": "2026-03-01T12:00:00+00:00"}), encoding="utf-8")
    clear(sqlite)
    put(sqlite, 1, seal(token(1), KeyRing([NEW_KEY])))
    result = invoke(sqlite.url, "--model", f"{application}:Base", "--baseline", str(earlier))
    assert result.exit_code == ExitCode.OK
    table = [line.split() for line in result.stdout.splitlines()[3:8]]
    assert table == [
        ["column", "key", "id", "state", "2026-03-01", "12:00", "now"],
        [table[1][0]],
        ["refresh_tokens.token", "no", "token", "0"],
        ["sessions.token", NEW, "current", "0", "1"],
        [OLD, "stale", "20", "0"],
    ]
    earlier.write_text("{}", encoding="utf-8")
    result = invoke(sqlite.url, "--model", f"{application}:Base", "--baseline", str(earlier))
    assert (result.exit_code, "this is no report" in result.stderr) == (ExitCode.USAGE, True)
    earlier.write_text("no JSON", encoding="utf-8")
    result = invoke(sqlite.url, "--model", f"{application}:Base", "--baseline", str(earlier))
    assert (result.exit_code, "it is no JSON" in result.stderr) == (ExitCode.USAGE, True)


def test_html_is_written_to_a_file(
    sqlite: sa.Engine, sessions: Sessions, application: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    result = invoke(sqlite.url, "--model", f"{application}:Base", "--html", str(path), "--json")
    assert codes(result) == ["stale"]
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") or page.lower().startswith("<!doctype html>")
    assert "sessions.<wbr>token" in page
    # The page names the JSON of the same run.
    assert hashlib.sha256(result.stdout.encode()).hexdigest() in page


@pytest.mark.parametrize("arguments", [("--html", "-"), ("--format", "html")])
def test_html_on_standard_output_is_the_page_and_nothing_else(
    sqlite: sa.Engine, sessions: Sessions, application: str, arguments: tuple[str, ...]
) -> None:
    result = invoke(sqlite.url, "--model", f"{application}:Base", *arguments)
    assert result.stdout.startswith("<!doctype html>")
    assert result.stdout.endswith("</html>\n")


@pytest.mark.parametrize(
    "arguments",
    [("--json", "--html", "-"), ("--json", "--format", "sarif"), ("--format", "prometheus", "--html", "-")],
)
def test_standard_output_takes_one_form(
    application: str, sqlite: sa.Engine, sessions: Sessions, arguments: tuple[str, ...]
) -> None:
    result = invoke(sqlite.url, "--model", f"{application}:Base", *arguments)
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert "standard output takes one form" in result.stderr


def test_json_has_two_names(sqlite: sa.Engine, sessions: Sessions, application: str) -> None:
    arguments = ("--model", f"{application}:Base", "--json", "--format", "json", "--operator", "nightly")
    report = json.loads(invoke(sqlite.url, *arguments).stdout)
    assert (report["operator"], report["server"]["name"]) == ("nightly", sqlite.url.database)


def test_sarif_has_a_rule_for_each_kind_and_a_result_for_each_finding(
    sqlite: sa.Engine, sessions: Sessions, application: str
) -> None:
    """Its required members and enumerations are those of the standard, sections 3.13 to 3.27."""
    put(sqlite, 1000, token(1).encode())
    result = invoke(sqlite.url, "--model", f"{application}:Base", "--format", "sarif")
    assert result.exit_code == ExitCode.FAILURE
    log = json.loads(result.stdout)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert run["tool"]["driver"]["name"] == "jwt-column"
    assert [rule["id"] for rule in rules] == ["plaintext", "stale"]
    assert run["invocations"][0]["executionSuccessful"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run["invocations"][0]["endTimeUtc"])
    found = [
        (
            one["ruleId"],
            rules[one["ruleIndex"]]["id"],
            one["level"],
            one["locations"][0]["logicalLocations"][0]["fullyQualifiedName"],
            one["properties"]["rows"],
        )
        for one in run["results"]
    ]
    assert found == [
        ("plaintext", "plaintext", "error", "sessions.token", 1),
        ("stale", "stale", "warning", "sessions.token", ROWS),
    ]
    assert run["results"][0]["message"]["text"].startswith("sessions.token: 1 row is in the clear. Encrypt")
    assert run["results"][0]["properties"]["primaryKeys"] == [[1000]]


_SAMPLE: Final = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)')


def test_metrics_are_those_of_the_text_format(
    sqlite: sa.Engine, sessions: Sessions, application: str
) -> None:
    put(sqlite, 1000, token(1).encode())
    text = invoke(sqlite.url, "--model", f"{application}:Base", "--format", "prometheus").stdout
    types: dict[str, str] = {}
    samples: dict[tuple[str, str], float] = {}
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types  # Lines of one metric stand together.
            types[name] = kind
        elif not line.startswith("# HELP "):
            found = _SAMPLE.fullmatch(line)
            assert found is not None, line
            assert found[1] == list(types)[-1]
            labels = found[2].replace(f'database="{sqlite.url}",', "").replace(f'database="{sqlite.url}"', "")
            assert samples.setdefault((found[1], labels), float(found[3])) == float(found[3])
    assert set(types.values()) == {"gauge"}
    place = 'column="sessions.token"'
    assert samples["jwt_column_audit_ok", ""] == 0
    assert abs(samples["jwt_column_audit_timestamp_seconds", ""] - time.time()) < PATIENCE
    assert samples["jwt_column_rows", f'{place},key_id="{OLD}",state="stale"'] == ROWS
    assert samples["jwt_column_rows", f'{place},key_id="",state="plaintext"'] == 1
    assert samples["jwt_column_rows_without_token", place] == 0
    assert samples["jwt_column_finding_rows", f'{place},code="stale",severity="warning"'] == ROWS
    assert samples["jwt_column_findings", f'{place},code="stale",severity="warning"'] == 1


def test_a_kind_with_two_findings_in_a_column_is_one_sample_and_labels_are_escaped() -> None:
    """A scraper refuses a sample that comes twice."""
    twice = (
        finding("retired-key", Severity.CRITICAL, HOSTILE, 2),
        finding("retired-key", Severity.CRITICAL, HOSTILE, 3),
    )
    assert "version" not in to_sarif([report_of()])["runs"][0]["tool"]["driver"]
    exposed = to_prometheus([report_of(audited_column("t.c", expired=7))])
    assert (
        '\njwt_column_rows_expired{database="postgresql+psycopg://db.example.org:5432/app",column="t.c"} 7\n'
        in exposed
    )
    lines = to_prometheus([report_of(audited_column(HOSTILE), findings=twice, database='a"b\\c\nd')]).split(
        "\n"
    )
    (line,) = [line for line in lines if line.startswith("jwt_column_finding_rows{")]
    assert line.endswith(" 5")
    assert line.startswith('jwt_column_finding_rows{database="a\\"b\\\\c\\nd",column="')


# -- several databases ---------------------------------------------------------------------------------------------


@pytest.fixture
def second(sqlite: sa.Engine, sessions: Sessions, tmp_path: Path) -> sa.URL:
    """Another database with the same tables, in a path with a space."""
    path = tmp_path / "a shard" / "second.sqlite3"
    path.parent.mkdir()
    assert sqlite.url.database is not None
    shutil.copy(sqlite.url.database, path)
    engine = sa.create_engine(f"sqlite:///{path}")
    clear(engine)
    engine.dispose()
    return engine.url


def test_several_databases_are_audited_as_one(
    sqlite: sa.Engine, second: sa.URL, application: str, tmp_path: Path
) -> None:
    databases = ("--database", str(sqlite.url), "--database", str(second))
    page, model = tmp_path / "report.html", ("--model", f"{application}:Base")
    result = invoke(None, *model, *databases, "--json", "--html", str(page))
    assert result.exit_code == ExitCode.FAILURE
    content = json.loads(result.stdout)
    assert [(one["database"], one["ok"]) for one in content["reports"]] == [
        (str(sqlite.url), False),
        (str(second), True),
    ]
    assert (content["format"], content["ok"]) == (1, False)
    assert hashlib.sha256(result.stdout.encode()).hexdigest() in page.read_text(encoding="utf-8")
    # The variable names the same two, and the file is a baseline of both.
    earlier = tmp_path / "earlier.json"
    earlier.write_text(result.stdout, encoding="utf-8")
    shown = invoke(f"{sqlite.url} {second}", *model, "--baseline", str(earlier))
    assert shown.stdout.count(" now\n") == 2
    assert shown.stdout.index(str(sqlite.url)) < shown.stdout.index(str(second))
    assert len(json.loads(invoke(None, *model, *databases, "--format", "sarif").stdout)["runs"]) == 2


def test_a_command_for_one_database_does_not_choose_among_several(
    sqlite: sa.Engine, second: sa.URL, application: str
) -> None:
    both = f"{sqlite.url} {second}"
    scanned = invoke(both, name="scan")
    watched = invoke(both, "--model", f"{application}:Base", "--watch")
    twice = invoke(None, "--model", f"{application}:Base", *(("--database", str(second)) * 2), "--html", "-")
    assert [one.exit_code for one in (scanned, watched, twice)] == [ExitCode.USAGE] * 3
    assert "name each database once" in twice.stderr
    assert "names several; give --database" in scanned.stderr
    assert "give one --database" in watched.stderr


# -- how it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail_on", "stored", "expected"),
    [
        ("info", None, ExitCode.OK),
        ("never", b"nonsense", ExitCode.OK),
        ("critical", "stale", ExitCode.OK),
        ("warning", "stale", ExitCode.FAILURE),
        ("info", "stale", ExitCode.FAILURE),
        ("critical", b"nonsense", ExitCode.FAILURE),
        ("stale", "stale", ExitCode.FAILURE),
        ("plaintext", "stale", ExitCode.OK),
        ("plaintext --fail-on stale", "stale", ExitCode.FAILURE),
        ("plaintext --fail-on critical", b"nonsense", ExitCode.FAILURE),
        ("never --fail-on unreadable", b"nonsense", ExitCode.FAILURE),
        ("unreadable", None, ExitCode.OK),
    ],
)
def test_the_severity_that_fails_is_chosen(
    sqlite: sa.Engine, sessions: Sessions, application: str, fail_on: str, stored: Any, expected: int
) -> None:
    clear(sqlite)
    put(sqlite, 1, seal(token(1)) if stored == "stale" else stored)
    result = invoke(sqlite.url, "--model", f"{application}:Base", "--fail-on", *fail_on.split())
    assert result.exit_code == expected


def test_a_limit_that_is_none_names_the_one_that_is_meant(sqlite: sa.Engine, application: str) -> None:
    for limit, meant in (("plaintex", "plaintext"), ("warn", "warning"), ("nothing-such", None)):
        result = invoke(sqlite.url, "--model", f"{application}:Base", "--fail-on", limit)
        assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
        assert f"--fail-on: {limit!r} is no severity and no kind of finding" in result.stderr
        assert meant is None or f"did you mean {meant!r}?" in result.stderr


def test_a_retired_key_is_proved_unused_by_one_command(
    sqlite: sa.Engine, sessions: Sessions, application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else may be wrong: another answer was not asked for. It needs no key."""
    put(sqlite, 1000, token(1).encode())
    monkeypatch.delenv("JWT_COLUMN_KEYRING")
    used = invoke(sqlite.url, "--model", f"{application}:Base", "--retired", OLD)
    assert used.exit_code == ExitCode.FAILURE
    assert f"20 rows are under the key {OLD}" in used.stdout
    unused = invoke(sqlite.url, "--model", f"{application}:Base", "--retired", NEW, "--retired", "00000000")
    assert unused.exit_code == ExitCode.OK
    assert unused.stdout.endswith(f"✓ No row is under the keys {NEW}, 00000000.\n")
    with sqlite.begin() as connection:
        connection.exec_driver_sql("DROP TABLE refresh_tokens")
    unproved = invoke(sqlite.url, "--model", f"{application}:Base", "--retired", NEW)
    assert unproved.exit_code == ExitCode.FAILURE
    assert "column-missing" in unproved.stdout


def test_a_host_without_keys_names_the_active_one(
    sqlite: sa.Engine, sessions: Sessions, application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JWT_COLUMN_KEYRING")
    arguments = ("--model", f"{application}:Base", "--json")
    assert set(codes(invoke(sqlite.url, *arguments))) == {"active-unknown"}
    assert codes(invoke(sqlite.url, *arguments, "--active", OLD)) == []
    assert codes(invoke(sqlite.url, *arguments, "--active", NEW)) == ["stale"]
    assert codes(invoke(sqlite.url, *arguments, "--active", NEW, "--active", OLD)) == []
    deep = invoke(sqlite.url, *arguments, "--active", OLD, "--deep")
    assert (deep.exit_code, "no key ring" in deep.stderr) == (ExitCode.USAGE, True)


def test_demands_on_tokens_are_passed_on(sqlite: sa.Engine, sessions: Sessions, application: str) -> None:
    arguments = ("--model", f"{application}:Session", "--deep", "--json", "--sample", "3")
    demands = ("--algorithm", "RS256", "--max-lifetime", "12h", "--compromised-kid", "k")
    report = json.loads(invoke(sqlite.url, *arguments, *demands).stdout)
    assert report["options"] == {
        "allowed_algorithms": "RS256",
        "max_lifetime": "12:00:00",
        "compromised_kids": "1 given",
        "sample": "3 rows of each column",
    }
    found = {finding["code"]: finding["count"] for finding in report["findings"]}
    assert (found["alg-not-allowed"], found["exp-missing"]) == (3, 3)


def test_every_parameter_of_the_function_is_an_option() -> None:
    ours = {field.name for field in fields(audit_module.Checks)}
    assert set(inspect.signature(audit).parameters) - ours == {"bind", "target", "progress"}


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_deep_audit_that_is_stopped_says_so(
    sqlite: sa.Engine, sessions: Sessions, number: int, expected: int
) -> None:
    setup = f"from jwt_column.auditing import rows\nrows.Opener.open = lambda *_: {stopped_here(number)}"
    done = run("audit", *TABLE, "--deep", setup=setup, JWT_COLUMN_DATABASE_URL=str(sqlite.url))
    assert (done.returncode, done.stdout, done.stderr) == (
        expected,
        "",
        "jwt-column: stopped; an audit writes nothing.\n",
    )


# -- progress ------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar_for_each_column(
    sqlite: sa.Engine, sessions: Sessions, application: str
) -> None:
    """One after the other, and none when the report is there."""
    with sqlite.begin() as connection:
        connection.exec_driver_sql("INSERT INTO refresh_tokens VALUES (1, 'nonsense'), (2, 'nonsense')")
    # Rich draws ten times a second, and this takes less.
    setup = (
        "from rich.progress import Progress\n"
        "real = Progress.update\n"
        "Progress.update = lambda self, *given, **options: (real(self, *given, **options), self.refresh())"
    )
    arguments = ("audit", "--model", f"{application}:Base", "--deep")
    done = run_in_terminal(*arguments, setup=setup, JWT_COLUMN_DATABASE_URL=str(sqlite.url))
    assert done.returncode == ExitCode.FAILURE
    bars = [line for line in done.lines if " rows " in line and " of " in line]
    assert all(len(line) <= 80 for line in bars)
    shown = {(line.split()[0], line.partition(" of ")[0].split()[-1]) for line in bars}
    assert {("refresh_tokens.token", "2"), ("sessions.token", "20")} <= shown
    assert "Findings: " in done.lines[-2]


def test_elsewhere_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrations_helpers.engine.progress._LINE_INTERVAL", 0.0)
    with shown_progress() as show:
        show("sessions.token", 500, 1200, "rows")
    assert capsys.readouterr().err == "sessions.token: 500 of 1200 rows\n"
    monkeypatch.setattr("migrations_helpers.engine.progress._LINE_INTERVAL", 1000.0)
    with shown_progress() as show:
        show("sessions.token", 500, 1200, "rows")
    assert capsys.readouterr().err == ""


# -- watching ------------------------------------------------------------------------------------------------------


def watched(rows: Sequence[Mapping[Any, int]]) -> WatchedColumn:
    """Return a column with a census for each second."""
    (column,) = columns_of(table_of(EncryptedJWT(AFTER)))
    result = WatchedColumn(column, ())
    for second, census in enumerate(rows):
        result.add(float(second), Counter(census))
    return result


CURRENT, STALE, PLAIN = (NEW, "current"), (OLD, "stale"), (None, "plaintext")


def test_a_rate_and_the_time_left_follow_from_the_looks() -> None:
    column = watched([{STALE: 100}, {STALE: 90, CURRENT: 10}, {STALE: 80, CURRENT: 20}])
    assert (column.rate(STALE), column.rate(CURRENT)) == (-10.0, 10.0)
    assert column.left() == (80, 8.0)


def test_nothing_is_left_when_every_row_is_current() -> None:
    assert watched([{STALE: 100}, {CURRENT: 100}]).left() == (0, None)


@pytest.mark.parametrize("looks", [[{STALE: 5}], [{STALE: 5}] * 3, [{STALE: 5}, {STALE: 6}]])
def test_no_time_is_left_to_be_told_while_nothing_happens(looks: list[Any]) -> None:
    assert watched(looks).left()[1] is None


def test_a_key_that_has_gone_counts_too() -> None:
    """Two keys are being retired, and one of them is done."""
    other = ("00000000", "stale")
    assert watched([{STALE: 10, other: 10, PLAIN: 5}, {STALE: 5, PLAIN: 5}]).left() == (10, 10 / 15)


def test_a_rate_forgets_what_was_long_ago() -> None:
    assert watched([{STALE: 1000}] + [{STALE: 500}] * 20).rate(STALE) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (119, "119 s"), (120, "2 min"), (7_100, "118 min"), (7_200, "2 h"), (400_000, "111 h")],
)
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert watch.duration(seconds) == text


def test_without_a_terminal_each_look_is_a_line(
    sqlite: sa.Engine, sessions: Sessions, application: str
) -> None:
    seconds = iter(range(100))
    pauses: list[float] = []

    def pause(pause_: float) -> None:
        pauses.append(pause_)
        with sqlite.begin() as connection:
            connection.exec_driver_sql("DELETE FROM sessions WHERE id IN (SELECT id FROM sessions LIMIT 5)")

    targets = choose_targets(ColumnOptions(), [f"{application}:Base"])
    with redirect_stdout(io.StringIO()) as output:
        watch_columns(
            sqlite, targets, active=(), every=10.0, looks=3, clock=lambda: float(next(seconds)), sleep=pause
        )
    lines = [line.partition(" ")[2] for line in output.getvalue().splitlines()]
    # Unfinished columns stand first, and the totals last.
    assert [line.partition(".")[0] for line in lines[:2]] == ["sessions", "refresh_tokens"]
    assert lines[2] == "2 columns, 1 done; 20 rows, 20 left"
    assert [line for line in lines if line.startswith("refresh")] == ["refresh_tokens.token: no token"] * 3
    assert [line for line in lines if line.startswith("sessions")] == [
        "sessions.token: 20 stale",
        "sessions.token: 15 stale, 0 rows/s, 12 s left",
        "sessions.token: 10 stale, 0 rows/s, 8 s left",
    ]
    # What a look took is taken off.
    assert pauses == [7.0, 7.0]


def test_ctrl_c_ends_a_live_view_well(sqlite: sa.Engine, sessions: Sessions) -> None:
    """On a terminal, while rows are re-encrypted."""
    results: list[Any] = []
    arguments = ("audit", *TABLE, "--watch", "--every", "0.1")

    def look() -> None:
        setup = (
            "import jwt_column.cli.watch as watch, signal, os\n"
            "real, looks = watch.view, []\n"
            "def view(*given):\n"
            "    looks.append(1)\n"
            "    if len(looks) == 4: os.kill(os.getpid(), signal.SIGINT)\n"
            "    return real(*given)\n"
            "watch.view = view"
        )
        results.append(run_in_terminal(*arguments, setup=setup, JWT_COLUMN_DATABASE_URL=str(sqlite.url)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(PATIENCE)
    (done,) = results
    assert done.returncode == ExitCode.OK
    assert any(line.split() == ["sessions.token", OLD, "stale", "20"] for line in done.lines)
    assert any(f"active key {NEW}, storage binary" in line for line in done.lines)
    assert any("every 0.1 s. Ctrl-C ends." in line for line in done.lines)
    assert max(map(len, done.lines)) <= 80
    assert "Traceback" not in done.output


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_watch_without_a_terminal_ends_by_a_signal(
    sqlite: sa.Engine, sessions: Sessions, tmp_path: Path, number: int, expected: int
) -> None:
    output = tmp_path / "output"
    with output.open("w", encoding="utf-8") as stream:
        arguments = ("audit", *TABLE, "--watch", "--every", "0.1")
        url = str(sqlite.url)
        process = start(*arguments, stdout=stream, PYTHONUNBUFFERED="1", JWT_COLUMN_DATABASE_URL=url)
        _, stderr = stop_when(process, lambda: output.read_text().count("\n") > 1, number)
    assert (process.returncode, stderr) == (expected, "")


def test_watching_a_column_of_an_unknown_key(
    sqlite: sa.Engine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host without keys, and the view of a column without a token."""
    monkeypatch.delenv("JWT_COLUMN_KEYRING")
    (column,) = columns_of(table_of(EncryptedJWT()))
    empty = WatchedColumn(column, ())
    empty.add(0.0, Counter())
    console = make_console()
    with console.capture() as capture:
        console.print(watch.view([empty], 2.0, console, 0))
    shown = capture.get()
    assert "sessions.token" in shown
    assert "no token" in shown
    assert "active key not known" in shown
    assert WatchedColumn(column, [NEW]).active == (NEW,)


def test_thirty_columns_fit_on_a_terminal_of_24_lines() -> None:
    """Totals first, unfinished columns a page at a time, finished ones in one line; every column is shown somewhere."""
    columns = []
    for number in range(30):
        column = watched([{STALE: 100, CURRENT: 0}, {STALE: number * 4, CURRENT: 100}])
        column.add(2.0, Counter({CURRENT: 100} if number < 12 else {STALE: number * 3, CURRENT: 100}))
        table = sa.Table(f"sessions_{number:02}", sa.MetaData(), sa.Column("token", EncryptedJWT(AFTER)))
        (column.column,) = columns_of(table)
        columns.append(column)
    console = make_console()
    console.width, console.height = 80, 24
    pages = []
    for look in range(6):
        with console.capture() as capture:
            console.print(watch.view(columns, 2.0, console, look))
        pages.append(capture.get())
        lines = pages[-1].splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        assert re.match(
            r"30 columns, 12 done; 4,\d{3} rows, 1,\d{3} left, [\d,]+ rows/s, \d+ s left$", lines[0]
        )
        assert any(line.startswith("12 done: sessions_00.token, ") for line in lines)
    assert "page 1 of " in pages[0]
    assert pages[0].index("sessions_29.token") < pages[0].index("sessions_28.token")
    for number in range(12, 30):
        assert any(f"sessions_{number:02}.token" in page for page in pages)
