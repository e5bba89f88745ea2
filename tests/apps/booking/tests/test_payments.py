"""Payments and refunds."""

from decimal import Decimal
from functools import partial

import pytest
from support import count, race

from booking.db import Session, fetch
from booking.errors import AmountRefused, NotFound, WrongState
from booking.models import Booking, Invoice, Payment, Refund
from booking.services import invoices, payments


@pytest.fixture
def payment(invoice: Invoice) -> Payment:
    """The invoice's 119, paid."""
    return pay(119)


def pay(amount: int | str, reference: str = "stripe-1") -> Payment:
    with Session.begin() as session:
        return payments.record(session, invoice_id=1, amount=Decimal(amount), reference=reference)


def refund(amount: int | str) -> Refund:
    with Session.begin() as session:
        return payments.refund(session, payment_id=1, amount=Decimal(amount), reason="rain")


def test_a_full_payment_pays_the_invoice(payment: Payment) -> None:
    with Session() as session:
        assert fetch(session, Invoice, 1).status == "paid"
        assert payments.balance(session, 1) == 0


def test_a_part_leaves_the_rest_due(invoice: Invoice) -> None:
    pay("19.50")
    with Session() as session:
        assert payments.balance(session, invoice.id) == Decimal("99.50")
        assert fetch(session, Invoice, 1).status == "issued"


def test_parts_add_up(invoice: Invoice) -> None:
    pay(100, "stripe-1")
    pay(19, "stripe-2")
    with Session() as session:
        assert fetch(session, Invoice, 1).status == "paid"


@pytest.mark.parametrize("amount", ["0", "-1", "119.01", "1000"])
def test_nothing_less_than_one_cent_or_more_than_due_is_taken(invoice: Invoice, amount: str) -> None:
    with pytest.raises(AmountRefused, match="of 119.00 due"):
        pay(amount)


def test_the_same_reference_is_the_same_payment(invoice: Invoice) -> None:
    assert pay(50).id == pay(50).id == 1
    assert count(Payment) == 1


def test_a_reference_repeated_by_five_at_once_is_one_payment(invoice: Invoice) -> None:
    outcomes = race(*[partial(pay, 50)] * 5)
    assert {outcome.id for outcome in outcomes if isinstance(outcome, Payment)} == {1}
    assert count(Payment) == 1


def test_two_full_payments_at_once_are_one_and_a_refusal(invoice: Invoice) -> None:
    outcomes = race(partial(pay, 119, "stripe-1"), partial(pay, 119, "stripe-2"))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Payment", "WrongState"]


def test_a_draft_cannot_be_paid(confirmed: Booking) -> None:
    with Session.begin() as session:
        invoices.draft(session, confirmed.id)
    with pytest.raises(WrongState, match="is draft"):
        pay(119)


def test_a_paid_invoice_cannot_be_voided(payment: Payment) -> None:
    with Session() as session, pytest.raises(WrongState, match="is paid"):
        invoices.void(session, 1)


def test_an_unknown_invoice_cannot_be_paid() -> None:
    with pytest.raises(NotFound, match="invoices"):
        pay(119)


def test_the_first_credit_note_is_number_one(payment: Payment) -> None:
    assert refund(119).number == "CN-000001"


def test_parts_are_refunded_up_to_the_payment(payment: Payment) -> None:
    refund(100)
    refund(19)
    with pytest.raises(AmountRefused, match="of 0.00 left"):
        refund("0.01")


@pytest.mark.parametrize("amount", ["0", "-5", "119.01"])
def test_a_refund_is_no_more_than_the_payment(payment: Payment, amount: str) -> None:
    with pytest.raises(AmountRefused, match="of 119.00 left"):
        refund(amount)


def test_a_rolled_back_refund_leaves_no_gap(payment: Payment) -> None:
    with Session() as session:
        payments.refund(session, payment_id=1, amount=Decimal(1), reason="rain")
        session.rollback()
    assert refund(1).number == "CN-000001"


def test_concurrent_refunds_are_numbered_without_gaps(payment: Payment) -> None:
    outcomes = race(*[partial(refund, 10)] * 6)
    numbers = sorted(outcome.number for outcome in outcomes if isinstance(outcome, Refund))
    assert numbers == [f"CN-00000{number}" for number in range(1, 7)]


def test_concurrent_refunds_never_exceed_the_payment(payment: Payment) -> None:
    outcomes = race(*[partial(refund, 50)] * 4)
    assert sum(isinstance(outcome, AmountRefused) for outcome in outcomes) == 2
