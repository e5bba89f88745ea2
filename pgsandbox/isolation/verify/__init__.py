"""The setting verify: an isolation of any kind, each of whose resets is compared with the baseline by dumps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from pgsandbox.errors import ServerError, UsageError, VerifyError
from pgsandbox.isolation.verify.differences import differences
from pgsandbox.isolation.verify.dump import Dump, dump

if TYPE_CHECKING:
    from pgsandbox.database import Address
    from pgsandbox.isolation import Isolation
    from pgsandbox.server import Server

_SHOWN = 40
"""How many differences an error tells."""


class VerifiedIsolation:
    """The isolation `inner` of a database that is at its baseline now, with a proof after each of its resets.

    With `is_alone`, for a database that has its server to itself, the proof covers the whole server. Connections that
    are at work while it runs are not its business: whoever resets has ended them. Raises PgsandboxError.
    """

    def __init__(self, inner: Isolation, server: Server, address: Address, *, is_alone: bool) -> None:
        if server.version_num < 150000:
            raise UsageError("verify needs PostgreSQL 15 or later", why=f"the server has {server.version}")
        if server.admin.info.parameter_status("is_superuser") != "on":
            raise UsageError(
                "verify needs a superuser",
                why="it reads every row of every table and catalog, passwords' verifiers too",
                hint="name a superuser in url, or leave verify out",
            )
        self._inner = inner
        self._server = server
        self._address = address
        self._is_alone = is_alone
        self._baseline = self._dump()
        self._snapshots: dict[str, Dump] = {}
        self._moves: list[tuple[Any, Dump]] = []

    @property
    def made_anew(self) -> list[str]:
        """Why the isolation within had to make the database anew."""
        return self._inner.made_anew

    def reset(self) -> None:
        """Reset, and compare. Raises VerifyError where there is a difference."""
        self._inner.reset()
        self._compare(self._baseline, "the reset")

    def remake(self) -> None:
        """Make the database anew, and compare. Raises VerifyError where there is a difference."""
        self._inner.remake()
        self._compare(self._baseline, "the clone")

    def is_untouched(self) -> bool:
        """What the isolation within says."""
        return self._inner.is_untouched()

    def move_baseline(self, *, if_changed: bool = False) -> Any:
        """Move the baseline, and dump what it is now."""
        moved = self._inner.move_baseline(if_changed=if_changed)
        if moved is not None:
            self._moves.append((moved, self._baseline))
            self._baseline = self._dump()
        return moved

    def return_baseline(self, moved: Any) -> None:
        """Return to the baseline before, and compare. Raises VerifyError where there is a difference."""
        self._inner.return_baseline(moved)
        if self._moves and self._moves[-1][0] is moved:
            self._baseline = self._moves.pop()[1]
            self._compare(self._baseline, "the return")
        elif moved is not None:  # others were moved on top of it and stay: nobody has seen that state before
            at = next(index for index, move in enumerate(self._moves) if move[0] is moved)
            _, below = self._moves.pop(at)
            self._moves[at] = (self._moves[at][0], below)
            self._baseline = self._dump()

    def snapshot(self) -> str:
        """Snapshot, and dump what it is of."""
        name = self._inner.snapshot()
        self._snapshots[name] = self._dump()
        return name

    def restore(self, snapshot: str) -> None:
        """Restore, and compare. Raises VerifyError where there is a difference."""
        self._inner.restore(snapshot)
        self._compare(self._snapshots[snapshot], "the restore")

    def forget(self, snapshot: str) -> None:
        """Forget the snapshot and its dump."""
        self._inner.forget(snapshot)
        self._snapshots.pop(snapshot, None)

    def _compare(self, before: Dump, what: str) -> None:
        found = differences(before, self._dump(before))
        if found:
            more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
            raise VerifyError(
                f"{what} of {self._address.name} did not bring back its baseline",
                why="\n".join([*found[:_SHOWN], *more]),
                looked_at=("a dump of the baseline", "a dump of the database afterwards"),
                hint="this is a bug of pgsandbox: please report it, with these lines and what the test before them did;"
                "\nuntil it is mended, isolation = clone starts each test with a fresh copy",
            )

    def _dump(self, like: Dump | None = None) -> Dump:
        with self._server.inside(self._address.name) as connection:
            try:
                return dump(connection, self._address, like=like, whole_server=self._is_alone)
            except psycopg.Error as problem:
                raise ServerError(
                    f"{self._address.name} can't be verified", why=problem.diag.message_primary or str(problem).strip()
                ) from problem
