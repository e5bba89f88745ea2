"""The command line, what a user types and reads: stdout is data, stderr is narration, and the work is in `named`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from pgsandbox import __version__, shell
from pgsandbox.errors import PgsandboxError
from pgsandbox.settings import SETTINGS

if TYPE_CHECKING:
    from pgsandbox.settings import Settings

_NEVER_FLAGS = frozenset({"env"})
"""Settings whose short flag would mean something else here; `--pgsandbox-NAME` sets them."""

_ONLY_FOR_TESTS = frozenset({"isolation", "autouse", "leaks", "pollution", "verify", "keep", "report"})
"""Settings that are taken everywhere, and mean something to pytest only."""


def main() -> None:
    """Run the command line; the exit code says what kind of end it was (see `pgsandbox --help`)."""
    shell.interruptible()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a folder's name may be no text at all
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = _main()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            # Python would try once more at its end, and complain; whoever should have read this can't.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or 1
    sys.exit(code)


def _main() -> int:
    try:
        return cli.main(prog_name="pgsandbox", standalone_mode=False) or 0
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except (KeyboardInterrupt, click.Abort):
        said, code = "pgsandbox: interrupted", shell.INTERRUPTED
    except PgsandboxError as problem:
        said, code = str(problem), problem.exit_code
    except BrokenPipeError:
        return 1  # the reader of our output has gone; there is nobody to tell
    except Exception as problem:
        said, code = str(_unforeseen(problem)), 1
    with contextlib.suppress(OSError):
        click.echo(said, err=True)
    return code


def _unforeseen(problem: Exception) -> PgsandboxError:
    """Words for what no part of ours expected: the operating system refused something, or there is a bug."""
    if isinstance(problem, OSError) and problem.strerror:
        return PgsandboxError(f"{problem.filename or 'the output'}: {problem.strerror}")
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return PgsandboxError(
        f"{type(problem).__name__}: {problem}",
        why=f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else None,
        hint="this is a bug of pgsandbox: please report these lines",
    )


class _Flag(click.Option):
    """A setting's flag; its help shows the short spelling only."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (re.sub(r", --pgsandbox-\S+", "", record[0]), record[1])


class _WithRest(click.Command):
    """A command that hands on what follows `--`, whatever it looks like, as its parameter `rest`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ctx.params["rest"] = tuple(args[end + 1 :])
        try:
            return super().parse_args(ctx, args[:end])
        except click.NoSuchOption as problem:
            message = f"{problem.format_message()} What is for {self.name} goes after --."
            raise click.UsageError(message, problem.ctx) from None

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- ARGS...]"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """A real PostgreSQL for tests and for an afternoon, gone afterwards.

    \b
    url=$(pgsandbox up)              start one for this project, or find the one that runs
    pgsandbox psql                   open it
    pgsandbox run -- pytest -x       run a command against one that ends with it
    pgsandbox down                   end it

    Settings are read as pytest reads them: from flags, PGSANDBOX_* variables, the ini file and [tool.pgsandbox];
    `pgsandbox doctor` shows them. Data goes to stdout, everything else to stderr.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 no engine, 4 not ready in time, 5 no such sandbox, 130 interrupted.
    """


def _complete_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from pgsandbox import named

    with contextlib.suppress(PgsandboxError, OSError):  # whoever presses Tab wants names, not explanations
        return [one.name for one in named.of_project() if one.name.startswith(incomplete)]
    return []


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
        more["hidden"] = name in _ONLY_FOR_TESTS
        command = click.option(*flags, f"set_{name}", default=None, multiple=many, cls=_Flag, **more)(command)
    return command


def _settings(given: dict[str, Any]) -> Settings:
    from pgsandbox import named, sources

    flags = {name: given[f"set_{name}"] for name in SETTINGS if given[f"set_{name}"] not in (None, ())}
    cli = {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items()}
    return sources.load(cli=cli, cli_name="--{flag}", root=named.project())


@contextlib.contextmanager
def _narration() -> Iterator[Callable[[str], None]]:
    """Says on stderr what is being done: one changing line on a terminal, plain lines elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        said: list[str] = []

        def say(text: str) -> None:
            is_moving = text.startswith(("pulling ", "pushing "))
            if is_moving:
                text = text.partition("[")[0].rstrip()  # a moving bar is no news in a log, nor is each layer's
            if text not in (said if is_moving else said[-1:]):
                said.append(text)
                click.echo(f"pgsandbox: {text}", err=True)

        yield say
        return
    from rich.console import Console
    from rich.text import Text

    from pgsandbox.engines import Notice

    with Console(stderr=True).status(Text("pgsandbox: looking for an engine")) as status:

        def show(text: str) -> None:
            if isinstance(text, Notice):
                status.console.print(Text(f"pgsandbox: {text}"))
            else:
                status.update(Text(f"pgsandbox: {text}"))

        yield show


@cli.command(short_help="Start a sandbox, or find the one that runs, and print its URL.")
@_name_argument
@click.option("--json", "as_json", is_flag=True, help="print all about it as JSON")
@click.option("--env", "as_env", is_flag=True, help="print shell commands that set DATABASE_URL and the PG* variables")
@_with_settings
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
    settings = _settings(given)
    misleading = libpq.put_aside(os.environ)
    with _narration() as progress:
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
@_name_argument
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


@cli.command(short_help="Build the template ahead of time, or bring it from one machine to another.")
@click.option("--push", "push_to", metavar="REF", help="push it to a registry as this image (docker)")
@click.option("--from", "pull_from", metavar="REF", help="pull it from a registry instead of building it (docker)")
@click.option("--output", metavar="FILE", help="write it to a file, for a cache between machines; - is stdout")
@click.option("--input", "input_", metavar="FILE", help="read it from such a file instead of building it; - is stdin")
@click.option("--json", "as_json", is_flag=True, help="print all about it as JSON")
@_with_settings
def bake(
    push_to: str | None, pull_from: str | None, output: str | None, input_: str | None, as_json: bool, **given: Any
) -> None:
    """Build the template ahead of time, so that no run has to: prints the image's tag, or the archive's path.

    What is there already is not built again. What comes from elsewhere must be what this project, with these settings,
    would build; the next `pytest -p pgsandbox` starts from it.

    \b
    pgsandbox bake
    pgsandbox bake --push registry.example.com/shop/template:main
    pgsandbox bake --from registry.example.com/shop/template:main || pgsandbox bake
    pgsandbox bake --output template.bin       for a CI's cache; --input there

    Each flag of a setting has a longer name, too, which pytest shares: --pgsandbox-init.
    """
    from pgsandbox import libpq, named
    from pgsandbox.bake import Baker, checked

    if pull_from is not None and input_ is not None:
        raise click.UsageError("--from and --input exclude each other")
    for reference in (pull_from, push_to):
        if reference is not None:
            checked(reference)
    settings = _settings(given)
    libpq.put_aside(os.environ)
    with _narration() as progress, contextlib.closing(Baker(settings, named.project(), progress)) as baker:
        if pull_from is not None:
            entry = baker.pull(pull_from)
        else:
            entry = baker.bake() if input_ is None else baker.read(input_)
        if push_to is not None:
            baker.push(entry, push_to)
        if output is not None:
            baker.write(entry, output)
    click.echo(json.dumps(entry.to_json(), indent=2) if as_json else entry.where, err=output == "-")


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
        _list_cache(as_json)
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


def _list_cache(as_json: bool) -> None:
    from pgsandbox.cache import Cache
    from pgsandbox.settings import show_age, show_size

    entries = Cache().entries()
    if as_json:
        click.echo(json.dumps([one.to_json() for one in entries], indent=2))
    elif not entries:
        click.echo("pgsandbox: no template is kept", err=True)
    else:
        header = ("KEY", "ENGINE", "VERSION", "SIZE", "CREATED", "USED", "PROJECT")
        rows = [
            (e.key, e.engine, e.version, show_size(e.size), show_age(e.created), show_age(e.used), e.project)
            for e in entries
        ]
        for line in shell.table(header, rows):
            click.echo(line)


@cli.command(short_help="Print a sandbox's URL.")
@_name_argument
def url(name: str | None) -> None:
    """Print the URL of a sandbox that runs; `pgsandbox up` would start one.

    \b
    pgsandbox url
    pgsandbox url shop
    """
    from pgsandbox import named

    click.echo(named.find(name).url)


@cli.command(cls=_WithRest, short_help="Open psql on a sandbox.")
@_name_argument
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
@_name_argument
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
@_with_settings
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

    settings = _settings(given)
    shell.check_program(command[0])
    libpq.put_aside(os.environ)
    with contextlib.ExitStack() as stack:
        with _narration() as progress:
            sandbox = stack.enter_context(named.sandbox_for_command(settings, progress))
            database = sandbox.database()
        environ = libpq.environment(database.env, os.environ) | dict.fromkeys(settings.env, database.url)
        try:
            return shell.run_program(command, environ)
        finally:
            for trouble in sandbox.stop():
                click.echo(f"pgsandbox: {trouble}", err=True)


@cli.command(short_help="Remove what killed runs left behind; or what is kept between runs.")
@click.option("--cache", "of_cache", is_flag=True, help="remove the templates that are kept between runs, too")
def prune(of_cache: bool) -> int:
    """Remove what killed runs left behind, should their supervisors have been killed, too.

    Only what is provably ours and dead is removed, and the next start would do the same: nobody holds its lock, and
    its container carries this user's mark. What lives, and what belongs to others, is left alone.

    \b
    pgsandbox prune
    pgsandbox prune --cache          the kept templates, too; the next runs build theirs anew
    """
    from pgsandbox import named

    removed, trouble = named.prune()
    if of_cache:
        from pgsandbox.cache import Cache
        from pgsandbox.settings import show_size

        gone, left = Cache().clear()
        removed += [f"template {one.key} of {one.project}, {show_size(one.size)}" for one in gone]
        if gone:
            removed.append(f"{show_size(sum(one.size for one in gone))} in all")
        for one in left:
            click.echo(f"pgsandbox: template {one.key} is just being built, and was left alone", err=True)
    for what in removed:
        click.echo(f"pgsandbox: removed {what}", err=True)
    for problem in trouble:
        click.echo(str(problem), err=True)
    if not removed and not trouble:
        click.echo("pgsandbox: there was nothing to remove", err=True)
    return 1 if trouble else 0


@cli.command(short_help="Show every setting with its origin, and what each engine could do here.")
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@_with_settings
def doctor(as_json: bool, **given: Any) -> int:
    """Show every setting with where it came from, and what each engine could do here.

    The exit code is 3 if no engine could serve. An image that is not here yet is pulled.

    \b
    pgsandbox doctor
    pgsandbox doctor --engine docker --version 16
    """
    from pgsandbox import libpq, named

    settings = _settings(given)
    libpq.put_aside(os.environ)
    with _narration() as progress:
        report = named.diagnose(settings, progress)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_report(report)
    return 0 if report["serves"] else 3


def _print_report(report: dict[str, Any]) -> None:
    from pgsandbox.settings import show_size

    rows = [(row["name"], row["value"], row["from"]) for row in report["settings"]]
    for line in shell.table(("SETTING", "VALUE", "FROM"), rows):
        click.echo(line)
    click.echo()
    for engine in report["engines"]:
        click.echo(f"{engine['name']}: {engine['says']}")
    click.echo(f"\nserves: {report['serves'] or 'nothing'}")
    cache, count = report["cache"], report["cache"]["templates"]
    sizes = f"{show_size(cache['size'])} of {show_size(cache['limit'])}"
    click.echo(f"template: {report['template']['says']}")
    click.echo(f"cache: {count} template{'s' if count != 1 else ''}, {sizes}, in {cache['folder']}")
    if report["clones"]:
        click.echo(f"clones: {report['clones']}")
    for name, folder in report["folders"].items():
        click.echo(f"{name}: {folder}")


@cli.command(short_help="Print a completion script for a shell.")
@click.argument("shell_", metavar="{bash|zsh|fish}", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell_: str) -> None:
    """Print a completion script; it completes commands, flags and the names of this project's sandboxes.

    \b
    eval "$(pgsandbox completion bash)"            in ~/.bashrc
    eval "$(pgsandbox completion zsh)"             in ~/.zshrc
    pgsandbox completion fish | source             in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell_)
    assert kind is not None
    click.echo(kind(cli, {}, "pgsandbox", "_PGSANDBOX_COMPLETE").source())
