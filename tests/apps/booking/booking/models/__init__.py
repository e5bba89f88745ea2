"""The tables, as classes."""

from booking.models.base import Base
from booking.models.billing import INVOICE_NUMBERS, Invoice, InvoiceLine, NumberSeries, Payment, Refund
from booking.models.operations import AuditEntry, Job, Notification, RateLimit, Webhook, WebhookDelivery
from booking.models.places import Closure, OpeningHours, PriceRule, Resource, Room, RoomResource, Venue
from booking.models.reference import Country, Currency, Plan, TaxRate
from booking.models.reservations import (
    Booking,
    BookingItem,
    BookingStatus,
    BookingTag,
    Coupon,
    CouponRedemption,
    Guest,
    Tag,
)
from booking.models.tenancy import ApiKey, Invitation, Membership, Subscription, Tenant, User

__all__ = [
    "INVOICE_NUMBERS",
    "ApiKey",
    "AuditEntry",
    "Base",
    "Booking",
    "BookingItem",
    "BookingStatus",
    "BookingTag",
    "Closure",
    "Country",
    "Coupon",
    "CouponRedemption",
    "Currency",
    "Guest",
    "Invitation",
    "Invoice",
    "InvoiceLine",
    "Job",
    "Membership",
    "Notification",
    "NumberSeries",
    "OpeningHours",
    "Payment",
    "Plan",
    "PriceRule",
    "RateLimit",
    "Refund",
    "Resource",
    "Room",
    "RoomResource",
    "Subscription",
    "Tag",
    "TaxRate",
    "Tenant",
    "User",
    "Venue",
    "Webhook",
    "WebhookDelivery",
]
