"""No workload leaves anything behind: random ones, on every engine, alone and beside others on one server."""

from __future__ import annotations

import random

import pytest
from conftest import Target
from machine import running
from workloads.arena import FOLDER, arena
from workloads.broken import FORGOTTEN, RULES, disabled, forgetful
from workloads.hunt import OPTIONS, WorkloadError, hunt, several, told
from workloads.workload import Round, Step, Workload

from pgsandbox.isolation.clone import CloneIsolation

SHARES = {"docker-15": 0.05, "docker-18": 0.05} | {f"local-{version}": 0.15 for version in (15, 16, 17, 18)}
"""Which part of all workloads is played on each target, one worker to a server; the others below get the rest."""

SETTINGS = OPTIONS | {"init": [str(FOLDER / "schema.sql")]}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def first_seed(request: pytest.FixtureRequest) -> int:
    """Another in every run, but for `--hypothesis-seed`; a failure says which it was."""
    given = request.config.getoption("--hypothesis-seed", default=None)
    return int(given) if given and given != "random" else random.randrange(10**9)


@pytest.fixture
def total(request: pytest.FixtureRequest) -> int:
    """How many workloads there are to be in all; each has two rounds on average, and a reset after each."""
    return int(request.config.getoption("--workloads")) // 2


def test_no_workload_leaves_anything_behind(target: Target, first_seed: int, total: int) -> None:
    count = round(total * SHARES[f"{target.engine}-{target.version}"])
    words = ("--engine", target.engine, "--version", str(target.version))
    with running(**target.settings, **SETTINGS) as sandbox, arena(sandbox) as ground:
        hunt(ground, count=count, seed_=first_seed, words=words)
        print(told(ground.tally))


def test_no_superusers_workload_leaves_anything_behind(binaries: None, first_seed: int, total: int) -> None:
    words = ("--engine", "local", "--version", "18", "--superuser")
    with running(engine="local", version=18, superuser=True, **SETTINGS) as sandbox, arena(sandbox) as ground:
        hunt(ground, count=round(total * 0.1), seed_=first_seed, words=words)
        print(told(ground.tally))


ROWS_OF_PLAIN_TABLES = (
    r"^(INSERT INTO|UPDATE|DELETE FROM|COPY|MERGE INTO|SELECT \*.*) (plain|keyless|reference|roomy)\b"
)


def test_a_session_at_rest_lives_through_the_reset_of_rows(some_target: Target, first_seed: int, total: int) -> None:
    """With all that it has prepared, and it is handed no sequence's value of before."""
    with running(**some_target.settings, **SETTINGS) as sandbox:
        if type(sandbox.database().isolation) is CloneIsolation:
            pytest.skip("a clone cuts every session")
        with arena(sandbox) as ground:
            hunt(ground, count=round(total * 0.1), seed_=first_seed, about=ROWS_OF_PLAIN_TABLES)
            assert ground.tally["cut while idle"] == 0
            assert ground.tally["lives on"] > ground.tally["rounds"]


@pytest.mark.parametrize("version", [15, 18])
def test_no_workload_leaves_anything_behind_beside_three_others(
    binaries: None, version: int, first_seed: int, total: int
) -> None:
    words = ("--engine", "local", "--version", str(version), "--count", str(round(total * 0.1 / 4)))
    done = several(4, *words, seed_=first_seed)
    for one in done:
        print(one.stdout)
    assert [one.returncode for one in done] == [0, 0, 0, 0]


# The test of the test -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_reset_that_forgets_something_is_found_out(
    some_target: Target, first_seed: int, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with running(**some_target.settings, **SETTINGS) as sandbox:
        forgetting = forgetful(sandbox, what, monkeypatch)
        with arena(sandbox) as ground, forgetting, pytest.raises(WorkloadError):
            hunt(ground, count=60, seed_=first_seed, about=FORGOTTEN[what][1], shrink=False)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_of_the_reset_is_needed(
    some_target: Target, first_seed: int, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    # Where a commit waits for nothing, the log's end is rarely flushed: that rule has to work.
    settings = SETTINGS | {"options": [*SETTINGS["options"], "synchronous_commit=off"]}
    with (
        running(**some_target.settings, **settings) as sandbox,
        arena(sandbox) as ground,
        disabled(rule, monkeypatch),
        pytest.raises(WorkloadError),
    ):
        hunt(ground, count=100, seed_=first_seed, kinds=(), about=RULES[rule][1], shrink=False)


def test_a_failure_is_shown_as_the_smallest_script_and_comes_again(
    some_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    with running(**some_target.settings, **SETTINGS) as sandbox:
        for _ in range(2):
            forgetting = forgetful(sandbox, "deleted rows", monkeypatch)
            with arena(sandbox) as ground, forgetting, pytest.raises(WorkloadError) as caught:
                hunt(ground, count=60, seed_=17, about="FROM reference WHERE id %")
            said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0] == (
        "-- round 1\n"
        "-- in session a\n"
        "DELETE FROM reference WHERE id % 10 = 1;\n"
        "-- reset\n"
        "-- leaves this behind:\n"
        'public.reference: the row (id 1, code c4ca4238a0b923820dcc509a6f75849b, v 0.33, j {"g":…) is gone\n'
        'public.reference: the row (id 11, code 6512bd43d9caa6e02c990b0a82652dca, v 3.67, j {"g"…) is gone\n'
        'public.reference: the row (id 21, code 3c59dc048e8850243be8079a5c74d079, v 7.00, j {"g"…) is gone\n'
        "public.reference: and 297 more\n"
        "-- play it again: scripts/workloads --seed 17 --count 60"
    )


def test_what_a_workload_shows_of_itself_is_sql() -> None:
    steps = (
        Step("a", "BEGIN"),
        Step("b", "COPY keyless FROM STDIN", "1\tx\n"),
        Step("c", "SELECT pg_sleep(30)"),
    )
    assert str(Workload((Round(()), Round(steps, asks=True)))) == (
        "-- round 1\n"
        "-- reset\n"
        "-- round 2, beginning with nextval of each sequence\n"
        "-- in session a\n"
        "BEGIN;\n"
        "-- in session b\n"
        "COPY keyless FROM STDIN;\n"
        "1\tx\n"
        "\\.\n"
        "-- in session c\n"
        "SELECT pg_sleep(30);   -- not waited for\n"
        "-- reset"
    )
