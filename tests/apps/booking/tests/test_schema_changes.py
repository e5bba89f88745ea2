"""Tests that change the schema itself, the bluntest way to get into each other's way."""

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from support import at, count

from booking import db
from booking.db import Session, engine
from booking.models import Booking, Guest, Room, Tenant, User
from booking.services import bookings, users


def execute(*statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def scalar(query: str) -> object:
    with engine.connect() as connection:
        return connection.execute(text(query)).scalar_one()


def test_a_table_can_be_created() -> None:
    execute("CREATE TABLE scratch (id serial PRIMARY KEY, note text)", "INSERT INTO scratch (note) VALUES ('x')")
    assert scalar("SELECT id FROM scratch") == 1


def test_the_same_table_can_be_created_with_other_columns() -> None:
    execute("CREATE TABLE scratch (code text PRIMARY KEY)", "INSERT INTO scratch VALUES ('a'), ('b')")
    assert scalar("SELECT count(code) FROM scratch") == 2


def test_a_table_can_be_made_of_a_query(alice: User) -> None:
    execute("CREATE TABLE scratch AS SELECT id, email FROM users")
    assert scalar("SELECT email FROM scratch") == "alice@example.com"


def test_a_temporary_table_belongs_to_its_connection() -> None:
    with db.connect(autocommit=True) as one, db.connect(autocommit=True) as other:
        for connection in (one, other):
            connection.execute("CREATE TEMPORARY TABLE scratch (id int)")
        one.execute("INSERT INTO scratch VALUES (1)")
        assert other.execute("SELECT count(*) FROM scratch").fetchone() == (0,)


def test_a_temporary_table_hides_a_real_one(alice: User) -> None:
    with db.connect() as connection:
        connection.execute("CREATE TEMPORARY TABLE users (id int)")
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)
    assert count(User) == 1


def test_a_rolled_back_table_never_was() -> None:
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE scratch (id int)"))
        connection.rollback()
    assert "scratch" not in inspect(engine).get_table_names()


def test_a_column_can_be_added(alice: User) -> None:
    execute("ALTER TABLE users ADD COLUMN phone text DEFAULT 'none'")
    assert scalar("SELECT phone FROM users") == "none"


def test_a_column_can_be_dropped(acme: Tenant) -> None:
    execute("ALTER TABLE tenants DROP COLUMN settings")
    assert "settings" not in {column["name"] for column in inspect(engine).get_columns("tenants")}


def test_a_column_can_change_its_type(blue_room: Room) -> None:
    execute("ALTER TABLE rooms ALTER COLUMN capacity TYPE bigint")
    assert scalar("SELECT pg_typeof(capacity)::text FROM rooms") == "bigint"


def test_tables_can_be_dropped() -> None:
    execute("DROP TABLE booking_tags, tags")
    assert scalar("SELECT to_regclass('tags')") is None


def test_a_table_can_be_renamed(alice: User) -> None:
    execute("ALTER TABLE users RENAME TO people")
    assert scalar("SELECT count(*) FROM people") == 1


def test_everything_can_be_truncated(booking: Booking) -> None:
    execute("TRUNCATE tenants, users CASCADE")
    assert (count(Tenant), count(User), count(Booking)) == (0, 0, 0)


def test_truncating_can_restart_the_numbers(alice: User, bob: User) -> None:
    execute("TRUNCATE users RESTART IDENTITY CASCADE")
    with Session.begin() as session:
        assert users.register(session, email="alice@example.com", name="Alice").id == 1


def test_truncating_alone_does_not_restart_the_numbers(alice: User, bob: User) -> None:
    execute("TRUNCATE users CASCADE")
    with Session.begin() as session:
        assert users.register(session, email="alice@example.com", name="Alice").id == 3


def test_an_index_can_be_created_concurrently(alice: User) -> None:
    with db.connect(autocommit=True) as connection:
        connection.execute("CREATE INDEX CONCURRENTLY users_name ON users (name)")
    assert "users_name" in {index["name"] for index in inspect(engine).get_indexes("users")}


def test_a_constraint_can_be_added(alice: User) -> None:
    execute("ALTER TABLE users ADD CONSTRAINT unique_name UNIQUE (name)")
    with Session() as session, pytest.raises(IntegrityError, match="unique_name"):
        users.register(session, email="alice@example.org", name="Alice")


def test_without_the_constraint_a_room_is_booked_twice(booking: Booking, gina: Guest) -> None:
    execute("ALTER TABLE bookings DROP CONSTRAINT bookings_no_overlap")
    with Session.begin() as session:
        bookings.book(session, room_id=booking.room_id, guest_id=gina.id, start=at(10), end=at(12))
    assert count(Booking) == 2


def test_without_its_trigger_a_booking_is_not_audited(blue_room: Room, gina: Guest) -> None:
    execute("ALTER TABLE bookings DISABLE TRIGGER audit")
    with Session.begin() as session:
        bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=at(12))
    assert scalar("SELECT count(*) FROM audit_log") == 0


def test_a_status_can_be_added(booking: Booking) -> None:
    execute("ALTER TYPE booking_status ADD VALUE 'no show'")
    execute("UPDATE bookings SET status = 'no show'")
    assert scalar("SELECT status::text FROM bookings") == "no show"


def test_a_schema_can_have_tables_of_the_same_name(alice: User) -> None:
    execute("CREATE SCHEMA archive", "CREATE TABLE archive.users (LIKE users INCLUDING ALL)")
    assert scalar("SELECT count(*) FROM archive.users") == 0
    assert count(User) == 1


def test_a_function_can_be_replaced() -> None:
    execute("CREATE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 41'")
    execute("CREATE OR REPLACE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 42'")
    assert scalar("SELECT answer()") == 42


def test_a_view_can_be_created(booking: Booking) -> None:
    execute("CREATE VIEW busy AS SELECT room_id, during FROM bookings WHERE status <> 'cancelled'")
    assert scalar("SELECT count(*) FROM busy") == 1


def test_a_sequence_can_be_created() -> None:
    execute("CREATE SEQUENCE voucher_numbers START 1000 INCREMENT 5")
    assert [scalar("SELECT nextval('voucher_numbers')") for _ in range(3)] == [1000, 1005, 1010]


def test_a_partitioned_table_sorts_its_rows() -> None:
    execute(
        "CREATE TABLE visits (day date) PARTITION BY RANGE (day)",
        "CREATE TABLE visits_2030 PARTITION OF visits FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')",
        "INSERT INTO visits VALUES ('2030-06-03')",
    )
    assert scalar("SELECT count(*) FROM ONLY visits_2030") == 1


def test_a_table_can_be_commented() -> None:
    execute("COMMENT ON TABLE users IS 'everybody'", "ANALYZE users")
    assert scalar("SELECT obj_description('users'::regclass)") == "everybody"


def test_a_large_object_has_the_number_it_was_given() -> None:
    execute("SELECT lo_from_bytea(4711, 'contract')")
    assert scalar("SELECT convert_from(lo_get(4711), 'UTF8')") == "contract"


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(ProgrammingError, match='"scratch" does not exist'):
        execute("SELECT FROM scratch")
