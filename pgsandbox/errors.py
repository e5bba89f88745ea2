"""Every error that a user can see: what happened, why, what was looked at, what to do, and the exit code.

PgsandboxError                1   something failed
├── UsageError                2   what was asked for can't be
│   └── SettingsError         2   a setting is unknown, malformed, or contradicts another
├── EngineError               3   no engine can run PostgreSQL here
├── NotReadyError             4   not ready in time; names what was waited for
├── NoSuchSandboxError        5   no sandbox of that name
├── ServerError               1   the server died, refused, or may not do what is needed
│   ├── CutError              1   our connection was cut off, as by a crash; the server may be there again
│   └── SeedError             1   a kept template is damaged; it is built anew
├── VerifyError               1   a reset did not bring back the baseline: a bug of pgsandbox
├── PlaceError                1   a folder of ours can't be used
├── TemplateError             1   the template can't be built
│   └── StepError             1   an init step failed; `why` is what it said itself
└── ProgramError            126   the command given to `run` may not be run (the shell's codes)
    └── NoSuchProgramError  127   there is no such command
"""

from __future__ import annotations

from typing import Any, ClassVar


class PgsandboxError(Exception):
    """The base of all errors raised on purpose.

    `message` says what happened, `why` the reason, `looked_at` the places that were tried, `hint` what to do
    (the most likely remedy first). `str(error)` is all of it, one line each, ready to be shown.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, why: str | None = None, looked_at: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.looked_at = tuple(looked_at)
        self.hint = hint

    def __str__(self) -> str:
        lines = [f"pgsandbox: {printable(self.message)}"]
        if self.why:
            lines.append(_labelled("why", self.why))
        if self.looked_at:
            lines.append(_labelled("looked at", ", ".join(map(printable, self.looked_at))))
        if self.hint:
            lines.append(_labelled("hint", self.hint))
        return "\n".join(lines)

    def to_record(self) -> dict[str, Any]:
        """This error as JSON data, so that every process of a run can raise the same one."""
        return {
            "kind": type(self).__name__,
            "message": self.message,
            "why": self.why,
            "looked_at": list(self.looked_at),
            "hint": self.hint,
        }

    @staticmethod
    def from_record(record: dict[str, Any]) -> PgsandboxError:
        """The error that `to_record` wrote down."""
        kind = _kinds().get(record["kind"], PgsandboxError)
        return kind(record["message"], why=record["why"], looked_at=tuple(record["looked_at"]), hint=record["hint"])


class UsageError(PgsandboxError):
    """What was asked for can't be done that way."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, malformed, or contradicts another."""


class EngineError(PgsandboxError):
    """No engine can run PostgreSQL here."""

    exit_code = 3


class NotReadyError(PgsandboxError):
    """A deadline passed; the message names what was waited for."""

    exit_code = 4


class NoSuchSandboxError(PgsandboxError):
    """There is no sandbox of that name."""

    exit_code = 5


class ServerError(PgsandboxError):
    """The server died, refused, or may not do what is needed."""


class CutError(ServerError):
    """Our connection was cut off in the middle of something; whoever sees this may begin again, once."""


class SeedError(ServerError):
    """A kept template is damaged, or has gone; whoever sees this builds it anew."""


class VerifyError(PgsandboxError):
    """A reset did not bring back the baseline; `why` is what differs. Only ever raised with the setting verify."""


class PlaceError(PgsandboxError):
    """A folder or file of ours can't be made, read, or trusted."""


class TemplateError(PgsandboxError):
    """The template can't be built."""


class StepError(TemplateError):
    """An init step failed; `why` is what the step itself said, which may be long."""

    def brief(self) -> StepError:
        """The same, for all but one of the places where it is to be seen."""
        return StepError(self.message, hint="what it said is at the end, under pgsandbox")


class ProgramError(PgsandboxError):
    """The command given to `run` may not be run."""

    exit_code = 126


class NoSuchProgramError(ProgramError):
    """There is no such command."""

    exit_code = 127


def first_line(said: object, otherwise: str | None = None) -> str:
    """The first line of what an exception or a program said; of nothing `otherwise`, or the kind of the exception."""
    lines = str(said or "").strip().splitlines()
    return lines[0] if lines else otherwise or type(said).__name__


def _kinds() -> dict[str, type[PgsandboxError]]:
    found: dict[str, type[PgsandboxError]] = {}
    todo: list[type[PgsandboxError]] = [PgsandboxError]
    while todo:
        kind = todo.pop()
        found[kind.__name__] = kind
        todo.extend(kind.__subclasses__())
    return found


def printable(text: str) -> str:
    """`text` in one line, and with nothing in it that a terminal would obey: a folder's name may hold anything."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _labelled(label: str, text: str) -> str:
    first, *rest = text.splitlines() or [""]
    indent = " " * (len(label) + 4)
    return "\n".join([f"  {label}: {first}", *(indent + line for line in rest)])
