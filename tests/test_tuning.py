"""What a server is told: how many connections, and nothing that costs time which a test does not need."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Target
from hypothesis import given, settings
from hypothesis.strategies import integers
from machine import running

from pgsandbox import tuning
from pgsandbox.settings import Settings

TARGETS = [
    pytest.param(Target("local", 15), id="local-15"),
    pytest.param(Target("local", 18), id="local-18"),
    pytest.param(Target("docker", 18), id="docker-18", marks=pytest.mark.docker),
]
unhurried = settings(deadline=None)
COUNTS = integers(min_value=1, max_value=500)


@unhurried
@given(workers=COUNTS, budget=COUNTS)
def test_all_workers_fit_and_spare_slots_are_left(workers: int, budget: int) -> None:
    spare = tuning.max_connections(workers=workers, budget=budget) - workers * (budget + tuning.OURS)
    assert spare == 110


@unhurried
@given(workers=COUNTS, budget=COUNTS, available=integers(min_value=-5, max_value=5000))
def test_a_fitting_budget_is_the_largest_that_fits(workers: int, budget: int, available: int) -> None:
    found = tuning.fitting_budget(workers=workers, budget=budget, available=available)
    assert 0 <= found <= budget
    if found:
        assert workers * (found + tuning.OURS) <= available
    if found < budget:
        assert workers * (found + 1 + tuning.OURS) > available


def test_without_workers_there_is_room_for_one() -> None:
    assert tuning.fitting_budget(workers=0, budget=20, available=30) == 20


FAST = {"fsync": "off", "full_page_writes": "off"}
SAFE = {"fsync": "on", "full_page_writes": "on"}


def in_force(target: Target, names: Any, **settings: Any) -> dict[str, str]:
    with running(**target.settings, **settings) as sandbox:
        rows = sandbox.server.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", [list(names)]
        )
    return dict(rows)


@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.usefixtures("binaries")
def test_a_server_has_what_it_was_told(where: Target) -> None:
    flags = tuning.flags(Settings(), workers=1)
    assert in_force(where, flags) == {
        **FAST,
        "max_connections": "133",
        "client_connection_check_interval": "1s",
        "autovacuum": "off",
        "jit": "off",
        "max_wal_senders": "0",
        "wal_level": "minimal",
        "shared_buffers": "128MB",
        "checkpoint_timeout": "1d",
        "max_wal_size": "256MB",
        "wal_keep_size": "32MB",
        "min_wal_size": "32MB",
    }
    assert flags.keys() >= FAST.keys()


def test_a_durable_server_is_as_safe_as_postgresql_is_by_itself(some_target: Target) -> None:
    assert in_force(some_target, SAFE, durable=True) == SAFE


def test_options_win(some_target: Target) -> None:
    options = ["FSYNC = on", "autovacuum=on", "work_mem=9MB", "DateStyle=ISO, DMY", "my.own=a = b"]
    found = in_force(some_target, ["fsync", "autovacuum", "work_mem", "DateStyle", "jit"], options=options)
    assert found == {"fsync": "on", "autovacuum": "on", "work_mem": "9MB", "DateStyle": "ISO, DMY", "jit": "off"}


@pytest.mark.parametrize("option", ["a=b=c", " a = b=c ", "a  =b=c"])
def test_an_option_is_split_at_its_first_equals_sign(option: str) -> None:
    assert tuning.flags(Settings(options=(option,)), workers=1)["a"] == "b=c"
