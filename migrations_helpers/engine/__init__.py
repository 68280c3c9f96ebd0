"""Re-encryption on an Engine or Connection. Nothing here knows Alembic."""
