"""pytest's side: options, hooks and fixtures that cost next to nothing until used; what they do is in `session`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pgsandbox import invocation
from pgsandbox.errors import PgsandboxError, PlaceError, UsageError
from pgsandbox.settings import SETTINGS

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.database import Database
    from pgsandbox.server import Server
    from pgsandbox.session import Session

_NAME = "pgsandbox"
_NAMES = frozenset({_NAME, __name__})
"""What `-p` may call it."""

_SESSION = pytest.StashKey["Session"]()
_NAMED = pytest.StashKey[bool]()
_FAILED = pytest.StashKey[bool]()
_ISOLATES = pytest.StashKey[bool]()
_CONTROLLER_HOST = "the-xdist-controller-has-no-database.pgsandbox.invalid"
_LOOKING_HOST = "no-test-is-run-so-there-is-no-database.pgsandbox.invalid"


def session_of(config: pytest.Config) -> Session:
    """What this plugin keeps for `config`'s pytest session."""
    return config.stash[_SESSION]


# Options and start-up -------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """One flag and one ini key for each setting."""
    group = parser.getgroup(_NAME, "a real PostgreSQL for every worker")
    for name, setting in SETTINGS.items():
        flag, help_ = f"--pgsandbox-{name.replace('_', '-')}", setting.metadata["help"]
        spellings = (flag, f"--pgsandbox-{name}") if "_" in name else (flag,)
        more: dict[str, Any] = {"metavar": setting.metadata["metavar"]}
        if isinstance(setting.default, bool):
            more |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        elif isinstance(setting.default, tuple):
            more["action"] = "append"
        group.addoption(*spellings, dest=f"pgsandbox_{name}", default=None, help=f"{help_} [pgsandbox]", **more)
        kind: Literal["linelist", "string"] = "linelist" if isinstance(setting.default, tuple) else "string"
        parser.addini(f"pgsandbox_{name}", f"{help_} [pgsandbox]", type=kind, default=None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> Generator[None]:
    """Before any conftest file is imported: read the settings, and where named on purpose, export the URL."""
    with _as_usage_error():
        _begin(early_config, early_config.known_args_namespace, args)
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker; in the controller of a parallel run, start what its workers will need."""
    config.addinivalue_line(
        "markers",
        "pgsandbox(isolation=None, connections=None): give this test its database, with another isolation "
        "(reset, clone, rollback, none) or fewer connections",
    )
    if config.pluginmanager.hasplugin("xdist"):
        from pgsandbox import xdist

        config.pluginmanager.register(xdist, "pgsandbox-xdist")
    if _SESSION not in config.stash:  # named in a conftest file's pytest_plugins: that is late
        with _as_usage_error():
            _begin(config, config.option, [])
    session = session_of(config)
    if not session.identity.is_controller:
        return
    is_wanted = config.stash[_NAMED] and not invocation.is_looking(config.option)
    if config.getoption("tx", None):
        session.announce(invocation.workers(config.getoption("tx")))
        if is_wanted:
            with _as_usage_error():
                session.prepare_in_background()
    else:  # xdist looked at its options, and starts no worker
        session.become_main()
        if is_wanted:
            session.export()


def pytest_report_header(config: pytest.Config) -> str | None:
    """One line: which PostgreSQL, and why."""
    session = config.stash.get(_SESSION, None)
    if session is None or not config.stash[_NAMED] or invocation.is_looking(config.option):
        return None
    return f"{_NAME}: {session.describe()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was kept or leaked, or failed to stop; nothing otherwise."""
    session = config.stash.get(_SESSION, None)
    if session is None:
        return
    session.close()
    lines = session.notes.lines()
    if lines:
        terminalreporter.write_sep("=", _NAME)
        for line in lines:
            terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what was started, also after an interruption."""
    session = config.stash.get(_SESSION, None)
    if session is not None:
        session.close()


def _begin(config: pytest.Config, options: Any, args: list[str]) -> None:
    from pgsandbox import identity as identities
    from pgsandbox import session as sessions
    from pgsandbox import sources

    invocation.refuse_unknown_flags(args)
    given = {name: getattr(options, f"pgsandbox_{name}", None) for name in SETTINGS}
    settings = sources.load(
        cli={name: value for name, value in given.items() if value is not None},
        ini_file=config.inipath,
        overrides=getattr(options, "override_ini", None) or (),
        root=config.rootpath,
    )
    is_named = not _NAMES.isdisjoint(options.plugins or ()) or bool(settings.env)
    identity = identities.worker_identity()
    if identity is None:
        identity = identities.new_identity("controller" if invocation.is_parallel(options) else "main")
    session = sessions.Session(settings, config.rootpath, identity, _narrator(config, is_quiet=identity.is_worker))
    config.stash[_SESSION], config.stash[_NAMED] = session, is_named
    config.add_cleanup(session.close)
    if not is_named:
        return
    if invocation.is_looking(options):
        session.environment.export_dead(_LOOKING_HOST)
    elif identity.is_controller:
        session.environment.export_dead(_CONTROLLER_HOST)
    else:
        session.export()


def _narrator(config: pytest.Config, *, is_quiet: bool) -> Callable[[str], None]:
    """Tells on the terminal, past pytest's capture, what a start is doing once it takes more than a moment.

    A line a second at most: an image that is pulled has much to say.
    """
    import time

    if is_quiet or not sys.stderr.isatty():
        return lambda _text: None
    terminal = os.dup(2)
    config.add_cleanup(lambda: os.close(terminal))
    quiet_until = time.monotonic() + 1.5

    def narrate(text: str) -> None:
        nonlocal quiet_until
        if time.monotonic() >= quiet_until:
            quiet_until = time.monotonic() + 1.0
            os.write(terminal, f"{_NAME}: {text}\n".encode(errors="replace"))

    return narrate


@contextlib.contextmanager
def _as_usage_error() -> Iterator[None]:
    try:
        yield
    except (UsageError, PlaceError) as problem:
        raise pytest.UsageError(str(problem)) from None


# Tests ----------------------------------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Bring the database to its baseline before any fixture of the test runs, those of wider scope included.

    Not `tryfirst`: that is where tests are skipped, and a skipped test needs no database.
    """
    session = session_of(item.config)
    with _in_words():
        session.environment.check()
    session.isolates = _wants_database(item) and not item.config.option.setupplan
    if session.isolates:
        with _in_words():
            _begin_test(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """After all fixtures: what did the test leave behind? An error of their own comes first."""
    session = session_of(item.config)
    try:
        result = yield
    finally:
        leak = session.end_test(item.nodeid, failed=item.stash.get(_FAILED, False))
    if leak and session.settings.leaks == "fail":
        pytest.fail(f"pgsandbox: this test leaked {leak}", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a failure, and tell no password of it; where connections ran out, name those who hold them."""
    report = yield
    session = session_of(item.config)
    if report.longrepr:  # an expected failure has one, too
        report.longrepr = session.masked(report.longrepr)
    if report.failed:
        item.stash[_FAILED] = True
        said = report.longreprtext
        for more in (session.holders(item.nodeid, said), session.lost(said)):
            if more is not None:
                report.sections.append((_NAME, more))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Tell no password of an application that fails while it is imported, either."""
    report = yield
    if report.failed:
        report.longrepr = session_of(collector.config).masked(report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """What a fixture loads for several tests is part of their baseline, as long as the fixture lives."""
    session = request.config.stash.get(_SESSION, None)
    loads_nothing = fixturedef.scope == "function" or fixturedef.func.__module__ == __name__
    if session is None or loads_nothing or not _isolates(request.session):
        return (yield)
    moved: list[Any] = []

    def give_back() -> None:
        for one in moved:
            session.return_fixture(one, fixturedef.argname)

    fixturedef.addfinalizer(give_back)  # the first to be added is the last to run
    with _in_words():
        may_move = session.begin_fixture(fixturedef.argname)
    result = yield
    if may_move:
        with _in_words():
            moved.append(session.settle_fixture(fixturedef.argname))
    return result


_URL_FIXTURES = frozenset({"pgsandbox", "pgsandbox_url"})
_FIXTURES = _URL_FIXTURES | {"pgsandbox_connection", "pgsandbox_worker"}


def _isolates(run: pytest.Session) -> bool:
    """Whether any test of the run is isolated; where none is, nothing is reset, whatever fixtures there are."""
    if _ISOLATES not in run.stash:
        run.stash[_ISOLATES] = any(_wants_database(item) for item in run.items)
    return run.stash[_ISOLATES]


def _wants_database(item: pytest.Item) -> bool:
    if item.get_closest_marker(_NAME) is not None or session_of(item.config).settings.autouse:
        return True
    return not _FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))


def _begin_test(item: pytest.Item) -> Database:
    isolation, connections = _asked(item)
    _check_isolates(isolation, _URL_FIXTURES.intersection(getattr(item, "fixturenames", ())))
    return session_of(item.config).begin_test(isolation=isolation, connections=connections)


def _check_isolates(isolation: str, fixtures: Iterable[str]) -> None:
    if isolation == "rollback" and fixtures:
        raise UsageError(
            f"isolation = rollback can't isolate the fixture {max(fixtures)}",
            why="it hands out a URL, and what is committed through that stays",
            hint="use pgsandbox_connection, or isolation = reset",
        )


def _asked(item: pytest.Item) -> tuple[str, int | None]:
    """Isolation and budget that this test asks for by its marker, or has by the settings. Raises UsageError."""
    settings = session_of(item.config).settings
    marker = item.get_closest_marker(_NAME)
    if marker is None:
        return settings.isolation, None
    unknown = set(marker.kwargs) - {"isolation", "connections"}
    if marker.args or unknown:
        what = ", ".join(sorted(unknown)) or "a positional argument"
        raise UsageError(f"the marker pgsandbox does not take {what}", hint="it takes isolation= and connections=")
    isolation, connections = marker.kwargs.get("isolation") or settings.isolation, marker.kwargs.get("connections")
    if isolation not in ("reset", "clone", "rollback", "none"):
        raise UsageError(f"isolation={isolation!r} is not one of reset, clone, rollback, none")
    if connections is not None and (type(connections) is not int or connections < 1):
        raise UsageError(f"connections={connections!r} is not a whole number of 1 or more")
    return isolation, connections


def _database_of(item: pytest.Item) -> Database:
    """The database, at its baseline; where only `request.getfixturevalue` names it, setup could not know."""
    return session_of(item.config).database if _wants_database(item) else _begin_test(item)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Fail with the sentence that an error is, without a trace of our own code."""
    try:
        yield
    except PgsandboxError as problem:
        raise pytest.fail.Exception(str(problem), pytrace=False) from None


# Fixtures -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pgsandbox(request: pytest.FixtureRequest) -> Database:
    """The worker's own database, at its baseline when the test starts. Its URL stays the same for the whole run."""
    with _in_words():
        _check_isolates(_asked(request.node)[0], {"pgsandbox"})
        return _database_of(request.node)


@pytest.fixture
def pgsandbox_url(pgsandbox: Database) -> str:
    """The libpq URL of `pgsandbox`: `postgresql://user:password@host:port/name`."""
    return pgsandbox.url


@pytest.fixture
def pgsandbox_connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    """An open psycopg connection to the worker's database, autocommit, closed afterwards.

    Where the isolation is `rollback`, it is inside a transaction that is rolled back afterwards.
    """
    with _in_words():
        database = _database_of(request.node)
        isolation, _ = _asked(request.node)
    if isolation == "rollback":
        from pgsandbox.isolation.rollback import rolled_back

        with rolled_back(database) as connection:
            yield connection
    else:
        with contextlib.closing(database.connect(autocommit=True)) as connection:
            yield connection


@pytest.fixture(scope="session")
def pgsandbox_worker(request: pytest.FixtureRequest) -> Database:
    """The worker's database for session-wide set-up; load data, then `with pgsandbox_worker.baseline(): yield`."""
    with _in_words():
        return session_of(request.config).database


@pytest.fixture(scope="session")
def pgsandbox_server(request: pytest.FixtureRequest) -> Server:
    """The server that the worker's database is in."""
    with _in_words():
        return session_of(request.config).sandbox.server


@pytest.fixture
def pgsandbox_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], Database]]:
    """`factory() -> Database`: further databases, fresh from the template, dropped after the test."""
    session = session_of(request.config)
    made: list[Database] = []

    def factory() -> Database:
        with _in_words():
            made.append(session.fresh())
        return made[-1]

    yield factory
    for database in made:
        session.drop(database, request.node.nodeid)
