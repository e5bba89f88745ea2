"""Currencies, countries, tax rates and plans, with their rows."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE currencies (
    code text PRIMARY KEY CHECK (code ~ '^[A-Z]{3}$'),
    name text NOT NULL,
    minor_units integer NOT NULL
);

CREATE TABLE countries (
    code text PRIMARY KEY CHECK (code ~ '^[A-Z]{2}$'),
    name text NOT NULL UNIQUE
);

CREATE TABLE tax_rates (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    country_code text NOT NULL REFERENCES countries,
    kind text NOT NULL CHECK (kind IN ('standard', 'reduced')),
    percent numeric(12, 2) NOT NULL CHECK (percent BETWEEN 0 AND 100),
    UNIQUE (country_code, kind)
);

CREATE TABLE plans (
    code text PRIMARY KEY,
    name text NOT NULL UNIQUE,
    monthly_price numeric(12, 2) NOT NULL CHECK (monthly_price >= 0),
    currency_code text NOT NULL REFERENCES currencies,
    max_venues integer CHECK (max_venues > 0)
);
"""

ROWS = """
INSERT INTO currencies (code, name, minor_units) VALUES
    ('CHF', 'Swiss franc', 2), ('EUR', 'Euro', 2), ('GBP', 'Pound sterling', 2),
    ('JPY', 'Yen', 0), ('USD', 'US dollar', 2);

INSERT INTO countries (code, name) VALUES
    ('AT', 'Austria'), ('CH', 'Switzerland'), ('DE', 'Germany'),
    ('FR', 'France'), ('GB', 'United Kingdom'), ('JP', 'Japan');

INSERT INTO tax_rates (country_code, kind, percent) VALUES
    ('AT', 'standard', 20), ('AT', 'reduced', 10), ('CH', 'standard', 8.1), ('CH', 'reduced', 2.6),
    ('DE', 'standard', 19), ('DE', 'reduced', 7), ('FR', 'standard', 20), ('FR', 'reduced', 5.5),
    ('GB', 'standard', 20), ('GB', 'reduced', 5), ('JP', 'standard', 10), ('JP', 'reduced', 8);

INSERT INTO plans (code, name, monthly_price, currency_code, max_venues) VALUES
    ('free', 'Free', 0, 'EUR', 1), ('team', 'Team', 29, 'EUR', 3), ('business', 'Business', 99, 'EUR', NULL);
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(ROWS)


def downgrade() -> None:
    op.execute("DROP TABLE plans, tax_rates, countries, currencies")
