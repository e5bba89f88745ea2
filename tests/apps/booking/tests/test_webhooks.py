"""Webhooks and their deliveries."""

from typing import Any

import pytest
from sqlalchemy import select
from support import count

from booking.db import Session
from booking.errors import Invalid, Taken
from booking.models import Booking, Tenant, Webhook, WebhookDelivery
from booking.services import bookings, webhooks

URL = "https://hooks.example.com/bookings"


@pytest.fixture
def webhook(acme: Tenant) -> Webhook:
    with Session.begin() as session:
        return webhooks.subscribe(session, tenant_id=acme.id, url=URL, events=["booking.confirmed"])


class Receiver:
    """Answers with what it was told to, in turn, and remembers what it was sent."""

    def __init__(self, *answers: bool) -> None:
        self.answers = iter(answers)
        self.received: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, url: str, payload: dict[str, Any]) -> bool:
        self.received.append((url, payload))
        return next(self.answers)


def deliver(receiver: Receiver) -> int:
    with Session.begin() as session:
        return webhooks.deliver(session, receiver)


def test_a_confirmed_booking_is_delivered(webhook: Webhook, confirmed: Booking) -> None:
    receiver = Receiver(True)
    assert deliver(receiver) == 1
    assert receiver.received == [(URL, {"event": "booking.confirmed", "booking": 1})]


def test_a_delivery_is_made_once(webhook: Webhook, confirmed: Booking) -> None:
    deliver(Receiver(True))
    assert deliver(Receiver()) == 0


def test_other_events_are_not_delivered(webhook: Webhook, booking: Booking) -> None:
    with Session.begin() as session:
        bookings.cancel(session, booking.id)
    assert count(WebhookDelivery) == 0


def test_other_tenants_hear_nothing(globex: Tenant, confirmed: Booking) -> None:
    with Session.begin() as session:
        webhooks.subscribe(session, tenant_id=globex.id, url=URL, events=["booking.confirmed"])
        assert webhooks.publish(session, globex.id + 1, "booking.confirmed", {}) == 0
    assert count(WebhookDelivery) == 0


def test_a_failed_delivery_is_tried_again(webhook: Webhook, confirmed: Booking) -> None:
    receiver = Receiver(False, True)
    assert [deliver(receiver), deliver(receiver)] == [0, 1]


def test_a_delivery_is_given_up_after_three_attempts(webhook: Webhook, confirmed: Booking) -> None:
    receiver = Receiver(False, False, False)
    for _ in range(4):
        deliver(receiver)
    with Session() as session:
        assert session.execute(select(WebhookDelivery.status, WebhookDelivery.attempts)).all() == [("dead", 3)]


def test_each_webhook_gets_its_own_delivery(webhook: Webhook, acme: Tenant) -> None:
    with Session.begin() as session:
        webhooks.subscribe(session, tenant_id=acme.id, url=f"{URL}/2", events=["booking.confirmed", "other"])
        assert webhooks.publish(session, acme.id, "booking.confirmed", {}) == 2
        assert webhooks.publish(session, acme.id, "other", {}) == 1


def test_what_one_worker_holds_another_does_not_deliver(webhook: Webhook, confirmed: Booking) -> None:
    with Session() as worker:
        assert webhooks.deliver(worker, Receiver(True)) == 1
        assert deliver(Receiver()) == 0


def test_a_url_is_subscribed_once(webhook: Webhook, acme: Tenant) -> None:
    with Session() as session, pytest.raises(Taken, match=URL):
        webhooks.subscribe(session, tenant_id=acme.id, url=URL, events=["booking.cancelled"])


@pytest.mark.parametrize(
    ("url", "events"), [("http://hooks.example.com", ["a"]), ("https://hooks.example.com", [])], ids=["url", "events"]
)
def test_nonsense_is_not_subscribed(acme: Tenant, url: str, events: list[str]) -> None:
    with Session() as session, pytest.raises(Invalid, match="a webhook"):
        webhooks.subscribe(session, tenant_id=acme.id, url=url, events=events)
