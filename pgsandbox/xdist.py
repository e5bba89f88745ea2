"""Hooks that exist only where xdist does: what a worker noted travels to the controller with its last message."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pgsandbox.plugin import session_of


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker: hand over what the summary should say."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["pgsandbox"] = dataclasses.asdict(session_of(session.config).notes)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """In the controller: take in what a worker handed over; one that crashed could not, and left more than notes."""
    noted = (getattr(node, "workeroutput", None) or {}).get("pgsandbox")
    if noted:
        session_of(node.config).notes.add(noted)
    elif error:
        session_of(node.config).bury(node.gateway.id)
