"""The application of ``test_uwsgi.py`` and ``test_servers.py``: a token when it is imported, and one per request."""

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


def answer(name: str) -> dict[str, Any]:
    """Return the worker, the nonce of a token of its own, and the ring's state."""
    token = f"eyJhbGciOiJIUzI1NiJ9.e30.{name.rjust(4, 'A')}"
    stored = encrypt_token(token, RING, context="c")
    assert isinstance(stored, bytes)
    # So that every worker gets some of the requests.
    time.sleep(0.3)
    return {
        "worker": os.getpid(),
        "nonce": stored[6:30].hex(),
        "key_ids": RING.key_ids,
        "error": RING.status.error,
        "findings": findings(),
    }


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a request."""
    body = json.dumps(answer(environ["PATH_INFO"].strip("/"))).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
