"""A real PKCS#11 module for the tests: SoftHSM2, with a directory of tokens of our own.

SoftHSM2 comes from the system's packages (Debian: ``softhsm2``). Where it or the binding is missing, tests that need it
are skipped with the reason; with ``CI=true`` they fail instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jwt_column.keys.providers import pkcs11_module as _pkcs11_module
from tests.support.databases import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HSM", "Token", "start_hsm"]

_MODULES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
_SECONDS: Final = 30
_SO_PIN: Final = "so-pin-of-the-tests"


class HSM:
    """SoftHSM2, and the directory in which its tokens are.

    Attributes:
        module: The PKCS#11 module.
        directory: Of everything that belongs to this HSM.
    """

    def __init__(self, module: Path, utility: str) -> None:
        self.module = module
        self.directory = Path(tempfile.mkdtemp(prefix="jwt-column-softhsm-"))
        self._utility = utility
        self._tokens = self.directory / "tokens"
        self._tokens.mkdir()
        self._configuration = self.directory / "softhsm2.conf"
        self._configure()
        # The module reads it whenever it is initialized, in this process and in those that tests start.
        self._before = os.environ.get("SOFTHSM2_CONF")
        os.environ["SOFTHSM2_CONF"] = str(self._configuration)

    def _configure(self, *lines: str) -> None:
        text = "\n".join((f"directories.tokendir = {self._tokens}", "log.level = ERROR", *lines, ""))
        self._configuration.write_text(text, encoding="utf-8")

    def new_token(self, label: str | None = None) -> Token:
        """Return a new token, with a PIN that is in a file."""
        label = label or f"token-{secrets.token_hex(4)}"
        pin = f"pin-{secrets.token_hex(8)}"
        command = [
            self._utility,
            "--init-token",
            "--free",
            "--label",
            label,
            "--so-pin",
            _SO_PIN,
            "--pin",
            pin,
        ]
        subprocess.run(command, check=True, timeout=_SECONDS, stdout=subprocess.DEVNULL)
        self.refresh()
        return Token(self, label, pin)

    def refresh(self) -> None:
        """Let this process see tokens that came and went: SoftHSM2 looks when it is initialized."""
        with _pkcs11_module.turn(_SECONDS, "The tests wait for the module."):
            _pkcs11_module.initialize_again(str(self.module))

    @contextlib.contextmanager
    def with_mechanisms_only(self, *names: str) -> Iterator[None]:
        """Let the module lack all other mechanisms for a while."""
        # SoftHSM2 2.6.1 also documents a list of what to leave out, and ignores it.
        self._configure(f"slots.mechanisms = {','.join(names)}")
        self.refresh()
        try:
            yield
        finally:
            self._configure()
            self.refresh()

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        """Take all tokens away for a while."""
        away = self.directory / "away"
        self._tokens.rename(away)
        self._tokens.mkdir()
        try:
            yield
        finally:
            self._tokens.rmdir()
            away.rename(self._tokens)

    def close(self) -> None:
        """Remove all tokens."""
        if self._before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = self._before
        shutil.rmtree(self.directory)


class Token:
    """One token, and the user's PIN."""

    def __init__(self, hsm: HSM, label: str, pin: str) -> None:
        self.hsm = hsm
        self.label = label
        self.pin = pin
        self.pin_file = hsm.directory / f"{label}-{secrets.token_hex(4)}.pin"
        self.pin_file.touch(mode=0o600)
        self.pin_file.write_text(f"{pin}\n", encoding="ascii")

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        """Open a session that is logged in and may write, while nobody else in this process calls the module."""
        import pkcs11

        with _pkcs11_module.turn(_SECONDS, "The tests wait for the module."):
            library = _pkcs11_module.load(pkcs11, str(self.hsm.module))
            with library.get_token(token_label=self.label).open(rw=True, user_pin=self.pin) as session:
                yield session

    def new_kek(self, label: str | None = "kek", key_id: bytes | None = b"\x01", **attributes: Any) -> None:
        """Make an AES-256 key that never leaves the token.

        Args:
            label: Its label.
            key_id: Its id.
            attributes: By their names in PKCS#11, to make it another key than this.
        """
        import pkcs11

        wanted = {"SENSITIVE": True, "EXTRACTABLE": False, "ENCRYPT": True, "DECRYPT": True} | attributes
        template = {pkcs11.Attribute[name]: value for name, value in wanted.items()}
        length = 8 * template.pop(pkcs11.Attribute.VALUE_LEN, 32)
        with self.session() as session:
            if pkcs11.Attribute.VALUE not in template:
                template |= {pkcs11.Attribute.WRAP: attributes.get("WRAP", False)}
                template |= {pkcs11.Attribute.UNWRAP: attributes.get("UNWRAP", False)}
                session.generate_key(
                    pkcs11.KeyType.AES, length, label=label, id=key_id, store=True, template=template
                )
                return
            names = {pkcs11.Attribute.LABEL: label, pkcs11.Attribute.ID: key_id}
            kind = {
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
                pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.AES,
                pkcs11.Attribute.TOKEN: True,
                pkcs11.Attribute.PRIVATE: True,
            }
            session.create_object(kind | names | template)

    def remove_keys(self) -> None:
        """Destroy all keys of the token."""
        with self.session() as session:
            for key in list(session.get_objects()):
                key.destroy()

    def rest(self, path: str = "object=kek", **query: str) -> str:
        """Return what follows ``pkcs11:`` in the URI of a key."""
        parameters = {"module-path": str(self.hsm.module), "pin-source": f"file:{self.pin_file}"} | query
        joined = "&".join(f"{name}={value}" for name, value in parameters.items() if value)
        return f"token={self.label};{path}" + (f"?{joined}" if joined else "")


def start_hsm() -> HSM:
    """Find SoftHSM2.

    Raises:
        Unavailable: It is not on this machine, or the binding is not installed.
    """
    if importlib.util.find_spec("pkcs11") is None:
        raise Unavailable("No HSM to test with: python-pkcs11 is not installed (the extra pkcs11).")
    utility = shutil.which("softhsm2-util")
    module = next((path for path in map(Path, _MODULES) if path.exists()), None)
    if utility is None or module is None:
        raise Unavailable("No HSM to test with: SoftHSM2 is not on this machine (Debian: softhsm2).")
    return HSM(module, utility)
