"""Invoices numbered by a sequence, payments, and refunds numbered without gaps."""

from alembic import op

revision = "0005"
down_revision = "0004"

TABLES = """
CREATE SEQUENCE invoice_numbers;

CREATE TABLE invoices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants,
    booking_id bigint NOT NULL REFERENCES bookings,
    currency_code text NOT NULL REFERENCES currencies,
    number text UNIQUE,
    status text NOT NULL DEFAULT 'draft' CHECK (status IN ('draft', 'issued', 'paid', 'void')),
    issued_on date,
    CHECK ((status = 'draft') = (number IS NULL)),
    CHECK ((number IS NULL) = (issued_on IS NULL))
);
CREATE UNIQUE INDEX invoices_one_per_booking ON invoices (booking_id) WHERE status <> 'void';

CREATE TABLE invoice_lines (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    invoice_id bigint NOT NULL REFERENCES invoices ON DELETE CASCADE,
    position integer NOT NULL,
    text text NOT NULL,
    quantity numeric(12, 2) NOT NULL,
    unit_price numeric(12, 2) NOT NULL,
    tax_percent numeric(12, 2) NOT NULL,
    net numeric(12, 2) NOT NULL GENERATED ALWAYS AS (quantity * unit_price) STORED,
    tax numeric(12, 2) NOT NULL GENERATED ALWAYS AS (quantity * unit_price * tax_percent / 100) STORED,
    UNIQUE (invoice_id, position)
);

CREATE TABLE payments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    invoice_id bigint NOT NULL REFERENCES invoices,
    amount numeric(12, 2) NOT NULL CHECK (amount > 0),
    reference text NOT NULL UNIQUE,
    received_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE number_series (
    tenant_id bigint REFERENCES tenants ON DELETE CASCADE,
    kind text,
    last integer NOT NULL,
    PRIMARY KEY (tenant_id, kind)
);

CREATE TABLE refunds (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id bigint NOT NULL REFERENCES payments,
    number text NOT NULL,
    amount numeric(12, 2) NOT NULL CHECK (amount > 0),
    reason text NOT NULL
);
"""


def upgrade() -> None:
    op.execute(TABLES)


def downgrade() -> None:
    op.execute("DROP TABLE refunds, number_series, payments, invoice_lines, invoices; DROP SEQUENCE invoice_numbers")
