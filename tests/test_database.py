"""A database's addresses: whatever its parts hold, every client that reads one arrives at the same place."""

from __future__ import annotations

import asyncio
import os
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
import sqlalchemy
from hypothesis import example, given, settings
from hypothesis.strategies import characters, integers, text
from machine import running
from psycopg.conninfo import conninfo_to_dict

from pgsandbox import Database, Sandbox, libpq, scram
from pgsandbox.database import Address

if TYPE_CHECKING:
    from conftest import Target

ODD = "o'd d\\:/?#[]@!$&()*+,;=%20~\"{}|^`<>\tü€\N{PILE OF POO}"
anything = text(characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
words = text(string.ascii_letters + string.digits + "_", min_size=1, max_size=30)
unhurried = settings(deadline=None)
ports = integers(min_value=1, max_value=65535)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One server for all tests of this file."""
    folder = tmp_path_factory.mktemp("database")
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ.get('TEST_BIN_15', '')}:{os.environ['PATH']}")
        with running(root=folder, engine="local", version=15) as sandbox:
            yield sandbox


def at(address: Address) -> Database:
    return Database(address, cast("Any", None))


# Quoting --------------------------------------------------------------------------------------------------------------


@unhurried
@given(host=words, port=ports, user=anything, password=anything, name=anything)
@example("h", 1, ODD, ODD, ODD)
def test_libpq_reads_a_url_as_it_was_meant(host: str, port: int, user: str, password: str, name: str) -> None:
    found = conninfo_to_dict(at(Address(host, port, user, password, name)).url)
    assert found == {"host": host, "port": str(port), "user": user, "password": password, "dbname": name}


@unhurried
@given(host=words, port=ports, user=anything, password=anything, name=anything)
@example("h", 1, ODD, ODD, ODD)
@example("/a folder/it's", 1, "a\nb", "a\u00a0b", "\\")
def test_libpq_reads_conninfo_as_it_was_meant(host: str, port: int, user: str, password: str, name: str) -> None:
    found = conninfo_to_dict(at(Address(host, port, user, password, name)).conninfo)
    assert found == {"host": host, "port": str(port), "user": user, "password": password, "dbname": name}


@unhurried
@given(host=words, port=ports, user=anything, password=anything, name=words)
@example("h", 1, ODD, ODD, "d")
def test_sqlalchemy_reads_its_url_as_it_was_meant(host: str, port: int, user: str, password: str, name: str) -> None:
    found = sqlalchemy.make_url(at(Address(host, port, user, password, name)).sqlalchemy_url())
    assert (found.username, found.password, found.host, found.port, found.database) == (
        user,
        password,
        host,
        port,
        name,
    )
    assert found.drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    ("driver", "scheme"),
    [("psycopg", "postgresql+psycopg"), ("asyncpg", "postgresql+asyncpg"), (None, "postgresql")],
)
def test_a_sqlalchemy_url_names_the_driver(driver: str | None, scheme: str) -> None:
    assert at(Address("h", 5, "u", "p", "d")).sqlalchemy_url(driver) == f"{scheme}://u:p@h:5/d"


def test_an_address_of_ipv6_is_bracketed() -> None:
    database = at(Address("::1", 5, "u", "p", "d"))
    assert database.url == "postgresql://u:p@[::1]:5/d"
    assert conninfo_to_dict(database.url)["host"] == "::1"
    assert conninfo_to_dict(database.conninfo)["host"] == "::1"
    assert sqlalchemy.make_url(database.sqlalchemy_url()).host == "::1"


def test_all_forms_say_the_same() -> None:
    database = at(Address("127.0.0.1", 5432, "pgsandbox_gw0", "secret", "pgsandbox_gw0"))
    url = "postgresql://pgsandbox_gw0:secret@127.0.0.1:5432/pgsandbox_gw0"
    assert database.url == url
    assert database.conninfo == "host=127.0.0.1 port=5432 user=pgsandbox_gw0 password=secret dbname=pgsandbox_gw0"
    assert database.env == {
        "DATABASE_URL": url,
        "PGHOST": "127.0.0.1",
        "PGPORT": "5432",
        "PGUSER": "pgsandbox_gw0",
        "PGPASSWORD": "secret",
        "PGDATABASE": "pgsandbox_gw0",
    }
    assert database.name == "pgsandbox_gw0"


def test_no_repr_shows_the_password() -> None:
    address = Address("127.0.0.1", 5432, "u", "secret", "d")
    assert repr(address) == "Address(host='127.0.0.1', port=5432, user='u', name='d')"
    assert repr(at(address)) == "<Database d at 127.0.0.1:5432>"


# Connections ----------------------------------------------------------------------------------------------------------

WHO = "SELECT current_database()::text, session_user::text"


@pytest.fixture
def odd(sandbox: Sandbox) -> Iterator[Address]:
    """A database and role whose names, and whose password, hold all that has a meaning somewhere."""
    server, name = sandbox.server, ODD.translate({ord("\t"): "t"})
    password = "".join(character for character in ODD if character.isascii())
    server.roles.make_login(name, password=password, budget=5)
    server.create_database(name)
    server.execute(psycopg.sql.SQL("GRANT CONNECT ON DATABASE {0} TO {0}").format(psycopg.sql.Identifier(name)))
    yield Address(server.host, server.port, name, password, name)
    server.drop_database(name)
    server.roles.drop(name)


def test_odd_names_and_passwords_arrive_by_every_way(odd: Address) -> None:
    database = at(odd)
    for where in (database.url, database.conninfo):
        with psycopg.connect(where) as connection:
            assert connection.execute(WHO).fetchone() == (odd.name, odd.user)
    with database.connect() as connection:
        assert connection.execute(WHO).fetchone() == (odd.name, odd.user)
    code = f"import psycopg; print(*psycopg.connect('').execute({WHO!r}).fetchone(), sep='\\n')"
    environ = libpq.environment(database.env, os.environ)
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"{odd.name}\n{odd.user}\n"


def test_sqlalchemy_connects_with_an_odd_password(sandbox: Sandbox, odd: Address) -> None:
    address = Address(odd.host, odd.port, odd.user, odd.password, "postgres")
    engine = sqlalchemy.create_engine(at(address).sqlalchemy_url())
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT session_user::text")).scalar() == odd.user
    engine.dispose()


def test_a_socket_folder_is_an_address_like_any(sandbox: Sandbox) -> None:
    """That of a server that is not ours: our own are reached over TCP."""
    folder = sandbox.server.running.socket
    assert folder is not None
    password = scram.new_password()
    sandbox.server.roles.make_login("somebody", password=password, budget=5)
    database = at(Address(folder, sandbox.server.port, "somebody", password, "postgres"))
    for where in (database.url, database.conninfo):
        with psycopg.connect(where) as connection:
            assert connection.execute("SELECT inet_server_addr()").fetchone() == (None,)
    engine = sqlalchemy.create_engine(database.sqlalchemy_url())
    with engine.connect() as alchemy:
        assert alchemy.execute(sqlalchemy.text("SELECT inet_server_addr()")).scalar() is None
    engine.dispose()
    sandbox.server.roles.drop("somebody")


def test_connect_passes_options_on(sandbox: Sandbox) -> None:
    options = {"autocommit": True, "application_name": "me", "options": "-c work_mem=9MB"}
    with sandbox.database().connect(**options) as connection:
        assert connection.autocommit
        row = connection.execute("SELECT current_setting('application_name'), current_setting('work_mem')").fetchone()
        assert row == ("me", "9MB")


def test_aconnect_opens_an_asynchronous_connection(sandbox: Sandbox) -> None:
    async def ask() -> Any:
        async with await sandbox.database().aconnect(autocommit=True) as connection:
            assert connection.autocommit
            return await (await connection.execute(WHO)).fetchone()

    assert asyncio.run(ask()) == (sandbox.database().name, sandbox.database().name)


# The environment of a developer who also works with other databases ---------------------------------------------------

MISLEADING = {
    "PGHOST": "production.invalid",
    "PGHOSTADDR": "192.0.2.1",
    "PGUSER": "nobody",
    "PGPASSWORD": "wrong",
    "PGDATABASE": "production",
    "PGOPTIONS": "-c nonsense=1",
    "PGSSLMODE": "require",
    "PGGSSENCMODE": "require",
    "PGTARGETSESSIONATTRS": "standby",
}


@pytest.fixture
def misleading(tmp_path: Path) -> dict[str, str]:
    service = "[production]\nhost=production.invalid\nhostaddr=192.0.2.1\nuser=nobody\nsslmode=require\n"
    (tmp_path / "services").write_text(service)
    return {**MISLEADING, "PGSERVICE": "production", "PGSERVICEFILE": str(tmp_path / "services")}


def test_variables_of_libpq_lead_nobody_elsewhere(
    some_target: Target, misleading: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in misleading.items():
        monkeypatch.setenv(name, value)
    with running(**some_target.settings) as sandbox:
        database = sandbox.database()
        with database.connect() as connection:
            assert connection.execute(WHO).fetchone() == (database.name, database.name)

        async def ask() -> Any:
            async with await database.aconnect() as connection:
                return await (await connection.execute(WHO)).fetchone()

        assert asyncio.run(ask()) == (database.name, database.name)


def test_programs_find_the_database_and_no_other(sandbox: Sandbox, misleading: dict[str, str]) -> None:
    base = {**os.environ, **misleading}
    database = sandbox.database()
    environ = libpq.environment(database.env, base)
    code = f"import psycopg; print(*psycopg.connect('').execute({WHO!r}).fetchone())"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == f"{database.name} {database.name}\n", done.stderr
    assert environ["PATH"] == base["PATH"]
