"""What several connections see of each other's work."""

from contextlib import ExitStack
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session as OrmSession
from support import count, race

from booking import db
from booking.db import Session, engine
from booking.models import Tenant, User
from booking.retry import serializable
from booking.services import tenants, users

COUNT = text("SELECT count(*) FROM users")


def test_a_commit_is_seen_by_every_connection_of_the_pool() -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(engine.connect()) for _ in range(5)]
        assert [reader.execute(COUNT).scalar_one() for reader in readers] == [0] * 5
        with Session.begin() as session:
            users.register(session, email="alice@example.com", name="Alice")
        assert [reader.execute(COUNT).scalar_one() for reader in readers] == [1] * 5


def test_nothing_is_seen_before_the_commit() -> None:
    with Session() as writer, Session() as reader:
        users.register(writer, email="alice@example.com", name="Alice")
        assert reader.scalar(COUNT) == 0
        writer.commit()
        assert reader.scalar(COUNT) == 1


def test_a_connection_outside_the_pool_sees_the_same(alice: User) -> None:
    with db.connect() as connection:
        assert connection.execute("SELECT id, email FROM users").fetchall() == [(1, "alice@example.com")]


def test_a_repeatable_read_keeps_its_snapshot(alice: User) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        assert reader.execute(COUNT).scalar_one() == 1
        with Session.begin() as session:
            users.register(session, email="bob@example.com", name="Bob")
        assert reader.execute(COUNT).scalar_one() == 1
        reader.rollback()
        assert reader.execute(COUNT).scalar_one() == 2


def test_a_lost_update_is_refused_at_repeatable_read(alice: User) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as late, engine.begin() as early:
        late.execute(COUNT)
        early.execute(text("UPDATE users SET name = 'Alicia'"))
        early.commit()
        with pytest.raises(OperationalError, match="could not serialize access"):
            late.execute(text("UPDATE users SET name = 'Ali'"))


def test_a_savepoint_undoes_a_part() -> None:
    with Session.begin() as session:
        users.register(session, email="alice@example.com", name="Alice")
        savepoint = session.begin_nested()
        users.register(session, email="bob@example.com", name="Bob")
        savepoint.rollback()
    assert count(User) == 1


def test_ten_sessions_are_open_at_once(alice: User) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session()) for _ in range(10)]
        assert [session.scalar(COUNT) for session in sessions] == [1] * 10


def test_a_broken_connection_is_replaced_by_the_pool(alice: User) -> None:
    with engine.connect() as connection:
        broken = connection.connection.driver_connection
    assert broken is not None
    broken.close()
    assert count(User) == 1


def test_serializable_transactions_that_conflict_are_retried(acme: Tenant) -> None:
    def increase(session: OrmSession) -> None:
        settings = tenants.by_slug(session, "acme").settings
        tenants.merge_settings(session, acme.id, {"visits": settings.get("visits", 0) + 1})

    race(*[partial(serializable, increase)] * 3)
    with Session() as session:
        assert tenants.by_slug(session, "acme").settings == {"visits": 3}


def test_a_failure_that_is_no_conflict_is_not_retried() -> None:
    attempts = []

    def fail(session: OrmSession) -> None:
        attempts.append(1)
        session.execute(text("SELECT 1 / 0"))

    with pytest.raises(DBAPIError, match="division by zero"):
        serializable(fail)
    assert len(attempts) == 1


def test_conflicts_without_end_are_raised(alice: User) -> None:
    def conflict(session: OrmSession) -> None:
        session.execute(COUNT)
        with Session.begin() as other:
            other.execute(text("UPDATE users SET name = name || '!'"))
        session.execute(text("UPDATE users SET name = 'Alicia'"))

    with pytest.raises(OperationalError, match="could not serialize access"):
        serializable(conflict, attempts=3)
    with Session() as session:
        assert users.by_email(session, "alice@example.com").name == "Alice!!!"


def test_a_read_only_transaction_writes_nothing() -> None:
    with Session() as session, pytest.raises(DBAPIError, match="read-only transaction"):
        session.execute(text("SET TRANSACTION READ ONLY"))
        users.register(session, email="alice@example.com", name="Alice")


def test_time_stands_still_within_a_transaction() -> None:
    with Session.begin() as session:
        alice = users.register(session, email="alice@example.com", name="Alice")
        bob = users.register(session, email="bob@example.com", name="Bob")
        assert alice.created_at == bob.created_at
