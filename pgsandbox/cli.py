"""The command line: what a user types and reads. stdout is data, stderr is narration; the work is in `named`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pgsandbox import __version__, named, sources
from pgsandbox.errors import PgsandboxError
from pgsandbox.settings import SETTINGS, Settings

_NOT_FOUND = 127
_INTERRUPTED = 130
_NEVER_FLAGS = frozenset({"env"})
"""Settings whose short flag would mean something else here; `--pgsandbox-NAME` sets them."""


def main() -> None:
    """Run the command line; the exit code says what kind of end it was (see `pgsandbox --help`)."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except PgsandboxError as problem:
        click.echo(str(problem), err=True)
        sys.exit(problem.exit_code)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("pgsandbox: interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """A real PostgreSQL for tests and for an afternoon, gone afterwards.

    \b
    url=$(pgsandbox up)              start one for this project, or find the one that runs
    pgsandbox psql                   open it
    pgsandbox run -- pytest -x       run a command against one that ends with it
    pgsandbox down                   end it

    Settings are read as pytest reads them: from flags, PGSANDBOX_* variables, the ini file and [tool.pgsandbox].

    Exit codes: 0 ok, 1 failed, 2 usage, 3 no engine, 4 not ready in time, 5 no such sandbox, 130 interrupted.
    """


def _complete_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    here = str(sources.find_root(Path.cwd()))
    return [one.name for one in named.all_named() if one.name.startswith(incomplete) and one.project == here]


_name_argument = click.argument("name", required=False, shell_complete=_complete_names)


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for each setting, under the name that pytest knows it by and, where free, without the prefix."""
    for name, setting in reversed(SETTINGS.items()):
        flags = [f"--pgsandbox-{name.replace('_', '-')}"]
        if name not in _NEVER_FLAGS:
            flags.insert(0, f"--{name.replace('_', '-')}")
        many = isinstance(setting.default, tuple)
        more: dict[str, Any] = {"metavar": setting.metadata["metavar"], "help": setting.metadata["help"]}
        if isinstance(setting.default, bool):
            more |= {"is_flag": False, "flag_value": "true", "metavar": "[true|false]"}
        command = click.option(*flags, f"set_{name}", default=None, multiple=many, **more)(command)
    return command


def _settings(given: dict[str, Any]) -> Settings:
    flags = {name: given[f"set_{name}"] for name in SETTINGS if given[f"set_{name}"] not in (None, ())}
    return sources.load(cli={k: list(v) if isinstance(v, tuple) else v for k, v in flags.items()}, cli_name="--{name}")


@contextlib.contextmanager
def _narration() -> Iterator[Callable[[str], None]]:
    """Says on stderr what is being done: one changing line on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        said: list[str] = []

        def say(text: str) -> None:
            text = text.partition("[")[0].rstrip()  # a download's moving bar is no news in a log
            if not said or said[-1] != text:
                said.append(text)
                click.echo(f"pgsandbox: {text}", err=True)

        yield say
        return
    from rich.console import Console

    with Console(stderr=True).status("pgsandbox: looking for an engine") as status:
        yield lambda text: status.update(f"pgsandbox: {text}")


@cli.command()
@_name_argument
@click.option("--json", "as_json", is_flag=True, help="print all about it as JSON")
@click.option("--env", "as_env", is_flag=True, help='print shell commands: eval "$(pgsandbox up --env)"')
@_with_settings
def up(name: str | None, as_json: bool, as_env: bool, **given: Any) -> None:
    """Start a sandbox, or find the one of that NAME that runs, and print its URL.

    NAME defaults to one made from the project's folder. It outlives this command, and ends by itself once nobody has
    been connected for --ttl.
    """
    settings = _settings(given)
    with _narration() as progress:
        found = named.up(name, settings, progress)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    elif as_env:
        for key, value in found.env.items():
            click.echo(f"export {key}={shlex.quote(value)}")
    else:
        click.echo(found.url)


@cli.command()
@_name_argument
@click.option("--all", "all_", is_flag=True, help="end all of this project's")
def down(name: str | None, all_: bool) -> None:
    """End a sandbox: its server, its data, everything."""
    if name and all_:
        raise click.UsageError("NAME and --all exclude each other")
    for ended in named.down_all() if all_ else [named.down(name)]:
        click.echo(f"pgsandbox: {ended} is gone", err=True)


@cli.command("ls")
@click.option("--json", "as_json", is_flag=True, help="print all about them as JSON")
def list_(as_json: bool) -> None:
    """List the sandboxes and kept databases of this user, those of other projects too."""
    found = named.all_named()
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found], indent=2))
        return
    if not found:
        click.echo("pgsandbox: there is no sandbox", err=True)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("NAME", "ENGINE", "VERSION", "ADDRESS", "AGE", "TTL", "PROJECT", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in found:
        table.add_row(one.name, one.engine, one.version, one.address, one.age, one.shown_ttl, one.project)
    Console(soft_wrap=True).print(table)


@cli.command()
@_name_argument
def url(name: str | None) -> None:
    """Print a sandbox's URL."""
    click.echo(named.find(name).url)


@cli.command()
@_name_argument
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def psql(name: str | None, args: tuple[str, ...]) -> None:
    """Open psql on a sandbox; what follows -- goes to psql: pgsandbox psql -- -c 'SELECT 1'."""
    if name and name.startswith("-"):  # `psql -- -c …`: there was no NAME
        args = (name, *args)
        name = None
    found = named.find(name)
    command = named.psql_command(found)
    sys.stdout.flush()
    os.execvpe(command[0], [*command, *args], {**os.environ, **found.env})  # noqa: S606 -- no shell is the point


@cli.command()
@_name_argument
@click.option("-n", "--lines", default=50, show_default=True, help="how many lines")
def logs(name: str | None, lines: int) -> None:
    """Print the last lines of a sandbox's server log."""
    click.echo(named.logs(named.find(name), lines))


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_with_settings
def run(command: tuple[str, ...], **given: Any) -> int:
    """Run a COMMAND with a sandbox of its own, which ends with it: pgsandbox run -- npm test.

    The command finds DATABASE_URL and the PG* variables in its environment. Its exit code is returned.
    """
    settings = _settings(given)
    with contextlib.ExitStack() as stack:
        with _narration() as progress:
            sandbox = stack.enter_context(named.sandbox_for_command(settings, progress))
            database = sandbox.database()
        environ = {**os.environ, **database.env, **dict.fromkeys(settings.env, database.url)}
        try:
            return _run_command(list(command), environ)
        finally:
            sandbox.stop()


def _run_command(command: list[str], environ: dict[str, str]) -> int:
    """Run it to its end; signals that reach us are its to answer. 128 + N where signal N ended it."""
    try:
        process = subprocess.Popen(command, env=environ)
    except OSError as problem:
        click.echo(f"pgsandbox: {command[0]} can't be run\n  why: {problem.strerror}", err=True)
        return _NOT_FOUND

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to both
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


@cli.command()
def prune() -> None:
    """Remove what killed runs left behind: only what is provably ours and dead."""
    removed = named.prune()
    for what in removed:
        click.echo(f"pgsandbox: removed {what}", err=True)
    if not removed:
        click.echo("pgsandbox: there was nothing to remove", err=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@_with_settings
def doctor(as_json: bool, **given: Any) -> int:
    """Show every setting with where it came from, and what each engine could do here."""
    report = named.diagnose(_settings(given))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_report(report)
    return 0 if report["serves"] else 3


def _print_report(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    table = Table("SETTING", "VALUE", "FROM", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in report["settings"]:
        table.add_row(row["name"], row["value"], row["from"])
    console.print(table)
    for engine in report["engines"]:
        console.print(f"{engine['name']}: {engine['says']}", markup=False)
    console.print(f"\nserves: {report['serves'] or 'nothing'}", markup=False)
    for name, folder in report["folders"].items():
        console.print(f"{name}: {folder}", markup=False)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script: eval "$(pgsandbox completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "pgsandbox", "_PGSANDBOX_COMPLETE").source())
