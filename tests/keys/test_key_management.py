"""A ring's whole life with a real HSM, Vault and KMS, on PostgreSQL, through the command line as an operator has it.

``keys init``, the demo's column, ``keys add``, ``keys activate``, a re-encryption migration, ``keys remove``, ``keys
rewrap`` twice: under the same KEK and under another one. Before each call of the provider that a step makes, the
provider is killed once: the step then fails, changes nothing, and the ring still opens every row.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
import sqlalchemy.orm as orm

from jwt_column import JWT, KeyRing, KeyUnavailableError, key_usage, set_default_keyring
from jwt_column.cli.demo.sample import Base, Session
from jwt_column.keys.providers import attempts as _attempts
from tests.support.command_line import invoke, keys_report, run, take_display_away
from tests.support.ports import free_port
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.databases import Database
    from tests.support.hsm import HSM, Token
    from tests.support.vault import PersistentOpenBao

# Cards, a Vault and a cloud, each killed and started again.
pytestmark = [pytest.mark.cloud, pytest.mark.processes]

ROWS = 20


@pytest.fixture(autouse=True)
def plain_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the machine's wishes about colour and width."""
    take_display_away(monkeypatch)


_ENV_PY = """\
import os

import sqlalchemy as sa
from alembic import context

import migrations_helpers

engine = sa.create_engine(os.environ["JWT_COLUMN_DATABASE_URL"], poolclass=sa.NullPool)
with engine.connect() as connection:
    context.configure(connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""

_REVISION = """\
from alembic import op

from jwt_column import EncryptedJWT

revision = "0001"
down_revision = None


def upgrade():
    op.reencrypt_jwt_column("sessions", "token", type_=EncryptedJWT(allow_unsigned=True))


def downgrade():
    pass
"""


class Provider(ABC):
    """What holds the KEKs, and can be killed.

    Attributes:
        kek: The URI of the first KEK.
        other_kek: The URI of the KEK that takes its place.
        is_down: Whether it was killed and is not back.
    """

    kek: str
    other_kek: str
    is_down = False

    def kill(self) -> None:
        """Take it away, with no time to tidy up."""
        self._kill()
        self.is_down = True

    def bring_back(self) -> None:
        """Have it answer again, if it was killed."""
        if self.is_down:
            self._bring_back()
            self.is_down = False

    @abstractmethod
    def _kill(self) -> None: ...

    @abstractmethod
    def _bring_back(self) -> None: ...

    def rotate(self) -> None:  # noqa: B027 - an HSM has no versions of a key.
        """Give the first KEK a new version, where the provider has such."""


class Card(Provider):
    """SoftHSM2, whose tokens are pulled."""

    def __init__(self, hsm: HSM) -> None:
        self._hsm = hsm
        token: Token = hsm.new_token()
        token.new_kek("first", b"\x01")
        token.new_kek("second", b"\x02", ENCRYPT=False, DECRYPT=False, WRAP=True, UNWRAP=True)
        self.kek = f"pkcs11:{token.rest('object=first')}"
        self.other_kek = f"pkcs11:{token.rest('object=second')}"
        self._pulled = contextlib.ExitStack()

    def _kill(self) -> None:
        self._pulled.enter_context(self._hsm.unplugged())
        # What SoftHSM2 has read of a token before, it would still know.
        self._hsm.refresh()

    def _bring_back(self) -> None:
        self._pulled.close()


class Vault(Provider):
    """OpenBao, killed and started again on its data."""

    def __init__(self, server: PersistentOpenBao) -> None:
        self._server = server
        self._key = server.new_key(derived=True)
        self.kek = f"vault-transit:{server.rest(self._key)}"
        self.other_kek = f"vault-transit:{server.rest(server.new_key(), derived='false')}"

    def _kill(self) -> None:
        self._server.kill()

    def _bring_back(self) -> None:
        self._server.start()

    def rotate(self) -> None:
        self._server.write(f"transit/keys/{self._key}/rotate")


class Cloud(Provider):
    """moto in place of AWS KMS, stopped and started again in this process, which keeps its keys."""

    def __init__(self, server: Any, client: Any) -> None:
        self._server = server
        self._client = client
        keys = [client.create_key()["KeyMetadata"]["Arn"] for _ in range(2)]
        self.kek, self.other_kek = (f"aws-kms:{arn}" for arn in keys)

    def _kill(self) -> None:
        self._server.stop()

    def _bring_back(self) -> None:
        self._server.start()

    def rotate(self) -> None:
        self._client.rotate_key_on_demand(KeyId=self.kek.removeprefix("aws-kms:"))


@pytest.fixture
def card(hsm: HSM) -> Card:
    return Card(hsm)


@pytest.fixture
def vault(persistent_openbao: PersistentOpenBao, monkeypatch: pytest.MonkeyPatch) -> Vault:
    monkeypatch.setenv("VAULT_TOKEN", persistent_openbao.token)
    return Vault(persistent_openbao)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    from tests.support.kms import require, set_aws_account

    boto3 = require("boto3", "jwt-column[aws-kms]")
    moto_server = require("moto.server", "moto[kms]", "flask", "flask-cors")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    port = free_port()
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    set_aws_account(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{port}")
    client = boto3.session.Session(region_name="eu-central-1").client("kms")
    yield Cloud(server, client)
    client.close()
    server.stop()


@pytest.fixture(params=["card", "vault", "cloud"])
def provider(request: pytest.FixtureRequest) -> Iterator[Provider]:
    provider: Provider = request.getfixturevalue(request.param)
    try:
        yield provider
    finally:
        provider.bring_back()


class Application:
    """The demo's table on PostgreSQL, a key-ring file, and an Alembic environment."""

    def __init__(self, url: sa.URL, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = directory / "sessions.json"
        self.url = url.render_as_string(hide_password=False)
        self.engine = sa.create_engine(url)
        self.tokens: dict[int, str] = {}
        monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{self.path}")
        monkeypatch.setenv("JWT_COLUMN_DATABASE_URL", self.url)
        migrations = directory / "migrations"
        (migrations / "versions").mkdir(parents=True)
        (migrations / "env.py").write_text(_ENV_PY, encoding="utf-8")
        (migrations / "versions" / "0001_reencrypt.py").write_text(_REVISION, encoding="utf-8")
        self.alembic = alembic.config.Config()
        self.alembic.set_main_option("script_location", str(migrations))

    def close(self) -> None:
        self.engine.dispose()

    @property
    def ring(self) -> KeyRing:
        """The ring of the file, loaded now."""
        return KeyRing.from_uri(f"file:{self.path}")

    def write_rows(self, ring: KeyRing) -> None:
        """Sign some more users in."""
        set_default_keyring(ring)
        with orm.Session(self.engine) as session:
            for number in range(len(self.tokens) + 1, len(self.tokens) + 1 + ROWS):
                token = self.tokens[number] = signed_token(sub=f"user-{number}")
                session.add(Session(id=number, user=f"user-{number}", token=JWT(token)))
            session.commit()

    def opens_every_row(self, ring: KeyRing) -> bool:
        """Say whether a ring opens all rows to what was written."""
        set_default_keyring(ring)
        with orm.Session(self.engine) as session:
            rows: Sequence[Any] = session.execute(sa.select(Session.id, Session.token)).all()
        set_default_keyring(None)
        return dict(rows) == self.tokens

    def usage(self, ring: KeyRing) -> dict[str | None, tuple[str, int]]:
        """Return the census: state and rows by key id."""
        with self.engine.connect() as connection:
            rows: Sequence[Any] = connection.execute(key_usage(Session.token, active=ring.active)).all()
        return {key_id: (state, count) for key_id, state, count in rows}


@pytest.fixture
def application(
    postgresql_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Application]:
    application = Application(postgresql_database.url(), tmp_path, monkeypatch)
    Base.metadata.create_all(application.engine)
    yield application
    application.close()


class Killer:
    """Kills a provider before one of the calls that are made to it."""

    def __init__(self, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
        self._provider = provider
        self._kill_at = 0
        self._calls = 0
        attempt = _attempts._in_thread

        def counted(*arguments: Any) -> Any:
            self._calls += 1
            if self._calls == self._kill_at:
                provider.kill()
            return attempt(*arguments)

        monkeypatch.setattr(_attempts, "_in_thread", counted)

    @contextlib.contextmanager
    def before_call(self, number: int) -> Iterator[None]:
        """Kill before the call of this number, from 1, if there are so many; bring back in the end."""
        self._calls, self._kill_at = 0, number
        try:
            yield
        finally:
            self._kill_at = 0
            self._provider.bring_back()


class Operator:
    """Does each step with a provider that is killed at every point of it, and then once more without."""

    def __init__(self, application: Application, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
        self._application = application
        self._provider = provider
        self._killer = Killer(provider, monkeypatch)
        self.kills = 0

    def keys(self, *arguments: str) -> Any:
        """Run a command of ``jwt-column keys``, and return what its ``--json`` says."""

        def command() -> tuple[bool, Any]:
            done = invoke("keys", *arguments, "--json")
            assert done.exit_code in (0, 3), done.output
            if done.exit_code == 3:
                assert self._provider.kek in done.stderr or self._provider.other_kek in done.stderr
                return False, None
            return True, json.loads(done.stdout)

        return self._step(command)

    def migrate(self) -> None:
        """Run ``alembic upgrade head``."""

        def command() -> tuple[bool, Any]:
            set_default_keyring(None)
            try:
                alembic.command.upgrade(self._application.alembic, "head")
            except KeyUnavailableError:
                return False, None
            return True, None

        self._step(command)

    def _step(self, command: Callable[[], tuple[bool, Any]]) -> Any:
        path = self._application.path
        for number in itertools.count(1):
            before = path.read_bytes() if path.exists() else None
            with self._killer.before_call(number):
                succeeded, result = command()
                was_killed = self._provider.is_down
            if succeeded:
                # All its calls were had, so it was not disturbed this time.
                assert not was_killed
                assert number > 1
                break
            assert was_killed
            self.kills += 1
            assert (path.read_bytes() if path.exists() else None) == before
            if before is not None:
                assert self._application.opens_every_row(self._application.ring)
        assert self._application.opens_every_row(self._application.ring)
        return result


def test_a_ring_lives_through_its_life_and_through_the_death_of_its_provider(
    application: Application, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = Operator(application, provider, monkeypatch)

    made = operator.keys("init", "--wrapped-by", provider.kek)
    running = application.ring
    old = running.active
    assert made["active"] == old
    application.write_rows(running)

    new = operator.keys("add")["added"]
    assert list(application.ring.key_ids) == [old, new]
    running.reload()
    application.write_rows(running)

    operator.keys("activate", new)
    assert list(application.ring.key_ids) == [new, old]
    running.reload()
    application.write_rows(running)
    assert application.usage(running) == {old: ("stale", 2 * ROWS), new: ("current", ROWS)}

    operator.migrate()
    assert application.usage(running) == {new: ("current", 3 * ROWS)}

    operator.keys("remove", old, "--table", "sessions", "--column", "token", "--no-previous")
    assert list(application.ring.key_ids) == [new]

    provider.rotate()
    operator.keys("rewrap")
    before = application.path.read_bytes()
    operator.keys("rewrap", "--wrapped-by", provider.other_kek)
    assert application.path.read_bytes() != before
    listed = keys_report("list")
    assert [key["wrapped_by"] for key in listed["keys"]] == [provider.other_kek]

    # A ring that is loaded goes on working while the provider is down, and what starts then says so in time.
    provider.kill()
    assert application.opens_every_row(running)
    application.write_rows(running)
    with pytest.raises(KeyUnavailableError) as caught:
        running.reload()
    assert caught.value.retryable
    assert application.opens_every_row(running)
    provider.bring_back()
    running.reload()
    assert list(running.key_ids) == [new]
    assert application.opens_every_row(running)

    # Each of the seven steps asked the provider at least once, and was disturbed before each call.
    assert operator.kills >= 7

    # And as a process of its own, with a machine's eyes.
    monkeypatch.setenv("JWT_COLUMN_KEKS", provider.other_kek)
    done = run("keys", "check", "--json")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_benchmark_of_loading_works(capsys: pytest.CaptureFixture[str]) -> None:
    """What it measures is not looked at: no test may depend on a time."""
    from tests.benchmarks import key_loading

    parser = argparse.ArgumentParser()
    key_loading.add_arguments(parser)
    tables = list(key_loading.measure(parser.parse_args(["--samples", "1", "--most-keys", "2"])))
    loading, tokens = (
        {(figure.subject.partition(":")[0], figure.what) for figure in table.figures} for table in tables
    )
    left_out = capsys.readouterr().out.count("Left out:")
    providers = {subject for subject, _ in loading}
    assert {what for _, what in loading} == {"1 key", "2 keys"}
    assert {what for _, what in tokens} == {"bind", "load"}
    assert {subject for subject, _ in tokens} == providers
    assert left_out or providers == {"file", "pkcs11", "vault-transit", "aws-kms"}
