"""``jwt-column demo``: the main job on real tokens in a real file, from the first row to a retired key."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import typer

from ...errors import ConfigurationError
from ..console import ExitCode
from ..declaring import value
from .page import Page
from .sample import FEWEST_ROWS
from .story import tell_story

# All tokens are held in memory, to be compared with the rows at the end.
_MOST_ROWS = 1_000_000


def demo(
    *,
    rows: int = value("--rows", "How many tokens to store.", default=10_000, min=FEWEST_ROWS, max=_MOST_ROWS),
    keep: Path | None = value(
        "--keep DIRECTORY", "Leave databases, key file and migrations in this new or empty directory."
    ),
) -> None:
    """Run the demo; see :mod:`jwt_column.cli.app` for the help text."""
    start, page = perf_counter(), Page()
    with _directory(keep) as directory:
        tell_story(page, Path(directory), rows)
    page.end(keep, perf_counter() - start)
    if page.failed:
        raise typer.Exit(ExitCode.FAILURE)


def _directory(keep: Path | None) -> AbstractContextManager[str | Path]:
    """Return the directory of the files: a temporary one, or *keep*."""
    if keep is None:
        try:
            return TemporaryDirectory(prefix="jwt-column-demo-")
        except OSError:
            raise ConfigurationError(
                "no temporary directory can be written; set TMPDIR to one, or give --keep DIRECTORY"
            ) from None
    if set("%?") & set(str(keep.absolute())):
        # alembic.ini does not take the one, and database URLs not the other.
        raise ConfigurationError(f"{keep} cannot be used; name a directory without % and ?")
    try:
        # It will hold a key.
        keep.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_empty = not any(keep.iterdir())
    except OSError as error:
        raise ConfigurationError(f"{keep} cannot be used: {error.strerror}; name another directory") from None
    if not is_empty:
        raise ConfigurationError(f"{keep} is not empty; name a new directory, so that nothing is replaced")
    return nullcontext(keep.absolute())
