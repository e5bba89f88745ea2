"""Advisory locks, row locks, and deadlines."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TypeAlias

import psycopg
import pytest
from psycopg.rows import TupleRow
from support import race, wait_until_blocked

from booking import db
from booking.db import Session
from booking.errors import Taken
from booking.models import Room, User
from booking.services import locks

Connection: TypeAlias = psycopg.Connection[TupleRow]


@pytest.fixture
def one() -> Iterator[Connection]:
    with db.connect(autocommit=True) as connection:
        yield connection


@pytest.fixture
def other() -> Iterator[Connection]:
    with db.connect(autocommit=True) as connection:
        yield connection


def test_a_lock_is_held_by_one(one: Connection, other: Connection) -> None:
    with locks.exclusive(one, "nightly"), pytest.raises(Taken, match="nightly"), locks.exclusive(other, "nightly"):
        pass


def test_a_lock_is_free_after_its_block(one: Connection, other: Connection) -> None:
    with locks.exclusive(one, "nightly"):
        pass
    with locks.exclusive(other, "nightly"):
        pass


def test_a_lock_is_free_when_its_connection_is_gone() -> None:
    with db.connect(autocommit=True) as one:
        one.execute("SELECT pg_advisory_lock(42)")
    with db.connect(autocommit=True) as other:
        other.execute("SET lock_timeout = '2s'")
        other.execute("SELECT pg_advisory_lock(42)")


def test_different_names_are_different_locks(one: Connection, other: Connection) -> None:
    with locks.exclusive(one, "nightly"), locks.exclusive(other, "hourly"):
        pass


def test_a_transactions_lock_ends_with_it() -> None:
    with Session() as one, Session() as other:
        assert locks.try_in_transaction(one, "invoicing")
        assert not locks.try_in_transaction(other, "invoicing")
        one.rollback()
        assert locks.try_in_transaction(other, "invoicing")


def test_of_six_who_want_a_lock_at_once_one_gets_it() -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(db.connect(autocommit=True)) for _ in range(6)]
        outcomes = race(*(partial(stack.enter_context, locks.exclusive(one, "nightly")) for one in connections))
        assert sum(isinstance(outcome, Taken) for outcome in outcomes) == 5


def test_nowait_does_not_wait(alice: User) -> None:
    with db.connect() as one, db.connect() as other:
        one.execute("SELECT FROM users FOR UPDATE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("SELECT FROM users FOR UPDATE NOWAIT")


def test_readers_do_not_wait_for_a_row_lock(alice: User) -> None:
    with db.connect() as one, db.connect() as other:
        one.execute("UPDATE users SET name = 'Alicia'")
        assert other.execute("SELECT name FROM users").fetchone() == ("Alice",)


def test_a_share_lock_admits_another(alice: User) -> None:
    with db.connect() as one, db.connect() as other:
        one.execute("SELECT FROM users FOR SHARE")
        assert other.execute("SELECT id FROM users FOR SHARE NOWAIT").fetchall() == [(1,)]


def test_a_locked_table_refuses_a_writer_after_its_deadline(alice: User) -> None:
    with db.connect() as one, db.connect() as other:
        one.execute("LOCK TABLE users IN SHARE MODE")
        other.execute("SET lock_timeout = '10ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("UPDATE users SET name = 'Alicia'")


def test_a_slow_statement_is_cancelled() -> None:
    with db.connect() as connection:
        connection.execute("SET statement_timeout = '10ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(5)")


def test_of_two_who_lock_in_opposite_order_the_impatient_one_gives_up(blue_room: Room, red_room: Room) -> None:
    rename = "UPDATE rooms SET name = 'Green room' WHERE id = %s"
    with ThreadPoolExecutor(1) as pool, db.connect() as patient, db.connect() as impatient:
        patient.execute(rename, [1])
        impatient.execute(rename, [2])
        waiting = pool.submit(patient.execute, rename, [2])
        wait_until_blocked(patient)
        impatient.execute("SET lock_timeout = '10ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            impatient.execute(rename, [1])
        impatient.rollback()
        assert waiting.result(timeout=5).rowcount == 1
