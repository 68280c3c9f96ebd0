"""Chromium for the tests: one headless browser, spoken to over its own pipe.

The DevTools protocol over a pipe is JSON texts with a zero byte after each, so it takes no driver program of a
matching version and no package. Protocol: https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

from tests.support.databases import Unavailable, truthy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Browser", "Page", "browser_required", "start_browser"]

#: Debian's name first, then those of other systems.
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")

_ANSWER_SECONDS: Final = 60  # A first start on a loaded machine; here it takes about one second.

#: Root, as which containers run, has no sandbox; the pages are our own. /dev/shm is small in a container.
_OPTIONS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def browser_required(environ: Mapping[str, str]) -> bool:
    """Tell whether a missing browser is a failure rather than a skip."""
    return truthy(environ.get("CI"))


class Browser:
    """A running Chromium. Commands and events go through :meth:`call` and :attr:`events`."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._pending = b""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what the browser tells meanwhile goes to ``events``."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, method: str, session: str) -> None:
        """Wait until the browser tells of *method*."""
        while not any(
            event["method"] == method and event.get("sessionId") == session for event in self.events
        ):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while b"\0" not in self._pending:
            readable, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._answers, 1 << 20) if readable else b""
            if not data:
                raise Unavailable("Chromium ended, or did not answer")
            self._pending += data
        text, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    @contextlib.contextmanager
    def page(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Page]:
        """Open *url* in a tab of its own, which is as wide and as dark as is asked for."""
        # A context of its own for each: no cache and no storage of another one.
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        page.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired", session)
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self._browser.call(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression. The page's own policy does not hold for it."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for, its own first."""
        return [event["request"]["url"] for event in self._told("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Return what the browser says on its console or as an issue: errors, warnings, a violated policy."""
        logged = [event["entry"]["text"] for event in self._told("Log.entryAdded")]
        logged += [str(event["args"]) for event in self._told("Runtime.consoleAPICalled")]
        logged += [str(event["exceptionDetails"]) for event in self._told("Runtime.exceptionThrown")]
        return logged + [event["issue"]["code"] for event in self._told("Audits.issueAdded")]

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """Return the page as it prints, with the paper that its style sheet asks for."""
        printed = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        return base64.b64decode(printed["data"])

    def _told(self, method: str) -> list[dict[str, Any]]:
        self.run("1")  # What was told before this answer has arrived with it.
        return [
            event["params"]
            for event in self._browser.events
            if event["method"] == method and event.get("sessionId") == self._session
        ]


@contextlib.contextmanager
def start_browser() -> Iterator[Browser]:
    """Start Chromium with an empty profile, and end it.

    Raises:
        Unavailable: It is not installed, or does not start.
    """
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        raise Unavailable(f"None of {', '.join(_NAMES)} is installed")
    command_reader, commands = os.pipe()
    answers, answer_writer = os.pipe()
    # Chromium reads commands from descriptor 3 and writes answers to 4, whatever these are here.
    move = f'exec "$@" 3<&{command_reader} 4>&{answer_writer}'
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, answers)
        profile = closing.enter_context(
            tempfile.TemporaryDirectory(prefix="jwt-column-chromium-", ignore_cleanup_errors=True)
        )
        process = subprocess.Popen(
            ["bash", "-c", move, "bash", program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(command_reader, answer_writer),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Caches and crash reports too go where they are removed.
            env={**os.environ, "HOME": profile, "XDG_CONFIG_HOME": profile, "XDG_CACHE_HOME": profile},
        )
        closing.callback(_end, process)
        # Chromium ends itself when nobody is left who could give it a command.
        closing.callback(os.close, commands)
        os.close(command_reader)
        os.close(answer_writer)
        browser = Browser(commands, answers)
        browser.call("Browser.getVersion")
        yield browser


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
