"""The only module that knows where the database is: one engine, made at import, and plain connections beside it."""

import os
from typing import TypeVar

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import sessionmaker

from booking.errors import NotFound
from booking.models import Base

Row = TypeVar("Row", bound=Base)

URL = os.environ["DATABASE_URL"]

engine = create_engine(
    make_url(URL).set(drivername="postgresql+psycopg"), pool_size=5, max_overflow=5, pool_pre_ping=True
)

Session = sessionmaker(engine, expire_on_commit=False)


def connect(*, autocommit: bool = False) -> psycopg.Connection[TupleRow]:
    """A connection outside the pool, for what belongs to a session: LISTEN, COPY, session locks."""
    return psycopg.connect(URL, autocommit=autocommit)


def fetch(session: OrmSession, model: type[Row], key: object, *, lock: bool = False) -> Row:
    """The row with this primary key, locked against other writers if asked; NotFound if there is none."""
    row = session.get(model, key, with_for_update={"key_share": True} if lock else None)
    if row is None:
        raise NotFound(f"no row {key} in {model.__tablename__}")
    return row
