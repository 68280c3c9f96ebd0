"""Seeds for each target: some kilobytes, made from the vectors and a few lines here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jwt_column import encrypt_token
from jwt_column.fleet import _to_json
from tests.fuzz.targets import CONTEXT, RING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["seeds"]

VECTORS: Final = Path(__file__).parent.parent / "vectors"
TOKEN: Final = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6MTcwMDAwMDAwMH0.c2lnbmF0dXJl"
URIS: Final = (
    "file:/etc/app/ring.json",
    "env:JWT_COLUMN_KEYS",
    "keyring:service/user",
    "aws-kms:arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab?endpoint=x",
    "azure-keyvault://vault.vault.azure.net/keys/kek/0123456789abcdef0123456789abcdef",
    "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k",
    "vault-transit://127.0.0.1:8200/transit/keys/kek?derived=true&auth=approle",
    "pkcs11:token=t;object=o;type=secret-key?module-path=/usr/lib/x.so&pin-source=file:/etc/pin",
)


def seeds(target: str) -> Iterator[bytes]:
    """Yield the seeds of a target."""
    match target:
        case "envelope":
            binary = encrypt_token(TOKEN, RING, context=CONTEXT, fingerprints=["sub"], expose_expiry=True)
            text = encrypt_token(TOKEN, RING, context=CONTEXT, storage="text")
            assert isinstance(binary, bytes)
            assert isinstance(text, str)
            yield b"\0" + binary
            yield b"\1" + text.encode()
        case "claims":
            yield TOKEN.encode()
            rows = json.loads((VECTORS / "rfc_tokens.json").read_text(encoding="utf-8"))["tokens"]
            yield from (row["token"].encode() for row in rows)
            yield b'{"exp": 1e400, "iat": [{"a": null}], "sub": "\\ud800"}'
        case "ring_file":
            yield from _texts(json.loads((VECTORS / "key_ring_v1.json").read_text(encoding="utf-8")))
        case "uris":
            yield from (kind + uri.encode() for uri in URIS for kind in (b"\0", b"\1"))
        case "fleet":
            yield _to_json(RING.report()).encode()
            yield _to_json(RING.report()._replace(error="e" * 9, revision=7)).encode()
        case "foreign":
            rows = json.loads((VECTORS / "foreign_formats.json").read_text(encoding="utf-8"))
            yield from (bytes([kind]) + text for kind, text in enumerate(list(_texts(rows))[:40]))


def _texts(value: object) -> Iterator[bytes]:
    """Yield every long text, and every object that is a key-ring file, in parsed JSON."""
    if isinstance(value, dict) and "keys" in value and "version" in value:
        yield json.dumps(value).encode()
    if isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _texts(member)
    elif isinstance(value, str) and len(value) > 60:
        yield value.encode()
