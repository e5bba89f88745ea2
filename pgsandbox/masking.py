"""Passwords in what pytest shows of a failure: the arguments of functions, values of variables, and messages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_MASK = "***"
_CUT = "..."
_SHORTEST = 4
"""Characters of a password that say nothing of it."""


def mask(shown: Any, secrets: Collection[str]) -> Any:
    """`shown`, a text or pytest's own object for a traceback, which is changed in place, without any of `secrets`.

    pytest prints the arguments of a failing function, that is a driver's `connect(conninfo)`, into logs that others may
    read.
    """
    if isinstance(shown, str):
        for secret in secrets:
            shown = _without_pieces(shown.replace(secret, _MASK), secret)
    elif type(shown) in (list, tuple):
        return type(shown)(mask(one, secrets) for one in shown)
    elif type(shown).__module__.startswith("_pytest."):
        for name, value in getattr(shown, "__dict__", {}).items():
            setattr(shown, name, mask(value, secrets))
    return shown


def _without_pieces(text: str, secret: str) -> str:
    """`text` without what is left of `secret` where pytest has cut a long value in its middle."""
    if _CUT in text:
        for length in range(len(secret) - 1, _SHORTEST - 1, -1):
            text = text.replace(secret[:length] + _CUT, _MASK + _CUT).replace(_CUT + secret[-length:], _CUT + _MASK)
    return text
