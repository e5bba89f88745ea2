"""How a database gets back to its baseline: one protocol, one file for each way.

reset/      exactly what was done to it is undone, with all connections alive
clone.py    it is dropped and made anew
rollback.py one transaction that never commits
verify/     the proof: any of them, compared with the baseline by a dump after each of its resets
"""

from __future__ import annotations

from typing import Any, Protocol


class Isolation(Protocol):
    """The way back to the baseline for one database. All of its methods raise PgsandboxError."""

    @property
    def made_anew(self) -> list[str]:
        """Why a reset had to make the database anew, which cuts connections; whoever reads it empties it."""
        ...

    def reset(self) -> None:
        """Bring the database to its baseline."""
        ...

    def remake(self) -> None:
        """Make the database anew at its baseline, whatever else could be done."""
        ...

    def is_untouched(self) -> bool:
        """Whether nothing was written since the baseline; False also where that can't be told."""
        ...

    def move_baseline(self, *, if_changed: bool = False) -> Any:
        """Make the present state the baseline; what to give to `return_baseline`.

        With `if_changed` only where something was changed and nobody is in the middle of something; else None.
        """
        ...

    def return_baseline(self, moved: Any) -> None:
        """Make the baseline what it was before `moved`, and be there."""
        ...

    def snapshot(self) -> str:
        """Keep the present state; the name to give to `restore`."""
        ...

    def restore(self, snapshot: str) -> None:
        """Bring back the state of `snapshot`."""
        ...

    def forget(self, snapshot: str) -> None:
        """Drop a snapshot that is no longer needed."""
        ...
