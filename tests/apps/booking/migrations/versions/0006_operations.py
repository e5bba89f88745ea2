"""What runs beside the business: jobs, webhooks, notifications, rate limits, the audit trail and a report."""

from alembic import op

revision = "0006"
down_revision = "0005"

TABLES = """
CREATE TABLE jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue text NOT NULL,
    payload jsonb NOT NULL,
    status text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'done', 'failed')),
    attempts integer NOT NULL DEFAULT 0,
    done_by text
);
CREATE INDEX jobs_queued ON jobs (queue, id) WHERE status = 'queued';

CREATE TABLE webhooks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants ON DELETE CASCADE,
    url text NOT NULL CHECK (url ~ '^https://'),
    events text[] NOT NULL CHECK (cardinality(events) > 0),
    UNIQUE (tenant_id, url)
);

CREATE TABLE webhook_deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    webhook_id bigint NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    event text NOT NULL,
    payload jsonb NOT NULL,
    status text NOT NULL DEFAULT 'due' CHECK (status IN ('due', 'delivered', 'dead')),
    attempts integer NOT NULL DEFAULT 0
);

CREATE TABLE notifications (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id bigint NOT NULL REFERENCES users,
    body text NOT NULL,
    read_at timestamptz
);

-- Losing the counters in a crash is fine, writing them to the log at every request is not.
CREATE UNLOGGED TABLE rate_limits (
    key text PRIMARY KEY,
    window_start timestamptz NOT NULL,
    hits integer NOT NULL
);
"""

AUDIT = """
-- Written so often that each session takes its ids in blocks.
CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY (CACHE 20) PRIMARY KEY,
    table_name text NOT NULL,
    row_id bigint NOT NULL,
    action text NOT NULL,
    actor text,
    before jsonb,
    after jsonb,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    after jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
BEGIN
    INSERT INTO audit_log (table_name, row_id, action, actor, before, after)
    VALUES (TG_TABLE_NAME, (coalesce(after, before) ->> 'id')::bigint, TG_OP,
            nullif(current_setting('booking.actor', true), ''), before, after);
    RETURN NULL;
END $$;

CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON bookings FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON invoices FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON payments FOR EACH ROW EXECUTE FUNCTION audit();

CREATE FUNCTION announce_booking() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('bookings', json_build_object('id', NEW.id, 'status', NEW.status)::text);
    RETURN NULL;
END $$;

CREATE TRIGGER announce AFTER INSERT OR UPDATE OF status ON bookings
    FOR EACH ROW EXECUTE FUNCTION announce_booking();
"""

REPORT = """
CREATE SCHEMA reporting;

CREATE MATERIALIZED VIEW reporting.venue_revenue AS
SELECT rooms.venue_id, count(*) AS bookings, sum(bookings.hours) AS hours, sum(bookings.price) AS revenue
FROM bookings JOIN rooms ON rooms.id = bookings.room_id
WHERE bookings.status = 'confirmed'
GROUP BY rooms.venue_id;

CREATE UNIQUE INDEX venue_revenue_venue_id_idx ON reporting.venue_revenue (venue_id);
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(AUDIT)
    op.execute(REPORT)


def downgrade() -> None:
    op.execute(
        "DROP SCHEMA reporting CASCADE;"
        "DROP TRIGGER audit ON bookings; DROP TRIGGER audit ON invoices; DROP TRIGGER audit ON payments;"
        "DROP TRIGGER announce ON bookings; DROP FUNCTION audit, announce_booking;"
        "DROP TABLE audit_log, rate_limits, notifications, webhook_deliveries, webhooks, jobs"
    )
