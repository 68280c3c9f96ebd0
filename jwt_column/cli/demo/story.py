"""The steps of the demo. Each does the real thing, shows it, and checks the result."""

from __future__ import annotations

import gc
import inspect
from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text
from sqlalchemy import LargeBinary, create_engine, func, orm, select, type_coerce

from ... import (
    AuthenticationError,
    InvalidTokenError,
    JWTColumnError,
    KeyRing,
    encrypt_token,
    generate_key,
    key_usage,
    set_default_keyring,
)
from ...format.envelope import KEY_ID_FIELD, LAYOUT_FIELD, VERSION_FIELD
from ...keys.providers.file import uri_of
from ...keys.ring_file.plain import write_key_file
from ..console import STATE_STYLES, plain_table
from .files import count_occurring, flip_bit, hex_lines
from .models import Base, PlainBase, PlainSession, Session
from .narration import code, evaluated
from .tokens import AUDIENCE, Issuer, payload_texts, rfc_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine, Select

    from .narration import Narration
    from .project import Project

__all__ = ["tell_story"]

# Well past header and nonce: only the cipher can notice that this byte changed.
_INTO_THE_CIPHERTEXT: Final = 100

_STYLES: Final = (
    (VERSION_FIELD.length, "green"),
    (KEY_ID_FIELD.length, "bold cyan"),
    (LAYOUT_FIELD.length, "yellow"),
)


def tell_story(project: Project, tell: Narration, rows: int) -> None:
    """Run the demo, with so many tokens."""
    story = _Story(project, tell, rows)
    steps = (
        story.store_tokens,
        story.look_into_the_file,
        story.read_tokens,
        story.count_keys,
        story.flip_a_bit,
        story.rotate,
        story.retire_the_old_key,
        story.measure,
        story.list_next_steps,
    )
    set_default_keyring(story.ring)
    try:
        for step in steps:
            step()
            if tell.failed:
                # The next step builds on this one; above all, no key goes that a row may still need.
                break
    finally:
        story.close()
        set_default_keyring(None)


class _Story:
    """One run, and the results that later steps need."""

    def __init__(self, project: Project, tell: Narration, rows: int) -> None:
        self.project, self.tell, self.rows, self.key = project, tell, rows, generate_key()
        write_key_file(project.key_file, [self.key])
        # By its URI, as in an application: the key file decides throughout.
        self.ring = KeyRing.from_uri(uri_of(project.key_file))
        self.issuer = Issuer()
        self.examples = rfc_tokens()
        with tell.waiting("Signing"):
            self.signed = list(self.issuer.sign(rows - len(self.examples)))
        # The tokens in the order of the primary keys; every later comparison is with these.
        self.tokens = [one.token for one in self.signed] + [one.token for one in self.examples]
        # A row from the middle, RS256 like half of them.
        half = len(self.signed) // 2
        self.row = next(n for n, one in enumerate(self.signed, 1) if n > half and one.algorithm == "RS256")
        self.token = self.tokens[self.row - 1]
        self.engine = project.engine(project.database)
        self.plain_engine = project.engine(project.plain_database)
        self.seconds: dict[str, float] = {}

    def close(self) -> None:
        """Close the database files."""
        self.engine.dispose()
        self.plain_engine.dispose()

    # -- the steps -------------------------------------------------------------------------------------------

    def store_tokens(self) -> None:
        """Insert through the ORM."""
        tell = self.tell
        tell.show(Text("Real tokens in a SQLite file, from the first row to a retired key.", "dim"))
        tell.heading("A column of tokens")
        counts = Counter(signed.algorithm for signed in self.signed)
        tell.show(code(inspect.getsource(Session)))
        tell.show(
            f"{self.rows:,} real tokens: {_listed(f'{count:,} {name}' for name, count in counts.items())} "
            f"signed just now, and {len(self.examples)} examples of RFC 7515 and RFC 7519."
        )
        with tell.waiting("Inserting"):
            for base, model in ((PlainBase, PlainSession), (Base, Session)):
                # A first use, so that neither pays for the work that Python does only once.
                engine = create_engine("sqlite://")
                self._insert(engine, base, model, 50)
                self._load_all(engine, model)
            self.seconds["insert plain"] = self._insert(self.plain_engine, PlainBase, PlainSession)
            seconds = self.seconds["insert"] = self._insert(self.engine, Base, Session)
        inserted = _number(self.engine, select(func.count()).select_from(Session))
        speed = f"in {seconds:.2f} s, {self.rows / seconds:,.0f} rows/s"
        tell.check(inserted == self.rows, f"{inserted:,} rows inserted through the ORM {speed}")
        unsigned = next(example for example in self.examples if example.algorithm == "none")
        reason = ""
        try:
            encrypt_token(unsigned.token, self.ring, context="sessions.token")
        except InvalidTokenError as error:
            reason = error.reason
        claim = f"{unsigned.section} is unsigned: without allow_unsigned=True it is refused"
        tell.check(reason == "unsigned", claim)

    def look_into_the_file(self) -> None:
        """Search both files for every payload."""
        tell, project = self.tell, self.project
        tell.heading("What the database file holds")
        # An open connection might hold pages back.
        self.close()
        data, plain_data = project.database.read_bytes(), project.plain_database.read_bytes()
        key_id, rest = (f"key id {self.ring.active}", "bold cyan"), "; then nonce and ciphertext"
        tell.show(
            Text.assemble((project.database.name, "bold"), f", row {self.row:,}"),
            *hex_lines(data, data.index(self._stored()), _STYLES),
            Text.assemble(("version", "green"), ", ", key_id, ", ", ("layout", "yellow"), rest),
        )
        tell.show(
            Text.assemble(
                (project.plain_database.name, "bold"), ", the same row in a Text column: the control"
            ),
            *hex_lines(plain_data, plain_data.index(self.token.encode())),
        )
        with tell.waiting("Searching both files"):
            spelled, decoded = map(set, zip(*map(payload_texts, self.tokens), strict=True))
            in_control = count_occurring(plain_data, spelled)
            leaked = count_occurring(data, spelled | decoded)
        found = f"{in_control:,} of {len(spelled):,} payloads found"
        tell.check(in_control == len(spelled), f"Control, {len(plain_data):,} bytes: {found}")
        tell.check(leaked == 0, f"Encrypted, {len(data):,} bytes: {leaked:,} found, as base64url or decoded")

    def read_tokens(self) -> None:
        """Load, look at claims, verify signatures."""
        tell = self.tell
        tell.heading("What the application reads")
        with orm.Session(self.engine) as session:
            row = session.get_one(Session, self.row)
            names: dict[str, Any] = {"session": session, "Session": Session, "audience": AUDIENCE}
            names |= {"token": row.token, "public_key": self.issuer.verifying["RS256"]}
            sources = (
                f"session.get_one(Session, {self.row})",
                'token.unverified_claims["email"]',
                "token.expires_at",
                'token.verify(public_key, algorithms=["RS256"], audience=audience)["sub"]',
            )
            tell.show(*(line for source in sources for line in evaluated(source, names)))
            tell.check(self._is_hidden_in(repr(row)), "repr() shows nothing of the token")
            first_of = {one.algorithm: row for row, one in reversed([*enumerate(self.signed, 1)])}
            verified = []
            for algorithm, key in self.issuer.verifying.items():
                row = session.get_one(Session, first_of[algorithm])
                claims = row.token.verify(key, algorithms=[algorithm], audience=AUDIENCE)
                verified += [algorithm] if claims["sub"] == row.user else []
            claim = f"Signatures verified, one of each algorithm: {_listed(verified)}"
            tell.check(verified == list(self.issuer.verifying), claim)
            published = []
            for number, example in enumerate(self.examples, len(self.signed) + 1):
                if example.has_claims:
                    token = session.get_one(Session, number).token
                    # They expired in 2011.
                    options = {"verify_exp": False}
                    claims = token.verify(example.key, algorithms=[example.algorithm], options=options)
                    published += [example.section] if claims["iss"] == "joe" else []
            sections = _listed(section.removeprefix("RFC 7515 ") for section in published)
            tell.check(len(published) == 3, f"Verified with the RFC's own keys: RFC 7515 {sections}")

    def count_keys(self) -> None:
        """Show the census before the rotation."""
        self.tell.heading("Which key each row is under")
        self.tell.show(code("session.execute(key_usage(Session.token))"))
        claim = f"All {self.rows:,} rows counted by SQL alone, from the first bytes of each"
        self._check_census("current", claim)

    def flip_a_bit(self) -> None:
        """Change one bit in the file, read, and change it back."""
        tell, database = self.tell, self.project.database
        tell.heading("One flipped bit")
        offset = database.read_bytes().index(self._stored()) + _INTO_THE_CIPHERTEXT
        self.close()
        flip_bit(database, offset)
        tell.show(f"One bit at byte {offset:,} of {database.name}, then row {self.row:,} is loaded:")
        shown, is_refused = "nothing was raised", False
        try:
            self._load()
        except JWTColumnError as error:
            shown = f"{type(error).__name__}: {error}"
            is_refused = isinstance(error, AuthenticationError) and self._is_hidden_in(shown)
        tell.show(Padding.indent(Text(shown, "red"), 2))
        tell.check(is_refused, "Refused, in words that hold nothing of the token")
        self.close()
        flip_bit(database, offset)
        tell.check(self._load() == self.token, "Flipped back, the row opens again")

    def rotate(self) -> None:
        """Put a new key into the file, make it active, and re-encrypt by a migration."""
        tell, project = self.tell, self.project
        tell.heading("A new key, and a migration")
        old_id, new_key = self.ring.active, generate_key()
        # Every process must be able to read rows under the new key before the first one writes them.
        for keys in ([self.key, new_key], [new_key, self.key]):
            write_key_file(project.key_file, keys, overwrite=True)
            self.ring.reload()
        self.key = new_key
        new, beside = (self.ring.active, "bold cyan"), f", goes into {project.key_file.name} beside "
        tell.show(Text.assemble("A new key, ", new, beside, (old_id, "cyan"), " and is made active."))
        self._check_census("stale", f"No row has changed, so all {self.rows:,} are stale now")
        project.write_migrations()
        seconds = self.seconds["re-encrypt"] = self._migrate(
            "0001", "Re-encrypt sessions", "reencrypt_jwt_column"
        )
        with orm.Session(self.engine) as session:
            census = session.execute(key_usage(Session.token)).all()
        current = sum(row.rows for row in census if row.state == "current")
        speed = f"in {seconds:.2f} s, {self.rows / seconds:,.0f} rows/s"
        tell.check(current == self.rows, f"{current:,} rows re-encrypted {speed}")

    def retire_the_old_key(self) -> None:
        """Make sure that no row needs the old key, remove it, and open every row."""
        tell, project = self.tell, self.project
        tell.heading("The old key goes")
        self._check_census("current", f"All {self.rows:,} rows are current")
        self._migrate("0002", "No row is left behind", "ensure_jwt_column_current")
        tell.check(True, "The gate is open, no row is behind")
        old_id = self.ring.key_ids[-1]
        write_key_file(project.key_file, [self.key], overwrite=True)
        self.ring.reload()
        tell.check(old_id not in self.ring.key_ids, f"{project.key_file.name} holds {self.ring.active} alone")
        with tell.waiting("Opening every row"):
            self.seconds["load plain"], _ = self._load_all(self.plain_engine, PlainSession)
            self.seconds["load"], opened = self._load_all(self.engine, Session)
        right = sum(opened.get(row) == token for row, token in enumerate(self.tokens, 1))
        claim = f"{right:,} of {self.rows:,} rows opened with it, each exactly the token that was stored"
        tell.check(right == self.rows == len(opened), claim)

    def measure(self) -> None:
        """Show sizes and times beside those of plaintext."""
        self.tell.heading("What it costs")
        stored = _number(self.engine, select(func.sum(func.length(Session.token))))
        characters = _number(self.plain_engine, select(func.sum(func.length(PlainSession.token))))
        table = plain_table("", ">plaintext", ">encrypted", ">ratio")
        table.add_row("bytes in the column", f"{characters:,}", f"{stored:,}", f"{stored / characters:.2f}")
        for name in ("insert", "load"):
            plain, encrypted = self.seconds[f"{name} plain"], self.seconds[name]
            cells = f"{plain:.2f} s", f"{encrypted:.2f} s", f"{encrypted / plain:.2f}"
            table.add_row(f"{name} through the ORM", *cells)
        table.add_row("re-encrypt by migration", "", f"{self.seconds['re-encrypt']:.2f} s", "")
        self.tell.show(table)
        is_smaller = sum(map(len, self.tokens)) == characters > stored
        self.tell.check(is_smaller, "Encrypted, the tokens take less room than in the clear")

    def list_next_steps(self) -> None:
        """Name three lines to go on with."""
        self.tell.heading("What to do next")
        rotation = 'op.reencrypt_jwt_column("sessions", "token", type_=EncryptedJWT())'
        table = Table.grid(Column(), Column(style="bold"), padding=(0, 2))
        table.add_row("a key", "jwt-column keys generate --file jwt.keys")
        table.add_row("a column", "token: Mapped[JWT] = mapped_column(EncryptedJWT())")
        table.add_row("a rotation", rotation)
        self.tell.show(table)

    # -- shared ----------------------------------------------------------------------------------------------

    def _insert(self, engine: Engine, base: Any, model: type[Any], most: int | None = None) -> float:
        """Insert the tokens, at most so many, and return the seconds that it took."""
        users = [one.user for one in self.signed] + [example.section for example in self.examples]
        base.metadata.create_all(engine)
        # The second of two runs must not pay for the garbage of the first.
        gc.collect()
        start = perf_counter()
        with orm.Session(engine) as session:
            rows = [*zip(users, self.tokens, strict=True)][:most]
            session.add_all(model(row, user, token) for row, (user, token) in enumerate(rows, 1))
            session.commit()
        return perf_counter() - start

    def _load_all(self, engine: Engine, model: type[Any]) -> tuple[float, dict[int, str]]:
        """Load every row; return the seconds that it took, and the tokens by primary key."""
        gc.collect()
        start = perf_counter()
        with orm.Session(engine) as session:
            loaded = session.scalars(select(model)).all()
            return perf_counter() - start, {row.id: row.token for row in loaded}

    def _load(self) -> str:
        with orm.Session(self.engine) as session:
            return session.get_one(Session, self.row).token

    def _stored(self) -> bytes:
        """Return the stored bytes of the row from the middle."""
        statement = select(type_coerce(Session.token, LargeBinary)).where(Session.id == self.row)
        with self.engine.connect() as connection:
            return connection.execute(statement).scalar_one()

    def _is_hidden_in(self, text: str) -> bool:
        """Return True if a text holds no part of the token of that row."""
        return not any(segment in text for segment in self.token.split("."))

    def _migrate(self, revision: str, message: str, operation: str) -> float:
        """Write a revision, show it, run it, and return the seconds that it took."""
        script = self.project.add_revision(revision, message, operation)
        text = script.read_text(encoding="utf-8")
        self.tell.show(
            Text(str(script.relative_to(self.project.directory)), "bold"),
            code(text[text.index("def upgrade") : text.index("def downgrade")]),
        )
        self.tell.show(Text("$ alembic upgrade head", "bold"))
        self.close()
        start = perf_counter()
        self.project.upgrade()
        return perf_counter() - start

    def _check_census(self, expected: str, claim: str) -> None:
        """Show the census, and check that every row is in this state."""
        table = plain_table("key id", "state", ">rows")
        counted: Counter[str] = Counter()
        with orm.Session(self.engine) as session:
            for row in session.execute(key_usage(Session.token)):
                counted[row.state] += row.rows
                style = "cyan" if row.key_id == self.ring.active else ""
                state = Text(row.state, STATE_STYLES.get(row.state, "red"))
                table.add_row(Text(row.key_id or "none", style), state, f"{row.rows:,}")
        self.tell.show(Padding.indent(table, 2))
        self.tell.check(counted == {expected: self.rows}, claim)


def _number(engine: Engine, statement: Select[Any]) -> int:
    with engine.connect() as connection:
        return connection.scalar(statement) or 0


def _listed(names: Iterable[str]) -> str:
    """Return names as a sentence lists them."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
