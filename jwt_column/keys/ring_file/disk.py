"""Key files on disk: bounded reads, atomic writes, and updates by one command at a time.

A file that is none of keys, or that others may replace, raises a KeyRingError, one that cannot be read a
KeyUnavailableError. A write that fails raises a ConfigurationError and changes nothing.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final

from ...errors import ConfigurationError, KeyRingError, KeyUnavailableError
from ..regular_file import NotRegularError, read_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The suffix of the previous version.
PREVIOUS: Final = ".previous"

_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)


def read(path: Path, most: int) -> tuple[bytes, int]:
    """Return the bytes and the mode of a file, read through one descriptor."""
    try:
        data, status = read_regular(path, most + 1)
        _check_owner(path, status)
    except NotRegularError:
        raise KeyRingError(f"{path} is not a regular file") from None
    except OSError as error:
        raise KeyUnavailableError(f"the key file {path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise KeyRingError(f"{path} has more than {most} bytes; it is not a key file")
    return data, stat.S_IMODE(status.st_mode)


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Refuse a file that another user owns or may replace, as ssh does. Root may use any user's file."""
    if os.name != "posix":  # pragma: no cover - elsewhere there are no such owners and modes
        return
    user = os.geteuid()
    if user != 0 and status.st_uid not in (0, user):
        raise KeyRingError(
            f"{path} belongs to the user {status.st_uid}, who may change it; run: chown {user} {path}"
        )
    # Of a symbolic link both: in one directory the link may be replaced, in the other its target.
    for directory in dict.fromkeys((*path.absolute().parents, *path.resolve().parents)):
        mode = directory.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise KeyRingError(
                f"everyone may replace files in {directory} (mode {stat.S_IMODE(mode):04o}), and with it {path}; run: "
                f"chmod o-w {directory}"
            )


def create(path: Path, data: bytes, mode: int) -> None:
    """Write a new file with this mode, independent of the umask."""
    with _explained(path), _beside(path, data, mode) as temporary:
        # A link fails if the name is taken; a rename would replace the file.
        os.link(temporary, path)
    with _explained(path):
        _sync_directory(path.parent)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file with this mode, and replace an existing one. The target of a symbolic link is replaced."""
    path = path.resolve()
    with _explained(path):
        with _beside(path, data, mode) as temporary:
            temporary.replace(path)
        _sync_directory(path.parent)


def update(path: Path, old: bytes, new: bytes, *, keep_previous: bool) -> None:
    """Replace a file if it still holds the bytes that were read, and keep or delete the previous version.

    The previous version is ``NAME.previous``. Owner and mode are kept as far as this process may set them. A lock
    covers comparison and write: of two changes that began with the same version one is refused, and none is lost.
    """
    path = path.resolve()
    previous = previous_of(path)
    with _explained(path), _locked(path) as status:
        if path.read_bytes() != old:
            raise ConfigurationError(
                f"{path} was changed while this command ran; nothing was written. Run the command again"
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
    """Return the path of a file's previous version."""
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
    """Write a temporary file beside *path*, fsync it, and remove it on exit."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # Readable by its owner only until it is complete. O_EXCL: it must be a new file.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if os.name == "posix":  # pragma: no branch - elsewhere there are no such modes
                if like is not None:
                    # If root changes the file of the application's user, that user must still be able to read it.
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
    """Lock a file against other updates. The kernel releases the lock with the process, so none is left behind."""
    try:
        import fcntl
    except (
        ImportError
    ):  # pragma: no cover - no such locks on this platform; only the comparison guards the file
        yield path.stat()
        return
    while True:
        with _open_for_lock(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            status = os.fstat(file.fileno())
            # The file may have been replaced while this waited for its lock.
            if os.path.samestat(status, path.stat()):
                yield status
                return


def _open_for_lock(path: Path) -> BinaryIO:
    """Open a file for writing, which locks on NFS need, or for reading if it is read-only."""
    try:
        return path.open("r+b")
    except PermissionError:
        return path.open("rb")


def _sync_directory(directory: Path) -> None:
    """Make a rename durable: on POSIX a name belongs to its directory."""
    if os.name == "posix":  # pragma: no branch - elsewhere a directory cannot be opened
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
