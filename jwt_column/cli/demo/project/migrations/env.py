"""Alembic's environment: an ordinary one, but for the import of migrations_helpers."""

from alembic import context
from sqlalchemy import NullPool, create_engine

import migrations_helpers  # noqa: F401 - registers op.reencrypt_jwt_column and the other operations


def run_migrations() -> None:
    """Run the migrations on the database of alembic.ini."""
    engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()


run_migrations()
