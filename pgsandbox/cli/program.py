"""What all commands have in common: their group, a flag for each setting, and how they say what they do."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from pgsandbox import __version__
from pgsandbox.errors import PgsandboxError
from pgsandbox.settings import SETTINGS

if TYPE_CHECKING:
    from pgsandbox.settings import Settings

_NEVER_FLAGS = frozenset({"env"})
"""Settings whose short flag would mean something else here; `--pgsandbox-NAME` sets them."""

_ONLY_FOR_TESTS = frozenset({"isolation", "autouse", "leaks", "pollution", "verify", "keep", "report"})
"""Settings that are taken everywhere, and mean something to pytest only."""


class Flag(click.Option):
    """A setting's flag; its help shows the short spelling only."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Its row in the help."""
        record = super().get_help_record(ctx)
        return record and (re.sub(r", --pgsandbox-\S+", "", record[0]), record[1])


class WithRest(click.Command):
    """A command that hands on what follows `--`, whatever it looks like, as its parameter `rest`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what is before `--`."""
        end = args.index("--") if "--" in args else len(args)
        ctx.params["rest"] = tuple(args[end + 1 :])
        try:
            return super().parse_args(ctx, args[:end])
        except click.NoSuchOption as problem:
            message = f"{problem.format_message()} What is for {self.name} goes after --."
            raise click.UsageError(message, problem.ctx) from None

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The words of its usage line."""
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


name_argument = click.argument("name", required=False, shell_complete=_complete_names)


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
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
        command = click.option(*flags, f"set_{name}", default=None, multiple=many, cls=Flag, **more)(command)
    return command


def settings_of(given: dict[str, Any]) -> Settings:
    """The settings of this project, with the flags `given` to a command above all. Raises SettingsError."""
    from pgsandbox import named, sources

    flags = {name: given[f"set_{name}"] for name in SETTINGS if given[f"set_{name}"] not in (None, ())}
    cli = {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items()}
    return sources.load(cli=cli, cli_name="--{flag}", root=named.project())


@contextlib.contextmanager
def narration() -> Iterator[Callable[[str], None]]:
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
