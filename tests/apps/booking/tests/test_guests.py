"""Guests, one by one and by COPY."""

import psycopg
import pytest
from support import count

from booking import db
from booking.db import Session
from booking.errors import EmailTaken
from booking.models import Guest, Tenant
from booking.services import guests

ROWS = [("gina@example.com", "Gina"), ("hugo@example.com", "Hugo"), ("ines@example.com", "Inès")]


def test_a_tenants_guests_have_different_addresses(gina: Guest, acme: Tenant) -> None:
    with Session() as session, pytest.raises(EmailTaken):
        guests.add(session, tenant_id=acme.id, email="gina@example.com", name="Other Gina")


def test_two_tenants_can_have_the_same_guest(gina: Guest, globex: Tenant) -> None:
    with Session.begin() as session:
        guests.add(session, tenant_id=globex.id, email="gina@example.com", name="Gina")
    assert count(Guest) == 2


def test_guests_are_loaded(acme: Tenant) -> None:
    with db.connect() as connection:
        assert guests.load(connection, acme.id, ROWS) == 3
    assert count(Guest) == 3


def test_loading_again_changes_nothing(acme: Tenant) -> None:
    with db.connect() as connection:
        guests.load(connection, acme.id, ROWS)
        assert guests.load(connection, acme.id, ROWS) == 0
    assert count(Guest) == 3


def test_loading_updates_names(gina: Guest, acme: Tenant) -> None:
    with db.connect() as connection:
        assert guests.load(connection, acme.id, [("gina@example.com", "Regina")]) == 1
        assert connection.execute("SELECT id, name FROM guests").fetchall() == [(1, "Regina")]


def test_a_thousand_guests_are_loaded_at_once(acme: Tenant) -> None:
    with db.connect() as connection:
        guests.load(connection, acme.id, ((f"guest-{number}@example.com", "Guest") for number in range(1000)))
    assert count(Guest) == 1000


def test_a_row_without_a_name_spoils_the_load(acme: Tenant) -> None:
    with db.connect() as connection, pytest.raises(psycopg.errors.NotNullViolation):
        guests.load(connection, acme.id, [*ROWS, ("jan@example.com", None)])
    assert count(Guest) == 0


def test_what_was_loaded_can_be_dumped(acme: Tenant) -> None:
    with db.connect() as connection:
        guests.load(connection, acme.id, reversed(ROWS))
        assert guests.dump(connection, acme.id) == [["email", "name"], *map(list, ROWS)]


def test_a_dump_has_the_tenants_guests_only(gina: Guest, globex: Tenant) -> None:
    with db.connect() as connection:
        assert guests.dump(connection, globex.id) == [["email", "name"]]
