"""A real uWSGI, which imports the application, forks its workers, and runs no hook of Python for it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from jwt_column import generate_key, providers
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UWSGI = shutil.which("uwsgi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

pytestmark = [
    pytest.mark.uwsgi,
    pytest.mark.skipif(UWSGI is None, reason="uWSGI is not installed (the extra test-uwsgi)."),
]


@pytest.fixture
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Start four workers that refresh their ring every so many seconds; return a function that sends a request.

    A negative number starts them without threads.
    """
    port = free_port()
    providers.write_key_file(tmp_path / "keys", [generate_key()])
    assert UWSGI is not None
    server = subprocess.Popen(
        [
            *(
                UWSGI,
                "--http",
                f"127.0.0.1:{port}",
                "--master",
                "--processes",
                "4",
                "--need-app",
                "--die-on-term",
            ),
            *("--module", "tests.keys.uwsgi_application", "--disable-logging"),
            *(["--enable-threads"] if request.param > 0 else []),
            *(["--virtualenv", sys.prefix] if sys.prefix != sys.base_prefix else []),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RING": f"file:{tmp_path / 'keys'}",
            "REFRESH": str(abs(request.param)),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def send(name: str) -> dict[str, Any]:
        with urlopen(f"http://127.0.0.1:{port}/{name}", timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        yield send
    finally:
        server.terminate()
        server.wait(30)


def together(ask: Callable[[str], dict[str, Any]], count: int, prefix: str) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, [f"{prefix}{number:02}" for number in range(count)]))


@pytest.mark.parametrize("ask", [3600], indirect=True)
def test_workers_share_no_nonce(ask: Callable[[str], dict[str, Any]]) -> None:
    answers = together(ask, 12, "a")
    assert len({answer["worker"] for answer in answers}) > 1
    nonces = {answer["nonce"] for answer in answers}
    assert len(nonces) == 12
    # The control: the workers did inherit the state of the process that forked them.
    assert len({nonce[:24] for nonce in nonces}) == 1


@pytest.mark.parametrize("ask", [0.2], indirect=True)
def test_workers_go_on_refreshing(ask: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    old = together(ask, 1, "a")[0]["key_ids"]
    path = tmp_path / "keys"
    providers.write_key_file(path, [generate_key(), path.read_text().splitlines()[-1]], overwrite=True)
    for _ in range(50):
        answers = together(ask, 8, "b")
        if all(answer["key_ids"] != old for answer in answers):
            break
    assert all(answer["key_ids"] != old for answer in answers)
    assert all(answer["error"] is None for answer in answers)


@pytest.mark.parametrize(
    ("ask", "expected"), [(60, []), (-60, ["refresh-without-threads"])], indirect=["ask"]
)
def test_readiness_knows_whether_threads_run(
    ask: Callable[[str], dict[str, Any]], expected: list[str]
) -> None:
    assert together(ask, 1, "a")[0]["findings"] == expected
