"""Tenants, the people in them, and what they may do; the system tenant is its only row."""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = """
CREATE TABLE tenants (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slug text NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
    name text NOT NULL,
    country_code text NOT NULL REFERENCES countries,
    currency_code text NOT NULL REFERENCES currencies,
    is_system boolean NOT NULL DEFAULT false,
    settings jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX tenants_one_system ON tenants (is_system) WHERE is_system;

CREATE TABLE users (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text NOT NULL,
    email_key text NOT NULL GENERATED ALWAYS AS (lower(email)) STORED,
    name text NOT NULL,
    deactivated_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_active_email ON users (email_key) WHERE deactivated_at IS NULL;

CREATE TABLE memberships (
    tenant_id bigint REFERENCES tenants ON DELETE CASCADE,
    user_id bigint REFERENCES users,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member')),
    PRIMARY KEY (tenant_id, user_id)
);
CREATE UNIQUE INDEX memberships_one_owner ON memberships (tenant_id) WHERE role = 'owner';

CREATE TABLE invitations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    invited_by bigint NOT NULL REFERENCES users,
    email text NOT NULL,
    role text NOT NULL CHECK (role IN ('admin', 'member')),
    accepted_at timestamptz
);
CREATE UNIQUE INDEX invitations_one_open ON invitations (tenant_id, email) WHERE accepted_at IS NULL;

CREATE TABLE api_keys (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    name text NOT NULL,
    digest bytea NOT NULL UNIQUE,
    uses integer NOT NULL DEFAULT 0,
    revoked_at timestamptz,
    UNIQUE (tenant_id, name)
);

CREATE TABLE subscriptions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    plan_code text NOT NULL REFERENCES plans,
    starts_on date NOT NULL DEFAULT current_date,
    ends_on date,
    CHECK (ends_on >= starts_on)
);
CREATE UNIQUE INDEX subscriptions_one_running ON subscriptions (tenant_id) WHERE ends_on IS NULL;
"""

ROWS = """
INSERT INTO tenants (slug, name, country_code, currency_code, is_system) VALUES ('system', 'System', 'DE', 'EUR', true);
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(ROWS)


def downgrade() -> None:
    op.execute("DROP TABLE subscriptions, api_keys, invitations, memberships, users, tenants")
