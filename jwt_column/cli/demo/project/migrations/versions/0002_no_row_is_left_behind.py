"""No row is left behind."""

from alembic import op

from jwt_column import EncryptedJWT

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.ensure_jwt_column_current(
        "sessions",
        "token",
        type_=EncryptedJWT(allow_unsigned=True),
    )
