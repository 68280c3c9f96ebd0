"""The files of an application: databases, a key file, and Alembic's migrations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import alembic
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, create_engine

__all__ = ["Project"]

_ALEMBIC_INI: Final = """\
[alembic]
script_location = %(here)s/migrations
sqlalchemy.url = sqlite:///%(here)s/sessions.sqlite3
path_separator = os
"""

_ENV_PY: Final = '''\
"""Alembic's environment: an ordinary one, but for the import of migrations_helpers."""

from alembic import context
from sqlalchemy import engine_from_config

import migrations_helpers  # noqa: F401 - registers op.reencrypt_jwt_column and the other operations

config = context.config
engine = engine_from_config(config.get_section(config.config_ini_section, {}))
with engine.connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
'''

_REVISION_PY: Final = '''\
"""{message}."""

from alembic import op

from jwt_column import EncryptedJWT

revision = {revision!r}
down_revision = {down_revision!r}


def upgrade() -> None:
    op.{operation}(
        "sessions", "token", type_=EncryptedJWT(allow_unsigned=True)
    )


def downgrade() -> None:
    """Nothing to undo: both keys' rows can be read as long as both keys are in the ring."""
'''


class Project:
    """The files of the demo, below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database: Path = directory / "sessions.sqlite3"
        self.plain_database: Path = directory / "plaintext.sqlite3"
        self.key_file: Path = directory / "jwt.keys"
        self._migrations = directory / "migrations"
        self._head: str | None = None

    def engine(self, path: Path) -> Engine:
        """Return an engine on one of the two databases."""
        return create_engine(URL.create("sqlite+pysqlite", database=str(path)))

    def write_migrations(self) -> None:
        """Write the files of ``alembic init``, with a developer's edits."""
        (self._migrations / "versions").mkdir(parents=True)
        (self.directory / "alembic.ini").write_text(_ALEMBIC_INI, encoding="utf-8")
        (self._migrations / "env.py").write_text(_ENV_PY, encoding="utf-8")
        template = Path(alembic.__file__).parent / "templates" / "generic" / "script.py.mako"
        shutil.copyfile(template, self._migrations / "script.py.mako")

    def add_revision(self, revision: str, message: str, operation: str) -> Path:
        """Write the next revision, whose ``upgrade()`` is this operation, and return its file."""
        slug = message.lower().replace("-", "").replace(" ", "_")
        path = self._migrations / "versions" / f"{revision}_{slug}.py"
        text = _REVISION_PY.format(
            message=message, revision=revision, down_revision=self._head, operation=operation
        )
        path.write_text(text, encoding="utf-8")
        self._head = revision
        return path

    def upgrade(self) -> None:
        """Run ``alembic upgrade head``."""
        command.upgrade(Config(self.directory / "alembic.ini"), "head")
