"""A reload takes the next version of the ring that is loaded, and neither a stranger's ring nor an older version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jwt_column import KeyRing, KeyRingError, encrypt_token, generate_key, providers
from jwt_column.keys.data_key import DataKey
from jwt_column.keys.ring_file.changes import activated, added
from jwt_column.keys.ring_file.store import StoredRing
from jwt_column.keys.ring_file.unwrapping import wrap
from tests.keys.test_search import NOW, write_ring
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW, STRANGE = (DataKey(generate_key()) for _ in range(3))


@pytest.fixture
def kek(tmp_path: Path) -> str:
    providers.write_key_file(tmp_path / "kek", [generate_key()])
    return f"file:{tmp_path / 'kek'}"


@pytest.fixture
def path(tmp_path: Path, kek: str) -> Path:
    """A ring file of one key, revision 1."""
    path = tmp_path / "ring.json"
    write_ring(path, *texts(OLD), kek=kek)
    return path


def texts(*keys: DataKey) -> list[bytes]:
    return [key.secret_material() for key in keys]


def rotate(path: Path, kek: str) -> None:
    """Add a key and activate it: revision 3."""
    stored = StoredRing.read(path)
    (wrapped,) = wrap(providers.open_wrapper(kek), stored.file.name, [NEW])
    keys = stored.unwrap() | {NEW.id: NEW}
    stored = stored.write(added(stored.file, NEW.id, kek, wrapped, NOW), keys)
    stored.write(activated(stored.file, NEW.id, NOW), keys)


def written_under(ring: KeyRing) -> str:
    stored = encrypt_token(signed_token(), ring, context="c")
    assert isinstance(stored, bytes)
    return stored[1:5].hex()


def test_ring_of_a_stranger_is_refused_and_the_loaded_one_goes_on(path: Path, kek: str) -> None:
    ring = KeyRing.from_uri(f"file:{path}")
    good = path.read_bytes()
    write_ring(path, *texts(STRANGE), kek=kek)
    with pytest.raises(KeyRingError, match=rf"file:{path} now holds none of the keys"):
        ring.reload()
    assert written_under(ring) == OLD.id
    assert OLD.id in (ring.status.error or "")
    assert not ring.status.retryable
    # The control: a process that starts now knows no better.
    assert written_under(KeyRing.from_uri(f"file:{path}")) == STRANGE.id
    path.write_bytes(good)
    ring.reload()
    assert ring.status.error is None


def test_plain_file_of_other_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    providers.write_key_file(path, texts(OLD))
    ring = KeyRing.from_uri(f"file:{path}")
    providers.write_key_file(path, texts(STRANGE), overwrite=True)
    with pytest.raises(KeyRingError, match="none of the keys"):
        ring.reload()
    providers.write_key_file(path, texts(NEW, OLD), overwrite=True)
    ring.reload()
    assert ring.active == NEW.id


@pytest.mark.parametrize("derived", [False, True])
def test_older_revision_is_refused(path: Path, kek: str, derived: bool) -> None:
    before = path.read_bytes()
    rotate(path, kek)
    ring = KeyRing.from_uri(f"file:{path}")
    if derived:
        ring = ring.with_active(OLD.id)
    newest = path.read_bytes()
    path.write_bytes(before)
    with pytest.raises(KeyRingError, match=r"revision 1 .* revision 3"):
        ring.reload()
    assert NEW.id in ring.key_ids
    path.write_bytes(newest)
    ring.reload()
    assert ring.status.error is None


def test_revision_of_a_refused_ring_does_not_count(path: Path, kek: str) -> None:
    """Else a stranger's ring with a large revision would lock the ring out."""
    ring = KeyRing.from_uri(f"file:{path}")
    good = path.read_bytes()
    write_ring(path, *texts(STRANGE), kek=kek)
    rotate(path, kek)
    with pytest.raises(KeyRingError):
        ring.reload()
    path.write_bytes(good)
    ring.reload()
    assert ring.key_ids == (OLD.id,)


def test_next_revision_is_taken(path: Path, kek: str) -> None:
    ring = KeyRing.from_uri(f"file:{path}")
    rotate(path, kek)
    ring.reload()
    assert (ring.active, written_under(ring)) == (NEW.id, NEW.id)
