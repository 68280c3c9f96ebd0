"""The documentation is true: its examples run, its links lead somewhere, and what it names is there."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import doctest
import functools
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import alembic.op
import alembic.util
import cryptography.exceptions
import jwt
import pytest
import sqlalchemy as sa
import sqlalchemy.exc
import typer.main
from alembic.migration import MigrationContext
from alembic.operations import Operations
from typer.core import TyperGroup

import jwt_column
import migrations_helpers
from jwt_column import (
    JWT,
    EncryptedJWT,
    KeyRing,
    SealedJWT,
    access_trail,
    errors,
    fleet,
    generate_key,
    key_usage,
    metrics,
    providers,
    set_default_keyring,
    testing,
)
from jwt_column.cli.app import app
from jwt_column.cli.commands import Unloaded
from jwt_column.column.comparator import EncryptedComparator
from jwt_column.providers import MODULE_OF_SCHEME
from migrations_helpers import ReencryptionReport, formats
from migrations_helpers.engine.options import Options
from tests.support.cases import in_one_test
from tests.support.commands import programs as forked_programs
from tests.support.databases import truthy
from tests.support.docs_examples import ROOT, Page, pages
from tests.support.vault import start_openbao

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import ModuleType

    from tests.support.hsm import HSM
    from tests.support.vault import OpenBao

PAGES: Final = list(pages())
REFERENCE: Final = ROOT / "docs" / "reference"
EXAMPLE: Final = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"

every_page = in_one_test("page", PAGES, ids=lambda page: page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """Return a page without its fenced blocks, in which ``#`` begins a comment and no heading."""
    return re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def section_of(page: Path, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    _, found, rest = prose_of(page).partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    level = len(heading) - len(heading.lstrip("#"))
    return re.split(rf"^#{{1,{level}}} ", rest, flags=re.MULTILINE)[0]


def table_of(section: str) -> list[list[str]]:
    """Return the cells of a section's tables, without the heads."""
    lines = [line.strip().strip("|") for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    rules = [number for number, row in enumerate(rows) if set("".join(row)) <= {"-", ":"}]
    heads = {number - 1 for number in rules} | set(rules)
    return [row for number, row in enumerate(rows) if number not in heads]


def names_in(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


# -- examples ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hsm_of_a_page(hsm: HSM) -> Iterator[None]:
    """Let a page choose the tokens that SoftHSM2 shows to this process, and forget them afterwards."""
    if str(hsm.module) != "/usr/lib/softhsm/libsofthsm2.so":
        pytest.skip(f"The pages say where Debian has SoftHSM2, and here it is {hsm.module}.")
    hsm.refresh()
    yield
    hsm.refresh()


@pytest.fixture
def openbao_of_a_page(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a page's commands reach an OpenBao in which nobody has set up anything, as one who may."""
    server = start_openbao()
    monkeypatch.setenv("VAULT_ADDR", server.address)
    monkeypatch.setenv("VAULT_TOKEN", server.token)
    yield
    server.close()


@pytest.fixture(scope="session")
def programs() -> Path | None:
    """The commands of the pages without the second that each takes to start; CI starts the real ones."""
    return None if truthy(os.environ.get("CI")) else forked_programs()


def runnable_pages() -> Iterator[Any]:
    for page in PAGES:
        is_cloud = re.search(r"^<!-- (needs:|component: openbao)", text_of(page), re.MULTILINE)
        yield pytest.param(
            page, marks=[pytest.mark.cloud] if is_cloud else [], id=str(page.relative_to(ROOT))
        )


@pytest.mark.parametrize("page", list(runnable_pages()))
def test_examples_of_a_page_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    programs: Path | None,
    request: pytest.FixtureRequest,
) -> None:
    for component in re.findall(r"^<!-- component: (\w+) -->$", text_of(page), re.MULTILINE):
        request.getfixturevalue(f"{component}_of_a_page")
    Page(page, tmp_path, monkeypatch, programs).run()


@every_page
def test_a_skipped_block_only_installs_or_tests(page: Path) -> None:
    """Nothing else is left out: installing needs a network, and tests do not run themselves."""
    allowed = re.compile(
        r"(\$ )?(python3 -m venv|\.venv/bin/pip|pip|(\.venv/bin/)?pytest|\.ci/run"
        r"|\.venv/bin/sphinx-build)\b.*"
    )
    skipped = re.findall(r"<!-- skip: next -->\n+```(\w+)\n(.*?)```", text_of(page), re.DOTALL)
    assert len(skipped) == text_of(page).count("<!-- skip:")
    for language, block in skipped:
        assert language == "console"
        for line in block.splitlines():
            assert allowed.fullmatch(line), line


def modules() -> Iterator[ModuleType]:
    for package in (jwt_column, migrations_helpers):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def docstring_examples() -> Iterator[doctest.DocTest]:
    # What an example does not import is what "from jwt_column import *" gives. A module's own names would bring
    # its "from __future__ import annotations" along, which a reader's prompt does not have.
    names = {name: getattr(jwt_column, name) for name in jwt_column.__all__}
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in modules():
        for test in finder.find(module, module.__name__, globs=names | {"__name__": "__main__"}):
            if test.examples:
                yield test


@pytest.mark.parametrize("test", list(docstring_examples()), ids=lambda test: test.name)
def test_examples_of_a_docstring_run(test: doctest.DocTest) -> None:
    output: list[str] = []
    set_default_keyring(None)
    try:
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, out=output.append, clear_globs=False)
        assert not runner.failures, "".join(output)
    finally:
        set_default_keyring(None)
        for value in test.globs.values():
            if isinstance(value, sa.Engine):
                value.dispose()


def docstring_blocks() -> Iterator[Any]:
    block = re.compile(r"^( *)\.\. code-block:: python\n\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
    for module in modules():
        for match in block.finditer(inspect.getsource(module)):
            yield pytest.param(module, textwrap.dedent(match[2]), id=module.__name__)


@pytest.mark.parametrize(("module", "block"), list(docstring_blocks()))
def test_a_block_in_a_docstring_uses_names_that_exist(module: ModuleType, block: str) -> None:
    tree = ast.parse(block)
    known = {*dir(builtins), *dir(jwt_column), *dir(module), "op"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "op":
            assert hasattr(alembic.op, node.attr), node.attr
        if isinstance(node, ast.Import):
            known |= {alias.name for alias in node.names}
        if isinstance(node, ast.Name):
            assert node.id in known, node.id


@pytest.mark.parametrize(
    "block", [case.values[1] for case in docstring_blocks() if "def upgrade" in case.values[1]]
)
def test_a_migration_in_a_docstring_runs(block: str, tmp_path: Path) -> None:
    ring = KeyRing.generate()
    table = sa.Table(
        "sessions",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", EncryptedJWT(fingerprints=["jti"])),
    )
    engine = sa.create_engine(f"sqlite:///{tmp_path}/docstring.sqlite3")
    namespace: dict[str, Any] = {"op": alembic.op, "EncryptedJWT": EncryptedJWT}
    exec(block, namespace)
    try:
        set_default_keyring(ring)
        with engine.begin() as connection:
            table.create(connection)
            connection.execute(table.insert(), {"token": EXAMPLE})
        ring = ring.with_key(generate_key())
        set_default_keyring(ring.with_active(ring.key_ids[-1]))
        with engine.connect() as connection, Operations.context(MigrationContext.configure(connection)):
            namespace["upgrade"]()
        with engine.connect() as connection:
            states: list[Any] = list(connection.execute(key_usage(table.c.token)))
        assert states == [(ring.key_ids[-1], "current", 1)]
    finally:
        set_default_keyring(None)
        engine.dispose()


# -- README and links ----------------------------------------------------------------------------------------------


def test_ci_finds_the_two_commands_of_readme() -> None:
    """The program that looks for them is taken out of ``.ci/run``, so the two cannot drift apart."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = re.search(r"^readme_commands\(\).*?<<'END'\n(.*?)^END$", script, re.MULTILINE | re.DOTALL)
    assert found is not None
    readme = str(ROOT / "README.md")
    commands = subprocess.run(
        [sys.executable, "-", readme], input=found[1], capture_output=True, text=True, check=True
    ).stdout
    assert commands.split("\0")[:-1] == [
        'python3 -m venv .venv && .venv/bin/pip install ".[cli]" && .venv/bin/jwt-column demo',
        '.venv/bin/pip install -e ".[test]" && .venv/bin/pytest -n auto --maxprocesses 4',
    ]


def test_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) < 120


def slug(heading: str) -> str:
    """Return the anchor that a forge gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


@cache
def anchors_of(page: Path) -> frozenset[str]:
    return frozenset(slug(heading) for heading in re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE))


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_relative_to(ROOT), target
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors_of(linked), target


def test_every_page_is_on_the_map() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)\)", text_of(index))
    }
    assert linked == set(PAGES) - {index, ROOT / "README.md"}


# -- names that the documentation uses -----------------------------------------------------------------------------


@every_page
def test_errors_that_a_page_names_exist(page: Path) -> None:
    homes: tuple[Any, ...] = (errors, builtins, sqlalchemy.exc, alembic.util, jwt, cryptography.exceptions)
    for name in re.findall(r"\b[A-Z]\w+Error\b", text_of(page)):
        assert any(hasattr(home, name) for home in homes), name


@every_page
def test_operations_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"\bop\.(\w+)", text_of(page)):
        assert hasattr(alembic.op, name), name


@functools.cache
def variables_that_are_read() -> set[str]:
    """Return the variables of the packages and of the tests; this file names some that there are not."""
    paths = [path for folder in ("jwt_column", "tests") for path in (ROOT / folder).rglob("*.py")]
    return {
        name
        for path in paths
        if path.name != "test_docs.py"
        for name in re.findall(r"\bJWT_COLUMN_\w+", text_of(path))
    }


@every_page
def test_environment_variables_that_a_page_names_are_read(page: Path) -> None:
    assert set(re.findall(r"\bJWT_COLUMN_\w+", text_of(page))) <= variables_that_are_read()


def commands(group: Any = None, path: str = "jwt-column") -> Iterator[tuple[str, Any]]:
    """Yield every command of the command line with its name."""
    command = typer.main.get_command(app) if group is None else group
    if isinstance(command, Unloaded):
        command = command.load()
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")
    else:
        yield path, command


@every_page
def test_commands_that_a_page_names_exist(page: Path) -> None:
    known = {path for path, _ in commands()}
    groups = {path.rpartition(" ")[0] for path in known}
    # What follows a command may be a key id, whose first character may be a letter.
    command = r"(?:^\$ |[`(;{] ?|/bin/)(jwt-column(?: [a-z]+(?![a-z0-9]))*)"
    for words in re.findall(command, text_of(page), re.MULTILINE):
        assert words in known | groups, words


# -- names that the documentation must have ------------------------------------------------------------------------


def signature_of(function: Any, *, without: Iterable[str] = ()) -> str:
    """Return a signature without annotations, as the pages write it."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name not in without
    ]
    text = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return text.replace("'", '"')


@pytest.mark.parametrize("name", [*jwt_column.__all__, *migrations_helpers.__all__])
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert any(re.search(rf"\b{name}\b", text_of(page)) for page in REFERENCE.glob("*.md"))


def test_the_site_shows_the_docstring_of_every_public_name() -> None:
    """A comment on a page of the reference names each function and class; the site puts its docstring there."""
    shown = {
        name
        for page in REFERENCE.glob("*.md")
        for name in re.findall(r"^<!-- autodoc: ([\w.]+) -->$", text_of(page), re.MULTILINE)
    }
    modules_with_docs = (
        jwt_column,
        migrations_helpers,
        access_trail,
        fleet,
        metrics,
        providers,
        testing,
    )
    public = {
        f"{module.__name__}.{name}"
        for module in modules_with_docs
        for name in module.__all__
        if callable(getattr(module, name))
    }
    assert public - shown == set(), "put <!-- autodoc: NAME --> below the heading of each"
    assert shown - public == set()


WITH_SIGNATURE: Final = [
    name
    for name in jwt_column.__all__
    if inspect.isfunction(getattr(jwt_column, name)) or name == "KeyRing" or name.endswith("Index")
    if name != "token_column"  # its arguments are those of mapped_column()
]


@pytest.mark.parametrize("name", WITH_SIGNATURE)
def test_signatures_are_those_of_the_code(name: str) -> None:
    expected = f"### {name}{signature_of(getattr(jwt_column, name))}"
    assert expected in text_of(REFERENCE / "python-api.md").splitlines()


@pytest.mark.parametrize(
    ("class_", "heading"), [(JWT, "## JWT"), (SealedJWT, "## SealedJWT"), (KeyRing, "## Keys")]
)
def test_every_public_member_is_documented(class_: type, heading: str) -> None:
    section = section_of(REFERENCE / "python-api.md", heading)
    documented = set(re.findall(r"^\| `(?:KeyRing|JWT)?\.(\w+)", section, re.MULTILINE))
    # What only other modules of the package use.
    internal = {"awaits_row", "in_row", "stored_as"}
    internal |= {"encrypting_key", "key", "keys", "keys_for_search", "refresh", "report_when_due", "snapshot"}
    inherited = dir(str) if issubclass(class_, str) else []
    assert documented == {name for name in dir(class_) if not name.startswith("_")} - internal - set(
        inherited
    )


def test_expressions_of_a_column_are_those_of_the_code() -> None:
    section = section_of(REFERENCE / "python-api.md", "### SQL expressions")
    documented = set(re.findall(r"`(?:Session\.token)?\.(\w+)", section))
    public = {name for name in vars(EncryptedComparator) if not name.startswith("_")}
    operators = {"operate", "reverse_operate"}
    assert documented - {"is_", "is_not", "in_", "not_in"} == public - operators


def test_parameters_of_the_column_type_are_those_of_the_code() -> None:
    documented = {
        names_in(row[0])[0]: ast.literal_eval(names_in(row[1])[0])
        for row in table_of(section_of(REFERENCE / "python-api.md", "### Parameters"))
    }
    parameters = list(inspect.signature(EncryptedJWT).parameters.values())
    assert documented == {parameter.name: parameter.default for parameter in parameters}
    assert list(documented) == [parameter.name for parameter in parameters]


def test_states_of_the_census_are_those_of_the_code() -> None:
    section = section_of(REFERENCE / "python-api.md", "### key_usage(column, *, active=None)")
    documented = [names_in(row[0])[0] for row in table_of(section)]
    source = inspect.getsource(importlib.import_module("jwt_column.census"))
    assert documented == ["current", "stale", "plaintext", "unreadable"]
    assert all(f'"{state}"' in source for state in documented)


def test_every_error_has_its_section() -> None:
    page = REFERENCE / "errors.md"
    headings = re.findall(r"^## (.*)$", prose_of(page), re.MULTILINE)
    assert sorted(headings) == sorted(errors.__all__)
    for name in headings:
        for attribute in vars(getattr(errors, name)).get("__annotations__", {}):
            assert f"`.{attribute}`" in section_of(page, f"## {name}"), f"{name}.{attribute}"


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    parents: list[str] = []
    for line in re.findall(r"^    ([│├└─ ]*)(\w+Error)$", text_of(REFERENCE / "errors.md"), re.MULTILINE):
        depth = len(line[0]) // 4
        parents[depth:] = [line[1]]
        if depth:
            assert getattr(errors, line[1]).__base__.__name__ == parents[depth - 1]


def test_every_reason_is_documented() -> None:
    """A program may act on ``.reason``, so each has a place where it is explained."""
    documented = "".join(text_of(REFERENCE / name) for name in ("errors.md", "envelope-v1.md"))
    found = set()
    for module in modules():
        source = inspect.getsource(module)
        found |= set(re.findall(r"\breason=\"([^\"]+)\"", source))
        found |= set(re.findall(r"\b_refuse\(\s*\"([^\"]+)\"", source))
    assert len(found) > 15
    assert {reason for reason in found if f"`{reason}`" not in documented} == set()


def operation_classes() -> Iterator[Any]:
    for name in migrations_helpers.__all__:
        if name.endswith("Op"):
            yield getattr(migrations_helpers, name)


@pytest.mark.parametrize("operation", list(operation_classes()), ids=lambda operation: operation.name)
def test_every_operation_is_documented_with_its_signature(operation: Any) -> None:
    """An operation takes its own options by ``**options``; the page names those that no other operation has."""
    rows = table_of(section_of(REFERENCE / "alembic.md", "## Operations"))
    pages = [signature_on_page(row[0], operation.name) for row in rows]
    [documented] = [names for names in pages if names is not None]
    parameters = inspect.signature(getattr(Operations, operation.name)).parameters
    own = {"options", *getattr(operation, "own_options", ())}
    assert [name for name in documented if name not in own] == [
        name for name in parameters if name not in {"self", "options"}
    ]


def signature_on_page(cell: str, name: str) -> list[str] | None:
    """Return the names of the parameters that a page's cell gives to an operation."""
    found = re.fullmatch(rf"`op\.{name}\((.*)\)`", cell)
    if found is None:
        return None
    arguments = ast.parse(f"def f({found[1]}): ...").body[0]
    assert isinstance(arguments, ast.FunctionDef)
    return [each.arg for each in (*arguments.args.args, *arguments.args.kwonlyargs)]


def test_options_are_those_of_the_code() -> None:
    rows = table_of(section_of(REFERENCE / "alembic.md", "## Options"))
    documented = {names_in(row[0])[0]: ast.literal_eval(row[1].strip("`")) for row in rows}
    declared = {field.name: field.default for field in dataclasses.fields(Options)}
    # It stands below, because only a re-encryption takes it.
    del declared["expired"]
    assert documented == declared


def test_readers_and_their_parameters_are_those_of_the_code() -> None:
    section = section_of(REFERENCE / "alembic.md", "## Readers")
    documented = [name for row in table_of(section) for name in names_in(row[0])]
    readers = [getattr(formats, name) for name in formats.__all__]
    parameters = {field.name for reader in readers for field in dataclasses.fields(reader)}
    assert sorted(documented) == sorted(parameters.union(formats.__all__))


def test_fields_of_the_report_are_those_of_the_code() -> None:
    rows = table_of(section_of(REFERENCE / "alembic.md", "## The report"))
    documented = [name for row in rows for name in names_in(row[0])]
    fields = [field.name for field in dataclasses.fields(ReencryptionReport)]
    properties = [name for name, value in vars(ReencryptionReport).items() if isinstance(value, property)]
    assert sorted(documented) == sorted(fields + properties)


def test_every_scheme_is_documented() -> None:
    rows = table_of(section_of(REFERENCE / "configuration.md", "## URIs"))
    documented = {name.partition(":")[0] for row in rows for name in names_in(row[0])}
    assert documented == set(MODULE_OF_SCHEME)


def test_every_environment_variable_is_documented() -> None:
    source = "".join(inspect.getsource(module) for module in modules())
    documented = section_of(REFERENCE / "configuration.md", "## Environment variables")
    assert {
        name for name in re.findall(r"JWT_COLUMN_[A-Z0-9_]+", source) if f"`{name}`" not in documented
    } == set()


def test_every_command_and_option_is_documented() -> None:
    page = REFERENCE / "command-line.md"
    found = dict(commands())
    assert sorted(re.findall(r"^## (.*)$", prose_of(page), re.MULTILINE)) == sorted(found)
    documented: dict[str, list[str]] = {}
    for path in re.findall(r"^## (.*)$", prose_of(page), re.MULTILINE):
        section = section_of(page, f"## {path}")
        shared = re.search(r"All\s+options\s+of\s+`([^`]+)`(?:\s+but\s+(`[^,]+`))?", section)
        without = names_in(shared[2] or "") if shared else []
        documented[path] = [name for name in documented[shared[1]] if name not in without] if shared else []
        documented[path] += [names_in(row[0])[0].split()[0] for row in table_of(section)]
        options = [
            parameter.opts[-1] if parameter.opts[-1].startswith("-") else parameter.metavar
            for parameter in found[path].params
            if parameter.name != "help"
        ]
        assert sorted(documented[path]) == sorted(options), path
