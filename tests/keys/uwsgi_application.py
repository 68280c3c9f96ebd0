"""The application of ``test_uwsgi.py``: it encrypts a token when it is imported, and one per request."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jwt_column import EncryptedJWT, KeyRing, check_ready, encrypt_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

RING = KeyRing.from_uri(os.environ["RING"], refresh=float(os.environ["REFRESH"]))
encrypt_token("eyJhbGciOiJIUzI1NiJ9.e30.AAAA", RING, context="c")

TABLE = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("token", EncryptedJWT(RING)))


def findings() -> list[str]:
    """Return the findings of a worker that starts."""
    engine = sa.create_engine("sqlite://")
    TABLE.create(engine)
    return [finding.code for finding in check_ready(TABLE, engine)]


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Return the worker, the nonce of a token of its own, and the ring's state."""
    token = f"eyJhbGciOiJIUzI1NiJ9.e30.{environ['PATH_INFO'].strip('/').rjust(4, 'A')}"
    stored = encrypt_token(token, RING, context="c")
    assert isinstance(stored, bytes)
    # So that every worker gets some of the requests.
    time.sleep(0.3)
    start_response("200 OK", [("Content-Type", "application/json")])
    body = {
        "worker": os.getpid(),
        "nonce": stored[6:30].hex(),
        "key_ids": RING.key_ids,
        "error": RING.status.error,
        "findings": findings(),
    }
    return [json.dumps(body).encode()]
