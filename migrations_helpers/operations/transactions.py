"""The transaction of a migration, which an operation ends that commits by itself."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from jwt_column.errors import JWTColumnError, ReencryptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.operations import Operations


@contextmanager
def outside_transaction(operations: Operations) -> Iterator[bool]:
    """Run a block in autocommit mode: what the migration did before is committed.

    Yields False, and changes nothing, where the transaction is not Alembic's to end, or has a savepoint, which would
    end with it.

    Raises:
        ReencryptionError: The connection was lost when the block had ended.
    """
    context = operations.get_context()
    with ExitStack() as block:
        is_ours = context.as_sql or not operations.get_bind().in_nested_transaction()
        if is_ours:
            try:
                block.enter_context(context.autocommit_block())
            except (AssertionError, AttributeError):
                # Alembic expects to have begun the transaction itself.
                is_ours = False
        try:
            yield is_ours
        except JWTColumnError:
            # If the connection is lost, Alembic cannot end its block, and its error would hide the reason.
            with suppress(SQLAlchemyError):
                block.close()
            raise
        try:
            block.close()
        except SQLAlchemyError:
            raise ReencryptionError(
                "the connection was lost when the operation was done, so its revision is not applied; run the "
                "migration again, which finds it done",
                reason="database",
            ) from None
