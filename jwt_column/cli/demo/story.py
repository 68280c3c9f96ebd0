"""What the demo does, step by step: each does the real thing, shows it, and checks that it is as promised."""

from __future__ import annotations

import gc
import inspect
from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.table import Table
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
from ...keys.providers.file import uri_of as file_uri
from ...keys.ring_file.plain import write_key_file
from .files import count_occurring, flip_bit, hex_lines
from .models import Base, PlainBase, PlainSession, Session
from .tokens import AUDIENCE, Issuer, SignedToken, payload_texts, rfc_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Engine

    from .narration import Narration
    from .project import Project

__all__ = ["tell_story"]

# Well past header and nonce, so that nothing but the cipher can notice that this byte changed.
_INTO_THE_CIPHERTEXT: Final = 100
_WARM_UP_ROWS: Final = 50


def tell_story(project: Project, narration: Narration, rows: int) -> None:
    """Run the demo.

    Args:
        project: Where its files go.
        narration: Where its words go, and what counts its checks.
        rows: How many tokens.
    """
    key = generate_key()
    write_key_file(project.key_file, [key])
    # Named by its URI, as an application names it, so that the key file is what decides throughout.
    ring = KeyRing.from_uri(file_uri(project.key_file))
    set_default_keyring(ring)
    story = _Story(project, narration, rows, ring, key)
    try:
        for step in (
            story.store_tokens,
            story.look_into_the_file,
            story.read_tokens,
            story.count_keys,
            story.flip_a_bit,
            story.rotate,
            story.retire_the_old_key,
            story.measure,
            story.say_what_is_next,
        ):
            step()
            if narration.failed:
                # What follows builds on it; above all, no key goes that a row may still need.
                break
    finally:
        story.close()
        set_default_keyring(None)


class _Story:
    """One run, and what later steps know of earlier ones."""

    def __init__(self, project: Project, narration: Narration, rows: int, ring: KeyRing, key: str) -> None:
        self.project = project
        self.tell = narration
        self.rows = rows
        self.ring = ring
        self.key = key
        self.issuer = Issuer()
        self.examples = rfc_tokens()
        self.signed: list[SignedToken] = []
        # What went in, in the order of the primary keys; every later comparison is with these.
        self.tokens: list[str] = []
        self.engine = project.engine(project.database)
        self.plain_engine = project.engine(project.plain_database)
        self.seconds: dict[str, float] = {}
        self.file_sizes: dict[str, int] = {}

    def close(self) -> None:
        """Let go of the database files."""
        self.engine.dispose()
        self.plain_engine.dispose()

    # -- the steps -------------------------------------------------------------------------------------------

    def store_tokens(self) -> None:
        """Sign, and insert through the ORM."""
        tell = self.tell
        tell.say(("Real tokens in a SQLite file, from the first row to a retired key.", "dim"))
        tell.heading("A column of tokens")
        tell.code(inspect.getsource(Session))
        tell.blank()
        self._sign()
        counts = Counter(signed.algorithm for signed in self.signed)
        tell.say(
            f"{self.rows:,} real tokens: {_listed(f'{count:,} {name}' for name, count in counts.items())} "
            f"signed just now, and {len(self.examples)} examples of RFC 7515 and RFC 7519."
        )
        tell.blank()
        with tell.waiting("Inserting"):
            self._warm_up()
            PlainBase.metadata.create_all(self.plain_engine)
            Base.metadata.create_all(self.engine)
            self.seconds["insert plain"] = self._insert(self.plain_engine, PlainSession)
            self.seconds["insert"] = self._insert(self.engine, Session)
        with self.engine.connect() as connection:
            inserted = connection.scalar(select(func.count()).select_from(Session))
        tell.check(
            inserted == self.rows,
            f"{inserted:,} rows inserted through the ORM in {self.seconds['insert']:.2f} s, "
            f"{self.rows / self.seconds['insert']:,.0f} rows/s",
        )
        unsigned = next(example for example in self.examples if example.algorithm == "none")
        reason = ""
        try:
            encrypt_token(unsigned.token, self.ring, context="sessions.token")
        except InvalidTokenError as error:
            reason = error.reason
        tell.check(
            reason == "unsigned",
            f"{unsigned.section} is unsigned: without allow_unsigned=True it is refused",
        )

    def look_into_the_file(self) -> None:
        """Search both files for every payload."""
        tell = self.tell
        tell.heading("What the database file holds")
        # Nothing is held back by an open connection, so the files are complete.
        self.close()
        data, plain_data = self.project.database.read_bytes(), self.project.plain_database.read_bytes()
        self.file_sizes = {"plain": len(plain_data), "encrypted": len(data)}
        row = self._sample_row()

        tell.say((self.project.database.name, "bold"), f", row {row:,}")
        fields = ((VERSION_FIELD, "green"), (KEY_ID_FIELD, "bold cyan"), (LAYOUT_FIELD, "yellow"))
        styles = [(field.length, style) for field, style in fields]
        for line in hex_lines(data, data.index(self._stored(row)), 4, styles):
            tell.show(line)
        tell.say(
            ("version", "green"),
            ", ",
            (f"key id {self.ring.active}", "bold cyan"),
            ", ",
            ("layout", "yellow"),
            "; then nonce and ciphertext",
        )
        tell.blank()
        tell.say((self.project.plain_database.name, "bold"), ", the same row in a Text column: the control")
        for line in hex_lines(plain_data, plain_data.index(self.tokens[row - 1].encode()), 4):
            tell.show(line)
        tell.blank()

        with tell.waiting("Searching both files"):
            payloads = [payload_texts(token) for token in self.tokens]
            spelled = {segment for segment, _ in payloads}
            decoded = {text for _, text in payloads}
            in_control = count_occurring(plain_data, spelled)
            leaked = count_occurring(data, spelled | decoded)
        tell.check(
            in_control == len(spelled),
            f"Control, {len(plain_data):,} bytes: {in_control:,} of {len(spelled):,} payloads found",
        )
        tell.check(
            leaked == 0,
            f"Encrypted, {len(data):,} bytes: {leaked:,} found, as base64url or decoded",
        )

    def read_tokens(self) -> None:
        """Load, look at claims, verify signatures."""
        tell = self.tell
        tell.heading("What the application reads")
        row = self._sample_row()
        with orm.Session(self.engine) as session:
            names: dict[str, Any] = {"session": session, "Session": Session}
            shown = repr(tell.evaluate(f"session.get_one(Session, {row})", names))
            token = names["token"] = session.get_one(Session, row).token
            tell.evaluate('token.unverified_claims["email"]', names)
            tell.evaluate("token.expires_at", names)
            names |= {"public_key": self.issuer.verifying["RS256"], "audience": AUDIENCE}
            tell.evaluate('token.verify(public_key, algorithms=["RS256"], audience=audience)["sub"]', names)
            tell.blank()
            tell.check(
                not any(segment in shown for segment in token.split(".")), "repr() shows nothing of the token"
            )
            first_rows = {signed.algorithm: row for row, signed in reversed([*enumerate(self.signed, 1)])}
            verified = [
                algorithm
                for algorithm, key in self.issuer.verifying.items()
                if session.get_one(Session, first_rows[algorithm]).token.verify(
                    key, algorithms=[algorithm], audience=AUDIENCE
                )["sub"]
                == self.signed[first_rows[algorithm] - 1].user
            ]
            tell.check(
                verified == list(self.issuer.verifying),
                f"Signatures verified, one of each algorithm: {_listed(verified)}",
            )
            published = {
                example.section: session.get_one(Session, row).token.verify(
                    # They expired in 2011, which is not what is looked at here.
                    example.key,
                    algorithms=[example.algorithm],
                    options={"verify_exp": False},
                )
                for row, example in enumerate(self.examples, len(self.signed) + 1)
                if example.has_claims
            }
            tell.check(
                all(claims["iss"] == "joe" for claims in published.values()) and len(published) > 1,
                f"Verified with the RFC's own keys: RFC 7515 "
                f"{_listed(section.removeprefix('RFC 7515 ') for section in published)}",
            )

    def count_keys(self) -> None:
        """Show the census before the rotation."""
        self.tell.heading("Which key each row is under")
        self.tell.code("session.execute(key_usage(Session.token))")
        self.tell.blank()
        self._check_census(
            "current", f"All {self.rows:,} rows counted by SQL alone, from the first bytes of each"
        )

    def flip_a_bit(self) -> None:
        """Change one bit in the file, read, and change it back."""
        tell = self.tell
        tell.heading("One flipped bit")
        row = self._sample_row()
        offset = self.project.database.read_bytes().index(self._stored(row)) + _INTO_THE_CIPHERTEXT
        self.close()
        flip_bit(self.project.database, offset)
        tell.say(f"One bit at byte {offset:,} of {self.project.database.name}, then row {row:,} is loaded:")
        tell.blank()
        failure: JWTColumnError | None = None
        try:
            self._load(row)
        except JWTColumnError as error:
            failure = error
        shown = "nothing was raised" if failure is None else f"{type(failure).__name__}: {failure}"
        tell.show(Text(shown, "red"), by=4)
        tell.blank()
        tell.check(
            isinstance(failure, AuthenticationError)
            and not any(segment in shown for segment in self.tokens[row - 1].split(".")),
            "Refused, in words that hold nothing of the token",
        )
        self.close()
        flip_bit(self.project.database, offset)
        tell.check(self._load(row) == self.tokens[row - 1], "Flipped back, the row opens again")

    def rotate(self) -> None:
        """Put a new key into the file, make it active, and re-encrypt by a migration."""
        tell, project = self.tell, self.project
        tell.heading("A new key, and a migration")
        old_id, new_key = self.ring.active, generate_key()
        # First every process can read rows under the new key, and only then does one write them.
        write_key_file(project.key_file, [self.key, new_key], overwrite=True)
        self.ring.reload()
        write_key_file(project.key_file, [new_key, self.key], overwrite=True)
        self.ring.reload()
        self.key = new_key
        tell.say(
            "A new key, ",
            (self.ring.active, "bold cyan"),
            f", goes into {project.key_file.name} beside ",
            (old_id, "cyan"),
            " and is made active.",
        )
        tell.blank()
        self._check_census("stale", f"No row has changed, so all {self.rows:,} are stale now")
        tell.blank()
        project.write_migrations()
        script = project.add_revision(
            "0001", "Re-encrypt sessions", 'op.reencrypt_jwt_column("sessions", "token")'
        )
        tell.say((f"{script.relative_to(project.directory)}", "bold"))
        tell.code(_upgrade_of(script.read_text(encoding="utf-8")))
        tell.blank()
        tell.say(("$ alembic upgrade head", "bold"))
        self.close()
        start = perf_counter()
        project.upgrade()
        self.seconds["re-encrypt"] = perf_counter() - start
        with orm.Session(self.engine) as session:
            census = {row.state: row.rows for row in session.execute(key_usage(Session.token))}
        tell.check(
            census.get("current") == self.rows,
            f"{census.get('current', 0):,} rows re-encrypted in {self.seconds['re-encrypt']:.2f} s, "
            f"{self.rows / self.seconds['re-encrypt']:,.0f} rows/s",
        )

    def retire_the_old_key(self) -> None:
        """Make sure that nothing needs the old key, remove it, and open every row."""
        tell, project = self.tell, self.project
        tell.heading("The old key goes")
        self._check_census("current", f"All {self.rows:,} rows are current")
        tell.blank()
        script = project.add_revision(
            "0002", "No row is left behind", 'op.ensure_jwt_column_current("sessions", "token")'
        )
        tell.say((f"{script.relative_to(project.directory)}", "bold"))
        tell.code(_upgrade_of(script.read_text(encoding="utf-8")))
        tell.blank()
        self.close()
        project.upgrade()
        tell.check(True, "alembic upgrade head: the gate is open, no row is behind")
        old_id = self.ring.key_ids[-1]
        write_key_file(project.key_file, [self.key], overwrite=True)
        self.ring.reload()
        tell.check(old_id not in self.ring.key_ids, f"{project.key_file.name} holds {self.ring.active} alone")
        with tell.waiting("Opening every row"):
            self.seconds["load plain"], _ = self._load_all(self.plain_engine, PlainSession)
            self.seconds["load"], opened = self._load_all(self.engine, Session)
        right = sum(opened.get(row) == token for row, token in enumerate(self.tokens, 1))
        tell.check(
            right == self.rows == len(opened),
            f"{right:,} of {self.rows:,} rows opened with it, each exactly the token that was stored",
        )

    def measure(self) -> None:
        """Show sizes and times beside those of plaintext."""
        tell = self.tell
        tell.heading("What it costs")
        with self.engine.connect() as connection, self.plain_engine.connect() as plain_connection:
            stored = connection.scalar(select(func.sum(func.length(Session.token)))) or 0
            characters = plain_connection.scalar(select(func.sum(func.length(PlainSession.token)))) or 0
        table = _table("", "plaintext", "encrypted", "ratio")
        sizes = {
            "bytes in the column": (characters, stored),
            "bytes of the file": (self.file_sizes["plain"], self.file_sizes["encrypted"]),
        }
        for name, (plain, encrypted) in sizes.items():
            table.add_row(name, f"{plain:,}", f"{encrypted:,}", f"{encrypted / plain:.2f}")
        for name in ("insert", "load"):
            plain_seconds, seconds = self.seconds[f"{name} plain"], self.seconds[name]
            table.add_row(
                f"{name} through the ORM",
                f"{plain_seconds:.2f} s",
                f"{seconds:.2f} s",
                f"{seconds / plain_seconds:.2f}",
            )
        table.add_row("re-encrypt by migration", "", f"{self.seconds['re-encrypt']:.2f} s", "")
        tell.show(table)
        tell.blank()
        tell.check(
            characters == sum(map(len, self.tokens)) and stored < characters,
            "Encrypted, the tokens take less room than in the clear",
        )

    def say_what_is_next(self) -> None:
        """Three lines to go on with."""
        tell = self.tell
        tell.heading("What to do next")
        table = Table.grid(padding=(0, 2))
        table.add_row(Text("a key"), Text("jwt-column keys generate --file jwt.keys", "bold"))
        table.add_row(Text("a column"), Text("token: Mapped[JWT] = mapped_column(EncryptedJWT())", "bold"))
        table.add_row(Text("a rotation"), Text('op.reencrypt_jwt_column("sessions", "token")', "bold"))
        tell.show(table)

    # -- what the steps share --------------------------------------------------------------------------------

    def _sign(self) -> None:
        count = self.rows - len(self.examples)
        with self.tell.progress("Signing", count) as advance:
            for signed in self.issuer.sign(count):
                self.signed.append(signed)
                advance()
        self.tokens = [signed.token for signed in self.signed] + [example.token for example in self.examples]

    def _records(self) -> Iterator[dict[str, Any]]:
        users = [signed.user for signed in self.signed] + [example.section for example in self.examples]
        for row, (user, token) in enumerate(zip(users, self.tokens, strict=True), 1):
            yield {"id": row, "user": user, "token": token}

    def _warm_up(self) -> None:
        """Do both once without looking at the clock, so that neither pays for what Python does only once."""
        for base, model in ((PlainBase, PlainSession), (Base, Session)):
            engine = create_engine("sqlite://")
            base.metadata.create_all(engine)
            with orm.Session(engine) as session:
                session.add_all(
                    model(**record) for record, _ in zip(self._records(), range(_WARM_UP_ROWS), strict=False)
                )
                session.commit()
                session.scalars(select(model)).all()
            engine.dispose()

    def _insert(self, engine: Engine, model: type[Any]) -> float:
        """Insert every token, and return the seconds that it took."""
        # Otherwise the second of two runs pays for the garbage of the first.
        gc.collect()
        start = perf_counter()
        with orm.Session(engine) as session:
            session.add_all(model(**record) for record in self._records())
            session.commit()
        return perf_counter() - start

    def _load_all(self, engine: Engine, model: type[Any]) -> tuple[float, dict[int, str]]:
        """Load every row; return the seconds that it took, and the tokens by primary key."""
        # Otherwise the second of two runs pays for the garbage of the first.
        gc.collect()
        start = perf_counter()
        with orm.Session(engine) as session:
            loaded = session.scalars(select(model)).all()
            seconds = perf_counter() - start
            return seconds, {row.id: row.token for row in loaded}

    def _load(self, row: int) -> str:
        with orm.Session(self.engine) as session:
            return session.get_one(Session, row).token

    def _stored(self, row: int) -> bytes:
        """Return the stored bytes of a row."""
        with self.engine.connect() as connection:
            statement = select(type_coerce(Session.token, LargeBinary)).where(Session.id == row)
            return connection.execute(statement).scalar_one()

    def _sample_row(self) -> int:
        """Return a row from the middle, RS256 like half of them."""
        middle = len(self.signed) // 2
        return next(
            row for row, signed in enumerate(self.signed, 1) if row >= middle and signed.algorithm == "RS256"
        )

    def _check_census(self, expected: str, claim: str) -> None:
        """Show the census, and check that every row is in this state."""
        table = _table("key id", "state", "rows")
        table.columns[1].justify = "left"
        counted: Counter[str] = Counter()
        with orm.Session(self.engine) as session:
            for row in session.execute(key_usage(Session.token)):
                counted[row.state] += row.rows
                table.add_row(
                    Text(row.key_id or "none", "cyan" if row.key_id == self.ring.active else ""),
                    Text(row.state, "green" if row.state == "current" else "yellow"),
                    f"{row.rows:,}",
                )
        self.tell.show(table, by=4)
        self.tell.blank()
        self.tell.check(counted == {expected: self.rows}, claim)


def _table(*columns: str) -> Table:
    """Return an empty table whose first column is a name and whose others are figures."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", border_style="dim"
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _listed(names: Iterable[str]) -> str:
    """Return names as a sentence lists them."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _upgrade_of(script: str) -> str:
    """Return the ``upgrade()`` of a revision's text."""
    return script[script.index("def upgrade") : script.index("def downgrade")]
