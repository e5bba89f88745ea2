"""The benchmark's own virtual environment, `.cache/bench`: the peers, and the checkout's pgsandbox as users get it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import PEERS, Peer
from benchmarks.report import say

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".cache" / "bench"
PYTHON = FOLDER / "bin" / "python"
_STAMP = FOLDER / "stamp.json"
_SHARED = ("pytest", "psycopg[binary]>=3.2")


class NotInstalled(Exception):  # noqa: N818 -- it says what happened
    """pip could not install something; the text is its last words."""


def prepare() -> dict[str, str]:
    """Make the environment, or bring it up to date; why a peer is not in it, by its name. Ends us where it can't be.

    pip compiles what it installs, so no run pays for that. pgsandbox is installed as a copy, not editable: nobody who
    works on the checkout meanwhile changes what is measured.
    """
    try:
        return _prepared()
    except NotInstalled as problem:
        sys.exit(f"bench: {FOLDER.relative_to(ROOT)} can't be made: {problem}")


def _prepared() -> dict[str, str]:
    wanted = {"folder": str(FOLDER), "python": sys.version, "requires": [*_SHARED, *_requirements()]}
    stamp = json.loads(_STAMP.read_text()) if _STAMP.is_file() else {}
    state = _checkout()  # before it is installed: what is changed meanwhile is installed again the next time
    if {key: stamp.get(key) for key in wanted} != wanted:
        say(f"making {FOLDER.relative_to(ROOT)}")
        _run([sys.executable, "-m", "venv", "--clear", str(FOLDER)])
        _install(*_SHARED)
        _install(str(ROOT))
        stamp = {**wanted, "pgsandbox": state, "missing": _install_peers()}
    elif stamp["pgsandbox"] != state:
        say("installing the checkout's pgsandbox")
        stamp["pgsandbox"] = state
        _install("--force-reinstall", "--no-deps", str(ROOT))
        _install(str(ROOT))
    _STAMP.write_text(json.dumps(stamp))
    missing: dict[str, str] = stamp["missing"]
    return missing


def versions() -> str:
    """What is in it, in one line."""
    names = [
        "pgsandbox",
        "pytest",
        *(requirement.partition("=")[0].partition("[")[0] for requirement in _requirements()),
    ]
    listed = json.loads(_run([str(PYTHON), "-m", "pip", "list", "--format=json"]))
    found = {one["name"].lower().replace("_", "-"): one["version"] for one in listed}
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)


def checkout() -> str:
    """Which state of the repository is measured."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "not a git checkout"


def _requirements() -> list[str]:
    return [requirement for peer in PEERS for requirement in peer.requires if "==" in requirement]


def _install_peers() -> dict[str, str]:
    missing = {}
    for peer in PEERS:
        if peer.requires and (why := _refusal(peer)):
            missing[peer.name] = why
    return missing


def _refusal(peer: Peer) -> str | None:
    say(f"installing {peer.name}")
    try:
        _install(*peer.requires)
    except NotInstalled as problem:
        return f"not installed: {problem}"
    return None


def _install(*what: str) -> None:
    _run([str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NotInstalled(lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout


def _checkout() -> str:
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    for file in sorted((ROOT / "pgsandbox").rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
