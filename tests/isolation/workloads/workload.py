"""A workload: what several sessions do to a database between two resets, made up by hypothesis, readable as SQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from hypothesis import strategies as st

from workloads import statements as of

SESSIONS = ("a", "b")
"""They live as long as the workload does, across its resets, as an application's pool would."""

BACKGROUND = "c"
"""It is given a statement that is still running at the reset."""

SUPERUSER = "superuser"
"""It does what the worker's role may not do, and is gone before the reset."""

PREPARED = "PREPARE TRANSACTION 'later'"


@dataclass(frozen=True)
class Step:
    """One statement of one session."""

    session: str
    sql: str
    data: str | None = None
    """What is sent to COPY."""

    def __str__(self) -> str:
        waiting = "   -- not waited for" if self.session == BACKGROUND else ""
        return f"{self.sql};{waiting}" + (f"\n{self.data}\\." if self.data is not None else "")


@dataclass(frozen=True)
class Round:
    """What happens between two resets."""

    steps: tuple[Step, ...]
    asks: bool = False
    """Whether it begins by asking each sequence, in a session from before, for its next value."""


@dataclass(frozen=True)
class Workload:
    """Several rounds in the same sessions, a reset after each."""

    rounds: tuple[Round, ...]

    def __str__(self) -> str:
        lines = []
        for number, one in enumerate(self.rounds, 1):
            lines.append(f"-- round {number}" + (", beginning with nextval of each sequence" if one.asks else ""))
            for session, steps in groupby(one.steps, key=lambda step: step.session):
                lines.append(f"-- in session {session}")
                lines += map(str, steps)
            lines.append("-- reset")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"\n{self}\n"


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


KINDS: dict[str, tuple[int, list[str]]] = {
    "rows": (10, _lines(of.ROWS)),
    "copies": (1, list(of.COPIES)),
    "reads": (2, _lines(of.READS)),
    "sequences": (3, _lines(of.SEQUENCES_MOVED)),
    "truncates": (2, _lines(of.TRUNCATES)),
    "session": (4, _lines(of.SESSION)),
    "maintenance": (2, _lines(of.MAINTENANCE)),
    "schema": (3, _lines(of.SCHEMA_CHANGES)),
    "superuser": (1, _lines(of.SUPERUSER)),
    "surroundings": (1, _lines(of.SURROUNDINGS)),
    "outside": (1, _lines(of.OUTSIDE)),
}
"""How often each kind of statement occurs, and its statements."""

_ENDS = ("COMMIT", "COMMIT", "COMMIT", "ROLLBACK", "ROLLBACK", PREPARED, "")


def _filled(template: str, salt: int) -> str:
    """`template` with its places filled in, as `salt` has it."""

    def one(pool: Sequence[str], by: int) -> str:
        return pool[salt // by % len(pool)]

    return template.format(
        i=1 + salt % 6,
        n=1 + salt % 37,
        w=one(of.WORDS, 1),
        t=one(of.TABLES, 1),
        s=one(of.SEQUENCES, 1),
        x=one(of.NAMES, 3),
    )


def _step(session: str, template: str, salt: int) -> Step:
    if template in KINDS["superuser"][1]:
        session = SUPERUSER
    data = of.COPIES.get(template)
    return Step(session, _filled(template, salt), None if data is None else _filled(data, salt))


def workloads(*kinds: str, about: str = "") -> st.SearchStrategy[Workload]:
    """Workloads of statements of these `kinds`, of all by default, that match the pattern `about`."""
    drawn = st.sampled_from(
        [
            template
            for kind, (weight, templates) in KINDS.items()
            if not kinds or kind in kinds
            for template in templates
            if re.search(about, template)
            for _ in range(max(1, round(40 * weight / len(templates))))
        ]
    )
    salts = st.integers(0, 999)
    sessions = st.sampled_from("aaab")

    @st.composite
    def blocks(draw: st.DrawFn) -> list[Step]:
        """A statement alone, or a transaction, in one session."""
        session = draw(sessions)
        shape = draw(st.sampled_from(("one", "one", "one", "transaction", "odd")))
        if shape == "odd":
            return [Step(session, draw(st.sampled_from(_lines(of.TRANSACTIONS))))]
        steps = [
            _step(session, draw(drawn), draw(salts)) for _ in range(1 if shape == "one" else draw(st.integers(1, 4)))
        ]
        if shape == "one":
            return steps
        if len(steps) > 2 and draw(st.booleans()):
            steps[1:1] = [Step(session, "SAVEPOINT s")]
            steps[3:3] = [Step(session, draw(st.sampled_from(("ROLLBACK TO s", "RELEASE s"))))]
        end = draw(st.sampled_from(_ENDS))
        return [Step(session, "BEGIN"), *steps, *([Step(session, end)] if end else [])]

    unfinished = st.sampled_from(_lines(of.UNFINISHED)).map(lambda sql: [Step(BACKGROUND, sql)])
    several = st.lists(blocks(), max_size=6).map(lambda found: [step for block in found for step in block])
    ending = st.sampled_from([False] * 11 + [True]).flatmap(lambda busy: unfinished if busy else st.just([]))
    rounds = st.builds(lambda steps, end, asks: Round((*steps, *end), asks), several, ending, st.booleans())
    return st.lists(rounds, min_size=1, max_size=3).map(lambda found: Workload(tuple(found)))
