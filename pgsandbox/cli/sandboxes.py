"""Commands for sandboxes: started, found, looked into and ended."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from typing import Any

import click

from pgsandbox import shell
from pgsandbox.cli import upkeep
from pgsandbox.cli.program import WithRest, cli, name_argument, narration, settings_of, with_settings

__all__ = ["cli"]  # with all commands in it


@cli.command(short_help="Start a sandbox, or find the one that runs, and print its URL.")
@name_argument
@click.option("--json", "as_json", is_flag=True, help="print all about it as JSON")
@click.option("--env", "as_env", is_flag=True, help="print shell commands that set DATABASE_URL and the PG* variables")
@with_settings
def up(name: str | None, as_json: bool, as_env: bool, **given: Any) -> None:
    """Start a sandbox, or find the one of that NAME that runs, and print its URL.

    NAME defaults to one made from the project's folder. It outlives this command and its terminal, and ends by itself
    once nobody has been connected for --ttl (8h, unless set otherwise), or with `pgsandbox down`.

    \b
    url=$(pgsandbox up)              stdout is the URL, and nothing else
    eval "$(pgsandbox up --env)"     for this shell: DATABASE_URL, PGHOST, PGPORT, ...
    pgsandbox up shop --ttl 30m      a second one, for half an hour

    Each flag of a setting has a longer name, too, which pytest shares: --pgsandbox-ttl.
    """
    from pgsandbox import libpq, named

    if as_json and as_env:
        raise click.UsageError("--json and --env exclude each other")
    settings = settings_of(given)
    misleading = libpq.put_aside(os.environ)
    with narration() as progress:
        found = named.up(name, settings, progress)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    elif as_env:
        for key in misleading:
            click.echo(f"unset {key}")
        for key, value in (found.env | dict.fromkeys(settings.env, found.url)).items():
            click.echo(f"export {key}={shlex.quote(value)}")
    else:
        click.echo(found.url)


@cli.command(short_help="End a sandbox: its server, its data, everything.")
@name_argument
@click.option("--all", "all_", is_flag=True, help="end all of this project's")
def down(name: str | None, all_: bool) -> None:
    """End a sandbox: its server, its data, everything.

    \b
    pgsandbox down                   the one that `pgsandbox up` started
    pgsandbox down shop              the one of that name, in this project
    pgsandbox down --all             all of this project, kept databases too
    """
    from pgsandbox import named

    if name is not None and all_:
        raise click.UsageError("NAME and --all exclude each other")
    ended = named.down_all() if all_ else [named.down(name)]
    for one in ended:
        click.echo(f"pgsandbox: {one} is gone", err=True)
    if not ended:
        click.echo("pgsandbox: this project has no sandbox", err=True)


@cli.command("ls", short_help="List the sandboxes of this user, those of other projects too; or what is kept.")
@click.option("--json", "as_json", is_flag=True, help="print all about them, passwords included, as JSON")
@click.option("--cache", "of_cache", is_flag=True, help="list the templates that are kept between runs")
def list_(as_json: bool, of_cache: bool) -> None:
    """List the sandboxes and kept databases of this user, those of other projects too; or what is kept between runs.

    \b
    pgsandbox ls
    pgsandbox ls --json | jq -r '.[].url'
    pgsandbox ls --cache

    The table has no passwords in it; `pgsandbox url NAME` and --json do.
    """
    from pgsandbox import named

    if of_cache:
        upkeep.list_cache(as_json)
        return

    found, damaged = named.listing()
    for problem in damaged:
        click.echo(str(problem), err=True)
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found], indent=2))
    elif not found:
        click.echo("pgsandbox: there is no sandbox", err=True)
    else:
        rows = [(one.name, one.engine, one.version, one.address, one.age, one.shown_ttl, one.project) for one in found]
        for line in shell.table(("NAME", "ENGINE", "VERSION", "ADDRESS", "AGE", "TTL", "PROJECT"), rows):
            click.echo(line)


@cli.command(short_help="Print a sandbox's URL.")
@name_argument
def url(name: str | None) -> None:
    """Print the URL of a sandbox that runs; `pgsandbox up` would start one.

    \b
    pgsandbox url
    pgsandbox url shop
    """
    from pgsandbox import named

    click.echo(named.find(name).url)


@cli.command(cls=WithRest, short_help="Open psql on a sandbox.")
@name_argument
def psql(name: str | None, rest: tuple[str, ...]) -> None:
    """Open psql on a sandbox; what follows -- goes to psql, and its exit code is returned.

    \b
    pgsandbox psql
    pgsandbox psql -- -c 'SELECT version()'
    pgsandbox psql shop -- --csv -f report.sql
    """
    from pgsandbox import libpq, named

    found = named.find(name)
    command = named.psql_command(found)
    environ = libpq.environment(found.env, os.environ)
    os.execvpe(command[0], [*command, *rest], environ)  # noqa: S606 -- no shell is the point


@cli.command(short_help="Print the last lines of a sandbox's server log.")
@name_argument
@click.option("-n", "--lines", type=click.IntRange(min=1), default=50, show_default=True, help="how many lines")
def logs(name: str | None, lines: int) -> None:
    """Print the last lines of a sandbox's server log.

    \b
    pgsandbox logs
    pgsandbox logs shop -n 200 | grep ERROR
    """
    from pgsandbox import named

    click.echo(named.logs(named.find(name), lines))


@cli.command(
    context_settings={"allow_interspersed_args": False}, short_help="Run a command with a sandbox that ends with it."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@with_settings
def run(command: tuple[str, ...], **given: Any) -> int:
    """Run a COMMAND with a sandbox of its own, which ends with it.

    The command finds DATABASE_URL and the PG* variables in its environment. Signals are handed on to it, and its exit
    code is returned: 128 + N if signal N ended it, 127 if there is no such command, 126 if it may not be run.

    \b
    pgsandbox run -- npm test
    pgsandbox run --init schema.sql --version 16 -- ./server --port 8000

    Each flag of a setting has a longer name, too, which pytest shares: --pgsandbox-init.
    """
    from pgsandbox import libpq, named

    settings = settings_of(given)
    shell.check_program(command[0])
    libpq.put_aside(os.environ)
    with contextlib.ExitStack() as stack:
        with narration() as progress:
            sandbox = stack.enter_context(named.sandbox_for_command(settings, progress))
            database = sandbox.database()
        environ = libpq.environment(database.env, os.environ) | dict.fromkeys(settings.env, database.url)
        try:
            return shell.run_program(command, environ)
        finally:
            for trouble in sandbox.stop():
                click.echo(f"pgsandbox: {trouble}", err=True)
