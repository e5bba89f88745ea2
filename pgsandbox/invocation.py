"""How pytest was called: whether it only looks, whether xdist starts workers and how many; misspelt flags of ours."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from pgsandbox.settings import SETTINGS, Place, unknown_setting

_LOOKING = (
    "collectonly",
    "help",
    "version",
    "showfixtures",
    "show_fixtures_per_test",
    "markers",
    "setupplan",
    "cacheshow",
)


def refuse_unknown_flags(args: Iterable[str]) -> None:
    """Raise UsageError for a flag that begins like one of ours; pytest would not say which is meant."""
    for arg in args:
        if arg == "--":
            return
        name = arg.removeprefix("--pgsandbox-").partition("=")[0].replace("-", "_")
        if arg.startswith("--pgsandbox-") and name not in SETTINGS:
            raise unknown_setting(Place("--pgsandbox-{flag}", {}), name)


def is_looking(options: Any) -> bool:
    """Whether this pytest only shows something and runs no test."""
    return any(getattr(options, name, False) for name in _LOOKING)


def is_parallel(options: Any) -> bool:
    """Whether xdist is going to start workers, as far as its options say before it has looked at them itself."""
    number = getattr(options, "numprocesses", None)
    if number in ("auto", "logical"):
        return not getattr(options, "usepdb", False) and os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") != "0"
    if number is not None:
        return bool(number > 0)
    return bool(getattr(options, "tx", None)) and (
        getattr(options, "dist", "no") != "no" or bool(getattr(options, "distload", False))
    )


def workers(tx: Iterable[str]) -> int:
    """How many workers xdist starts for its option `tx`, once it has read its options: `4*popen` stands for four."""
    specs = [spec.partition("*") for spec in tx]
    return max(1, sum(int(head) if star and head.isdigit() else 1 for head, star, _ in specs))
