"""Runs the migrations in one transaction on the database that DATABASE_URL names."""

from alembic import context

from booking.db import engine
from booking.models import Base

with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
