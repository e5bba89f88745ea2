"""How a database gets back to its baseline: one protocol, one file for each way."""

from __future__ import annotations

from typing import Protocol


class Isolation(Protocol):
    """The way back to the baseline for one database."""

    baseline: str
    """The database, in the same server, that is the baseline's state."""

    def reset(self) -> None:
        """Bring the database to its baseline. Raises PgsandboxError."""
        ...

    def snapshot(self) -> str:
        """Keep the present state; the name to give to `restore`. Raises PgsandboxError."""
        ...

    def restore(self, snapshot: str) -> None:
        """Bring back the state of `snapshot`. Raises PgsandboxError."""
        ...

    def forget(self, snapshot: str) -> None:
        """Drop a snapshot that is no longer needed."""
        ...
