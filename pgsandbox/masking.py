"""Passwords in what pytest shows of a failure: the arguments of functions, values of variables, and messages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_MASK = "***"


def mask(shown: Any, secrets: Collection[str]) -> Any:
    """`shown`, a text or pytest's own object for a traceback, which is changed in place, without any of `secrets`.

    pytest prints the arguments of a failing function, that is a driver's `connect(conninfo)`, into logs that others may
    read.
    """
    if isinstance(shown, str):
        for secret in secrets:
            shown = shown.replace(secret, _MASK)
    elif isinstance(shown, list | tuple):
        return type(shown)([mask(one, secrets) for one in shown])
    elif type(shown).__module__.startswith("_pytest."):
        for name, value in vars(shown).items():
            setattr(shown, name, mask(value, secrets))
    return shown
