"""What is read from the log: exactly the blocks that were written, up to the last byte."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis.strategies import integers, sets
from machine import running

from pgsandbox.isolation.reset import relations, wal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("position", "written"), [(0, "0/0"), (0x16B3748, "0/16B3748"), (1 << 32, "1/0"), ((0x2A << 32) + 0xFF, "2A/FF")]
)
def test_a_position_is_written_as_postgresql_does(position: int, written: str) -> None:
    assert wal.lsn(position) == written


@given(sets(integers(0, 60)))
def test_spans_are_exactly_the_blocks(blocks: set[int]) -> None:
    spans = relations._spans(sorted(blocks))
    assert {block for low, high in spans for block in range(low, high)} == blocks
    assert all(before < low for (_, before), (low, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("version", [15, 16, 17, 18])
def test_each_block_that_was_written_is_told(binaries: None, project: Path, version: int) -> None:
    (project / "init.sql").write_text(
        "CREATE TABLE t (i int, x text); INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 1000) g"
    )
    with running(engine="local", version=version, init=["init.sql"]) as sandbox:
        database, server = sandbox.database(), sandbox.server
        with database.connect(autocommit=True) as connection, server.inside(database.name) as admin:
            [(oid, file)] = admin.execute(
                "SELECT oid::int8, pg_relation_filenode('t')::int8 FROM pg_database WHERE datname = current_database()"
            ).fetchall()
            for row in (1, 500, 1000):
                start = wal.flush(server.admin)
                [(block,)] = connection.execute(
                    "UPDATE t SET x = 'y' WHERE i = %s RETURNING (ctid::text::point)[0]::int", [row]
                ).fetchall()
                touched = wal.read(server.admin, oid, start, wal.flush(server.admin))
                assert block in touched.files[file].blocks
                assert len(touched.files[file].blocks) <= 2
                assert not touched.shared
            start = wal.flush(server.admin)
            connection.execute("SELECT count(*) FROM t")
            assert wal.read(server.admin, oid, start, wal.flush(server.admin)).files == {}
            connection.execute(f"COMMENT ON DATABASE {database.name} IS 'x'".encode())
            assert wal.read(server.admin, oid, start, wal.flush(server.admin)).shared
