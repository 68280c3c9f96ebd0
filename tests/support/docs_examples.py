"""Runs the examples of a page of documentation from its first to its last, as its reader would.

What becomes of a fenced block depends on its language:

``python``
    A block whose first line is a comment with a file name (``# app.py``) is written to that file. Any other block
    runs in the page's namespace, and where it has ``>>>``, what it gives must be what the page shows.
``console``
    Each line behind ``$`` runs in bash, in the page's directory; what it sets stays set. Where the page
    shows what a command prints, the command must print that.

Any other language is for the reader only. ``<!-- skip: next -->`` leaves out one block, and
``<!-- continues: tutorial.md, environment -->`` runs another page first, up to its ``<!-- mark: environment -->``.
``<!-- needs: boto3, jwt-column[aws-kms] -->`` skips the page where a module is missing, and says what to install.

Keys are random and machines differ, so what a page shows of them need not be what a run gives: a key id may be any
other, as long as one id on the page is one id in the run, and a duration or a rate may be any. ``...`` stands for
anything, as in doctests. In a command, a key id that the page showed before is the one of the run.
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from jwt_column import set_default_keyring
from tests.support.kms import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from sybil import Example, Region

__all__ = ["ROOT", "Page", "pages", "same_output"]

ROOT: Final = Path(__file__).parent.parent.parent

_FILE: Final = re.compile(r"# (?P<path>[\w./]+\.\w+)\n")
_CONTINUES: Final = re.compile(r"^<!-- continues: (?P<page>\S+), (?P<mark>\w+) -->$", re.MULTILINE)
_NEEDS: Final = re.compile(r"^<!-- needs: (?P<module>\S+), (?P<packages>.+) -->$", re.MULTILINE)
_KEY_ID: Final = re.compile(r"\b[0-9a-f]{8}\b")
_DURATION: Final = re.compile(r"\b\d[\d,.]* (?=s\b|rows/s\b)")
_MODULE: Final = "page_of_the_documentation"
_SECONDS: Final = 180


def pages() -> Iterator[Path]:
    """Yield every page of the documentation, README first."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def same_output(shown: str, given: str, key_ids: dict[str, str]) -> bool:
    """Say whether a command gave what a page shows, and learn which key id stands for which.

    Args:
        shown: What stands on the page.
        given: What the command printed.
        key_ids: What every id on the page has stood for so far.
    """
    for on_page, in_run in zip(_KEY_ID.findall(shown), _KEY_ID.findall(given), strict=False):
        if key_ids.setdefault(on_page, in_run) != in_run:
            return False
    if len(set(key_ids.values())) != len(key_ids):
        return False
    shown, given = (_DURATION.sub("0 ", _KEY_ID.sub("<key id>", text)) for text in (shown, given))
    checker = doctest.OutputChecker()
    return checker.check_output(shown, given, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


class Page:
    """One page, and the directory in which its reader works."""

    def __init__(
        self, path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, programs: Path | None = None
    ) -> None:
        """Take a page.

        Args:
            path: The page.
            directory: The reader's directory, empty.
            monkeypatch: Puts back what the page changes in this process.
            programs: A directory that stands first on the reader's ``PATH``.
        """
        self._path = path
        self._directory = directory
        self._monkeypatch = monkeypatch
        self._programs = [] if programs is None else [str(programs)]
        self._key_ids: dict[str, str] = {}
        self._module = ModuleType(_MODULE)

    def run(self) -> None:
        """Run the page's examples, and leave nothing of them behind."""
        for needed in _NEEDS.finditer(self._path.read_text(encoding="utf-8")):
            require(needed["module"], *needed["packages"].split())
        patch = self._monkeypatch
        patch.chdir(self._directory)
        patch.syspath_prepend(str(self._directory))
        patch.setitem(sys.modules, _MODULE, self._module)
        # Files are replaced within one second, which is the resolution of the time in a .pyc.
        patch.setattr(sys, "dont_write_bytecode", True)
        environment = dict(os.environ)
        # Options for this run are not for a page that runs pytest.
        for name in [name for name in os.environ if name.startswith("PYTEST_")]:
            del os.environ[name]
        os.environ.update(PYTHONDONTWRITEBYTECODE="1", PYTHONUTF8="1", COLUMNS="80")
        os.environ["PATH"] = os.pathsep.join(
            (*self._programs, str(Path(sys.executable).parent), os.environ["PATH"])
        )
        set_default_keyring(None)
        try:
            self._run(self._path)
        finally:
            os.environ.clear()
            os.environ.update(environment)
            set_default_keyring(None)
            self._forget_modules()
            _dispose(vars(self._module))

    def _run(self, path: Path, mark: str | None = None) -> None:
        text = path.read_text(encoding="utf-8")
        for before in _CONTINUES.finditer(text):
            self._run((path.parent / before["page"]).resolve(), before["mark"])
        if mark is not None:
            text, found, _ = text.partition(f"<!-- mark: {mark} -->\n")
            assert found, f"{path} has no mark {mark}"
        document = Document(text, str(path))
        document.namespace = vars(self._module)
        for parser in (self._python_blocks, CodeBlockParser("console", self._run_console), SkipParser()):
            for region in parser(document):
                document.add(region)
        for example in document:
            example.evaluate()

    def _python_blocks(self, document: Document) -> Iterator[Region]:
        for region in PythonCodeBlockParser()(document):
            if isinstance(region.parsed, doctest.Example):
                region.evaluator = self._run_prompt
            elif _FILE.match(region.parsed):
                region.evaluator = self._write_file
            yield region

    def _write_file(self, example: Example) -> None:
        match = _FILE.match(example.parsed)
        assert match is not None
        path = self._directory / match["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(example.parsed, encoding="utf-8")
        self._forget_modules()

    def _run_prompt(self, example: Example) -> str | None:
        """Run what stands behind one ``>>>``."""
        output: list[str] = []
        runner = doctest.DocTestRunner(_Checker(self._key_ids), verbose=False, optionflags=doctest.ELLIPSIS)
        test = doctest.DocTest([example.parsed], {}, str(example.path), None, example.parsed.lineno, None)
        # DocTest would copy the namespace, and later examples would not see what this one assigns.
        test.globs = example.namespace
        runner.run(test, out=output.append, clear_globs=False)
        return "".join(output) or None

    def _run_console(self, example: Example) -> str | None:
        """Run the commands of one block."""
        text = example.parsed.replace("\\\n", "")
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            # A key id that a command printed earlier stands in a later one.
            command = _KEY_ID.sub(lambda found: self._key_ids.get(found[0], found[0]), command)
            status, given = self._run_command(command)
            # A command may fail on a page that shows how.
            is_right = same_output(shown, given, self._key_ids) if shown.strip() else status == 0
            if not is_right:
                return f"$ {command}\nThe page shows:\n{shown}\nThe command gave ({status}):\n{given}"
        return None

    def _run_command(self, command: str) -> tuple[int, str]:
        after = self._directory / ".environment"
        # Into a file, because a command may print anything; one that fails ends the script.
        script = f"set -aeuo pipefail\n{command}\nenv -0 >{after}\n"
        done = subprocess.run(
            ["/bin/bash", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            return done.returncode, done.stdout
        exported = dict(line.split("=", 1) for line in after.read_text().split("\0") if line)
        after.unlink()
        for name, value in exported.items():
            if os.environ.get(name) != value and name not in ("_", "SHLVL"):
                os.environ[name] = value
                # The reader's next command is a new process, and looks for its keys afresh.
                set_default_keyring(None)
        return 0, done.stdout

    def _forget_modules(self) -> None:
        """Forget what was imported from the page's directory."""
        for name, module in list(sys.modules.items()):
            if self._directory in Path(getattr(module, "__file__", None) or "/").parents:
                _dispose(vars(module))
                del sys.modules[name]
        importlib.invalidate_caches()


class _Checker(doctest.OutputChecker):
    def __init__(self, key_ids: dict[str, str]) -> None:
        self._key_ids = key_ids

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return same_output(want, got, self._key_ids)


def _dispose(names: dict[str, Any]) -> None:
    """Close what engines keep open, which a test would be blamed for."""
    for value in names.values():
        if isinstance(value, Engine):
            value.dispose()
