"""Keys that were destroyed on purpose: the ring keeps a note, and whoever reads the rows knows it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.orm import Session

import migrations_helpers
from jwt_column import (
    EncryptedJWT,
    KeyRing,
    KeyRingError,
    ReencryptionError,
    SealedJWT,
    UnknownKeyError,
    audit,
    generate_key,
    key_usage,
    set_default_keyring,
)
from jwt_column.keys.ring_file.format import DestroyedKey, RingFile
from jwt_column.keys.ring_file.store import StoredRing
from jwt_column.testing import assert_encrypted
from tests.support.command_line import invoke
from tests.support.models import mapped
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = signed_token(sub="somebody")


Login = mapped(token=EncryptedJWT(undecryptable="sealed"))


def keys(*arguments: str, code: int = 0) -> str:
    result = invoke("keys", *arguments)
    assert result.exit_code == code, result.stderr
    return result.stdout if code == 0 else result.stderr


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key-ring file with a key of the tenant acme; its ring is the default one."""
    monkeypatch.setenv("KEK", generate_key())
    path = tmp_path / "ring.json"
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
    keys("init", "--wrapped-by", "env:KEK")
    keys("add", "--tenant", "acme")
    return path


@pytest.fixture
def ring(path: Path) -> KeyRing:
    ring = KeyRing.from_uri(f"file:{path}")
    set_default_keyring(ring)
    return ring


@pytest.fixture
def filled(engine: sa.Engine, ring: KeyRing) -> sa.Engine:
    """Three rows under the tenant's key, and two under the ring's."""
    Login.metadata.create_all(engine)
    with Session(engine) as session:
        with ring.using(ring.tenants["acme"]):
            session.add_all(Login(id=n, token=TOKEN) for n in (1, 2, 3))
            session.flush()
        session.add_all(Login(id=n, token=TOKEN) for n in (4, 5))
        session.commit()
    return engine


def destroy(ring: KeyRing) -> str:
    """Destroy the tenant's key, and return its id."""
    key_id = ring.tenants["acme"]
    keys("remove", key_id, "--destroyed", "--confirm", key_id)
    ring.reload()
    return key_id


def census(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(key_usage(Login.token)))


def codes(engine: sa.Engine, *, deep: bool = False) -> dict[str, int]:
    found = audit(engine, Login.token, deep=deep).findings
    return {one.code: one.count for one in found if one.count}


@pytest.mark.each_server
def test_rows_of_a_destroyed_key_are_known_everywhere(filled: sa.Engine, ring: KeyRing) -> None:
    """The control is the same key, removed without a note: critical, and every run fails."""
    key_id, active = ring.tenants["acme"], ring.active
    stored = ring.uri
    assert stored is not None
    keys("remove", key_id, "--force", "--confirm", key_id)
    ring.reload()
    assert census(filled) == sorted([(active, "current", 2), (key_id, "stale", 3)])
    assert codes(filled) == {"unknown-key": 3}
    with pytest.raises(ReencryptionError, match="3 rows cannot be read"):
        migrations_helpers.reencrypt(filled, "logins", "token", type_=EncryptedJWT(ring))
    assert not ring.is_ready(filled, [Login.token])

    # A key that was removed earlier gets its note, too.
    keys("remove", key_id, "--destroyed", "--confirm", key_id)
    ring.reload()
    assert ring.destroyed_key_ids == (key_id,)
    assert ring.with_active(active).destroyed_key_ids == (key_id,)
    assert census(filled) == sorted([(active, "current", 2), (key_id, "destroyed", 3)])
    for deep in (False, True):
        report = audit(filled, Login.token, deep=deep)
        (finding,) = [one for one in report.findings if one.code == "destroyed-key"]
        others = {one.code for one in report.findings if one.count} - {"destroyed-key"}
        assert others == ({"exp-missing", "duplicate-token"} if deep else set())
        assert (finding.code, finding.count, finding.severity.name.lower()) == ("destroyed-key", 3, "info")
        assert finding.primary_keys == ((1,), (2,), (3,))
        assert f"3 rows are under the key {key_id}, destroyed on purpose." in finding.message
        counted: list[Any] = [(one.key_id, one.state, one.rows) for one in report.columns[0].keys]
        assert sorted(counted) == census(filled)
    assert ring.is_ready(filled, [Login.token])
    assert_encrypted(filled, Login.token, at_least=5)


@pytest.mark.parametrize("storage", ["binary", "text"])
@pytest.mark.parametrize(
    "options", [{}, {"verify": "decrypt"}, {"recompute": True}, {"shards": 2}, {"dry_run": True}]
)
def test_re_encryption_leaves_them_and_ends_well(
    engine: sa.Engine, ring: KeyRing, storage: Any, options: dict[str, Any]
) -> None:
    type_ = EncryptedJWT(storage=storage)
    id_ = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
    table = sa.Table("logins", sa.MetaData(), id_, sa.Column("token", type_))
    table.create(engine)
    with engine.begin() as connection:
        with ring.using(ring.tenants["acme"]):
            connection.execute(table.insert(), [{"id": n, "token": TOKEN} for n in (1, 2, 3)])
        connection.execute(table.insert(), [{"id": n, "token": TOKEN} for n in (4, 5)])
    gone = destroy(ring)
    old = ring.active
    new = json.loads(keys("add", "--json"))["added"]
    keys("activate", new)
    ring.reload()
    with ThreadPoolExecutor(2) as executor:
        if options.get("shards"):
            # Threads share the ring of this process.
            options = options | {"executor": executor, "make_engine": lambda: sa.create_engine(engine.url)}
        report = migrations_helpers.reencrypt(engine, "logins", "token", type_=type_, **options)
    assert (report.reencrypted, report.already_current, report.destroyed) == (2, 0, 3)
    assert (report.remaining if not report.dry_run else 0, report.left, report.undecryptable) == (0, 0, [])
    with engine.connect() as connection:
        rows: set[Any] = {tuple(row) for row in connection.execute(key_usage(table.c.token))}
    wanted: set[Any] = {(gone, "destroyed", 3), (old, "stale", 2) if report.dry_run else (new, "current", 2)}
    assert rows == wanted


def test_the_gate_passes_over_them(filled: sa.Engine, ring: KeyRing) -> None:
    destroy(ring)

    def run_gate() -> None:
        with filled.connect() as connection, Operations.context(MigrationContext.configure(connection)) as op:
            gate: Any = op
            gate.ensure_jwt_column_current("logins", "token", type_=EncryptedJWT(ring))

    run_gate()
    new = json.loads(keys("add", "--json"))["added"]
    keys("activate", new)
    ring.reload()
    with pytest.raises(ReencryptionError, match="2 rows are stale"):
        run_gate()


def test_a_row_says_that_its_key_was_destroyed_and_asks_no_kms(filled: sa.Engine, ring: KeyRing) -> None:
    key_id = destroy(ring)
    with Session(filled) as session:
        rows = session.scalars(sa.select(Login).order_by(Login.id)).all()
    sealed: list[Any] = [row.token for row in rows if isinstance(row.token, SealedJWT)]
    assert len(sealed) == 3
    assert sealed[0].key_id == key_id
    loaded = ring.status.age
    with pytest.raises(
        UnknownKeyError, match=rf"key {key_id} was destroyed on {datetime.now(UTC):%Y-%m-%d}"
    ) as caught:
        sealed[0].reveal()
    assert caught.value.key_id == key_id
    assert ring.status.age > loaded
    with pytest.raises(UnknownKeyError, match="was destroyed"), ring.using(key_id):
        pass


def test_the_rows_are_removed_by_a_command(filled: sa.Engine, ring: KeyRing) -> None:
    key_id = destroy(ring)
    url = filled.url.render_as_string(hide_password=False)
    arguments = ["purge", "--database", url, "--table", "logins", "--column", "token", "--key", key_id]
    result = invoke(*arguments, "--action", "null")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"3 rows cleared under key {key_id}." in result.stdout
    with Session(filled) as session:
        assert [row.token is None for row in session.scalars(sa.select(Login).order_by(Login.id))] == [
            True, True, True, False, False,
        ]  # fmt: skip
    assert codes(filled) == {}


# -- the file and its command ------------------------------------------------------------------------------------------


def test_the_note_is_in_the_file_and_authenticated(path: Path, ring: KeyRing) -> None:
    before = json.loads(path.read_text())
    assert before["version"] == 1
    key_id = destroy(ring)
    content = json.loads(path.read_text())
    note = content["destroyed"][0]
    assert (content["version"], note["id"], note["tenant"]) == (2, key_id, "acme")
    assert key_id not in {key["id"] for key in content["keys"]}
    assert not path.with_name("ring.json.previous").exists()
    file = StoredRing.read(path).file
    assert RingFile.from_bytes(file.to_bytes()) == file
    # It survives later changes.
    keys("add")
    assert json.loads(path.read_text())["destroyed"] == [note]
    # And nobody without the keys takes it away or adds one.
    changes: list[Any] = [
        lambda content: content.update(version=1) or content.pop("destroyed"),
        lambda content: content["destroyed"].append({"id": "00000001", "destroyed": note["destroyed"]}),
        lambda content: content["destroyed"][0].update(tenant="globex"),
    ]
    for change in changes:
        content = json.loads(path.read_text())
        change(content)
        path.with_name("changed.json").write_text(json.dumps(content))
        with pytest.raises(KeyRingError, match="changed without its keys"):
            KeyRing.from_uri(f"file:{path.with_name('changed.json')}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"destroyed": []}, "version 1"),
        ({"destroyed": "x"}, "destroyed"),
        ({"destroyed": [{"id": "X", "destroyed": "2026-11-23T19:57:00Z"}]}, "hex digits"),
        ({"destroyed": [{"id": "00000001"}]}, "is missing"),
        ({"destroyed": [{"id": "00000001", "destroyed": "2026"}]}, "is not a time"),
        ({"destroyed": [{"id": "00000001", "destroyed": "2026-11-23T19:57:00Z", "mac": "x"}]}, "members"),
        ({"destroyed": [{"id": "00000001", "destroyed": "2026-11-23T19:57:00Z"}] * 2}, "destroyed"),
        ({"version": 1}, "another version"),
        ({"version": 3}, "another version"),
    ],
)
def test_a_note_that_is_none_is_refused(
    path: Path, ring: KeyRing, change: dict[str, Any], match: str
) -> None:
    destroy(ring)
    content = json.loads(path.read_text()) | change
    with pytest.raises(KeyRingError, match=match):
        RingFile.from_bytes(json.dumps(content).encode())


def test_a_destroyed_key_does_not_come_back(path: Path, ring: KeyRing) -> None:
    file = StoredRing.read(path).file
    active = file.active.id
    with pytest.raises(KeyRingError, match=f"{active} is there, and marked as destroyed"):
        RingFile(file.name, 2, file.keys, (DestroyedKey(active, datetime.now(UTC)),)).check()
    key_id = destroy(ring)
    assert f"key {key_id} is marked as destroyed already" in keys(
        "remove", key_id, "--destroyed", "--confirm", key_id, code=2
    )


def test_what_the_command_refuses(path: Path, ring: KeyRing, tmp_path: Path) -> None:
    before = path.read_bytes()
    key_id = ring.tenants["acme"]
    assert f"--destroyed needs --confirm {key_id}" in keys("remove", key_id, "--destroyed", code=2)
    assert "active key" in keys("remove", ring.active, "--destroyed", "--confirm", ring.active, code=2)
    assert "key id" in keys("remove", "x", "--destroyed", "--confirm", "x", code=2)
    assert path.read_bytes() == before
    plain = tmp_path / "plain.keys"
    keys("generate", "--file", str(plain))
    assert "file of plain keys, which cannot note that a key was destroyed" in keys(
        "remove", key_id, "--destroyed", "--confirm", key_id, "--file", str(plain), code=2
    )


def test_the_list_shows_it(filled: sa.Engine, ring: KeyRing) -> None:
    key_id = destroy(ring)
    url = filled.url.render_as_string(hide_password=False)
    where = ("--database", url, "--table", "logins", "--column", "token")
    lines = keys("list", *where).splitlines()
    (line,) = [line for line in lines if key_id in line]
    assert line.split() == [key_id, "destroyed", "0", "h", "acme", "3"]
    assert not any("lacks" in line for line in lines)
    content = json.loads(keys("list", "--json", *where))
    assert [(one["id"], one["rows"], "destroyed" in one) for one in content["destroyed"]] == [
        (key_id, 3, True)
    ]
    assert (content["missing"], [key["id"] for key in content["keys"]]) == ([], [ring.active])
