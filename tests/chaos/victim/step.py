"""What builds the template of a run: enough of it that a moment in the middle can be hit."""

import os

import psycopg
from moments import reach

with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
    connection.execute("CREATE TABLE much AS SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n")
    reach("template")
