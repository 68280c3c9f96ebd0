"""Files of keys on disk: read whole and bounded, written whole or not at all, changed by one command at a time."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final

from ...errors import ConfigurationError, KeyRingError, KeyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PREVIOUS", "create", "previous_of", "read", "replace", "update"]

#: What the name of the previous version ends with.
PREVIOUS: Final = ".previous"

_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)


def read(path: Path, most: int) -> tuple[bytes, int]:
    """Return what is in a file and its mode, looked at through the same descriptor.

    Raises:
        KeyRingError: It is no regular file, or has more than *most* bytes.
        KeyUnavailableError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise KeyRingError(f"{path} is not a regular file")
            data = file.read(most + 1)
    except OSError as error:
        raise KeyUnavailableError(f"the key file {path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise KeyRingError(f"{path} has more than {most} bytes; it is no key file")
    return data, stat.S_IMODE(mode)


def create(path: Path, data: bytes, mode: int) -> None:
    """Write a new file of this mode, whichever the umask is.

    Raises:
        ConfigurationError: It is there already, or cannot be written; nothing was changed.
    """
    with _explained(path), _beside(path, data, mode) as temporary:
        # A link fails where the name is taken; a rename would replace it.
        os.link(temporary, path)
    with _explained(path):
        _sync_directory(path.parent)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file of this mode, in place of the one that may be there: at the end of a symbolic link, of that one.

    Raises:
        ConfigurationError: It cannot be written; nothing was changed.
    """
    path = path.resolve()
    with _explained(path):
        with _beside(path, data, mode) as temporary:
            temporary.replace(path)
        _sync_directory(path.parent)


def update(path: Path, old: bytes, new: bytes, *, keep_previous: bool = True) -> None:
    """Write the next version of a file, if it still is what was read, and keep or delete the one before.

    Owner and mode stay as they are, as far as whoever runs this may set them. Between the comparison and the end no
    other :func:`update` runs, so of two changes that began with the same version one is refused and none is lost.

    Args:
        path: The file.
        old: What was read from it.
        new: What will be in it.
        keep_previous: Whether *old* stays beside it, as ``NAME.previous``; if not, that is deleted too.

    Raises:
        ConfigurationError: Somebody changed it meanwhile, or it cannot be written; nothing was changed.
    """
    path = path.resolve()
    previous = previous_of(path)
    with _explained(path), _locked(path) as status:
        if path.read_bytes() != old:
            raise ConfigurationError(
                f"{path} was changed by somebody else while this command ran; nothing was written. Run it again"
            )
        mode = stat.S_IMODE(status.st_mode)
        if keep_previous:
            with _beside(previous, old, mode, status) as temporary:
                temporary.replace(previous)
        with _beside(path, new, mode, status) as temporary:
            temporary.replace(path)
        if not keep_previous:
            previous.unlink(missing_ok=True)
        _sync_directory(path.parent)


def previous_of(path: Path) -> Path:
    """Return where the previous version of a file is kept."""
    return path.with_name(path.name + PREVIOUS)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise ConfigurationError(f"{path} exists; its keys would be lost, so it is not replaced") from None
    except OSError as error:
        raise ConfigurationError(f"the key file {path} cannot be written: {error.strerror}") from None


@contextmanager
def _beside(path: Path, data: bytes, mode: int, like: os.stat_result | None = None) -> Iterator[Path]:
    """Give a file with these bytes, safely on disk, in the directory of another; take away what is left of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # For its owner alone until it is complete; it must be a new file.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if os.name == "posix":  # pragma: no branch - elsewhere there are no such modes
                if like is not None:
                    # root changes the file of the application's user, who must still be able to read it.
                    with suppress(PermissionError):
                        os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[os.stat_result]:
    """Keep other updates of a file away. The lock is on the file itself and goes with the process: none is left."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - no such locks there; the comparison is all that guards the file
        yield path.stat()
        return
    while True:
        with _open_for_lock(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            status = os.fstat(file.fileno())
            # While this waited, the file that was opened may have been replaced by another one of its name.
            if os.path.samestat(status, path.stat()):
                yield status
                return


def _open_for_lock(path: Path) -> BinaryIO:
    """Open a file for writing, which NFS wants for its locks, or for reading, where it may only be replaced."""
    try:
        return path.open("r+b")
    except PermissionError:
        return path.open("rb")


def _sync_directory(directory: Path) -> None:
    """Make a rename durable: on POSIX the directory is what holds the name."""
    if os.name == "posix":  # pragma: no branch - elsewhere a directory cannot be opened
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
