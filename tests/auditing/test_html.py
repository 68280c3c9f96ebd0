"""The HTML report says what the audit found, lets nothing of it become markup, and can be read by everybody."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import pytest

from jwt_column import ConfigurationError, EncryptedJWT, KeyRing, generate_key
from jwt_column.auditing.comparison import Change, KeyProgress, compare
from jwt_column.auditing.grouping import by_kind, combined, database_labels, json_of
from jwt_column.auditing.html import render_html
from jwt_column.auditing.html.expiry import EXPIRED_SPANS, VALID_SPANS, expiry_spans, heights
from jwt_column.auditing.html.keys import MOST_SEGMENTS, rows_by_state, segments, tokens
from jwt_column.auditing.html.text import key_text, name_parts, number, share, signed
from jwt_column.auditing.kinds import KINDS
from jwt_column.auditing.report import AuditReport, ExpiryCount, Severity, utc
from jwt_column.auditing.run import audit
from jwt_column.database.printable import printable
from migrations_helpers import reencrypt
from tests.package.test_installation import SCRIPT
from tests.support.audit_reports import (
    ACTIVE,
    CREATED,
    HOSTILE,
    OLD,
    REPORTS,
    column,
    expiry,
    finding,
    report,
)
from tests.support.models import store, table_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

every_report = pytest.mark.parametrize(("now", "then"), REPORTS.values(), ids=REPORTS.keys())

STYLE: Final = (files("jwt_column.auditing.html") / "templates" / "report.css").read_text(encoding="utf-8")

# -- numbers and texts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "0%"),
        (0, 9, "0%"),
        (9, 9, "100%"),
        (1, 8, "12.5%"),
        (1, 10_000_000, "<0.1%"),
        (9_999_999, 10_000_000, ">99.9%"),
        (999, 1_000, "99.9%"),
    ],
)
def test_share_says_none_and_all_only_of_none_and_all(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_numbers_are_grouped_and_changes_signed() -> None:
    assert number(1234567) == "1,234,567"
    assert [signed(change) for change in (1200, 0, -1200)] == ["+1,200", "0", "\N{MINUS SIGN}1,200"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 表", "größe 表"),
        ("a\u202eb", "a\\u202eb"),
        ("a\x00\n\tb", "a\\x00\\n\\tb"),
        ("a\ud800\u00a0", "a\\ud800\\xa0"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_characters_that_cannot_be_seen_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ((7,), "7"),
        (("eu", 7), "eu, 7"),
        ((b"\x00\xff",), "00ff"),
        ((datetime(2026, 1, 2, tzinfo=UTC),), "2026-01-02T00:00:00+00:00"),
        (("x" * 80,), "x" * 80),
        (("x" * 5_000,), "x" * 80 + "… (5,000 characters)"),
    ],
)
def test_primary_keys_take_one_line(key: tuple[Any, ...], text: str) -> None:
    assert key_text(key) == text


def test_names_break_at_their_joints_and_lose_nothing() -> None:
    assert name_parts("app.refresh_tokens.token") == ["app.", "refresh_", "tokens.", "token"]
    assert "".join(name_parts(f"..a__{HOSTILE}")) == f"..a__{HOSTILE}"


def test_times_are_shown_in_utc() -> None:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert utc(noon.astimezone(timezone(timedelta(hours=5)))).isoformat() == noon.isoformat()
    assert utc(noon.replace(tzinfo=None)) == noon


# -- rows per key ---------------------------------------------------------------------------------------------------


def test_bar_has_a_segment_for_each_key_and_fills_its_width() -> None:
    bar = segments([column("t.c", (OLD, "stale", 100), (ACTIVE, "current", 300), ("0" * 8, "stale", 600))])
    assert [(one.state, one.x, one.width) for one in bar] == [
        ("current", 0.0, 30.0),
        ("stale", 30.0, 60.0),
        ("stale", 90.0, 10.0),
    ]


def test_one_row_among_millions_is_seen() -> None:
    bar = segments([column("t.c", (ACTIVE, "current", 10_000_000), (None, "plaintext", 1))])
    assert bar[1].width > 0.5
    assert bar[0].width + bar[1].width == pytest.approx(100)


def test_many_keys_and_many_columns_become_one_segment_for_each_state() -> None:
    many = column("t.c", *((f"{n:08x}", "stale", 1) for n in range(MOST_SEGMENTS + 1)))
    assert [one.state for one in segments([many])] == ["stale"]
    assert (
        len(segments([column("t.c", *((f"{n:08x}", "stale", 1) for n in range(MOST_SEGMENTS)))]))
        == MOST_SEGMENTS
    )
    two = [
        column("t.a", (ACTIVE, "current", 1)),
        column("t.b", (ACTIVE, "current", 1), (None, "plaintext", 2)),
    ]
    assert [(one.state, one.width) for one in segments(two)] == [("current", 50.0), ("plaintext", 50.0)]


def test_no_row_is_no_segment() -> None:
    assert segments([column("t.c")]) == ()
    assert segments([column("t.c", (ACTIVE, "current", 0))]) == ()


def test_rows_are_counted_by_state() -> None:
    counted = column(
        "t.c",
        (ACTIVE, "current", 3),
        (OLD, "stale", 2),
        (None, "plaintext", 1),
        (OLD, "later", 4),
        ("0" * 8, "destroyed", 5),
    )
    assert tokens(counted) == 15
    assert rows_by_state([counted, counted]) == {
        "current": 6,
        "unknown": 8,  # What only a later release has a word for.
        "stale": 4,
        "destroyed": 10,
        "plaintext": 2,
        "unreadable": 0,
    }


# -- expiry over time -----------------------------------------------------------------------------------------------


def test_a_token_is_counted_in_the_span_of_its_day() -> None:
    """Both ends of every span; the day of the audit counts as valid."""
    edges = (-366, -365, -31, -30, -8, -7, -1, 0, 6, 7, 29, 30, 364, 365)
    spans = [expiry_spans([column("t.c", expiry=expiry((day, 1)))], CREATED).index(1) for day in edges]
    assert spans == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert len(EXPIRED_SPANS) == len(VALID_SPANS) == 4


def test_spans_of_several_columns_are_added_up_over_all_time() -> None:
    far = (ExpiryCount(date(1, 1, 1), 3), *expiry((1, 5)), ExpiryCount(date(9999, 12, 31), 2))
    columns = [column("t.a", expiry=far), column("t.b", expiry=expiry((0, 1))), column("t.c")]
    assert expiry_spans(columns, CREATED) == [3, 0, 0, 0, 6, 0, 0, 2]


def test_a_bar_is_as_high_as_its_share_and_a_single_row_is_seen() -> None:
    assert heights([0, 1, 500_000, 1_000_000]) == [0.0, 6.0, 50.0, 100.0]
    assert heights([0, 0]) == [0.0, 0.0]


# -- progress -------------------------------------------------------------------------------------------------------


def test_progress_is_measured_by_the_key_that_is_active_now() -> None:
    then = report(
        column("t.c", (OLD, "current", 90), (ACTIVE, "stale", 10), (None, "plaintext", 5), active_key=OLD)
    )
    now = report(column("t.c", (OLD, "stale", 30), (ACTIVE, "current", 70), (ACTIVE, "stale", 2)))
    (progress,) = compare(then, now).columns
    assert progress.then is not None
    assert rows_by_state([progress.then]) == {
        "current": 10,
        "unknown": 0,
        "stale": 90,
        "destroyed": 0,
        "plaintext": 5,
        "unreadable": 0,
    }
    assert (progress.left_then, progress.left_now) == (95, 30)
    assert progress.keys == (
        KeyProgress(ACTIVE, None, 10, 72),
        KeyProgress(OLD, None, 90, 30),
        KeyProgress(None, "plaintext", 5, 0),
    )


def test_states_of_the_same_active_key_stay_as_they_were() -> None:
    then = report(column("t.c", (ACTIVE, "current", 9), (ACTIVE, "stale", 1)))
    (progress,) = compare(then, report(column("t.c", (ACTIVE, "current", 10)))).columns
    assert progress.then == then.columns[0]


def test_without_a_known_active_key_nothing_is_measured() -> None:
    then = report(column("t.c", (OLD, "current", 9), active_key=OLD))
    (progress,) = compare(then, report(column("t.c", (OLD, "unknown", 9), active_key=None))).columns
    assert progress.then == then.columns[0]
    assert (progress.active_key, progress.left_then, progress.left_now) == (None, None, None)


def test_findings_are_new_gone_changed_or_the_same() -> None:
    then = report(
        column("t.c"),
        column("t.left"),
        findings=(
            finding("gone", Severity.WARNING, "t.c", 1),
            finding("count", Severity.WARNING, "t.c", 2),
            finding("severity", Severity.WARNING, "t.c", 3),
            finding("same", Severity.INFO, "t.c", 4),
            finding("left", Severity.INFO, "t.left", 5),
        ),
    )
    now = report(
        column("t.c"),
        findings=(
            finding("count", Severity.WARNING, "t.c", 20),
            finding("severity", Severity.CRITICAL, "t.c", 3),
            finding("same", Severity.INFO, "t.c", 1),
            finding("same", Severity.INFO, "t.c", 3),
            finding("new", Severity.INFO, "t.c", 6),
        ),
    )
    progress = compare(then, now)
    assert [
        (one.change.value, one.code, one.severity.value, one.then, one.now) for one in progress.findings
    ] == [
        ("new", "new", "info", None, 6),
        ("gone", "gone", "warning", 1, None),
        ("changed", "severity", "critical", 3, 3),
        ("changed", "count", "warning", 2, 20),
        ("same", "same", "info", 4, 4),
        ("not audited", "left", "info", 5, None),
    ]
    assert [progress.count(change) for change in Change] == [1, 1, 2, 1, 1]
    assert [[one.column for one in side] for side in progress.both] == [["t.c"], ["t.c"]]


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        (report(), report(), []),
        (report(database="sqlite:///other.db"), report(), ["another database: sqlite:///other.db"]),
        (report(created=CREATED + timedelta(days=1)), report(), ["the later of the two"]),
        (report(deep=True), report(), ["this audit did not look for them."]),
        (report(), report(deep=True), ["the last audit did not look for them."]),
        (report(deep=True, options={"sample": "5"}), report(deep=True), ["different options"]),
    ],
)
def test_what_cannot_be_compared_is_said(then: AuditReport, now: AuditReport, words: list[str]) -> None:
    notes = compare(then, now).notes
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


# -- the page -------------------------------------------------------------------------------------------------------

VOID: Final = {"meta", "wbr", "line", "rect", "path", "circle"}
#: Between these and the text around them there is no space but that which is written.
INLINE: Final = {"a", "code", "span", "wbr"}


class Parsed(HTMLParser):
    """A page as tags, style sheets and text. It fails where a tag is not closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.styles: list[str] = []
        self._text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._text += "" if tag in INLINE else " "

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._text += "" if tag in INLINE else " "

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            self.styles.append(data)
        else:
            self._text += data

    @property
    def text(self) -> str:
        return " ".join(self._text.split())

    def values(self, *names: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags for name in names if name in attributes]


@every_report
def test_page_is_well_formed_and_its_references_lead_somewhere(
    now: AuditReport, then: AuditReport | None
) -> None:
    page = Parsed(render_html(now, baseline=then))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert all(target.startswith("#") and target[1:] in ids for target in page.values("href"))
    referred = " ".join(page.values("aria-labelledby", "aria-describedby")).split()
    assert set(referred) <= set(ids)


@every_report
def test_page_has_headings_in_order_and_tables_that_can_be_read_aloud(
    now: AuditReport, then: AuditReport | None
) -> None:
    page = Parsed(render_html(now, baseline=then))
    tags = [tag for tag, _ in page.tags]
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert tags.count("table") == tags.count("caption")
    assert all(
        attributes["scope"] in ("row", "col", "colgroup") for tag, attributes in page.tags if tag == "th"
    )
    assert page.tags[0] == ("html", {"lang": "en"})
    for tag, attributes in page.tags:
        if attributes.get("role") == "img":
            assert attributes.get("aria-label") or attributes["aria-labelledby"]
        elif tag == "svg":
            assert attributes["aria-hidden"] == "true"


@every_report
def test_page_lets_in_nothing_but_its_own_style_sheet(now: AuditReport, then: AuditReport | None) -> None:
    text = render_html(now, baseline=then)
    page = Parsed(text)
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    (style,) = page.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    names = {name for _, attributes in page.tags for name in attributes}
    assert {name for name in names if name.startswith("on") or name in ("style", "src", "srcset")} == set()
    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "form",
        "base",
    } == set()
    assert re.findall(r"url\((?!#)", style) == []
    assert "@import" not in style


def test_policy_check_would_see_what_got_in() -> None:
    """The control of the test above: had a name become markup, the parser would have shown it."""
    page = Parsed("<p>" + HOSTILE.partition("-->")[0].removeprefix("\"'>").replace("<img", "<wbr") + "</p>")
    assert {"script", "wbr"} <= {tag for tag, _ in page.tags}
    assert "onerror" in page.tags[2][1]


def test_hostile_names_are_shown_as_they_are() -> None:
    now, then = REPORTS["hostile"]
    text = render_html(now, baseline=then)
    shown = printable(HOSTILE)
    page = Parsed(text)
    assert text.count("<script") == 0
    assert page.text.count(shown) > 20
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "y" * 81 not in text
    # In an attribute too: the bar's label and the state of a key.
    assert set(page.values("class")) & {shown, HOSTILE} == set()


def test_page_says_who_looked_at_what_and_when() -> None:
    now, then = REPORTS["not ok"]
    text = Parsed(render_html(now, baseline=then)).text
    for words in (
        "Not ok",
        "1 critical finding and 1 warning in 4 columns. 1 finding for information.",
        "A shallow audit",
        "Database URL postgresql+psycopg://db.example.org:5432/app",
        "As the server gives it app on 10.0.0.7:5432, PostgreSQL 15.3",
        "Audited 2026-10-18 09:41 UTC",
        "Duration 4.2 s",
        "Operator nightly@audit.example.org",
        "Versions jwt-column 0.2.0, SQLAlchemy 2.1.0, Python 3.11.7",
        f"SHA-256 of the JSON report {hashlib.sha256(now.to_json().encode()).hexdigest()}",
        "Active key 3f9c2a10",
        "Last audit 2026-10-01 09:41 UTC",
        "Critical Plaintext 1 1,311",
        "Mend what is plaintext.",
        "app.sessions.token plaintext 1,311 0 1 2 3",
        "2 new, 1 gone, 1 changed, 0 same, 1 not audited.",
        "app.sessions.token 20,311 → 1,311",
        "app.sessions.token 934,098 812,345 120,442 1,311 0 5 790,311 121,753 2",
        "Not part of this audit: app.old.token.",
        "Then: 97.4% stale, 2.6% plaintext",
        "Now: 87.0% current, 12.9% stale, 0.1% plaintext",
        "b81d07ee 770,000 120,442 \N{MINUS SIGN}649,558",
        "I have read this report of postgresql+psycopg://db.example.org:5432/app, 2026-10-18 09:41 UTC: not ok.",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "ok",
            [
                "Ok No finding is a warning or worse in 1 column.",
                "A deep audit: 0 of 40,122",
                "Option sample 500 rows",
            ],
        ),
        (
            "nothing",
            ["Nothing to audit: no encrypted column was found.", "Active key not known", "Findings None."],
        ),
        ("no rows", ["No token is stored.", "Expired, days ago", "Operator not recorded"]),
        ("unknown", ["62.5%", "3f9c2a10, not known of every column", "Not exposed, so that the database"]),
    ],
)
def test_page_says_what_is_not_there(name: str, words: list[str]) -> None:
    now, then = REPORTS[name]
    text = Parsed(render_html(now, baseline=then)).text
    assert [word for word in words if word not in text] == []


def test_columns_with_different_active_keys_have_no_common_one() -> None:
    two = report(column("t.a"), column("t.b", active_key=OLD), active_key=None)
    assert "one per column, see below" in Parsed(render_html(two)).text


def test_tokens_that_went_are_still_compared() -> None:
    text = Parsed(
        render_html(report(column("t.c")), baseline=report(column("t.c", (ACTIVE, "current", 3))))
    ).text
    assert "Then: 100% current" in text
    assert "Now: no token" in text


def test_tokens_without_a_readable_expiry_are_counted() -> None:
    text = Parsed(
        render_html(report(column("t.c", (ACTIVE, "current", 11), expired=3, expiry=expiry((1, 5)))))
    ).text
    assert "t.c 0 0 0 0 5 0 0 0 6" in text


def test_findings_stand_together_by_kind_and_say_once_what_all_have() -> None:
    findings = (
        *(KINDS["stale"].found(f"t{n}.c", f"{n:,} rows are stale: really.", n) for n in (1_200, 7)),
        KINDS["stale"].found("t1.c", "1 row is stale: really.", 1),
        KINDS["moved"].found("t1.c", f"{KINDS['moved'].message(1)}: x.", 1),
        KINDS["moved"].found("t7.c", f"{KINDS['moved'].message(7)}: x.", 7),
        KINDS["column-short"].found("t1.c", "It takes 7."),
        KINDS["column-short"].found("t7.c", "It takes 9."),
        KINDS["plaintext"].found("t7.c", "7 rows are in the clear.", 7),
        KINDS["alg-none"].found("t1.c", "Of another release.", 1),
        KINDS["alg-none"].found("t7.c", "Of another release.", 7),
    )
    groups = {group.code: group for group in by_kind(findings)}
    assert list(groups) == ["alg-none", "moved", "plaintext", "column-short", "stale"]
    assert groups["alg-none"].message == "Of another release."
    assert groups["stale"].message == "Rows are stale: really."
    assert (groups["stale"].rows, groups["stale"].columns, groups["stale"].title) == (1_208, 3, "Stale")
    assert groups["moved"].message == f"Rows {KINDS['moved'].rows[1]}: x."
    assert groups["column-short"].message is None
    assert groups["plaintext"].message == "7 rows are in the clear."
    columns = [column(f"t{n}.c", (ACTIVE, "current", n)) for n in (1, 7, 1_200)]
    text = Parsed(render_html(report(*columns, findings=findings))).text
    assert text.count("Rows are stale: really.") == 1
    assert "t1200.c 1,200" in text
    assert "t7.c: It takes 9." in text


def test_several_databases_are_one_report() -> None:
    one, two = (
        report(
            column("t.c", (ACTIVE, "current", n)),
            findings=(finding("stale", Severity.WARNING, "t.c", n),) if n == 2 else (),
            database=f"postgresql://host/shard{n}",
            server={"name": f"shard{n}", "host": f"10.0.0.{n}:5432", "version": "PostgreSQL 15.3"},
        )
        for n in (1, 2)
    )
    earlier = replace(two, created=CREATED - timedelta(days=1), columns=(column("t.c", (OLD, "stale", 5)),))
    page = Parsed(render_html([one, two], baseline=[earlier]))
    for words in (
        "shard1 postgresql://host/shard1 10.0.0.1:5432 PostgreSQL 15.3 Ok",
        "shard2 postgresql://host/shard2 10.0.0.2:5432 PostgreSQL 15.3 Not ok",
        "I have read this report of 2 databases, 2026-10-18 09:41 UTC: not ok.",
        "1 warning in 2 columns.",
        "shard2: t.c 2 2 0 0 0 5 5 0 1",
        "Not part of the last audit: shard1: t.c.",
        f"SHA-256 of the JSON report {hashlib.sha256(json_of([one, two]).encode()).hexdigest()}",
    ):
        assert words in page.text, words
    assert json.loads(json_of([one, two]))["ok"] is False
    # Names that are missing or equal are replaced by numbers.
    assert list(database_labels([one, replace(two, server=one.server)]).values()) == [
        "database 1",
        "database 2",
    ]
    assert combined([one]) is one
    with pytest.raises(ConfigurationError, match="name each database once"):
        render_html([one, one])
    with pytest.raises(ConfigurationError, match="the list is empty"):
        render_html([])


def test_same_reports_give_the_same_page() -> None:
    now, then = REPORTS["not ok"]
    assert render_html(now, baseline=then) == render_html(now, baseline=then)


def test_without_its_extra_the_report_says_what_to_install() -> None:
    statement = (
        "from jwt_column.auditing.html import render_html; from jwt_column import MissingExtraError\n"
        "try: render_html(None)\n"
        "except MissingExtraError as error: print(error)"
    )
    script = SCRIPT.format(absent=["jinja2", "markupsafe"], statement=statement)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (
        'the HTML report needs Jinja2; run: pip install "jwt-column[cli]"\n',
        "",
    )


# -- a real audit ---------------------------------------------------------------------------------------------------


def test_a_rotation_is_seen_in_two_audits(memory: sa.Engine) -> None:
    first, second = generate_key(), generate_key()
    old = KeyRing([first])
    table = table_of(EncryptedJWT(old, expose_expiry=True))
    token = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQwMDAwMDAwMDB9.c2lnbmF0dXJl"
    store(memory, table, [*[token] * 40, None])
    earlier = audit(memory, table)

    new = KeyRing([second, first])
    type_ = EncryptedJWT(new, expose_expiry=True)
    reencrypt(memory, "sessions", "token", type_=type_)
    later = audit(memory, table_of(type_), deep=True)
    text = Parsed(render_html(later, baseline=AuditReport.from_dict(earlier.to_dict()))).text
    assert f"{new.active} active 0 40 +40" in text
    assert f"{old.active} 40 0 \N{MINUS SIGN}40" in text
    assert "A deep audit: 40 of 40 tokens" in text
    assert "sessions.token 0 0 0 0 0 0 0 40 0" in text  # In the year 2096.
    assert "As the server gives it in memory, SQLite 3." in text


# -- colours --------------------------------------------------------------------------------------------------------

TEXT, GRAPHIC = 4.5, 3.0  # WCAG 2.2, success criteria 1.4.3 (AA) and 1.4.11 (AA).

#: What stands on what, in every combination that the style sheet makes.
CONTRASTS: Final = [
    *((ink, "paper", TEXT) for ink in ("ink", "muted", "link", "critical", "warning", "info")),
    *(
        (ink, ground, TEXT)
        for ground in ("critical-ground", "warning-ground", "ok-ground")
        for ink in ("ink", "muted")
    ),
    *((name, f"{name}-ground", TEXT) for name in ("ok", "warning", "critical")),
    ("ink", "surface", TEXT),
    # The sign in an icon has the paper's colour.
    *(("paper", name, TEXT) for name in ("ok", "warning", "critical", "info")),
    *(
        (name, "paper", GRAPHIC)
        for name in ("rule", "current", "stale", "plaintext", "unreadable", "unknown")
    ),
    *((name, f"{name}-ground", GRAPHIC) for name in ("unreadable", "unknown")),
]


def schemes() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the custom properties of each scheme."""
    found = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in found)
    yield "light", light
    yield "dark", dark


def luminance(colour: str) -> float:
    """Return the relative luminance (WCAG 2.2, definitions)."""
    channels = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio, 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_computed_as_the_recommendation_does() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)
    assert contrast("#777777", "#ffffff") < TEXT  # The control: the first grey that is too light.


@pytest.mark.parametrize(("scheme", "colours"), list(schemes()))
def test_contrast_suffices_in_both_schemes(scheme: str, colours: dict[str, str]) -> None:
    short = {
        f"{front} on {ground}": round(contrast(colours[front], colours[ground]), 2)
        for front, ground, least in CONTRASTS
        if contrast(colours[front], colours[ground]) < least
    }
    assert short == {}


def test_both_schemes_have_every_colour_and_no_colour_stands_elsewhere() -> None:
    (_, light), (_, dark) = schemes()
    assert light.keys() == dark.keys()
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE)) <= light.keys()
    rest = re.sub(r"--[\w-]+: #[0-9a-f]{6};", "", STYLE)
    assert re.findall(r"#[0-9a-f]{3,8}\b", rest) == [
        light["muted"]
    ]  # The page number, where var() does not reach.
