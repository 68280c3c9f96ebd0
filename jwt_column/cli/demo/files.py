"""The files of an application: databases, a key file and Alembic's migrations; and how a thief sees a file."""

from __future__ import annotations

import gc
import re
import shutil
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import alembic
from alembic import command
from alembic.config import Config
from rich.text import Text
from sqlalchemy import URL, Engine, LargeBinary, cast, create_engine, orm, select, type_coerce

from ... import KeyRing, generate_key, set_default_keyring
from ...keys.providers.file import uri_of
from ...keys.ring_file.plain import write_key_file
from .sample import PlainSession, Session, UserToken, rfc_tokens, sign

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

# Sixteen readable characters in a row: one place in ten million of ciphertext.
_READABLE: Final = re.compile(rb"[\t\n\r\x20-\x7e]{16,}")


class Database:
    """A SQLite file with the rows of one model, and the seconds that each work took."""

    def __init__(self, path: Path, model: Any) -> None:
        self.path: Path = path
        self.model: Any = model
        self.engine: Engine = create_engine(URL.create("sqlite+pysqlite", database=str(path)))
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Note how long the body takes."""
        # It must not pay for the garbage of what ran before.
        gc.collect()
        start = perf_counter()
        yield
        self.seconds[work] = perf_counter() - start

    def insert(self, tokens: Iterable[UserToken]) -> None:
        """Create the table and insert the tokens through the ORM."""
        self.model.metadata.create_all(self.engine)
        with self.timed("insert"), orm.Session(self.engine) as session:
            session.add_all(self.model(row, one.user, one.token) for row, one in enumerate(tokens, 1))
            session.commit()

    def load(self, *conditions: Any) -> dict[int, str]:
        """Load the rows that meet the conditions through the ORM, and return the tokens by primary key."""
        with orm.Session(self.engine) as session:
            with self.timed("load"):
                rows = session.scalars(select(self.model).where(*conditions)).all()
            return {row.id: row.token for row in rows}

    def scalar(self, expression: Any, *conditions: Any) -> Any:
        """Return the value of an SQL expression over the rows that meet the conditions."""
        with self.engine.connect() as connection:
            return connection.scalar(select(expression).select_from(self.model).where(*conditions))

    def data(self) -> bytes:
        """Return the bytes of the file."""
        # An open connection might hold pages back.
        self.engine.dispose()
        return self.path.read_bytes()

    def place_of(self, row: int) -> int:
        """Return where in the file the stored token of a row begins."""
        stored = cast(type_coerce(self.model.token, LargeBinary), LargeBinary)
        return self.data().index(self.scalar(stored, self.model.id == row))

    def flip_bit(self, place: int) -> None:
        """Invert the lowest bit of one byte of the file."""
        data = bytearray(self.data())
        data[place] ^= 1
        self.path.write_bytes(data)


class Project:
    """One run: the files below a directory, and the tokens in the order of their primary keys."""

    def __init__(self, directory: Path, rows: int) -> None:
        self.examples: list[UserToken] = rfc_tokens()
        self.signed: list[UserToken] = list(sign(rows - len(self.examples)))
        self.tokens: list[UserToken] = [*self.signed, *self.examples]
        #: The primary key of a row from the middle; the tokens of odd rows are RS256.
        self.row: int = len(self.signed) // 2 | 1
        self._directory = directory
        self.encrypted: Database = Database(directory / "sessions.sqlite3", Session)
        self.plain: Database = Database(directory / "plaintext.sqlite3", PlainSession)
        self.key_file: Path = directory / "jwt.keys"
        self.key: str = generate_key()
        write_key_file(self.key_file, [self.key])
        # By its URI, as in an application: the key file decides throughout.
        self.ring: KeyRing = KeyRing.from_uri(uri_of(self.key_file))
        (directory / "migrations" / "versions").mkdir(parents=True)
        for name in ("alembic.ini", "migrations/env.py"):
            self.add_file(name)
        template = Path(alembic.__file__).parent / "templates" / "generic" / "script.py.mako"
        shutil.copy(template, directory / "migrations")
        set_default_keyring(self.ring)

    def write_keys(self, *keys: str) -> None:
        """Replace the keys in the key file; the first one is active."""
        write_key_file(self.key_file, keys, overwrite=True)
        self.ring.reload()
        self.key = keys[0]

    def add_file(self, name: str) -> str:
        """Copy a file of the sample project into the directory, and return its text."""
        text = resources.files(__package__).joinpath("project", name).read_text(encoding="utf-8")
        (self._directory / name).write_text(text, encoding="utf-8")
        return text

    def upgrade(self) -> None:
        """Run ``alembic upgrade head``."""
        command.upgrade(Config(self._directory / "alembic.ini"), "head")

    def close(self) -> None:
        """Close the databases, and take the default key ring away."""
        self.encrypted.engine.dispose()
        self.plain.engine.dispose()
        set_default_keyring(None)


def count_occurring(data: bytes, texts: Collection[bytes]) -> int:
    """Return how many of these texts occur anywhere in the data.

    Searching the whole file for each of ten thousand payloads would take a minute. In a plaintext file payloads stand
    between dots; any other text of some length lies within the few stretches of readable characters.
    """
    between_dots = set(texts).intersection(data.split(b"."))
    readable = b"\x00".join(_READABLE.findall(data))
    rest = set(texts) - between_dots
    return len(between_dots) + sum(text in (readable if _READABLE.fullmatch(text) else data) for text in rest)


def hex_lines(data: bytes, start: int, fields: Iterable[tuple[int, str]] = ()) -> list[Text]:
    """Return four lines of a hex dump from *start*; *fields* are lengths and styles, within the first line."""
    lines = []
    for offset in range(start, start + 64, 16):
        line = data[offset : offset + 16]
        readable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        lines.append(Text.assemble((f"{offset:08x}  ", "dim"), line.hex(" "), (f"  {readable}", "dim")))
    column = len("00000000  ")
    for length, style in fields:
        lines[0].stylize(style, column, column := column + 3 * length)
    return lines
