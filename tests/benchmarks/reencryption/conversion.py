"""What one value costs without any database: the least that re-encryption adds to the floor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import column

from migrations_helpers.engine.conversions import Reencryption
from tests.benchmarks.measure import Figure, Table, Work, compare
from tests.benchmarks.reencryption.contents import ENVELOPES, column_type, ring

if TYPE_CHECKING:
    from tests.benchmarks.measure import Measurement

__all__ = ["measure_conversion"]

_SAMPLES: Final = 25


def measure_conversion() -> Table:
    """Open, seal and open again every different value, in this process, by CPU time."""
    stored = ENVELOPES.values()
    convert = Reencryption(column_type(ring()), column("token")).convert
    gcm = AESGCM(os.urandom(32))
    # Header, nonce and tag are no message.
    messages = [(nonce := os.urandom(12), gcm.encrypt(nonce, value[46:], None)) for value in stored]

    def run_bare() -> None:
        for nonce, message in messages:
            token = gcm.decrypt(nonce, message, None)
            new_nonce = os.urandom(12)
            gcm.decrypt(new_nonce, gcm.encrypt(new_nonce, token, None), None)

    def run_ours() -> None:
        for value in stored:
            convert(value)

    measured: Measurement = compare(Work(run_bare), Work(run_ours), samples=_SAMPLES)
    microseconds = 1e6 * measured.floor_seconds / len(stored)
    subject, bare = "conversion of reencrypt", "AES-256-GCM"
    size = sum(map(len, stored)) / len(stored)
    return Table(
        f"One value of {size:.0f} bytes: opened, sealed, opened again (CPU time)",
        [
            Figure(bare, "time per row", microseconds, "us"),
            Figure(subject, "time per row", measured.median * microseconds, "us"),
            Figure.of(measured, subject, "against AES-256-GCM", None),
        ],
    )
