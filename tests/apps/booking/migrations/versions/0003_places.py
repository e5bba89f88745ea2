"""Venues and what is in them: rooms, resources, opening hours, closures and price rules."""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = """
CREATE TABLE venues (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    slug text NOT NULL,
    name text NOT NULL,
    time_zone text NOT NULL DEFAULT 'UTC',
    UNIQUE (tenant_id, slug)
);

CREATE TABLE rooms (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    venue_id bigint NOT NULL REFERENCES venues ON DELETE CASCADE,
    slug text NOT NULL,
    name text NOT NULL,
    capacity integer NOT NULL CHECK (capacity > 0),
    hourly_price numeric(12, 2) NOT NULL CHECK (hourly_price >= 0),
    UNIQUE (venue_id, slug)
);

CREATE TABLE resources (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    slug text NOT NULL,
    name text NOT NULL,
    price numeric(12, 2) NOT NULL CHECK (price >= 0),
    stock integer NOT NULL CHECK (stock >= 0),
    UNIQUE (tenant_id, slug)
);

CREATE TABLE room_resources (
    room_id bigint REFERENCES rooms ON DELETE CASCADE,
    resource_id bigint REFERENCES resources,
    quantity integer NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (room_id, resource_id)
);

CREATE TABLE opening_hours (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    venue_id bigint NOT NULL REFERENCES venues ON DELETE CASCADE,
    weekday integer NOT NULL CHECK (weekday BETWEEN 1 AND 7),
    opens time NOT NULL,
    closes time NOT NULL,
    UNIQUE (venue_id, weekday),
    CHECK (opens < closes)
);

CREATE TABLE closures (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    venue_id bigint NOT NULL REFERENCES venues ON DELETE CASCADE,
    day date NOT NULL,
    reason text NOT NULL,
    UNIQUE (venue_id, day)
);

CREATE TABLE price_rules (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room_id bigint NOT NULL REFERENCES rooms ON DELETE CASCADE,
    weekday integer NOT NULL CHECK (weekday BETWEEN 1 AND 7),
    percent numeric(12, 2) NOT NULL CHECK (percent > -100),
    UNIQUE (room_id, weekday)
);
"""


def upgrade() -> None:
    op.execute(TABLES)


def downgrade() -> None:
    op.execute("DROP TABLE price_rules, closures, opening_hours, room_resources, resources, rooms, venues")
