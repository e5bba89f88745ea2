"""How figures are shown: tables of aligned columns, medians with their range, and ratios."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence


def say(text: str) -> None:
    """Narrate; the figures are what stdout is for."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below their heads; the first column and the last are words, the others figures."""
    last = len(head) - 1
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if at in (0, last) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def spread(seconds: Sequence[float]) -> str:
    """The least and the most of `seconds`."""
    return f"{min(seconds):.2f}-{max(seconds):.2f}"


def ratio(these: Sequence[float], those: Sequence[float]) -> str:
    """How many times `those` are `these`: round by round, and of that the median."""
    return f"{statistics.median(a / b for a, b in zip(these, those, strict=True)):.2f}"


def difference(these: Sequence[float], those: Sequence[float]) -> str:
    """By how much `these` are more than `those`: round by round, and of that the median."""
    return f"{statistics.median(a - b for a, b in zip(these, those, strict=True)):+.2f} s"
