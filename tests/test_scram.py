"""Passwords and what PostgreSQL keeps of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import TYPE_CHECKING

import psycopg
import pytest
from machine import running

from pgsandbox import scram

if TYPE_CHECKING:
    from conftest import Target


def test_postgresql_takes_the_verifier_for_the_password(some_target: Target) -> None:
    password, stored = scram.new_password(), ""
    with running(**some_target.settings) as sandbox:
        server = sandbox.server
        for _ in range(20):
            password = scram.new_password()
            stored = scram.verifier(password)
            server.roles.make_login("somebody", password=password, budget=5)
            server.execute(f"ALTER ROLE somebody PASSWORD '{stored}'")
            where = {"host": server.host, "port": server.port, "user": "somebody", "dbname": "postgres"}
            with psycopg.connect(**where, password=password) as connection:
                assert connection.pgconn.used_password
            for wrong in (password[:-1], password.upper() + "x", stored, "x"):
                with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                    psycopg.connect(**where, password=wrong)
            assert server.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'somebody'") == [(stored,)]
            server.roles.drop("somebody")


def test_a_verifier_is_made_of_the_password_as_the_standard_says() -> None:
    found = re.fullmatch(r"SCRAM-SHA-256\$([0-9]+):([^$]+)\$([^:]+):(.+)", scram.verifier("pencil"))
    assert found
    salt, stored, server = (base64.b64decode(part, validate=True) for part in found.groups()[1:])
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", salt, int(found[1]))
    client = hmac.digest(salted, b"Client Key", "sha256")
    assert stored == hashlib.sha256(client).digest()
    assert server == hmac.digest(salted, b"Server Key", "sha256")
    assert len(salt) == 16


def test_the_same_password_has_another_verifier_each_time() -> None:
    assert len({scram.verifier("secret") for _ in range(100)}) == 100


def test_passwords_are_new_and_need_no_quoting() -> None:
    passwords = {scram.new_password() for _ in range(1000)}
    assert len(passwords) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{32}", password) for password in passwords)


def test_a_verifier_is_told_from_that_of_another_password() -> None:
    password = scram.new_password()
    assert scram.is_verifier(scram.verifier(password), password)
    assert not scram.is_verifier(scram.verifier(password), scram.new_password())
    assert not scram.is_verifier("md5" + "0" * 32, password)
    assert not scram.is_verifier("", password)
