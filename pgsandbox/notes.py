"""What pytest's summary says of a run: collected by every process of it, told by the one that has the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field

_SHOWN = 10
"""Clones that are told one by one."""


@dataclass
class Notes:
    """What the summary says: collected here, by workers sent to the controller."""

    failed: list[str] = field(default_factory=list)
    """What a failing init step said, in full: every test says that it failed, and this is said once."""
    notices: list[str] = field(default_factory=list)
    """What went otherwise than expected at the start, and was put right."""
    kept: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    cloned: list[str] = field(default_factory=list)
    """The tests after which the database had to be made anew, and why."""
    isolated: list[str] = field(default_factory=list)
    """How tests are isolated, where the header did not say that it is not as asked for."""
    trouble: list[str] = field(default_factory=list)

    def add(self, other: dict[str, list[str]]) -> None:
        """Take in what a worker sent."""
        for kind, lines in other.items():
            getattr(self, kind).extend(lines)

    def lines(self) -> list[str]:
        """All of it, a line each."""
        return [
            *dict.fromkeys(self.failed),
            *dict.fromkeys(self.notices),
            *(f"leaked: {line}" for line in self.leaked),
            *(f"kept: {line}" for line in self.kept),
            *_cloned(self.cloned),
            *dict.fromkeys(self.isolated),
            *(f"trouble: {line}" for line in self.trouble),
        ]


def _cloned(lines: list[str]) -> list[str]:
    """The clones, counted, and the first few of them."""
    if not lines:
        return []
    times = "once" if len(lines) == 1 else f"{len(lines)} times"
    shown = [f"  {line}" for line in lines[:_SHOWN]]
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [f"cloned: {times} a reset made the database anew, which takes longer and cuts connections:", *shown, *more]
