"""A migration takes its keys from the ring of the environment, wrapped, and leaves nothing of them anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJWT, KeyRing, generate_key
from jwt_column.format import base64url
from tests.support.command_line import keys_output, keys_report
from tests.support.tokens import signed_token

ENV_PY: Final = """
    import logging
    import os
    import sqlalchemy as sa
    from alembic import context
    import migrations_helpers
    from models import Base

    logging.basicConfig(level=logging.DEBUG)

    if context.is_offline_mode():
        context.configure(url=os.environ["URL"], target_metadata=Base.metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
    else:
        engine = sa.create_engine(os.environ["URL"], echo="debug")
        with engine.connect() as connection:
            context.configure(
                connection=connection, target_metadata=Base.metadata, transaction_per_migration=True
            )
            with context.begin_transaction():
                context.run_migrations()
"""

MODELS_PY: Final = """
    import os
    import sqlalchemy as sa
    from jwt_column import EncryptedJWT
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase):
        pass

    class Session(Base):
        __tablename__ = "sessions"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[str] = mapped_column(EncryptedJWT(os.environ["JWT_COLUMN_KEYRING"]))
"""

MAKO: Final = """
    import sqlalchemy as sa
    from alembic import op
    ${imports if imports else ""}

    revision = ${repr(up_revision)}
    down_revision = ${repr(down_revision)}

    def upgrade():
        ${upgrades if upgrades else "pass"}

    def downgrade():
        ${downgrades if downgrades else "pass"}
"""

REENCRYPT_PY: Final = """
    from alembic import op
    from jwt_column import EncryptedJWT

    revision = "reencrypt"
    down_revision = "create"

    def upgrade():
        op.reencrypt_jwt_column("sessions", "token", shards=2, verify="decrypt")
        op.ensure_jwt_column_current("sessions", "token")

    def downgrade():
        pass
"""


def command_lines() -> set[str]:
    """Return the command line and what else everybody may see of each process of this machine."""
    lines = set()
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                lines.add((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return lines


class Project:
    """An Alembic project, its ring, and everything that its commands left where somebody may read it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seen: set[str] = set()
        (directory / "versions").mkdir()
        (directory / "alembic.ini").write_text("[alembic]\nscript_location = .\n")
        for name, text in (("env.py", ENV_PY), ("models.py", MODELS_PY), ("script.py.mako", MAKO)):
            (directory / name).write_text(dedent(text))
        self.url = f"sqlite:///{directory / 'app.sqlite3'}"

    def alembic(self, *arguments: str, code: int = 0) -> str:
        """Run a command, and look at the processes of the machine while it runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "URL": self.url, "PYTHONPATH": str(self.directory)},
        )
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(0.02):
                self.seen |= command_lines()

        watcher = threading.Thread(target=watch)
        watcher.start()
        output, _ = process.communicate(timeout=300)
        is_over.set()
        watcher.join()
        self.seen.add(output)
        assert process.returncode == code, output
        return output


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux shows command lines in /proc.")
def test_migration_leaves_nothing_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kek = generate_key()
    monkeypatch.setenv("KEK", kek)
    monkeypatch.setenv("JWT_COLUMN_KEKS", "env:KEK")
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{tmp_path / 'ring.json'}")

    keys_output("init", "--wrapped-by", "env:KEK")
    project = Project(tmp_path)
    project.alembic("revision", "--autogenerate", "--rev-id", "create", "-m", "create")
    project.alembic("upgrade", "head")
    ring = KeyRing.from_uri(f"file:{tmp_path / 'ring.json'}")
    engine = sa.create_engine(project.url)
    table = sa.table("sessions", sa.column("token", EncryptedJWT(ring, context="sessions.token")))
    tokens = [signed_token(sub=str(number)) for number in range(50)]
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"token": token} for token in tokens])

    new = keys_report("add")["added"]
    keys_output("activate", new)
    ring.reload()
    (tmp_path / "versions" / "reencrypt.py").write_text(dedent(REENCRYPT_PY))
    # A script with the table, and no rows: those are refused.
    assert "CREATE TABLE sessions" in project.alembic("upgrade", "head", "--sql", code=255)
    log = project.alembic("upgrade", "head")
    assert f"50 of 50 rows under key {new}" in log
    # It took the keys from the ring of the environment: the rows are under the new one, and open.
    with engine.begin() as connection:
        assert connection.scalars(sa.select(table.c.token)).all() == tokens
        key_id = table.c.token.key_id
        assert set(connection.scalars(sa.select(key_id))) == {new}
    engine.dispose()

    # A shard is a process of its own, and it was seen.
    assert any("multiprocessing" in line for line in project.seen)
    for path in tmp_path.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            project.seen.add(path.read_bytes().decode("latin-1"))
    secrets = [kek]
    for key in ring.keys:
        secret = key.secret_material()
        secrets += [base64url.encode(secret), secret.hex(), secret.decode("latin-1"), repr(secret)[2:-1]]
    assert len(secrets) == 9
    assert [secret for secret in secrets for text in project.seen if secret in text] == []
    # The control: what everybody may see does name a key, by its id.
    assert any(new in text for text in project.seen)
