"""A tenant's guests, one by one and by the thousand."""

import csv
import io
from collections.abc import Iterable

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy.orm import Session

from booking.errors import EmailTaken, refusing
from booking.models import Guest


def add(session: Session, *, tenant_id: int, email: str, name: str) -> Guest:
    guest = Guest(tenant_id=tenant_id, email=email, name=name)
    with refusing(session, {"guests_tenant_id_email_key": EmailTaken(email)}):
        session.add(guest)
    return guest


def load(connection: psycopg.Connection[TupleRow], tenant_id: int, rows: Iterable[tuple[str, str | None]]) -> int:
    """Copy rows of e-mail address and name in, the newer name winning; how many guests are new or changed."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE incoming (email text, name text) ON COMMIT DROP")
        with cursor.copy("COPY incoming FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute(
            """
            INSERT INTO guests (tenant_id, email, name)
            SELECT %s, email, max(name) FROM incoming GROUP BY email
            ON CONFLICT (tenant_id, email) DO UPDATE SET name = excluded.name WHERE guests.name <> excluded.name
            """,
            [tenant_id],
        )
        return cursor.rowcount


def dump(connection: psycopg.Connection[TupleRow], tenant_id: int) -> list[list[str]]:
    """Every guest's e-mail address and name, by address, after a row of headings."""
    query = "COPY (SELECT email, name FROM guests WHERE tenant_id = {} ORDER BY email) TO STDOUT (FORMAT csv, HEADER)"
    with connection.cursor() as cursor, cursor.copy(psycopg.sql.SQL(query).format(tenant_id)) as copy:
        content = b"".join(bytes(block) for block in copy)
    return list(csv.reader(io.StringIO(content.decode())))
