"""Somebody pauses or stops the server: that is said after one deadline, and whoever waits for it is not left to it."""

from __future__ import annotations

import pytest
from conftest import Inner, Target
from engines import DOCKER, LOCAL, errors, suite, troubles

HALTS = [
    pytest.param(
        LOCAL,
        "os.kill(postmaster(pgsandbox_server), signal.SIGSTOP)",
        "postgres is stopped, by SIGSTOP: #",
        "`kill -CONT #`",
        id="stopped",
    ),
    pytest.param(
        DOCKER,
        'docker(pgsandbox_server, "pause")',
        "the container pgsandbox-# is paused",
        "`docker unpause pgsandbox-#`",
        id="paused",
        marks=pytest.mark.docker,
    ),
]
SHORT = "pgsandbox_server._contact._timeout = 3.0\n"
"""What the setting timeout says, for one who has started already: a start may take longer where much else goes on."""

ALL = """
parent = postmaster(pgsandbox_server)
for pid in [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]:
    os.kill(pid, signal.SIGSTOP)
"""


@pytest.mark.parametrize(("on", "deed", "why", "remedy"), HALTS)
def test_a_halted_server_is_waited_for_once_and_removed(
    pytester: pytest.Pytester, inner: Inner, on: Target, deed: str, why: str, remedy: str
) -> None:
    """One test waits for it, the others fail at once; at the end it goes, halted or not."""
    pytester.makepyfile(suite(SHORT + (ALL if on.engine == "local" else deed)))
    result = inner(*on.flags)
    result.assert_outcomes(passed=2, errors=2)
    said = (
        f"pgsandbox: the {on.engine} server at 127.0.0.1:# has not answered for 3s\n"
        f"  why: {why}\n"
        f"  hint: let it go on with {remedy}, or run again"
    )
    assert errors(result) == [said, said]
    assert troubles(result) == [f"the {on.engine} server at 127.0.0.1:# has not answered for 3s ({why})"]


@pytest.mark.parametrize("isolation", ["reset", "clone", "none"])
@pytest.mark.parametrize(("on", "deed", "why", "remedy"), HALTS)
def test_a_test_that_waits_for_a_halted_server_is_ended_with_it(
    pytester: pytest.Pytester, inner: Inner, on: Target, deed: str, why: str, remedy: str, isolation: str
) -> None:
    """Its driver would wait for ever: TCP says that all is well."""
    halt = ALL if on.engine == "local" else deed
    wait = "connection.execute('SELECT pg_sleep(60)')"
    pytester.makepyfile(suite(f"{SHORT}connection = pgsandbox.connect()\n{halt.strip()}\n{wait}"))
    result = inner(*on.flags, f"--pgsandbox-isolation={isolation}")
    if isolation == "none":  # nothing of ours asks the server before a test; what asks it is the test
        result.assert_outcomes(passed=1, failed=2, errors=1)
        return
    result.assert_outcomes(passed=1, failed=1, errors=2)
    said = (
        f"pgsandbox: the {on.engine} server at 127.0.0.1:# has ended\n"
        f"  why: {why}; 3s later it was ended, so that nobody waits for ever\n"
        "  hint: run again; if nobody ended it on purpose, did memory run out?"
    )
    assert errors(result) == [said, said, said]


GO_ON = """
halted = threading.Timer(1.0, lambda: {undo})
{deed}
halted.start()
"""


@pytest.mark.parametrize(
    ("on", "deed", "undo"),
    [
        pytest.param(
            LOCAL,
            "os.kill(postmaster(pgsandbox_server), signal.SIGSTOP)",
            "os.kill(postmaster(pgsandbox_server), signal.SIGCONT)",
            id="stopped",
        ),
        pytest.param(
            DOCKER,
            'docker(pgsandbox_server, "pause")',
            'docker(pgsandbox_server, "unpause")',
            id="paused",
            marks=pytest.mark.docker,
        ),
    ],
)
def test_a_server_that_was_halted_for_less_than_the_deadline_goes_on(
    pytester: pytest.Pytester, inner: Inner, on: Target, deed: str, undo: str
) -> None:
    pytester.makepyfile(suite(GO_ON.format(deed=deed, undo=undo)))
    result = inner(*on.flags)
    result.assert_outcomes(passed=4)
    assert troubles(result) == []


@pytest.mark.docker
def test_a_server_that_goes_on_after_the_deadline_serves_those_who_come_then(
    pytester: pytest.Pytester, inner: Inner
) -> None:
    pytester.makepyfile(
        suite(SHORT + 'docker(pgsandbox_server, "pause")'),
        test_later="""
        import subprocess


        def test_unpaused(request):
            from pgsandbox.plugin import session_of

            running = session_of(request.config).sandbox.server.running
            subprocess.run(["docker", "unpause", running.detail["name"]], check=True)


        def test_served(pgsandbox_connection):
            assert pgsandbox_connection.execute("SELECT to_regclass('t') IS NULL").fetchone() == (True,)
        """,
    )
    inner(*DOCKER.flags).assert_outcomes(passed=4, errors=2)
