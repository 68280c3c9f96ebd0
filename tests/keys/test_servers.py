"""Real servers that load the application once and fork their workers: gunicorn, also with gevent, and Celery."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from jwt_column import generate_key, providers
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.processes

SERVERS = {"gunicorn": ["gunicorn"], "gevent": ["gunicorn", "gevent"], "celery": ["celery"]}


class Workers:
    """Four workers that look at their ring's file each second.

    Attributes:
        path: The ring's file.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "keys"
        self._directory = directory
        providers.write_key_file(self.path, [generate_key()])
        for name in ("queue", "control", "results"):
            (directory / name).mkdir()
        self.environment = {
            # Without coverage, which cannot trace greenlets and threads together.
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RING": f"file:{self.path}",
            "REFRESH": "0.2",
            "CELERY_FOLDER": str(directory),
        }
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, server: str) -> Callable[[list[str]], list[dict[str, Any]]]:
        """Start a server, and return a function that sends it requests, all at once."""
        if server == "celery":
            command = [
                "celery",
                "--app",
                "tests.keys.celery_tasks",
                "worker",
                "--pool",
                "prefork",
                "--concurrency",
                "4",
            ]
            send = self._send_tasks
        else:
            command = ["gunicorn", "--preload", "--workers", "4", "--bind", f"127.0.0.1:{self._port}"]
            command += ["--worker-class", "gevent"] if server == "gevent" else []
            command += ["tests.keys.uwsgi_application:application"]
            send = self._send_requests
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=self.environment,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while server != "celery":
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
                break
            except OSError:
                assert self._process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        return send

    def _send_requests(self, names: list[str]) -> list[dict[str, Any]]:
        def send(name: str) -> dict[str, Any]:
            with urlopen(f"http://127.0.0.1:{self._port}/{name}", timeout=60) as response:
                answer: dict[str, Any] = json.load(response)
                return answer

        with ThreadPoolExecutor(len(names)) as pool:
            return list(pool.map(send, names))

    def _send_tasks(self, names: list[str]) -> list[dict[str, Any]]:
        """Send tasks from a process of its own, as an application does; this one knows nothing of Celery."""
        code = "import json, sys; from tests.keys.celery_tasks import encrypt; "
        code += "sent = [encrypt.delay(name) for name in sys.argv[1:]]; "
        code += "print(json.dumps([one.get(timeout=60) for one in sent]))"
        command = [sys.executable, "-c", code, *names]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    def stop(self) -> None:
        """Stop the server."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(tmp_path)
    yield workers
    workers.stop()


@pytest.mark.parametrize("server", SERVERS)
def test_workers_share_no_nonce_and_go_on_refreshing(server: str, workers: Workers) -> None:
    missing = [name for name in SERVERS[server] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed (the extra test-servers).")
    ask = workers.start(server)

    workers_seen: set[int] = set()
    nonces: set[str] = set()
    deadline = time.monotonic() + 60
    names = iter(f"{number:04}" for number in range(10_000))
    # A worker of gevent takes several requests at once, so there may have to be many.
    while len(workers_seen) < 2:
        assert time.monotonic() < deadline
        answers = ask([next(names) for _ in range(8)])
        workers_seen |= {answer["worker"] for answer in answers}
        assert nonces.isdisjoint({answer["nonce"] for answer in answers})
        nonces |= {answer["nonce"] for answer in answers}
    assert len(nonces) % 8 == 0
    old = answers[0]["key_ids"]
    providers.write_key_file(
        workers.path, [generate_key(), workers.path.read_text().splitlines()[-1]], overwrite=True
    )
    while any(answer["key_ids"] == old for answer in answers):
        assert time.monotonic() < deadline
        answers = ask([next(names) for _ in range(8)])
    assert {(answer["error"], len(answer["findings"])) for answer in answers} == {(None, 0)}
