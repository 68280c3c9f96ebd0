"""The steps of the demo, in their order. Each does the real thing, shows it, and checks the result."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text
from sqlalchemy import func, orm

from ... import AuthenticationError, JWTColumnError, encrypt_token, generate_key, key_usage
from ...format.envelope import KEY_ID_FIELD, LAYOUT_FIELD, VERSION_FIELD
from ..console import STATE_STYLES, plain_table
from .files import Database, Project, count_occurring, hex_lines
from .page import Page, code
from .sample import AUDIENCE, Session

# Well past header and nonce: only the cipher can notice that this byte changed.
_INTO_THE_CIPHERTEXT: Final = 100

_Step = Callable[[Page, Project], None]
_steps: Final[dict[str, _Step]] = {}


def tell_story(page: Page, directory: Path, rows: int) -> None:
    """Run the demo in a directory, with so many tokens."""
    page.show("[dim]Real tokens in a SQLite file, from the first row to a retired key.")
    with page.console.status("Working ..."), closing(Project(directory, rows)) as project:
        for number, (title, step) in enumerate(_steps.items(), 1):
            page.heading(number, title)
            step(page, project)
            if page.failed:
                # The next step builds on this one; above all, no key goes that a row may still need.
                break


def _step(title: str) -> Callable[[_Step], _Step]:
    """Make a function the next step, under this heading."""
    return lambda function: _steps.setdefault(title, function)


@_step("A column of tokens")
def _store_tokens(page: Page, project: Project) -> None:
    rows, databases = len(project.tokens), (project.plain, project.encrypted)
    counts = Counter(one.algorithm for one in project.signed)
    page.show(code(inspect.getsource(Session)))
    page.show(
        f"{rows:,} real tokens: {', '.join(f'{count:,} {name}' for name, count in counts.items())} "
        f"signed just now, and {len(project.examples)} examples of RFC 7515 and RFC 7519."
    )
    for database in databases:
        # A first use, so that neither pays for the work that Python does only once.
        rehearsal = Database(Path(":memory:"), database.model)
        rehearsal.insert(project.tokens[:50])
        rehearsal.load()
    for database in databases:
        database.insert(project.tokens)
    inserted = project.encrypted.scalar(func.count())
    speed = _speed(rows, project.encrypted.seconds["insert"])
    page.check(inserted == rows, f"{inserted:,} rows inserted through the ORM {speed}")
    unsigned = next(example for example in project.examples if example.algorithm == "none")
    error = _error_of(encrypt_token, unsigned.token, project.ring, context="sessions.token")
    claim = f"{unsigned.user} is unsigned: without allow_unsigned=True it is refused"
    page.check(getattr(error, "reason", None) == "unsigned", claim)


@_step("What the database file holds")
def _look_into_the_files(page: Page, project: Project) -> None:
    encrypted, plain = project.encrypted, project.plain
    data, plain_data = encrypted.data(), plain.data()
    styles = ((VERSION_FIELD, "green"), (KEY_ID_FIELD, "bold cyan"), (LAYOUT_FIELD, "yellow"))
    page.show(
        f"[bold]{encrypted.path.name}[/], row {project.row:,}",
        *hex_lines(data, encrypted.place_of(project.row), [(field.length, style) for field, style in styles]),
        f"[green]version[/], [bold cyan]key id {project.ring.active}[/], [yellow]layout[/]; "
        "then nonce and ciphertext",
    )
    page.show(
        f"[bold]{plain.path.name}[/], the same row in a Text column: the control",
        *hex_lines(plain_data, plain.place_of(project.row)),
    )
    spelled, decoded = map(set, zip(*(one.payload for one in project.tokens), strict=True))
    in_control = count_occurring(plain_data, spelled)
    leaked = count_occurring(data, spelled | decoded)
    found = f"{in_control:,} of {len(spelled):,} payloads found"
    page.check(in_control == len(spelled), f"Control, {len(plain_data):,} bytes: {found}")
    page.check(leaked == 0, f"Encrypted, {len(data):,} bytes: {leaked:,} found, as base64url or decoded")


@_step("What the application reads")
def _read_tokens(page: Page, project: Project) -> None:
    with orm.Session(project.encrypted.engine) as session:
        row = session.get_one(Session, project.row)
        names: dict[str, Any] = {"session": session, "Session": Session, "audience": AUDIENCE}
        names |= {"token": row.token, "public_key": project.tokens[project.row - 1].key}
        shown: list[Padding] = []
        for source in (
            f"session.get_one(Session, {project.row})",
            'token.unverified_claims["email"]',
            "token.expires_at",
            'token.verify(public_key, algorithms=["RS256"], audience=audience)["sub"]',
        ):
            value = eval(source, names)  # noqa: S307 - the demo's own expressions, none of them from outside
            shown += code(f">>> {source}"), Padding.indent(Text(repr(value), "dim"), 2)
        page.show(*shown)
        page.check(_hides(repr(row), row.token), "repr() shows nothing of the token")
        algorithms = [one.algorithm for one in project.signed]
        first_rows = {name: algorithms.index(name) + 1 for name in algorithms[:20]}
        verified = [name for name, number in first_rows.items() if _verifies(session, project, number)]
        claim = f"Signatures verified, one of each algorithm: {', '.join(verified)}"
        page.check(verified == list(first_rows), claim)
        published = [
            one.user.removeprefix("RFC 7515 ")
            for number, one in enumerate(project.examples, len(project.signed) + 1)
            # Of the examples with a key, one has a payload that is no JSON.
            if one.key and one.payload[1].startswith(b"{") and _verifies(session, project, number)
        ]
        page.check(len(published) == 3, f"Verified with the RFC's own keys: RFC 7515 {', '.join(published)}")


@_step("Which key each row is under")
def _count_keys(page: Page, project: Project) -> None:
    page.show(code("session.execute(key_usage(Session.token))"))
    claim = f"All {len(project.tokens):,} rows counted by SQL alone, from the first bytes of each"
    _check_census(page, project, "current", claim)


@_step("One flipped bit")
def _flip_a_bit(page: Page, project: Project) -> None:
    database, token = project.encrypted, project.tokens[project.row - 1].token
    place = database.place_of(project.row) + _INTO_THE_CIPHERTEXT
    database.flip_bit(place)
    page.show(f"One bit at byte {place:,} of {database.path.name}, then row {project.row:,} is loaded:")
    error = _error_of(database.load, Session.id == project.row)
    shown = f"{type(error).__name__}: {error}" if error else "nothing was raised"
    page.show(Padding.indent(Text(shown, "red"), 2))
    is_refused = isinstance(error, AuthenticationError) and _hides(shown, token)
    page.check(is_refused, "Refused, in words that hold nothing of the token")
    database.flip_bit(place)
    page.check(
        database.load(Session.id == project.row) == {project.row: token}, "Flipped back, the row opens again"
    )


@_step("A new key, and a migration")
def _rotate(page: Page, project: Project) -> None:
    rows, old_id, new_key = len(project.tokens), project.ring.active, generate_key()
    # Every process must be able to read rows under the new key before the first one writes them.
    project.write_keys(project.key, new_key)
    project.write_keys(new_key, project.key)
    page.show(
        f"A new key, [bold cyan]{project.ring.active}[/], goes into {project.key_file.name} "
        f"beside [cyan]{old_id}[/] and is made active."
    )
    _check_census(page, project, "stale", f"No row has changed, so all {rows:,} are stale now")
    with project.encrypted.timed("re-encrypt"):
        _migrate(page, project, "0001_reencrypt_sessions")
    current = project.encrypted.scalar(func.count(), ~Session.token.is_stale)
    speed = _speed(rows, project.encrypted.seconds["re-encrypt"])
    page.check(current == rows, f"{current:,} rows re-encrypted {speed}")


@_step("The old key goes")
def _retire_the_old_key(page: Page, project: Project) -> None:
    rows, ring, old_id = len(project.tokens), project.ring, project.ring.key_ids[-1]
    _check_census(page, project, "current", f"All {rows:,} rows are current")
    _migrate(page, project, "0002_no_row_is_left_behind")
    page.check(True, "The gate is open, no row is behind")
    project.write_keys(project.key)
    page.check(old_id not in ring.key_ids, f"{project.key_file.name} holds {ring.active} alone")
    project.plain.load()
    opened = project.encrypted.load()
    right = sum(opened.get(row) == one.token for row, one in enumerate(project.tokens, 1))
    claim = f"{right:,} of {rows:,} rows opened with it, each exactly the token that was stored"
    page.check(right == rows == len(opened), claim)


@_step("What it costs")
def _measure(page: Page, project: Project) -> None:
    plain, encrypted = project.plain, project.encrypted
    characters, stored = (one.scalar(func.sum(func.length(one.model.token))) for one in (plain, encrypted))
    table = plain_table("", ">plaintext", ">encrypted", ">ratio")
    table.add_row("bytes in the column", f"{characters:,}", f"{stored:,}", f"{stored / characters:.2f}")
    for work in ("insert", "load"):
        before, after = plain.seconds[work], encrypted.seconds[work]
        table.add_row(f"{work} through the ORM", f"{before:.2f} s", f"{after:.2f} s", f"{after / before:.2f}")
    table.add_row("re-encrypt by migration", "", f"{encrypted.seconds['re-encrypt']:.2f} s", "")
    page.show(table)
    is_smaller = sum(len(one.token) for one in project.tokens) == characters > stored
    page.check(is_smaller, "Encrypted, the tokens take less room than in the clear")


@_step("What to do next")
def _name_next_steps(page: Page, _: Project) -> None:
    table = Table.grid(Column(), Column(style="bold"), padding=(0, 2))
    table.add_row("a key", "jwt-column keys generate --file jwt.keys")
    table.add_row("a column", "token: Mapped[JWT] = mapped_column(EncryptedJWT())")
    table.add_row("a rotation", 'op.reencrypt_jwt_column("sessions", "token", type_=EncryptedJWT())')
    page.show(table)


# -- shared by steps ---------------------------------------------------------------------------------------------


def _error_of(function: Callable[..., Any], *arguments: Any, **options: Any) -> JWTColumnError | None:
    """Call a function, and return the error of ours that it raised."""
    try:
        function(*arguments, **options)
    except JWTColumnError as error:
        return error
    return None


def _hides(text: str, token: str) -> bool:
    """Return True if a text holds no part of a token."""
    return not any(segment in text for segment in token.split("."))


def _verifies(session: orm.Session, project: Project, number: int) -> bool:
    """Return True if a row holds its token, and its issuer's key verifies it."""
    one, token = project.tokens[number - 1], session.get_one(Session, number).token
    # The examples are for no audience, and expired in 2011.
    options = {"verify_aud": False, "verify_exp": False}
    return token == one.token and bool(token.verify(one.key, algorithms=[one.algorithm], options=options))


def _migrate(page: Page, project: Project, revision: str) -> None:
    """Put a revision into the project, show it and run it."""
    name = f"migrations/versions/{revision}.py"
    text = project.add_file(name)
    page.show(f"[bold]{name}", code(text[text.index("def upgrade") :]))
    page.show("[bold]$ alembic upgrade head")
    project.upgrade()


def _check_census(page: Page, project: Project, expected: str, claim: str) -> None:
    """Show the rows per key, and check that all of them are in this state."""
    table = plain_table("key id", "state", ">rows")
    with project.encrypted.engine.connect() as connection:
        census = connection.execute(key_usage(Session.token)).all()
    for row in census:
        key_id = Text(row.key_id or "none", "cyan" if row.key_id == project.ring.active else "")
        table.add_row(key_id, Text(row.state, STATE_STYLES.get(row.state, "red")), f"{row.rows:,}")
    page.show(Padding.indent(table, 2))
    page.check([(row.state, row.rows) for row in census] == [(expected, len(project.tokens))], claim)


def _speed(rows: int, seconds: float) -> str:
    return f"in {seconds:.2f} s, {rows / seconds:,.0f} rows/s"
