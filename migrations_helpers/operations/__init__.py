"""The Alembic operations; importing this package registers them."""
