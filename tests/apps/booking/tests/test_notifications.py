"""Messages inside the application, and how often it may be asked for them."""

from datetime import timedelta

import pytest
from support import at, count, race

from booking.db import Session, fetch
from booking.errors import LimitReached
from booking.models import Notification, RateLimit, Tenant, User
from booking.services import members, notifications, rate_limits


def hit(hour: int = 10, key: str = "alice@example.com") -> int:
    with Session.begin() as session:
        return rate_limits.hit(session, key=key, limit=3, window_start=at(hour))


def test_every_member_is_told(acme: Tenant, alice: User, bob: User) -> None:
    with Session.begin() as session:
        members.add(session, tenant_id=acme.id, user_id=bob.id, role="member")
        assert notifications.notify_tenant(session, acme.id, "Closed on Friday") == 2
        assert notifications.unread(session, bob.id) == ["Closed on Friday"]


def test_others_are_not_told(acme: Tenant, bob: User) -> None:
    with Session.begin() as session:
        notifications.notify_tenant(session, acme.id, "Closed on Friday")
        assert notifications.unread(session, bob.id) == []


def test_unread_messages_come_oldest_first(acme: Tenant, alice: User) -> None:
    with Session.begin() as session:
        for body in ("one", "two", "three"):
            notifications.notify_tenant(session, acme.id, body)
        assert notifications.unread(session, alice.id) == ["one", "two", "three"]


def test_read_messages_are_kept(acme: Tenant, alice: User) -> None:
    with Session.begin() as session:
        notifications.notify_tenant(session, acme.id, "Closed on Friday")
        notifications.mark_read(session, alice.id)
        assert notifications.unread(session, alice.id) == []
    assert count(Notification) == 1


def test_the_limit_counts_down() -> None:
    assert [hit(), hit(), hit()] == [2, 1, 0]


def test_one_too_many_is_refused() -> None:
    for _ in range(3):
        hit()
    with pytest.raises(LimitReached, match="more than 3 requests by alice@example.com"):
        hit()


def test_a_new_window_starts_from_zero() -> None:
    for _ in range(3):
        hit(hour=10)
    assert hit(hour=11) == 2
    with Session() as session:
        assert fetch(session, RateLimit, "alice@example.com").window_start - at(10) == timedelta(hours=1)


def test_each_key_has_its_own_count() -> None:
    hit()
    assert hit(key="bob@example.com") == 2


def test_of_eight_requests_at_once_three_are_served() -> None:
    outcomes = race(*[hit] * 8)
    assert sorted(outcome for outcome in outcomes if isinstance(outcome, int)) == [0, 1, 2]
