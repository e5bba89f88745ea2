"""Every engine and version: a sandbox starts, isolates, and is gone afterwards."""

from __future__ import annotations

import pytest
from conftest import Target

import pgsandbox


@pytest.mark.podman
def test_a_sandbox_gives_databases_that_start_at_the_template(target: Target) -> None:
    with pgsandbox.Sandbox(**target.settings) as sandbox:
        assert sandbox.server.version.partition(".")[0] == str(target.version)
        database = sandbox.database("one")
        with database.connect() as connection:
            connection.execute("CREATE TABLE t (id int)")
        database.reset()
        with database.connect() as connection:
            assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)
