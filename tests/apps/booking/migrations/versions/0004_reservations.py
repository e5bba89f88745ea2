"""Guests, bookings that can't overlap in a room, their items, coupons and tags."""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLES = """
CREATE EXTENSION IF NOT EXISTS btree_gist;

CREATE TYPE booking_status AS ENUM ('pending', 'confirmed', 'cancelled');

CREATE TABLE guests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    email text NOT NULL,
    name text NOT NULL,
    UNIQUE (tenant_id, email)
);

CREATE TABLE bookings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room_id bigint NOT NULL REFERENCES rooms,
    guest_id bigint NOT NULL REFERENCES guests,
    during tstzrange NOT NULL,
    hours numeric(12, 2) GENERATED ALWAYS AS (extract(epoch FROM upper(during) - lower(during)) / 3600) STORED,
    status booking_status NOT NULL DEFAULT 'pending',
    price numeric(12, 2) NOT NULL CHECK (price >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT bookings_bounded CHECK (NOT isempty(during) AND NOT lower_inf(during) AND NOT upper_inf(during)),
    CONSTRAINT bookings_no_overlap EXCLUDE USING gist (room_id WITH =, during WITH &&) WHERE (status <> 'cancelled')
);
CREATE INDEX bookings_guest_id_idx ON bookings (guest_id);

CREATE TABLE booking_items (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    booking_id bigint NOT NULL REFERENCES bookings ON DELETE CASCADE,
    resource_id bigint NOT NULL REFERENCES resources,
    quantity integer NOT NULL CHECK (quantity > 0),
    unit_price numeric(12, 2) NOT NULL,
    total numeric(12, 2) NOT NULL GENERATED ALWAYS AS (quantity * unit_price) STORED,
    UNIQUE (booking_id, resource_id)
);

CREATE TABLE coupons (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    code text NOT NULL CHECK (code = upper(code)),
    percent numeric(12, 2) NOT NULL CHECK (percent > 0 AND percent <= 100),
    max_redemptions integer NOT NULL CHECK (max_redemptions > 0),
    redeemed integer NOT NULL DEFAULT 0,
    expires_on date,
    UNIQUE (tenant_id, code),
    CONSTRAINT coupons_not_exhausted CHECK (redeemed BETWEEN 0 AND max_redemptions)
);

CREATE TABLE coupon_redemptions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    coupon_id bigint NOT NULL REFERENCES coupons,
    booking_id bigint NOT NULL UNIQUE REFERENCES bookings,
    discount numeric(12, 2) NOT NULL CHECK (discount >= 0)
);

CREATE TABLE tags (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    name text NOT NULL,
    UNIQUE (tenant_id, name)
);

CREATE TABLE booking_tags (
    booking_id bigint REFERENCES bookings ON DELETE CASCADE,
    tag_id bigint REFERENCES tags ON DELETE CASCADE,
    PRIMARY KEY (booking_id, tag_id)
);
"""


def upgrade() -> None:
    op.execute(TABLES)


def downgrade() -> None:
    """The extension stays: it may have been there before, and is harmless."""
    op.execute(
        "DROP TABLE booking_tags, tags, coupon_redemptions, coupons, booking_items, bookings, guests;"
        "DROP TYPE booking_status"
    )
