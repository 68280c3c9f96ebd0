"""``EncryptedJSON``: a JSON object in one envelope, with everything that a token's column has."""

from __future__ import annotations

import copy
import hmac
import json
import pickle
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import given
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, defer, mapped_column

import migrations_helpers
from jwt_column import (
    JWT,
    AuthenticationError,
    ConfigurationError,
    EncryptedJSON,
    EncryptedJWT,
    FingerprintIndex,
    InvalidTokenError,
    KeyRing,
    MalformedEnvelopeError,
    PlaintextFoundError,
    ReencryptionError,
    SealedJWT,
    UnsupportedComparisonError,
    audit,
    find_plaintext_tokens,
    generate_key,
    key_usage,
)
from jwt_column.column.json_document import TokenDict
from tests.support import independent_envelope
from tests.support.models import mapped, store, table_of
from tests.support.tokens import compact, revealed_by, signed_token

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN: Final = signed_token(sub="alice", jti="a-1")
RESPONSE: Final[dict[str, Any]] = {
    "access_token": TOKEN,
    "refresh_token": "1//refresh",
    "token_type": "Bearer",
    "expires_at": 2_000_000_000.7,
    "scope": ["a", "ü"],
    "user": 7,
}
OPTIONS: Final[dict[str, Any]] = {"fingerprints": ["token", "access_token", "user"], "expose_expiry": True}
KEY: Final = generate_key()
RING: Final = KeyRing([KEY])

_TEXTS: Final = st.text(st.characters(exclude_categories=["Cs"]))
_LEAVES: Final = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS
)
DOCUMENTS: Final = st.dictionaries(
    _TEXTS, st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
)


class Base(DeclarativeBase): ...


class OAuthToken(Base):
    __tablename__ = "oauth_tokens"
    __table_args__ = (FingerprintIndex("ux_access", "token", "access_token", unique=True),)
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[dict[str, Any] | None] = mapped_column(EncryptedJSON(RING, **OPTIONS))


@pytest.fixture
def engine(memory: sa.Engine) -> sa.Engine:
    Base.metadata.create_all(memory)
    return memory


def tables_of(type_: EncryptedJWT, raw: Any = sa.LargeBinary) -> tuple[sa.Table, sa.Table]:
    """Return a table with the type, and the same table as the database has it."""
    return table_of(type_, name="documents"), table_of(raw, name="documents")


class TestValues:
    @pytest.mark.parametrize("storage", ["binary", "text"])
    @given(document=DOCUMENTS)
    def test_any_object_comes_back(self, storage: Any, document: dict[str, Any]) -> None:
        cipher = EncryptedJSON(RING, storage=storage, context="c", **OPTIONS).cipher()
        loaded = cipher.load(cipher.encrypt(document, RING), RING)
        assert (type(loaded), loaded, list(loaded)) == (TokenDict, document, list(document))

    def test_a_second_implementation_reads_the_format(self) -> None:
        stored = EncryptedJSON(RING, context="c", **OPTIONS).cipher().encrypt(RESPONSE, RING)
        key = independent_envelope.decode_leniently(KEY)
        assert key is not None
        text = independent_envelope.open_(stored, key, context="c")
        assert text == json.dumps(RESPONSE, separators=(",", ":"), ensure_ascii=False)
        parsed = independent_envelope.parse(stored)
        assert parsed.expiry == 2_000_000_000
        for name, value, found in zip(
            ("token", "access_token"), (text, TOKEN), parsed.fingerprints, strict=False
        ):
            data = value.encode() if name == "token" else b"s" + value.encode()
            mac_key = independent_envelope.fingerprint_key(key, "c", name)
            assert found == hmac.digest(mac_key, data, "sha256")[:16]

    @pytest.mark.parametrize(
        ("value", "fault"),
        [
            ("x", "the text holds something else"),
            (TOKEN, "the text holds something else"),
            ("[1]", "the text holds something else"),
            ([1], "a list is neither a mapping nor the text of one"),
            (5, "a int is neither"),
            ({"a": float("nan")}, "NaN, Infinity"),
            ({"a": "\ud800"}, "NaN, Infinity, 4,300 digits, half a surrogate pair"),
            ({"a": object()}, "Object of type object is not JSON serializable"),
            ({"a": datetime(2030, 1, 1)}, "Object of type datetime is not JSON serializable"),
            ({1: 2}, "the name of a member is not text"),
            ({"a": {1: 2}}, "the name of a member is not text"),
            ({"a": [{"b": ({True: 2},)}]}, "the name of a member is not text"),
        ],
    )
    def test_anything_else_is_refused_without_being_shown(self, value: Any, fault: str) -> None:
        with pytest.raises(
            InvalidTokenError, match=f"is no JSON object of at most 100 levels: {fault}"
        ) as caught:
            OAuthToken(token=value)
        assert not revealed_by(caught.value, TOKEN)

    def test_messages_name_json_and_not_tokens(self, engine: sa.Engine) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO oauth_tokens VALUES (1, ?)", (b"null",))
            with pytest.raises(MalformedEnvelopeError, match="reads no other JSON, null neither") as caught:
                connection.execute(sa.select(OAuthToken.token)).all()
            assert "allow_opaque" not in str(caught.value)
            for value in ("x", [1]):
                with pytest.raises(
                    UnsupportedComparisonError, match="is a JSON object, as a mapping or its text"
                ):
                    connection.execute(sa.select(OAuthToken.id).where(OAuthToken.token == value))

    def test_a_long_document_is_refused(self) -> None:
        cipher = EncryptedJSON(RING, context="c", max_length=20).cipher()
        with pytest.raises(InvalidTokenError) as caught:
            cipher.encrypt({"a": "x" * 20}, RING)
        assert caught.value.reason == "too long"

    def test_a_token_in_the_place_of_a_document_is_an_error(self) -> None:
        stored = EncryptedJWT(RING, context="c").cipher().encrypt(TOKEN, RING)
        with pytest.raises(MalformedEnvelopeError, match="no JSON object"):
            EncryptedJSON(RING, context="c").process_result_value(
                stored, sa.create_engine("sqlite://").dialect
            )

    def test_nothing_of_a_document_is_shown(self) -> None:
        document = OAuthToken(token=RESPONSE).token
        assert document is not None
        assert repr(document) == str(document) == f"{document}" == "TokenDict(redacted, 6 members)"
        shown = repr(dict(document)) + repr(document["scope"])
        assert not any(text in shown for text in (*TOKEN.split("."), 'refresh"', "//", "ü"))
        assert type(document["access_token"]) is JWT

    def test_a_type_shows_its_options(self) -> None:
        assert repr(EncryptedJSON(storage="text")) == "EncryptedJSON(storage='text')"


class TestORM:
    def test_changes_of_members_are_saved(self, engine: sa.Engine) -> None:
        with Session(engine) as session:
            row = OAuthToken(token=RESPONSE)
            session.add(row)
            session.commit()
            assert row.token == RESPONSE
            row.token["refresh_token"] = "1//other"
            session.commit()
            assert row.token == {**RESPONSE, "refresh_token": "1//other"}
            row.token = None
            session.commit()
            assert row.token is None

    def test_null_is_stored_as_none(self, engine: sa.Engine) -> None:
        with Session(engine) as session:
            row = OAuthToken(id=1, token=RESPONSE)
            session.add(row)
            session.commit()
            row.token = sa.null()
            session.commit()
            assert session.scalars(sa.select(OAuthToken.id).where(OAuthToken.token.is_(None))).all() == [1]

    @pytest.mark.parametrize(
        "changed", [{"a": True, "b": 2}, {"a": 1.0, "b": 2}, {"b": 2, "a": 1}], ids=["true", "float", "order"]
    )
    def test_a_document_that_python_calls_equal_is_stored(
        self, engine: sa.Engine, changed: dict[str, Any]
    ) -> None:
        first = {"a": 1, "b": 2}
        with Session(engine, expire_on_commit=False) as session:
            row = OAuthToken(id=1, token=first)
            session.add(row)
            session.commit()
            row.token = dict(first)
            assert not session.is_modified(row)  # the control
            assert changed == first
            row.token = changed
            session.commit()
            assert json.dumps(session.scalars(sa.select(OAuthToken.token)).one()) == json.dumps(changed)
            assert session.scalars(sa.select(OAuthToken.id).where(OAuthToken.token == changed)).all() == [1]

    def test_changes_at_any_depth_are_saved(self, engine: sa.Engine) -> None:
        other = TokenDict()

        def replace_by_plain_ones(token: Any) -> None:
            token["scope"] = [{"a": ["x"]}]
            token["scope"][0]["a"].append("y")

        def merge(token: Any) -> None:
            token |= {"list": ["x"]}
            token["list"] += ["y"]

        def borrow(token: Any) -> None:
            other["list"] = ["x"]
            token["borrowed"] = other["list"]
            token["borrowed"].append("y")

        changes: list[Any] = [
            lambda token: token["scope"].append("b"),
            lambda token: token["scope"].extend(["c", {"d": []}]),
            lambda token: token["scope"][-1]["d"].insert(0, "e"),
            lambda token: token["scope"][-1].update(f={"g": 1}),
            lambda token: token["scope"][-1]["f"].pop("g"),
            lambda token: token["scope"].remove("a"),
            lambda token: token["scope"].__setitem__(0, ["nested"]),
            lambda token: token["scope"][0].clear(),
            lambda token: token.setdefault("h", []).append("i"),
            lambda token: token.setdefault("h", ["other"]).append("k"),
            replace_by_plain_ones,
            merge,
            borrow,
        ]
        with Session(engine) as session:
            session.add(OAuthToken(id=1, token=RESPONSE))
            session.commit()
            for change in changes:
                row = session.get_one(OAuthToken, 1)
                change(row.token)
                expected = json.loads(json.dumps(row.token))
                session.commit()
                assert row.token is not None
                assert row.token == expected
                assert not any(text in repr(list(row.token.values())) for text in ("nested", "'x'"))
            assert (row.token or {})["h"] == ["i", "k"]
            # A pickle and a copy track their own members.
            for copied in (pickle.loads(pickle.dumps(row.token)), copy.deepcopy(row.token)):
                row.token = copied
                assert row.token is not None
                row.token["scope"].append("z")
                expected = json.loads(json.dumps(row.token))
                session.commit()
                assert row.token == expected
        assert other == {"list": ["x"]}

    def test_a_container_in_a_second_place_is_a_copy(self) -> None:
        """As it would be after the next load."""
        token = TokenDict()
        token["a"] = {"x": ["1"]}
        token["b"] = token["a"]
        token["b"]["x"].append("2")
        assert token == {"a": {"x": ["1"]}, "b": {"x": ["1", "2"]}}
        token["list"] = [["1"]]
        token["list"].append(token["list"][0])
        token["list"][1].append("2")
        assert token["list"] == [["1"], ["1", "2"]]
        # The control: in its one place it is not copied again, whatever else changes.
        kept = token["a"]
        token["c"] = 1
        assert token["a"] is kept

    def test_a_document_of_too_many_levels_is_refused(self, engine: sa.Engine) -> None:
        """It could be written, and loaded only where the stack is short: Python's limit counts all calls."""

        def nested(levels: int) -> Any:
            document: Any = {}
            for level in range(levels - 2):
                document = ({"a": document}, [document], (document,))[level % 3]
            return {"a": document}

        def below(calls: int, function: Any) -> Any:
            return below(calls - 1, function) if calls else function()

        wide = {"a": [[] for _ in range(300)], "b": "{" * 300}
        with Session(engine) as session:
            session.add_all([OAuthToken(id=1, token=nested(100)), OAuthToken(id=2, token=wide)])
            session.commit()
            first, second = below(600, lambda: session.scalars(sa.select(OAuthToken)).all())
            assert first.token == json.loads(json.dumps(nested(100)))
            assert second.token == wide
            for document in (nested(101), nested(400), nested(3000), '{"a":' * 400 + "1" + "}" * 400):
                with pytest.raises(InvalidTokenError, match="of at most 100 levels"):
                    OAuthToken(token=document)
                with pytest.raises(InvalidTokenError, match="of at most 100 levels"):
                    session.execute(sa.insert(OAuthToken).values(token=document))

    def test_rows_survive_copy_and_pickle(self, engine: sa.Engine) -> None:
        with Session(engine) as session:
            session.add(OAuthToken(token=RESPONSE))
            session.commit()
            row = session.scalars(sa.select(OAuthToken)).one()
            for copied in (pickle.loads(pickle.dumps(row)).token, copy.deepcopy(row.token)):
                assert (type(copied), copied) == (TokenDict, RESPONSE)

    def test_a_sealed_value_stands_in_for_one_that_does_not_open(self, engine: sa.Engine) -> None:
        row_of = mapped("rows", token=EncryptedJSON(KeyRing.generate(), context="c", undecryptable="sealed"))
        row_of.metadata.create_all(engine)
        stored = EncryptedJSON(RING, context="c").cipher().encrypt(RESPONSE, RING)
        with Session(engine) as session:
            session.execute(sa.text("INSERT INTO rows VALUES (1, :stored)"), {"stored": stored})
            row = session.get_one(row_of, 1)
            assert isinstance(row.token, SealedJWT)
            row.token = RESPONSE
            session.commit()
            assert row.token == RESPONSE


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="login")
    token: Mapped[dict[str, Any]] = mapped_column(EncryptedJSON(RING), default={"scope": ["a"]})
    other: Mapped[dict[str, Any] | None] = mapped_column(
        EncryptedJSON(RING), onupdate=lambda: {"scope": ["b"]}
    )
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "login"}  # noqa: RUF012


class DeviceLogin(Login):
    __mapper_args__ = {"polymorphic_identity": "device"}  # noqa: RUF012


class OldDeviceLogin(DeviceLogin):
    __mapper_args__ = {"polymorphic_identity": "old"}  # noqa: RUF012


@pytest.mark.parametrize("kind", [Login, DeviceLogin, OldDeviceLogin])
class TestInheritance:
    def test_defaults_are_tracked_copies(self, engine: sa.Engine, kind: type[Login]) -> None:
        """Of a subclass they were the default itself: its changes were lost, and in every later row."""
        with Session(engine, expire_on_commit=False) as session:
            first, second = kind(id=1), kind(id=2)
            session.add(first)
            session.commit()
            first.token["scope"].append("more")
            session.commit()
            session.add(second)
            session.commit()
            assert first.other is not None
            first.other["scope"].append("more")
            assert not any(text in repr(first.token["scope"][0]) for text in ("'a'", "'b'"))
            session.commit()
            found = session.scalars(
                sa.select(Login).order_by(Login.id).execution_options(populate_existing=True)
            )
            assert [(row.token, row.other) for row in found] == [
                ({"scope": ["a", "more"]}, {"scope": ["b", "more"]}),
                ({"scope": ["a"]}, None),
            ]

    def test_assignments_are_checked(self, engine: sa.Engine, kind: type[Login]) -> None:
        values: list[Any] = ['{"scope": ["c"]}', {"scope": ["c"]}, MappingProxyType({"scope": ["c"]})]
        with Session(engine) as session:
            for value in values:
                row = kind(token=value)
                session.add(row)
                row.token["scope"].append("d")
                session.commit()
                row.token["scope"].append("e")
                session.commit()
                assert row.token == {"scope": ["c", "d", "e"]}
                row.other = sa.null()
                session.commit()
                assert row.other is None
        for refused in ("x", [1], 5, TOKEN):
            with pytest.raises(InvalidTokenError):
                kind(token=refused)


class Bound(Base):
    __tablename__ = "bound_tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    token: Mapped[dict[str, Any] | None] = mapped_column(EncryptedJSON(RING, bound_to=["user_id"], **OPTIONS))


class TestBoundToRows:
    @pytest.fixture
    def session(self, engine: sa.Engine) -> Iterator[Session]:
        with Session(engine) as session:
            # One object for two rows.
            document = TokenDict(RESPONSE)
            session.add_all([Bound(id=1, user_id=7, token=document), Bound(id=2, user_id=8, token=document)])
            session.commit()
            yield session

    def test_a_document_opens_in_its_own_row_only(self, session: Session) -> None:
        for row in session.scalars(sa.select(Bound)):
            assert (type(row.token), row.token) == (TokenDict, RESPONSE)
        session.rollback()
        session.expunge_all()
        session.execute(
            sa.text("UPDATE bound_tokens SET token = (SELECT token FROM bound_tokens WHERE id = 2)")
        )
        with pytest.raises(AuthenticationError):
            session.get(Bound, 1)

    def test_changes_at_any_depth_and_of_the_bound_value_are_saved(self, session: Session) -> None:
        row = session.get_one(Bound, 1)
        assert row.token is not None
        for change in (
            lambda token: token.update(access_token="at-2"),
            lambda token: token["scope"].append("z"),
            lambda _: setattr(row, "user_id", 9),
            lambda token: token["scope"].append("after"),
        ):
            change(row.token)
            expected = dict(row.token)
            session.commit()
            assert row.token == expected
            session.refresh(row, ["token"])
            assert row.token == expected
        condition = Bound.token.claim("access_token") == "at-2"
        assert session.scalars(sa.select(Bound.user_id).where(condition)).all() == [9]
        row.token = None
        session.commit()
        assert row.token is None

    def test_a_change_before_the_row_was_loaded_whole_is_saved(self, session: Session) -> None:
        session.expunge_all()
        row = session.scalars(sa.select(Bound).options(defer(Bound.token)).where(Bound.id == 2)).one()
        row.user_id = 5
        session.commit()
        assert row.token == RESPONSE

    def test_a_statement_that_knows_no_row_is_refused(self, session: Session) -> None:
        with pytest.raises(ConfigurationError, match="bound to user_id"):
            session.execute(sa.insert(Bound).values(id=3, user_id=1, token=RESPONSE))
        sealed = session.scalars(sa.select(Bound.token).where(Bound.id == 1)).one()
        assert isinstance(sealed, SealedJWT)
        opened: Any = sealed.reveal(user_id=7)
        assert opened == RESPONSE

    def test_bound_rows_are_reencrypted(self, session: Session, engine: sa.Engine) -> None:
        newest = generate_key()
        later = RING.with_key(newest).with_active(KeyRing([newest]).active)
        type_ = EncryptedJSON(later, bound_to=["user_id"], **OPTIONS)
        session.close()
        report = migrations_helpers.reencrypt(engine, "bound_tokens", "token", type_=type_)
        assert (report.reencrypted, report.remaining, report.undecryptable) == (2, 0, [])


class TestSearch:
    def test_members_and_the_whole_are_found_by_fingerprint(self, engine: sa.Engine) -> None:
        with Session(engine) as session:
            session.add_all([OAuthToken(token=RESPONSE), OAuthToken(token={"access_token": "x", "user": 8})])
            session.commit()
            for condition in (
                OAuthToken.token.claim("access_token") == TOKEN,
                OAuthToken.token.claim("user") == 7,
                OAuthToken.token == RESPONSE,
                OAuthToken.token.expires_at == datetime(2033, 5, 18, 3, 33, 20, tzinfo=UTC),
            ):
                assert session.scalars(sa.select(OAuthToken.id).where(condition)).all() == [1]
            with pytest.raises(UnsupportedComparisonError):
                _ = OAuthToken.token == ["a list"]


class TestTables:
    @pytest.mark.parametrize(("storage", "raw"), [("binary", sa.LargeBinary), ("text", sa.Text)])
    def test_a_column_is_adopted_rotated_audited_and_left(
        self, memory: sa.Engine, storage: Any, raw: Any
    ) -> None:
        newest = generate_key()
        later = RING.with_key(newest).with_active(KeyRing([newest]).active)
        unsigned = compact({"alg": "none"}, {"sub": "mallory"}, b"")
        documents = [RESPONSE, {"nested": {"id_token": unsigned}}]
        type_ = EncryptedJSON(RING, storage=storage, **OPTIONS)
        table, stored = tables_of(type_, raw)
        texts = [json.dumps(one) for one in documents]
        store(memory, stored, texts if storage == "text" else [text.encode() for text in texts])
        with memory.begin() as connection:
            assert connection.execute(key_usage(table.c.token)).one() == (None, "plaintext", 2)
            with pytest.raises(PlaintextFoundError):
                connection.execute(sa.select(table.c.token)).all()
        assert find_plaintext_tokens(memory).found

        from migrations_helpers.engine.conversions import Adoption, Decryption
        from migrations_helpers.engine.options import Options
        from migrations_helpers.engine.reencryption import convert_column
        from migrations_helpers.engine.reflection import Subject

        in_context = type_.in_context("documents.token")
        convert_column(memory, Subject("documents", "token", in_context), Adoption, Options())
        assert not find_plaintext_tokens(memory).found
        with memory.connect() as connection:
            assert connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all() == documents
        rotated = EncryptedJSON(later, storage=storage, context="documents.token", **OPTIONS)
        report = migrations_helpers.reencrypt(memory, "documents", "token", type_=rotated)
        assert (report.reencrypted, report.remaining) == (2, 0)
        table, _ = tables_of(rotated, raw)
        with memory.connect() as connection:
            assert connection.execute(key_usage(table.c.token)).one() == (later.active, "current", 2)
            found = sa.select(table.c.id).where(table.c.token.claim("access_token") == TOKEN)
            assert connection.scalars(found).all() == [1]
        codes = {finding.code: finding.count for finding in audit(memory, table, deep=True).findings}
        assert codes["alg-none"] == 1
        convert_column(memory, Subject("documents", "token", rotated), Decryption, Options())
        with memory.connect() as connection:
            left = connection.scalars(sa.select(stored.c.token).order_by(stored.c.id)).all()
        assert [json.loads(one) for one in left] == documents

    @pytest.mark.parametrize("other", ["a token's type over documents", "a document's type over tokens"])
    def test_a_run_with_the_other_type_takes_no_fingerprints_away(
        self, memory: sa.Engine, other: str
    ) -> None:
        """Both have the same layout, so that nothing in SQL tells them apart."""
        options: dict[str, Any] = {"fingerprints": ["token", "user"], "context": "documents.token"}
        newest = generate_key()
        later = RING.with_key(newest).with_active(KeyRing([newest]).active)
        right: type[EncryptedJWT] = EncryptedJSON
        wrong: type[EncryptedJWT] = EncryptedJWT
        values: list[Any] = [RESPONSE, {"user": 8}]
        if other == "a document's type over tokens":
            right, wrong = EncryptedJWT, EncryptedJSON
            values = [signed_token(user=7), signed_token(user=8)]
        table, stored = tables_of(right(RING, **options))
        store(memory, table, values)
        with memory.begin() as connection:
            before = connection.scalars(sa.select(stored.c.token)).all()
        with pytest.raises(ConfigurationError, match=rf"Write type_={right.__name__}\("):
            migrations_helpers.reencrypt(memory, "documents", "token", type_=wrong(later, **options))
        with pytest.raises(ReencryptionError, match="2 rows can be read, but do not fit"):
            migrations_helpers.reencrypt(
                memory, "documents", "token", type_=wrong(RING, **options), recompute=True
            )
        # Among others, which the beginning of a run does not see.
        reseal = wrong(later, **options).cipher().resealer(later)
        for value in before:
            with pytest.raises(InvalidTokenError, match="would drop its fingerprints") as caught:
                reseal(value)
            assert not revealed_by(caught.value, TOKEN)
        with memory.connect() as connection:
            assert connection.scalars(sa.select(stored.c.token)).all() == before
        # The control: nothing is lost without fingerprints of members, and the right type goes on.
        whole = {**options, "fingerprints": ["token"]}
        sealed = right(RING, **whole).cipher().encrypt(values[0], RING)
        assert wrong(later, **whole).cipher().resealer(later)(sealed)
        report = migrations_helpers.reencrypt(memory, "documents", "token", type_=right(later, **options))
        assert (report.reencrypted, report.remaining) == (2, 0)

    def test_a_dropped_member_is_named(self, memory: sa.Engine) -> None:
        table, _ = tables_of(EncryptedJSON(RING, **OPTIONS))
        store(memory, table, [RESPONSE])
        later = KeyRing([generate_key()]).with_key(KEY)
        type_ = EncryptedJSON(later, fingerprints=["token", "access_token"], expose_expiry=True)
        with pytest.raises(ConfigurationError, match="the fingerprint 'user'"):
            migrations_helpers.reencrypt(memory, "documents", "token", type_=type_)

    def test_the_ladder_reads_and_writes_plaintext(self, memory: sa.Engine) -> None:
        writing, stored = tables_of(EncryptedJSON(RING, storage="text", plaintext="write"), sa.Text)
        reading, _ = tables_of(EncryptedJSON(RING, storage="text", plaintext="read"), sa.Text)
        store(memory, writing, [RESPONSE])
        with memory.begin() as connection:
            assert json.loads(connection.scalars(sa.select(stored.c.token)).one()) == RESPONSE
            connection.execute(reading.insert(), {"id": 2, "token": RESPONSE})
            for table in (writing, reading):
                loaded = connection.scalars(sa.select(table.c.token)).all()
                assert [(type(one), one) for one in loaded] == [(TokenDict, RESPONSE)] * 2
