"""What a ring costs to load, by who wraps its keys, and that it costs nothing afterwards.

Loading is measured by the clock, because other processes do a part of the work. Binding and loading tokens is compared
with a ring from a file of plain keys: no provider has any part in it, so the ratio is one.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from jwt_column import EncryptedJWT, KeyRing
from jwt_column.keys.data_key import DataKey
from jwt_column.keys.ring_file.changes import created
from jwt_column.keys.ring_file.store import create_ring_file
from jwt_column.keys.ring_file.unwrapping import wrap
from jwt_column.providers import open_wrapper, write_key_file
from tests.benchmarks.measure import Figure, Table, Work, compare
from tests.benchmarks.subjects import make_tokens
from tests.support.databases import Unavailable
from tests.support.hsm import start_hsm
from tests.support.ports import free_port
from tests.support.vault import start_openbao, start_persistent_openbao

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["HELP", "add_arguments", "measure"]

HELP: Final = "loading a ring, by who wraps its keys; and binding and loading tokens afterwards"

_COUNTS: Final = (1, 3, 100)  # keys of a ring
_TOKENS: Final = 200
_SAME: Final = 1.10
_PLAIN: Final = "file:, plain keys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this benchmark can be told."""
    parser.add_argument("--samples", type=int, default=15, help="samples (default: 15)")
    parser.add_argument(
        "--most-keys", type=int, default=_COUNTS[-1], help="keys of the largest ring (default: 100)"
    )


def measure(options: argparse.Namespace) -> Iterator[Table]:
    """Yield the two tables."""
    counts = sorted({min(count, options.most_keys) for count in _COUNTS})
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keks = dict(_keks(stack, directory))
        rings = _ring_files(directory, keks, counts)
        yield Table("Loading a ring", list(_loading(rings, counts, options.samples)))
        first = {name: KeyRing.from_uri(by_count[counts[0]]) for name, by_count in rings.items()}
    # Here every server is gone, and the rings work.
    yield Table(
        "Tokens of 1 KB, against the same with a ring of plain keys", list(_tokens(first, options.samples))
    )


def _keks(stack: contextlib.ExitStack, directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the providers that there are on this machine, each with a KEK; the stack stops them."""
    write_key_file(directory / "kek.key", [os.urandom(32)])
    yield "file:, a KEK in a file", f"file:{directory}/kek.key"
    for start in (_hsm, _vault, _vault_by_https, _aws):
        try:
            yield from start(stack)
        except Unavailable as reason:
            print(f"\nLeft out: {reason}")


def _hsm(stack: contextlib.ExitStack) -> Iterator[tuple[str, str]]:
    hsm = start_hsm()
    stack.callback(hsm.close)
    token = hsm.new_token()
    token.new_kek("first", b"\x01")
    token.new_kek("second", b"\x02", ENCRYPT=False, DECRYPT=False, WRAP=True, UNWRAP=True)
    yield "pkcs11:, AES-GCM", f"pkcs11:{token.rest('object=first')}"
    yield "pkcs11:, AES key wrap", f"pkcs11:{token.rest('object=second')}"


def _vault(stack: contextlib.ExitStack) -> Iterator[tuple[str, str]]:
    server = start_openbao()
    stack.callback(server.close)
    (server.directory / "token").write_text(server.token)
    rest = server.rest(server.new_key(derived=True), token_file=f"{server.directory}/token")
    yield "vault-transit:, HTTP", f"vault-transit:{rest}"


def _vault_by_https(stack: contextlib.ExitStack) -> Iterator[tuple[str, str]]:
    server = start_persistent_openbao()
    stack.callback(server.close)
    key = server.new_key(derived=True)
    role_id, secret_id = server.new_role(key)
    (server.directory / "role").write_text(role_id)
    (server.directory / "secret").write_text(secret_id)
    files = {"role_id_file": f"{server.directory}/role", "secret_id_file": f"{server.directory}/secret"}
    yield "vault-transit:, HTTPS, AppRole", f"vault-transit:{server.rest(key, auth='approle', **files)}"


def _aws(stack: contextlib.ExitStack) -> Iterator[tuple[str, str]]:
    try:
        boto3: Any = importlib.import_module("boto3")
        moto: Any = importlib.import_module("moto.server")
    except ImportError as error:
        raise Unavailable(f"No AWS KMS to measure: {error}") from None
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    port = free_port()
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    stack.callback(server.stop)
    variables = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    stack.enter_context(patch.dict(os.environ, variables, AWS_ENDPOINT_URL_KMS=f"http://127.0.0.1:{port}"))
    with contextlib.closing(boto3.client("kms", region_name="eu-central-1")) as client:
        yield "aws-kms:, moto in this process", f"aws-kms:{client.create_key()['KeyMetadata']['Arn']}"


def _ring_files(directory: Path, keks: dict[str, str], counts: list[int]) -> dict[str, dict[int, str]]:
    """Write the same keys plain and under each KEK, and return the URIs by provider and number of keys."""
    rings: dict[str, dict[int, str]] = {name: {} for name in (_PLAIN, *keks)}
    for count in counts:
        keys = [DataKey(os.urandom(32)) for _ in range(count)]
        path = directory / f"plain-{count}.keys"
        write_key_file(path, [key.secret_material() for key in keys])
        rings[_PLAIN][count] = f"file:{path}"
        for number, (name, kek) in enumerate(keks.items()):
            path = directory / f"ring-{number}-{count}.json"
            wrapped = wrap(open_wrapper(kek), "benchmark", keys)
            entries = [(key.id, ciphertext) for key, ciphertext in zip(keys, wrapped, strict=True)]
            file = created("benchmark", entries, kek, datetime.now(UTC).replace(microsecond=0))
            create_ring_file(path, file, {key.id: key for key in keys})
            rings[name][count] = f"file:{path}"
    return rings


def _loading(rings: dict[str, dict[int, str]], counts: list[int], samples: int) -> Iterator[Figure]:
    for name, by_count in rings.items():
        for count in counts:
            uri = by_count[count]
            seconds = [_seconds(uri) for _ in range(samples + 1)][1:]
            what = f"{count} keys" if count > 1 else "1 key"
            middle = statistics.median(seconds)
            yield Figure(name, what, middle * 1000, "ms", None, min(seconds) * 1000, max(seconds) * 1000)


def _seconds(uri: str) -> float:
    start = time.perf_counter()
    KeyRing.from_uri(uri)
    return time.perf_counter() - start


def _tokens(rings: dict[str, KeyRing], samples: int) -> Iterator[Figure]:
    tokens = make_tokens("RS256", 1000, _TOKENS)
    types = {name: EncryptedJWT(ring, context="sessions.token") for name, ring in rings.items()}

    def bind(name: str) -> Work:
        cipher, ring = types[name].cipher(), rings[name]
        return Work(lambda: [cipher.encrypt(token, ring) for token in tokens])

    def load(name: str) -> Work:
        cipher, ring = types[name].cipher(), rings[name]
        stored = [cipher.encrypt(token, ring) for token in tokens]
        return Work(lambda: [cipher.decrypt(value, ring) for value in stored])

    for name in rings:
        if name != _PLAIN:
            for what, work in (("bind", bind), ("load", load)):
                measured = compare(work(_PLAIN), work(name), samples=samples * 10)
                yield Figure.of(measured, name, what, _SAME)
