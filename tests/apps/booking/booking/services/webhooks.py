"""Webhooks: an event becomes one delivery for each webhook that wants it."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from booking.errors import Invalid, Taken, refusing
from booking.models import Webhook, WebhookDelivery

MAX_ATTEMPTS = 3


def subscribe(session: Session, *, tenant_id: int, url: str, events: list[str]) -> Webhook:
    webhook = Webhook(tenant_id=tenant_id, url=url, events=events)
    refusals = {
        "webhooks_tenant_id_url_key": Taken(f"there is a webhook {url}"),
        "webhooks_url_check": Invalid("a webhook's URL starts with https://"),
        "webhooks_events_check": Invalid("a webhook wants at least one event"),
    }
    with refusing(session, refusals):
        session.add(webhook)
    return webhook


def publish(session: Session, tenant_id: int, event: str, payload: dict[str, Any]) -> int:
    """How many deliveries are due now because of this event."""
    wanted = (
        select(Webhook.id).where(Webhook.tenant_id == tenant_id, Webhook.events.contains([event])).order_by(Webhook.id)
    )
    webhook_ids = session.scalars(wanted).all()
    session.add_all(WebhookDelivery(webhook_id=webhook_id, event=event, payload=payload) for webhook_id in webhook_ids)
    session.flush()
    return len(webhook_ids)


def deliver(session: Session, send: Callable[[str, dict[str, Any]], bool]) -> int:
    """Tries every delivery that is due, and no other worker holds, once; how many got through."""
    due = session.execute(
        select(WebhookDelivery, Webhook.url)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(WebhookDelivery.status == "due")
        .order_by(WebhookDelivery.id)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    )
    outcomes = [_attempt(delivery, url, send) for delivery, url in due]
    session.flush()
    return sum(outcomes)


def _attempt(delivery: WebhookDelivery, url: str, send: Callable[[str, dict[str, Any]], bool]) -> bool:
    delivery.attempts += 1
    if delivered := send(url, {"event": delivery.event, **delivery.payload}):
        delivery.status = "delivered"
    elif delivery.attempts >= MAX_ATTEMPTS:
        delivery.status = "dead"
    return delivered
