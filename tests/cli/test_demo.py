"""``jwt-column demo``: that it does what it says, says what it found, and notices when something is off."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jwt_column import JWT, ConfigurationError, KeyRing, decrypt_token
from jwt_column.cli.console import ExitCode
from jwt_column.cli.demo.files import Database, Project, count_occurring, hex_lines
from jwt_column.cli.demo.sample import AUDIENCE, FEWEST_ROWS, Session, UserToken, rfc_tokens, sign
from jwt_column.keys import default as default_ring
from tests.support.command_line import ESCAPE, invoke, program_path, run, run_in_terminal

ROWS = 60
VECTORS = Path(__file__).parent.parent / "vectors" / "rfc_tokens.json"
HEADINGS = 9


class Kept:
    """What a run of the demo printed, and what it left."""

    def __init__(self, directory: Path, output: str) -> None:
        self.directory = directory
        self.output = output

    @property
    def key_file(self) -> Path:
        return self.directory / "jwt.keys"

    def rows(self, name: str) -> dict[int, Any]:
        """The raw token column of one of the two databases, read without any of our code."""
        connection = sqlite3.connect(self.directory / name)
        try:
            return dict(connection.execute("SELECT id, token FROM sessions"))
        finally:
            connection.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """One run in a pipe, whose files were kept."""
    directory = tmp_path_factory.mktemp("demo") / "new" / "directory"
    done = run("demo", "--rows", str(ROWS), "--keep", str(directory))
    assert (done.returncode, done.stderr) == (0, "")
    return Kept(directory, done.stdout)


# -- what it prints ------------------------------------------------------------------------------------------


def test_every_step_is_told_and_every_check_holds(kept: Kept) -> None:
    assert len(re.findall(r"^\d  \S.*─$", kept.output, re.MULTILINE)) == HEADINGS
    (count,) = re.findall(r"All (\d+) checks held", kept.output)
    # The verdict itself has a mark too.
    assert kept.output.count("✓") == int(count) + 1
    assert "✗" not in kept.output


def test_a_pipe_gets_plain_narrow_text(kept: Kept) -> None:
    text = kept.output.replace(str(kept.directory), "DIRECTORY")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"[ \t]$", text, re.MULTILINE)


def test_a_terminal_of_80_columns_is_not_overrun() -> None:
    done = run_in_terminal("demo", "--rows", str(ROWS))
    assert done.returncode == 0
    assert "\x1b[" in done.output
    assert "checks held" in done.output
    assert "alembic upgrade head" in done.output
    assert max(map(len, done.lines)) <= 80


def test_a_wide_terminal_gets_lines_that_can_be_read_and_no_color_is_honoured() -> None:
    done = run_in_terminal("demo", "--rows", str(FEWEST_ROWS), columns=200, NO_COLOR="1")
    own = [line for line in done.lines if re.match(r"\d  \S", line)]
    assert done.returncode == 0
    assert len(own) == HEADINGS
    assert max(map(len, own)) <= 100
    colours = re.findall(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7])(?:;[0-9;]*)?m", done.output)
    assert colours == []


def test_ascii_is_enough() -> None:
    setup = "for stream in (sys.stdout, sys.stderr): stream.reconfigure(encoding='ascii')"
    done = run("demo", "--rows", str(FEWEST_ROWS), setup=setup)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "  ok All " in done.stdout


def test_nothing_secret_is_printed(kept: Kept) -> None:
    keys = [line for line in kept.key_file.read_text().splitlines() if not line.startswith("#")]
    assert keys
    for secret in keys:
        assert secret not in kept.output
    for token in kept.rows("plaintext.sqlite3").values():
        # The header of one token is shown, as the control's file holds it.
        assert not any(part in kept.output for part in token.split(".")[1:] if len(part) > 8)


# -- what it leaves ------------------------------------------------------------------------------------------


def test_the_kept_rows_open_with_the_kept_key(kept: Kept) -> None:
    ring = KeyRing.from_uri(f"file:{kept.key_file}")
    assert len(ring.key_ids) == 1
    assert stat.S_IMODE(kept.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.directory.stat().st_mode) == 0o700
    plain, stored = kept.rows("plaintext.sqlite3"), kept.rows("sessions.sqlite3")
    assert len(plain) == ROWS
    assert {
        row: decrypt_token(value, ring, context="sessions.token") for row, value in stored.items()
    } == plain


def test_the_kept_file_holds_no_token(kept: Kept) -> None:
    """The demo's own search is a fast one; this is the simple one."""
    data = (kept.directory / "sessions.sqlite3").read_bytes()
    control = (kept.directory / "plaintext.sqlite3").read_bytes()
    for token in kept.rows("plaintext.sqlite3").values():
        segment, decoded = UserToken("", "", token, None).payload
        assert segment in control
        assert segment not in data
        assert decoded not in data


def test_every_example_of_the_rfcs_was_stored(kept: Kept) -> None:
    examples = {fields["token"] for fields in json.loads(VECTORS.read_text())["tokens"]}
    assert examples <= set(kept.rows("plaintext.sqlite3").values())


def test_the_kept_migrations_are_a_project_that_alembic_runs(kept: Kept) -> None:
    done = subprocess.run(
        [
            str(shutil.which("alembic", path=program_path())),
            "-c",
            str(kept.directory / "alembic.ini"),
            "current",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"JWT_COLUMN_KEYRING": f"file:{kept.key_file}"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0002 (head)"
    scripts = sorted((kept.directory / "migrations" / "versions").glob("*.py"))
    texts = [script.read_text() for script in scripts]
    for text, operation in zip(texts, ("reencrypt_jwt_column", "ensure_jwt_column_current"), strict=True):
        assert f"op.{operation}(" in text
        assert '"sessions", "token", type_=EncryptedJWT(allow_unsigned=True)' in " ".join(text.split())


def test_nothing_is_left_without_keep_and_a_narrow_terminal_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "50")
    code, output = demo()
    assert code == ExitCode.OK, output
    assert list(tmp_path.iterdir()) == []
    assert "mapped_column(EncryptedJWT(allow_unsigned=True))" in re.sub(r"\n +", "", output)


def test_without_a_temporary_directory_the_cure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    done = invoke("demo")
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "set TMPDIR to one, or give --keep DIRECTORY" in done.stderr


def test_a_directory_with_an_awkward_name_will_do_and_keys_of_others_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_COLUMN_KEYRING", "file:/no/such/file")
    directory = tmp_path / "größer, #1 & more"
    code, output = demo("--keep", str(directory))
    assert code == ExitCode.OK, output
    assert (directory / "jwt.keys").exists()
    monkeypatch.delenv("JWT_COLUMN_KEYRING")
    with pytest.raises(ConfigurationError, match="no key ring"):
        default_ring.default_keyring()


@pytest.mark.parametrize("name", ["50%", "what?"])
def test_a_directory_that_alembic_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    done = invoke("demo", "--keep", str(tmp_path / name))
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "without % and ?" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = invoke("demo", "--keep", str(tmp_path))
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert (
        done.stderr
        == f"jwt-column: {tmp_path} is not empty; name a new directory, so that nothing is replaced\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = invoke("demo", "--keep", str(tmp_path / "file" / "below"))
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "cannot be used" in done.stderr


# -- that it would notice ------------------------------------------------------------------------------------


def demo(*arguments: str) -> tuple[int, str]:
    result = invoke("demo", "--rows", str(FEWEST_ROWS), *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_a_leak_would_fail_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin without encryption, in the place of the encrypted file, is what a leak looks like."""
    monkeypatch.setattr("jwt_column.cli.demo.story.count_occurring", lambda data, texts: min(3, len(texts)))
    code, output = demo()
    assert code == ExitCode.FAILURE
    assert re.search(r"✗ Encrypted, .*: 3 found", output)
    assert re.search(r"✗ 2 of \d+ checks failed", output)
    assert "3  What" not in output


def test_a_flipped_bit_that_goes_unnoticed_would_fail_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "flip_bit", lambda self, place: None)
    monkeypatch.setenv("COLUMNS", "30")
    code, output = demo()
    assert code == ExitCode.FAILURE
    # A claim of several lines is marked on the first only.
    assert "\n  ✗ Refused, in words that\n    hold nothing of the token\n" in output
    assert "nothing was raised" in re.sub(r"\s+", " ", output)


def test_a_rotation_that_leaves_rows_behind_would_fail_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Project, "upgrade", lambda self: None)
    code, output = demo()
    assert code == ExitCode.FAILURE
    assert "✗ 0 rows re-encrypted" in output


# -- its parts -----------------------------------------------------------------------------------------------


def test_the_examples_are_those_of_the_verified_vectors() -> None:
    vectors = json.loads(VECTORS.read_text())["tokens"]
    examples = rfc_tokens()
    assert [example.token for example in examples] == [vector["token"] for vector in vectors]
    assert [example.key is None for example in examples] == [vector["jwk"] is None for vector in vectors]
    assert all(
        vector["source"].startswith(example.user) for example, vector in zip(examples, vectors, strict=True)
    )


def test_signed_tokens_are_distinct_and_verify() -> None:
    signed = list(sign(200))
    assert len({entry.token for entry in signed}) == len(signed)
    for entry in signed:
        claims = JWT(entry.token).verify(entry.key, algorithms=[entry.algorithm], audience=AUDIENCE)
        assert claims["sub"] == entry.user


def test_the_fewest_rows_hold_every_algorithm() -> None:
    first = sign(FEWEST_ROWS - len(rfc_tokens()))
    assert {entry.algorithm for entry in first} == {entry.algorithm for entry in sign(100)}


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    return [text for entry in sign(20) for text in entry.payload]


@given(st.data())
def test_the_fast_search_finds_what_the_simple_one_finds(texts: list[bytes], data: st.DataObject) -> None:
    pieces = data.draw(
        st.lists(
            st.one_of(
                st.binary(max_size=40), st.sampled_from(texts), st.sampled_from([b".", b"\x00", b"eyJ"])
            )
        )
    )
    haystack = b"".join(pieces)
    assert count_occurring(haystack, texts) == sum(text in haystack for text in texts)


def test_the_search_takes_binary_and_short_texts() -> None:
    assert count_occurring(b"\x00\x01Payload\xff\xfe", [b"Payload", b"\xff\xfe", b"\xff\xff"]) == 2


def test_the_payload_is_the_segment_and_what_it_encodes() -> None:
    segment, decoded = rfc_tokens()[0].payload
    assert base64.urlsafe_b64decode(segment + b"==") == decoded
    assert json.loads(decoded)["iss"] == "joe"


def test_hex_lines_show_offset_bytes_and_text() -> None:
    data = bytes(range(64))
    lines = list(hex_lines(data, 32, [(1, "green")]))
    assert lines[0].plain == "00000020  20 21 22 23 24 25 26 27 28 29 2a 2b 2c 2d 2e 2f   !\"#$%&'()*+,-./"
    assert lines[1].plain.startswith("00000030  30 31")
    assert [data[span.start : span.end] and span.style for span in lines[0].spans if span.style == "green"]


def test_flip_bit_changes_one_bit_and_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x00\x01\x02")
    database = Database(path, Session)
    database.flip_bit(1)
    assert path.read_bytes() == b"\x00\x00\x02"
    database.flip_bit(1)
    assert path.read_bytes() == b"\x00\x01\x02"


def test_escape_sequences_are_recognised_by_the_tests() -> None:
    assert ESCAPE.sub("", "\x1b[1;36mx\x1b[0m\x1b[?25l\x1b[2K\x1b[1Ay") == "xy"
