"""The spare clone of a kept cluster, which the first worker gets, and the template, which comes when it is wanted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Target
from machine import running

from pgsandbox.errors import ServerError
from pgsandbox.server import Server

if TYPE_CHECKING:
    from pgsandbox import Sandbox


_DATABASE = """
    SELECT datdba, datacl, datconnlimit, datallowconn, shobj_description(oid, 'pg_database') FROM pg_database
    WHERE datname = current_database()
"""


@pytest.fixture
def seeded(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox whose server was started from a kept cluster."""
    (tmp_path / "schema.sql").write_text(
        "CREATE TABLE item (id serial PRIMARY KEY, name text);\n"
        "INSERT INTO item (name) VALUES ('one'), ('two');\n"
        "COMMENT ON DATABASE pgsandbox_template IS 'a shop';\n"
    )
    monkeypatch.chdir(tmp_path)
    with running(init=["schema.sql"], scope="session", workers=2, **target.settings) as sandbox:
        yield sandbox


def test_the_first_worker_gets_the_spare_clone_and_the_others_are_the_same(seeded: Sandbox) -> None:
    server = seeded.server
    assert server.has_database(server.names.spare)
    found = []
    for worker in ("gw0", "gw1"):
        database = seeded.database(worker)
        assert not server.has_database(server.names.spare)
        with database.connect() as connection:
            state = [
                connection.execute(query).fetchall()
                for query in (
                    "SELECT oid, relname, relfilenode, relowner, relacl FROM pg_class ORDER BY oid",
                    "SELECT last_value, log_cnt, is_called FROM item_id_seq",
                    "SELECT * FROM item ORDER BY id",
                    _DATABASE,
                )
            ]
        found.append(repr(state).replace(worker, "WORKER"))
    assert found[0] == found[1]
    assert "a shop" in found[0]


def test_of_workers_that_come_at_once_one_gets_the_spare_clone(seeded: Sandbox) -> None:
    taken = []

    def take(name: str) -> None:
        server = Server(seeded.server.running)
        with contextlib.closing(server):
            taken.append(server.take_spare(name, limit=5))

    threads = [threading.Thread(target=take, args=(f"pgsandbox_racer_{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False, False, False, True]


def test_a_local_server_gets_its_template_when_one_more_clone_is_wanted(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        server = sandbox.server
        [(oid,)] = server.execute("SELECT oid FROM pg_database WHERE datname = %s", [server.names.template])
        version = Path(f"{server.running.socket}/base/{oid}/PG_VERSION")
        with sandbox.database().connect() as connection:
            connection.execute("CREATE TABLE t ()")
        assert not version.exists()
        with sandbox.fresh().connect() as connection:
            assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)
        assert version.exists()


def test_a_template_that_can_not_be_unpacked_is_no_reason_to_wait(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        sandbox.database()
        Path(f"{sandbox.server.running.socket}/pgsandbox.whole").write_text("no space is left there")
        with pytest.raises(ServerError) as caught:
            sandbox.fresh()
    assert str(caught.value) == (
        "pgsandbox: the template could not be unpacked\n"
        "  why: no space is left there\n"
        "  hint: free some space where the server's data is"
    )
