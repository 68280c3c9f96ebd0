"""Django: a field of its own ORM over the functions that need no database."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.frameworks
django = pytest.importorskip("django", reason="needs the extra test-frameworks")

from django.conf import settings  # noqa: E402

from jwt_column import JWT, KeyRing, decrypt_token, encrypt_token  # noqa: E402
from tests.frameworks.tokens import TOKEN  # noqa: E402

RING = KeyRing.generate()


def test_a_field_encrypts_and_decrypts() -> None:
    databases = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    settings.configure(DATABASES=databases, DEFAULT_AUTO_FIELD="django.db.models.AutoField")
    django.setup()
    from django.db import connection, models

    class EncryptedTokenField(models.BinaryField):
        def __init__(self, *args: Any, context: str, **kwargs: Any) -> None:
            self.context = context
            super().__init__(*args, **kwargs)

        def deconstruct(self) -> Any:
            name, path, args, kwargs = super().deconstruct()
            return name, path, args, {**kwargs, "context": self.context}

        def get_prep_value(self, value: Any) -> Any:
            return None if value is None else encrypt_token(value, RING, context=self.context)

        def from_db_value(self, value: Any, _expression: Any, _connection: Any) -> Any:
            return None if value is None else decrypt_token(bytes(value), RING, context=self.context)

    class Login(models.Model):
        token = EncryptedTokenField(context="app_login.token")

        class Meta:
            app_label = "app"

    with connection.schema_editor() as editor:
        editor.create_model(Login)
    Login.objects.create(token=TOKEN)
    loaded = Login.objects.get().token
    assert (type(loaded), loaded) == (JWT, TOKEN)
    with connection.cursor() as cursor:
        cursor.execute("SELECT token FROM app_login")
        assert cursor.fetchone()[0][:1] == b"\x01"
