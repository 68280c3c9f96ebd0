"""Re-encrypt sessions."""

from alembic import op

from jwt_column import EncryptedJWT

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.reencrypt_jwt_column(
        "sessions",
        "token",
        type_=EncryptedJWT(allow_unsigned=True),
    )
