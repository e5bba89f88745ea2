"""The variables of this process that lead to a database: set, watched, and given back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from pgsandbox.errors import UsageError
from pgsandbox.libpq import MISLEADING
from pgsandbox.settings import masked


class Environment:
    """DATABASE_URL, libpq's variables and `names`, further ones that get the URL."""

    def __init__(self, names: Sequence[str], root: Path) -> None:
        self._names = names
        self._root = root
        self._exported: dict[str, str] = {}
        self._before: dict[str, str | None] = {}

    def export(self, environ: dict[str, str]) -> None:
        """Set them to those of `environ`, which has DATABASE_URL."""
        self._exported = {**environ, **dict.fromkeys(self._names, environ["DATABASE_URL"])}
        self.put_aside(*MISLEADING, *self._exported)
        os.environ.update(self._exported)

    def export_dead(self, host: str) -> None:
        """Set them to a URL that leads nowhere, whose host says why."""
        url = f"postgresql://pgsandbox@{host}:1/none"
        self.export({"DATABASE_URL": url, "PGHOST": host, "PGPORT": "1", "PGUSER": "pgsandbox", "PGDATABASE": "none"})
        self._exported = {}

    def put_aside(self, *names: str) -> None:
        """Unset variables, remembering what they were until `give_back`."""
        for name in names:
            self._before.setdefault(name, os.environ.pop(name, None))

    def give_back(self) -> None:
        """Set all of them to what they were."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}

    def check(self) -> None:
        """Raise UsageError, saying who won, if a variable that was exported has been overwritten since."""
        for name, ours in self._exported.items():
            theirs = os.environ.get(name)
            if theirs != ours:
                raise UsageError(
                    f"{name} is no longer what pgsandbox set it to",
                    why=f"it is {_masked(name, theirs)} now{_written_in(name, theirs, self._root)}",
                    hint="load_dotenv() leaves alone what is set, load_dotenv(override=True) does not; if it is meant, "
                    "leave out -p pgsandbox and the setting env, and use the fixture pgsandbox_url",
                )


def _masked(name: str, value: str | None) -> str:
    if value is None:
        return "not set"
    return "***" if name == "PGPASSWORD" else masked(value)


def _written_in(name: str, value: str | None, root: Path) -> str:
    """The `.env` file that has exactly this value for `name`, if one does."""
    for file in dict.fromkeys((Path.cwd() / ".env", root / ".env")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in file.read_text(encoding="utf-8").splitlines():
                key, _, text = line.removeprefix("export ").partition("=")
                if key.strip() == name and text.strip().strip("'\"") == value:
                    return f", as {file.name} says: a dotenv loader won"
    return ""
