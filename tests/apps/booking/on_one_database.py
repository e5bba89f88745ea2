"""Shows what happens without isolation: eight workers run the suite on the one database that DATABASE_URL names.

The database must be empty. Succeeds if the suite fails, and fails because its tests meet each other there.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
PYTEST = ["pytest", "-n", "8", "-p", "no:pgsandbox", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=no"]
TESTS_FAILED = 1
TIMEOUT = 300

# The first of these whose sign is in a failure's message is its reason.
REASONS = {
    "name taken": ("UniqueViolation", "EmailTaken", "SlugTaken", "Taken:", "ExclusionViolation"),
    "changed by another test": ("Undefined", "ForeignKeyViolation", "NotFound", "Duplicate", "Deadlock", "LockNot"),
    "wrong count or value": ("assert", "AssertionError", "DID NOT RAISE", "LimitReached", "MultipleResultsFound"),
}


def main() -> int:
    run("alembic", "upgrade", "head").check_returncode()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        suite = run(*PYTEST, f"--junit-xml={report}")
        if suite.returncode != TESTS_FAILED:
            print(f"no test failed, pytest ended with {suite.returncode}:\n{suite.stdout}", file=sys.stderr)
            return 1
        passed, reasons = read(report)
    failed = sum(reasons.values())
    print(f"{passed} passed, {failed} failed: " + ", ".join(f"{reason} {n}" for reason, n in reasons.most_common()))
    expected = reasons["name taken"] > 0 and reasons["wrong count or value"] > 0
    return 0 if expected and reasons["other"] < failed / 10 else 1


def run(*module_and_arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a module of this Python in this folder, without what an outer pytest left in the environment."""
    command = [sys.executable, "-m", *module_and_arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PGSANDBOX_"))}
    return subprocess.run(command, check=False, cwd=HERE, env=env, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT)


def read(report: Path) -> tuple[int, Counter[str]]:
    """How many tests passed, and how many failed for which reason."""
    cases = ElementTree.parse(report).findall(".//testcase")
    failures = (case.find("error") if case.find("failure") is None else case.find("failure") for case in cases)
    messages = [failure.get("message", "") for failure in failures if failure is not None]
    return len(cases) - len(messages), Counter(map(reason, messages))


def reason(message: str) -> str:
    return next((name for name, signs in REASONS.items() if any(sign in message for sign in signs)), "other")


if __name__ == "__main__":
    sys.exit(main())
