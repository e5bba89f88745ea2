"""An application's pool, made once and left alone, never hands a test a connection that a reset has cut off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Target

APP = """
import os
import sqlalchemy

url = sqlalchemy.make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
engine = sqlalchemy.create_engine(url, pool_size=5)
other = sqlalchemy.create_engine("sqlite://")
"""

TESTS = """
import threading
import app
import pytest
import sqlalchemy

with app.other.begin() as connection:
    connection.execute(sqlalchemy.text("CREATE TABLE kept (i int)"))


@pytest.mark.parametrize("number", range(6))
def test_it_commits(number):
    held = [app.engine.connect() for _ in range(3)]
    for connection in held:
        connection.execute(sqlalchemy.text("SELECT 1"))
        connection.close()
    with app.engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (i int)"))


def test_another_databases_pool_is_left_alone():
    with app.other.begin() as connection:
        connection.execute(sqlalchemy.text("SELECT * FROM kept"))
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sqlalchemys_pools_reconnect_without_being_asked_to(project: Path, some_target: Target, workers: str) -> None:
    (project / "app.py").write_text(APP)
    (project / "test_app.py").write_text(TESTS)
    flags = ["-p", "pgsandbox", "--pgsandbox-autouse=true", "-q", "-W", "error", *some_target.flags, "-n", workers]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags], capture_output=True, text=True, timeout=100, check=False
    )
    assert "7 passed" in done.stdout, done.stdout
