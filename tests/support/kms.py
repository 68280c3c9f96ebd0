"""What the tests of the clouds share: a server that speaks HTTPS, and what every wrapper must do.

Google and Microsoft have no emulator of their key services. :class:`Cloud` answers in their stead: it is reached by the
vendors' own SDKs over TLS, and its keys are real.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import importlib
import ipaddress
import json
import logging
import os
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jwt_column import (
    ConfigurationError,
    JWTColumnError,
    KeyRing,
    KeyRingError,
    KeyUnavailableError,
    MissingExtraError,
)
from jwt_column.providers import AssociatedData, WrappedKey, open_wrapper
from tests.support.command_line import keys_report
from tests.support.databases import drivers_required
from tests.support.tokens import chain_of, revealed_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jwt_column.providers import KeyWrapper

KEY = bytes(range(100, 132))
OTHER_KEY = bytes(range(200, 232))
BOUND = AssociatedData("sessions", "0a1b2c3d")


def require(module: str, *packages: str) -> Any:
    """Return a module of an SDK, or skip the tests; in CI its absence is an error.

    Their functions are not typed, and no type checker needs them installed.
    """
    if not drivers_required(os.environ):
        install = " ".join(f"'{package}'" for package in packages)
        pytest.importorskip(module, reason=f"No {module} for this test: pip install {install}")
    return importlib.import_module(module)


# -- a server ------------------------------------------------------------------------------------------------------


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}


class Cloud:
    """A server on the loopback interface.

    Attributes:
        port: Where it listens.
        requests: What it was asked, in order.
        errors: What a test has to know of: a request that was not as the reference says.
        answer: Answers a request, with JSON or a :class:`RefusalError`.
        faults: Put something here, and the next requests get it instead: a refusal is raised, None is silence until
            :attr:`woken` is set.
    """

    def __init__(self, certificate: Path | None) -> None:
        self.requests: list[Request] = []
        self.errors: list[Exception] = []
        self.faults: list[RefusalError | None] = []
        self.woken = threading.Event()
        self.answer: Callable[[Request], Any] = lambda request: {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.woken.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def respond(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        self.requests.append(request)
        try:
            answer = self._fault() if self.faults else self.answer
            return 200, answer(request), {}
        except RefusalError as refusal:
            return refusal.status, refusal.body, refusal.headers
        except Exception as error:  # noqa: BLE001 - the test is told, in its own thread.
            self.errors.append(error)
            return 500, {}, {}

    def _fault(self) -> Callable[[Request], Any]:
        fault = self.faults.pop(0)
        if fault is not None:
            raise fault
        self.woken.wait(30)
        return self.answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, json.loads(body) if body else None)
                status, answer, others = cloud.respond(request)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                # Whoever gave up waiting is gone.
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    for name, value in others.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file with an authority's certificate, and one with a key and certificate for 127.0.0.1."""
    directory = tmp_path_factory.mktemp("certificates")
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Authority of the tests")])
    start = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(days=2))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    signs = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    trusted = (
        certificate(authority, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server_key = ec.generate_private_key(ec.SECP256R1())
    server = (
        certificate(x509.Name([]), server_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(issuer, critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=True
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    bundle, pair = directory / "authority.pem", directory / "server.pem"
    bundle.write_bytes(trusted.public_bytes(pem))
    pair.write_bytes(
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + server.public_bytes(pem)
    )
    return bundle, pair


@pytest.fixture
def cloud(certificates: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A server whose certificate this process trusts."""
    bundle, pair = certificates
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    server = Cloud(pair)
    yield server
    server.close()
    for error in server.errors:
        raise error


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port of the loopback interface where nobody listens, and nobody else can."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def set_aws_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials that lead nowhere, and take away those of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "of-the-tests",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


# -- what every wrapper must do ------------------------------------------------------------------------------------


def error_of(call: Callable[[], object]) -> JWTColumnError:
    """Return the error of ours that a call ends with."""
    with pytest.raises(JWTColumnError) as caught:
        call()
    return caught.value


def refusal_of(call: Callable[[], object]) -> KeyRingError:
    """Return the error of a key ring that a call ends with."""
    error = error_of(call)
    assert isinstance(error, KeyRingError)
    return error


def failure_of(wrapper: KeyWrapper) -> JWTColumnError:
    """Return the error with which a wrapper does not wrap."""
    return error_of(lambda: wrapper.wrap(KEY, BOUND))


def assert_uri_is_refused(uri: str) -> None:
    """Assert that a URI is refused at once, and that the error does not show the PIN in it."""
    error = error_of(lambda: open_wrapper(uri))
    assert type(error) is ConfigurationError
    assert set() == revealed_by(error, "secret-pin-4711!")


def assert_extra_is_named(uri: str, wrapped: list[WrappedKey], extra: str) -> None:
    """Assert that a wrapper whose SDK is missing says what to install."""
    wrapper = open_wrapper(uri)
    error = error_of(lambda: wrapper.unwrap(wrapped))
    assert type(error) is MissingExtraError
    assert f'pip install "jwt-column[{extra}]"' in str(error)


def changed(ciphertext: bytes) -> bytes:
    """Return it with its last bit turned."""
    return ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])


class AnyWrapper:
    """Inherited by each wrapper's tests, which have the fixture ``wrapper``."""

    def test_key_unwraps_to_what_was_wrapped(self, wrapper: KeyWrapper) -> None:
        ciphertext = wrapper.wrap(KEY, BOUND)
        assert KEY not in ciphertext
        assert 32 < len(ciphertext) <= 4096
        assert wrapper.unwrap([WrappedKey(ciphertext, BOUND)]) == [KEY]

    def test_keys_come_in_the_order_of_the_wrapped_ones(self, wrapper: KeyWrapper) -> None:
        keys = {AssociatedData("sessions", f"{number:08x}"): bytes([number]) * 32 for number in range(10)}
        wrapped = [WrappedKey(wrapper.wrap(key, bound), bound) for bound, key in keys.items()]
        assert wrapper.unwrap(wrapped[::-1]) == list(keys.values())[::-1]
        assert wrapper.unwrap([]) == []

    @pytest.mark.parametrize("elsewhere", [BOUND._replace(ring="other"), BOUND._replace(key_id="0a1b2c3e")])
    def test_wrapped_key_is_bound_to_its_ring_and_key_id(
        self, wrapper: KeyWrapper, elsewhere: AssociatedData
    ) -> None:
        ciphertext = wrapper.wrap(KEY, BOUND)
        moved = WrappedKey(ciphertext, elsewhere)
        error = refusal_of(lambda: wrapper.unwrap([WrappedKey(wrapper.wrap(KEY, BOUND), BOUND), moved]))
        assert type(error) is KeyRingError
        assert error.key_id == elsewhere.key_id
        assert elsewhere.key_id in str(error)
        assert wrapper.uri in str(error)
        # Its end: at its beginning stands the name of the KEK, which errors may show.
        assert set() == revealed_by(error, KEY, ciphertext[-40:])
        assert_holds_no_foreign_error(error)


class EveryWrapper(AnyWrapper):
    """Inherited by the tests of each cloud's wrapper."""

    @pytest.mark.parametrize("damage", [changed, lambda _: b"\x00", lambda one: one[:-1], lambda _: KEY])
    def test_what_is_no_wrapped_key_is_refused(
        self, wrapper: KeyWrapper, damage: Callable[[bytes], bytes]
    ) -> None:
        ciphertext = damage(wrapper.wrap(KEY, BOUND))
        error = refusal_of(lambda: wrapper.unwrap([WrappedKey(ciphertext, BOUND)]))
        assert type(error) is KeyRingError
        assert set() == revealed_by(error, KEY, ciphertext[-40:])

    def test_no_log_shows_a_key(self, wrapper: KeyWrapper, log: Log) -> None:
        """At level DEBUG, which writes whole requests and responses for some SDKs."""
        wrapper.unwrap([WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)])
        log.assert_hides(KEY)
        assert log.records, "Nothing was logged at all, so the test shows nothing."

    def test_ring_goes_through_its_life_by_the_command_line(
        self, wrapper: KeyWrapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "sessions.json"
        monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
        old = keys_report("init", "--wrapped-by", wrapper.uri)["active"]
        new = keys_report("add")["added"]
        keys_report("activate", new)
        before = wrapped_keys(path)
        keys_report("rewrap")
        assert not before & wrapped_keys(path)
        listed = [(key["id"], key["state"], key["wrapped_by"]) for key in keys_report("list")["keys"]]
        assert sorted(listed) == sorted([(new, "active", wrapper.uri), (old, "deactivated", wrapper.uri)])
        assert keys_report("check")
        assert KeyRing.from_uri(f"file:{path}").key_ids == (new, old)


def wrapped_keys(path: Path) -> set[str]:
    """Return the wrapped keys of a key-ring file."""
    return {key["wrapped"] for key in json.loads(path.read_text())["keys"]}


class Log(logging.Handler):
    """Everything that is logged."""

    def __init__(self) -> None:
        super().__init__(level=logging.NOTSET)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def shows(self, key: bytes) -> set[str]:
        """Return the names of the loggers whose records show a key."""
        found = set()
        for record in self.records:
            shown = Exception(record.getMessage(), *map(str, vars(record).values()))
            # revealed_by() knows hex and base64url; SDKs write base64 and what repr() makes of bytes.
            standard = base64.b64encode(key).decode()
            if revealed_by(shown, key, standard, repr(key)[2:-1]):
                found.add(record.name)
        return found

    def assert_hides(self, key: bytes) -> None:
        assert self.shows(key) == set()


@pytest.fixture
def log() -> Iterator[Log]:
    """Everything that this process logs, at the most talkative level."""
    root = logging.getLogger()
    handler, level = Log(), root.level
    # google.* does not propagate to the root, so it is asked by itself.
    google = logging.getLogger("google")
    for logger in (root, google):
        logger.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    for logger in (root, google):
        logger.removeHandler(handler)


def assert_may_be_retried(call: Callable[[], object], *, retryable: bool) -> KeyUnavailableError:
    """Check that a call ends with an error that says this, and return it."""
    error = refusal_of(call)
    assert isinstance(error, KeyUnavailableError), error
    assert error.retryable is retryable, error
    assert_holds_no_foreign_error(error)
    return error


def assert_holds_no_foreign_error(error: KeyRingError) -> None:
    """Check that nothing of an SDK hangs on to an error: its frames hold keys, which error reporters show."""
    assert {type(one).__module__ for one in chain_of(error)} <= {"jwt_column.errors", "builtins"}
