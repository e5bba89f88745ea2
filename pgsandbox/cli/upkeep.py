"""Commands for what is behind sandboxes: templates that are kept, what the dead left, what there is to run on."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import click

from pgsandbox import shell
from pgsandbox.cli.program import cli, narration, settings_of, with_settings


@cli.command(short_help="Build the template ahead of time, or bring it from one machine to another.")
@click.option("--push", "push_to", metavar="REF", help="push it to a registry as this image (docker)")
@click.option("--from", "pull_from", metavar="REF", help="pull it from a registry instead of building it (docker)")
@click.option("--output", metavar="FILE", help="write it to a file, for a cache between machines; - is stdout")
@click.option("--input", "input_", metavar="FILE", help="read it from such a file instead of building it; - is stdin")
@click.option("--json", "as_json", is_flag=True, help="print all about it as JSON")
@with_settings
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
    settings = settings_of(given)
    libpq.put_aside(os.environ)
    with narration() as progress, contextlib.closing(Baker(settings, named.project(), progress)) as baker:
        if pull_from is not None:
            entry = baker.pull(pull_from)
        else:
            entry = baker.bake() if input_ is None else baker.read(input_)
        if push_to is not None:
            baker.push(entry, push_to)
        if output is not None:
            baker.write(entry, output)
    click.echo(json.dumps(entry.to_json(), indent=2) if as_json else entry.where, err=output == "-")


def list_cache(as_json: bool) -> None:
    """Print the templates that are kept between runs."""
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


@cli.command(short_help="Remove what killed runs left behind; or what is kept between runs.")
@click.option("--cache", "of_cache", is_flag=True, help="remove the templates that are kept between runs, too")
def prune(of_cache: bool) -> int:
    """Remove what killed runs left behind, should their supervisors have been killed, too.

    Only what is provably ours and dead is removed, and the next start would do the same: nobody holds its lock, and
    its container carries this user's mark. What lives, and what belongs to others, is left alone.

    \b
    pgsandbox prune
    pgsandbox prune --cache          the kept templates of all your projects, too; the next runs build theirs anew
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
@with_settings
def doctor(as_json: bool, **given: Any) -> int:
    """Show every setting with where it came from, and what each engine could do here.

    The exit code is 3 if no engine could serve. An image that is not here yet is pulled.

    \b
    pgsandbox doctor
    pgsandbox doctor --engine docker --version 16
    """
    from pgsandbox import libpq, named
    from pgsandbox.doctor import diagnose

    settings = settings_of(given)
    libpq.put_aside(os.environ)
    with narration() as progress:
        report = diagnose(settings, named.project(), progress)
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
