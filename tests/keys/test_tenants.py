"""A key for each tenant: who writes under which, at the same time; what re-encryption leaves; and shredding."""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

import migrations_helpers
from jwt_column import (
    EncryptedJWT,
    FingerprintIndex,
    KeyRing,
    SealedJWT,
    StaleIndex,
    UnknownKeyError,
    generate_key,
    key_usage,
    set_default_keyring,
)
from tests.support.command_line import invoke, keys_output, keys_report
from tests.support.models import mapped
from tests.support.threads import in_four_threads
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TENANTS = ("acme", "globex", "initech")


Token = mapped(
    "tenant_tokens",
    FingerprintIndex("ix_tenant_tokens_token", "token"),
    StaleIndex("ix_tenant_tokens_stale", "token"),
    tenant=sa.String(20),
    token=EncryptedJWT(fingerprints=["token"]),
)
KEY_ID = Token.token.key_id.label("key_id")


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    """A key-ring file with a key for each tenant; its ring is the default one."""
    monkeypatch.setenv("KEK", generate_key())
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{tmp_path / 'ring.json'}")
    keys_output("init", "--wrapped-by", "env:KEK")
    for tenant in TENANTS:
        keys_output("add", "--tenant", tenant)
    ring = KeyRing.from_uri(f"file:{tmp_path / 'ring.json'}")
    set_default_keyring(ring)
    return ring


@pytest.fixture
def table(engine: sa.Engine, ring: KeyRing) -> sa.Engine:
    """One row of every tenant and one of none, in an engine of each database."""
    Token.metadata.create_all(engine)
    for tenant in ("nobody", *TENANTS):
        add_row(engine, ring, tenant)
    return engine


def add_row(engine: sa.Engine, ring: KeyRing, tenant: str) -> None:
    unit = ring.using(ring.tenants[tenant]) if tenant in ring.tenants else contextlib.nullcontext()
    with unit, Session(engine) as session:
        session.add(Token(tenant=tenant, token=signed_token(sub=tenant)))
        session.commit()


def key_ids(engine: sa.Engine) -> dict[str, str | None]:
    """Return the key id of each tenant's row, by SQL."""
    with Session(engine) as session:
        return {row.tenant: row.key_id for row in session.execute(sa.select(Token.tenant, KEY_ID))}


# -- at the same time ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def swapped(ring: KeyRing, key_id: str) -> Iterator[None]:
    """Choose a key as others do: by changing an object that every thread shares."""
    before = ring.snapshot()
    chosen = before.by_prefix[b"\x01" + bytes.fromhex(key_id)]
    ring._keys = before._replace(active=chosen)
    try:
        yield
    finally:
        ring._keys = before


@pytest.fixture(params=[{}, {"fingerprints": ["token"]}], ids=["short cut", "with fingerprints"])
def bind(request: pytest.FixtureRequest, ring: KeyRing) -> Callable[[str], bytes]:
    """What encrypts the parameters of a column; one for all threads, as a cached statement has it."""
    return EncryptedJWT(ring, context="tokens.token", **request.param).bind_processor(sqlite.dialect())


def misplaced(ring: KeyRing, bind: Callable[[str], bytes], unit: Callable[..., Any], rounds: int) -> int:
    """Have four threads write for tenants in turn, and return how many values are under another tenant's key."""
    value = signed_token(sub="alice")
    wanted = ring.current_key_ids

    def work(number: int) -> int:
        wrong = 0
        for turn in range(rounds):
            key_id = wanted[(number + turn) % 4]
            with contextlib.nullcontext() if key_id == wanted[0] else unit(key_id):
                wrong += sum(bind(value)[1:5].hex() != key_id for _ in range(5))
        return wrong

    return sum(in_four_threads(work))


def test_threads_never_write_under_the_key_of_another_tenant(
    ring: KeyRing, bind: Callable[[str], bytes]
) -> None:
    """sqlalchemy-utils, with a key from a context variable, got 5039 of 155 548 wrong."""
    assert misplaced(ring, bind, ring.using, 400) == 0


def test_keys_on_a_shared_object_get_mixed_up(ring: KeyRing, bind: Callable[[str], bytes]) -> None:
    """The control: the same threads notice when the key is chosen in a way that they share."""
    before = ring.snapshot()
    try:
        assert misplaced(ring, bind, partial(swapped, ring), 400) > 0
    finally:
        ring._keys = before


def test_tasks_never_write_under_the_key_of_another_tenant(ring: KeyRing, tmp_path: Path) -> None:
    """Each task gives way in the middle of its unit of work, again and again."""

    async def write(engine: Any, tenant: str) -> None:
        for _ in range(10):
            with ring.using(ring.tenants[tenant]):
                async with AsyncSession(engine) as session:
                    session.add(Token(tenant=tenant, token=signed_token(sub=tenant)))
                    await asyncio.sleep(0)
                    await session.flush()
                    await asyncio.sleep(0)
                    session.add(Token(tenant=tenant, token=signed_token(sub=tenant)))
                    await session.commit()

    async def run() -> list[tuple[str, str | None]]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'tokens.sqlite3'}")
        async with engine.begin() as connection:
            await connection.run_sync(Token.metadata.create_all)
        await asyncio.gather(*(write(engine, tenant) for tenant in TENANTS * 2))
        async with AsyncSession(engine) as session:
            rows = await session.execute(sa.select(Token.tenant, KEY_ID))
        await engine.dispose()
        return [(row.tenant, row.key_id) for row in rows]

    rows = asyncio.run(run())
    assert len(rows) == 120
    assert set(rows) == set(ring.tenants.items())


def test_row_that_is_flushed_after_the_block_is_under_the_active_key(ring: KeyRing, table: sa.Engine) -> None:
    """What the how-to warns of."""
    with Session(table) as session:
        with ring.using(ring.tenants["acme"]):
            session.add(Token(tenant="late", token=signed_token(sub="late")))
        session.commit()
    assert key_ids(table)["late"] == ring.active


# -- what is stale ---------------------------------------------------------------------------------------------


def states(engine: sa.Engine) -> dict[tuple[str | None, str], int]:
    with Session(engine) as session:
        return {(row.key_id, row.state): row.rows for row in session.execute(key_usage(Token.token))}


def reencrypt(engine: sa.Engine, **options: Any) -> migrations_helpers.ReencryptionReport:
    return migrations_helpers.reencrypt(
        engine, "tenant_tokens", "token", type_=EncryptedJWT(fingerprints=["token"]), **options
    )


def test_rows_of_tenants_are_current_under_their_keys(ring: KeyRing, table: sa.Engine) -> None:
    assert states(table) == dict.fromkeys([(key_id, "current") for key_id in ring.current_key_ids], 1)
    assert key_ids(table) == {"nobody": ring.active, **ring.tenants}
    with Session(table) as session:
        stale = sa.select(sa.func.count()).where(Token.token.is_stale)
        assert session.scalar(stale) == 0


def test_census_without_a_ring_takes_the_keys_from_whoever_asks(ring: KeyRing, table: sa.Engine) -> None:
    given = ring.current_key_ids
    set_default_keyring(None)
    with Session(table) as session:
        for active, current in ((given, 4), (given[0], 1)):
            rows = session.execute(key_usage(Token.token, active=active)).all()
            assert sum(row.rows for row in rows if row.state == "current") == current
            assert sum(row.rows for row in rows if row.state == "stale") == 4 - current


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside a unit of work"])
def test_reencryption_moves_the_rows_of_nobody_and_leaves_those_of_tenants(
    ring: KeyRing, table: sa.Engine, inside: bool
) -> None:
    added = keys_output("add", "--json")
    new = json.loads(added)["added"]
    keys_output("activate", new)
    ring.reload()
    assert sum(rows for (_, state), rows in states(table).items() if state == "stale") == 1
    with ring.using(ring.tenants["acme"]) if inside else contextlib.nullcontext():
        report = reencrypt(table)
    assert (report.reencrypted, report.already_current, report.remaining) == (1, 3, 0)
    assert key_ids(table) == {"nobody": new, **ring.tenants}


def test_tenant_gets_a_new_key_and_its_rows_follow(ring: KeyRing, table: sa.Engine) -> None:
    before = ring.tenants
    new = keys_report("add", "--tenant", "acme")["added"]
    ring.reload()
    assert ring.tenants == before
    keys_output("activate", new)
    ring.reload()
    assert ring.tenants == {**before, "acme": new}
    with Session(table) as session:
        stale = sa.select(Token.tenant).where(Token.token.is_stale)
        assert session.scalars(stale).all() == ["acme"]
    assert reencrypt(table).reencrypted == 1
    assert key_ids(table) == {"nobody": ring.active, **ring.tenants}


def test_key_of_a_tenant_is_not_said_to_be_idle(
    ring: KeyRing, table: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are current under it, and would be lost."""
    idle = keys_report("add")["added"]
    set_default_keyring(None)
    monkeypatch.setenv("JWT_COLUMN_DATABASE_URL", table.url.render_as_string(hide_password=False))
    column = ("--table", "tenant_tokens", "--column", "token", "--fingerprint", "token")
    done = invoke("reencrypt", *column)
    assert done.exit_code == 0, done.stderr
    assert f"No row here needs the key {idle} any more." in " ".join(done.stdout.split())
    assert not any(f"{key_id} any more" in done.stdout for key_id in ring.current_key_ids)


def test_new_layout_is_written_under_the_key_that_a_row_has(ring: KeyRing, table: sa.Engine) -> None:
    type_ = EncryptedJWT(fingerprints=["token"], expose_expiry=True)
    report = migrations_helpers.reencrypt(table, "tenant_tokens", "token", type_=type_)
    assert (report.reencrypted, report.remaining) == (4, 0)
    assert key_ids(table) == {"nobody": ring.active, **ring.tenants}


def test_key_that_is_loaded_in_the_middle_of_a_run_is_kept_within_its_tenant(ring: KeyRing) -> None:
    """The run began before the tenant was there."""
    type_ = EncryptedJWT(ring, context="tenant_tokens.token")
    reseal = type_.cipher().resealer(ring)
    new = keys_report("add", "--tenant", "hooli")["added"]
    elsewhere = KeyRing.from_uri(ring.uri or "")
    with elsewhere.using(new):
        stored = type_.cipher().encrypt(signed_token(), elsewhere)
    assert reseal(stored)[1:5].hex() == new  # type: ignore[union-attr]


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside a unit of work"])
def test_rows_of_every_tenant_are_found_by_fingerprint(ring: KeyRing, table: sa.Engine, inside: bool) -> None:
    value = signed_token(sub="globex")
    with ring.using(ring.tenants["acme"]) if inside else contextlib.nullcontext(), Session(table) as session:
        rows = session.scalars(sa.select(Token).where(Token.token == value)).all()
        assert [(row.tenant, row.token) for row in rows] == [("globex", value)]


def test_rows_move_to_their_tenants_key_when_they_are_written_again(ring: KeyRing, table: sa.Engine) -> None:
    """How an application that had one key for all begins with one for each."""
    with Session(table) as session:
        session.add(Token(tenant="acme", token=signed_token(sub="old")))
        session.commit()
    with ring.using(ring.tenants["acme"]), Session(table) as session:
        mine = sa.select(Token).where(Token.tenant == "acme", Token.token.key_id != ring.tenants["acme"])
        for row in session.scalars(mine.with_for_update()):
            flag_modified(row, "token")
        session.commit()
    with Session(table) as session:
        found = session.execute(sa.select(KEY_ID).where(Token.tenant == "acme"))
        assert [row.key_id for row in found] == [ring.tenants["acme"]] * 2
        tokens = session.scalars(sa.select(Token.token).where(Token.tenant == "acme")).all()
        assert signed_token(sub="old") in tokens


# -- shredding -------------------------------------------------------------------------------------------------


def test_tenant_whose_key_is_gone_is_unreadable_for_ever_and_the_others_are_not(
    ring: KeyRing, table: sa.Engine, tmp_path: Path
) -> None:
    gone = ring.tenants["acme"]
    wrapped = next(
        entry["wrapped"]
        for entry in json.loads((tmp_path / "ring.json").read_text())["keys"]
        if entry["id"] == gone
    )
    keys_output("remove", gone, "--force", "--confirm", gone, "--no-previous")
    ring.reload()
    with Session(table) as session:
        for row in session.execute(sa.select(Token.id, Token.tenant)):
            statement = sa.select(Token.token).where(Token.id == row.id)
            if row.tenant == "acme":
                with pytest.raises(UnknownKeyError) as caught:
                    session.scalar(statement)
                assert caught.value.key_id == gone
            else:
                assert session.scalar(statement) == signed_token(sub=row.tenant)
        # What is left of it can be listed and deleted.
        sealed_type = EncryptedJWT(
            context="tenant_tokens.token", fingerprints=["token"], undecryptable="sealed"
        )
        column = sa.type_coerce(Token.token, sealed_type)
        sealed: object = session.scalar(sa.select(column).where(Token.tenant == "acme"))
        assert isinstance(sealed, SealedJWT)
        session.execute(sa.delete(Token).where(Token.tenant == "acme"))
        session.commit()
    with pytest.raises(UnknownKeyError), ring.using(gone):
        raise AssertionError
    assert "acme" not in ring.tenants
    # Nothing beside the ring keeps the wrapped key.
    assert not any(wrapped in path.read_text() for path in tmp_path.iterdir() if path.suffix != ".sqlite3")


def test_previous_version_would_bring_the_tenant_back(ring: KeyRing, tmp_path: Path) -> None:
    """The control of the test above, and why shredding takes --no-previous."""
    gone = ring.tenants["acme"]
    keys_output("remove", gone, "--force", "--confirm", gone)
    previous = KeyRing.from_uri(f"file:{tmp_path / 'ring.json.previous'}")
    assert previous.tenants["acme"] == gone
