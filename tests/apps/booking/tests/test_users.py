"""Users and their e-mail addresses."""

import pytest
from sqlalchemy import select
from support import count, race

from booking.db import Session, fetch
from booking.errors import EmailTaken, NotFound, WrongState
from booking.models import Tenant, User
from booking.services import users


def test_the_first_user_is_number_one(alice: User) -> None:
    assert alice.id == 1


def test_there_is_exactly_one_user(alice: User) -> None:
    assert count(User) == 1


def test_users_are_numbered_in_order(alice: User, bob: User) -> None:
    assert (alice.id, bob.id) == (1, 2)


@pytest.mark.parametrize("email", ["alice@example.com", "ALICE@example.com", "Alice@Example.Com"])
def test_an_address_belongs_to_one_user_whatever_its_case(alice: User, email: str) -> None:
    with Session() as session, pytest.raises(EmailTaken):
        users.register(session, email=email, name="Impostor")


@pytest.mark.parametrize("email", ["alice@example.com", "ALICE@EXAMPLE.COM"])
def test_a_user_is_found_whatever_the_case(alice: User, email: str) -> None:
    with Session() as session:
        assert users.by_email(session, email).id == alice.id


def test_an_address_keeps_the_case_it_was_given() -> None:
    with Session.begin() as session:
        users.register(session, email="Alice@Example.com", name="Alice")
    with Session() as session:
        assert session.execute(select(User.email, User.email_key)).one() == ("Alice@Example.com", "alice@example.com")


def test_an_unknown_address_is_not_found() -> None:
    with Session() as session, pytest.raises(NotFound, match="alice@example.com"):
        users.by_email(session, "alice@example.com")


def test_a_changed_address_frees_the_old_one(alice: User) -> None:
    with Session.begin() as session:
        users.change_email(session, alice.id, "alice@example.org")
        users.register(session, email="alice@example.com", name="Other Alice")
    assert count(User) == 2


def test_an_address_cannot_be_changed_to_anothers(alice: User, bob: User) -> None:
    with Session() as session, pytest.raises(EmailTaken):
        users.change_email(session, bob.id, "Alice@example.com")


def test_a_deactivated_user_is_not_found(bob: User) -> None:
    with Session.begin() as session:
        users.deactivate(session, bob.id)
    with Session() as session, pytest.raises(NotFound):
        users.by_email(session, "bob@example.com")


def test_a_deactivated_users_address_can_be_registered_again(bob: User) -> None:
    with Session.begin() as session:
        users.deactivate(session, bob.id)
        again = users.register(session, email="bob@example.com", name="Bob")
    assert again.id == 2


def test_an_owner_cannot_be_deactivated(acme: Tenant, alice: User) -> None:
    with Session() as session, pytest.raises(WrongState, match="still owns"):
        users.deactivate(session, alice.id)


def test_a_rolled_back_registration_uses_up_its_id() -> None:
    with Session() as session:
        users.register(session, email="alice@example.com", name="Alice")
        session.rollback()
        assert users.register(session, email="alice@example.com", name="Alice").id == 2


def test_an_unknown_user_is_not_found() -> None:
    with Session() as session, pytest.raises(NotFound, match="no row 1 in users"):
        fetch(session, User, 1)


def test_of_six_who_register_an_address_at_once_one_succeeds() -> None:
    def register() -> User:
        with Session.begin() as session:
            return users.register(session, email="alice@example.com", name="Alice")

    outcomes = race(*[register] * 6)
    assert [type(outcome) for outcome in outcomes].count(User) == 1
    assert count(User) == 1
