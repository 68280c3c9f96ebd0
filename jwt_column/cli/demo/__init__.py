"""``jwt-column demo``: the main job on real tokens in a real file, from the first row to a retired key."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import typer
from rich.text import Text

from ...errors import ConfigurationError
from ..console import ExitCode, make_console
from ..options import option
from .narration import Narration
from .project import Project
from .story import tell_story
from .tokens import FEWEST_ROWS

__all__ = ["demo"]

# All tokens are held in memory, to be compared with the rows at the end.
_MOST_ROWS = 1_000_000


def demo(
    *,
    rows: Annotated[
        int, typer.Option(min=FEWEST_ROWS, max=_MOST_ROWS, help="How many tokens to store.")
    ] = 10_000,
    keep: Annotated[
        Path | None,
        option(
            "--keep",
            metavar="DIRECTORY",
            help="Leave databases, key file and migrations in this new or empty directory.",
        ),
    ] = None,
) -> None:
    """Run the demo; see :mod:`jwt_column.cli.app` for the help text."""
    start = perf_counter()
    console = make_console()
    narration = Narration(console)
    with _directory(keep) as directory:
        tell_story(Project(directory), narration, rows)
    if keep is None:
        narration.show(Text("The files were in a temporary directory; --keep DIRECTORY leaves them.", "dim"))
    else:
        console.print(f"\n  The files, the key among them, are in {keep}", style="dim", soft_wrap=True)
    held, failed = narration.held, narration.failed
    verdict = f"{failed} of {held + failed} checks failed" if failed else f"All {held} checks held"
    narration.check(not failed, f"{verdict}, in {perf_counter() - start:.1f} s.")
    if failed:
        raise typer.Exit(ExitCode.FAILURE)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Yield the directory of the files: a temporary one, or *keep*."""
    if keep is None:
        try:
            temporary = TemporaryDirectory(prefix="jwt-column-demo-")
        except OSError:
            raise ConfigurationError(
                "no temporary directory can be written; set TMPDIR to one, or give --keep DIRECTORY"
            ) from None
        with temporary as name:
            yield Path(name)
        return
    if set("%?") & set(str(keep.absolute())):
        # alembic.ini does not take the one, and database URLs not the other.
        raise ConfigurationError(f"{keep} cannot be used; name a directory without % and ?")
    try:
        # It will hold a key.
        keep.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise ConfigurationError(
                f"{keep} is not empty; name a new directory, so that nothing is replaced"
            )
    except OSError as error:
        raise ConfigurationError(f"{keep} cannot be used: {error.strerror}; name another directory") from None
    yield keep.absolute()
