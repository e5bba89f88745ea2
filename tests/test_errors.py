"""Errors: what they say, what they exit with, and that they survive the way to another process."""

from __future__ import annotations

import json
import pickle
import re

import pytest

from pgsandbox import errors
from pgsandbox.errors import EngineError, PgsandboxError, PlaceError, SettingsError, TemplateError, UsageError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PgsandboxError)]


def test_all_of_it_is_said_a_line_each() -> None:
    error = PgsandboxError("it broke", why="it was old", looked_at=("here", "there"), hint="buy a new one")
    assert str(error) == (
        "pgsandbox: it broke\n  why: it was old\n  looked at: here, there\n  hint: buy a new one"
    )  # fmt: skip


def test_what_is_not_known_is_not_said() -> None:
    assert str(PgsandboxError("it broke")) == "pgsandbox: it broke"
    assert str(PgsandboxError("it broke", hint="mend it")) == "pgsandbox: it broke\n  hint: mend it"


def test_several_lines_stay_below_their_label() -> None:
    error = PgsandboxError("it broke", why="first\nsecond", hint="one\n\ntwo")
    assert str(error) == (
        "pgsandbox: it broke\n"
        "  why: first\n"
        "       second\n"
        "  hint: one\n"
        "        \n"
        "        two"
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_of_a_run_raises_the_same_error(kind: type[PgsandboxError]) -> None:
    error = kind("it broke", why="it was\nold", looked_at=("here",), hint="buy a new one")
    for twin in (
        PgsandboxError.from_record(json.loads(json.dumps(error.to_record()))),
        pickle.loads(pickle.dumps(error)),  # noqa: S301 -- our own
    ):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert (twin.message, twin.why, twin.looked_at, twin.hint) == ("it broke", "it was\nold", ("here",), error.hint)


def test_an_error_of_a_kind_that_only_its_writer_knows_is_still_an_error() -> None:
    record = PgsandboxError("it broke").to_record() | {"kind": "ErrorOfTomorrow"}
    assert type(PgsandboxError.from_record(record)) is PgsandboxError


def test_the_hierarchy_is_as_it_is_drawn() -> None:
    assert errors.__doc__ is not None
    drawn = {}
    above: list[str] = []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"([│├└─ ]*)(\w+Error) +([0-9]+)", line):
            depth = len(found[1]) // 4
            above = [*above[:depth], found[2]]
            drawn[found[2]] = (above[-2] if depth else "Exception", int(found[3]))
    assert drawn == {kind.__name__: (kind.__base__.__name__, kind.exit_code) for kind in KINDS if kind.__base__}


def test_exit_codes_tell_kinds_of_failure_apart() -> None:
    kinds = (PgsandboxError, UsageError, SettingsError, EngineError, TemplateError, PlaceError)
    assert [kind.exit_code for kind in kinds] == [1, 2, 2, 3, 1, 1]
