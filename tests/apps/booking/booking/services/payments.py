"""Payments, each recorded once, and refunds, whose credit notes are numbered per tenant without gaps."""

from decimal import Decimal

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import AmountRefused, WrongState
from booking.models import Invoice, NumberSeries, Payment, Refund
from booking.services import invoices


def record(session: Session, *, invoice_id: int, amount: Decimal, reference: str) -> Payment:
    """Books a payment; the same reference again is the same payment. An invoice paid in full is paid."""
    invoice = fetch(session, Invoice, invoice_id, lock=True)
    known = session.scalar(select(Payment).where(Payment.reference == reference))
    if known is not None:
        return known
    if invoice.status != "issued":
        raise WrongState(f"the invoice is {invoice.status}")
    due = balance(session, invoice_id)
    if not 0 < amount <= due:
        raise AmountRefused(f"{amount} of {due} due")
    payment = Payment(invoice_id=invoice_id, amount=amount, reference=reference)
    session.add(payment)
    if amount == due:
        invoice.status = "paid"
    session.flush()
    return payment


def balance(session: Session, invoice_id: int) -> Decimal:
    """What is still to be paid."""
    paid = session.scalars(
        select(func.coalesce(func.sum(Payment.amount), 0)).where(Payment.invoice_id == invoice_id)
    ).one()
    return invoices.gross(session, invoice_id) - paid


def refund(session: Session, *, payment_id: int, amount: Decimal, reason: str) -> Refund:
    """Gives some or all of a payment back."""
    payment = fetch(session, Payment, payment_id, lock=True)
    refunded = session.scalars(
        select(func.coalesce(func.sum(Refund.amount), 0)).where(Refund.payment_id == payment_id)
    ).one()
    if not 0 < amount <= payment.amount - refunded:
        raise AmountRefused(f"{amount} of {payment.amount - refunded} left")
    tenant_id = fetch(session, Invoice, payment.invoice_id).tenant_id
    number = f"CN-{_next_number(session, tenant_id, 'credit note'):06}"
    credit = Refund(payment_id=payment_id, number=number, amount=amount, reason=reason)
    session.add(credit)
    session.flush()
    return credit


def _next_number(session: Session, tenant_id: int, kind: str) -> int:
    """Locks the series until the transaction ends, so that a number drawn in vain is drawn again."""
    statement = insert(NumberSeries).values(tenant_id=tenant_id, kind=kind, last=1)
    return session.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant_id", "kind"], set_={"last": NumberSeries.last + 1}
        ).returning(NumberSeries.last)
    ).scalar_one()
