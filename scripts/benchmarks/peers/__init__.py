"""Who is measured, and how each is told to use our image and our schema; the test itself is the file of that name here.

Every one runs in the same virtual environment with only its own plugins, which are named by `-p`.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import schema

MAJOR = 15
"""Of PostgreSQL, for everybody."""


@dataclass(frozen=True)
class Peer:
    """One way to run a test that needs a database."""

    name: str
    file: str
    """Of the test, without `.py`."""
    plugins: tuple[str, ...] = ()
    needs: str = ""
    """`docker`, `binaries`, or nothing."""
    ini: Mapping[str, str] = field(default_factory=dict)
    """Keys of pytest.ini; {image}, {repository} (the image without its tag) and {major} are filled in."""
    environ: Mapping[str, str] = field(default_factory=dict)
    is_ours: bool = False
    refuses_root: bool = False
    kills: str = ""
    """A label: whatever container has it is killed by this peer, whoever started it."""
    requires: tuple[str, ...] = ()
    """What to install."""

    def write_project(self, folder: Path, *, tables: int, image: str) -> None:
        """Make `folder` a project with one test, the schema, and an ini file that keeps pytest from looking above."""
        folder.mkdir(mode=0o755)
        (folder / "tmp").mkdir(mode=0o755)
        (folder / "schema.sql").write_text(schema.sql(tables))
        (folder / "test_one.py").write_text((Path(__file__).parent / f"{self.file}.py").read_text())
        parser = configparser.ConfigParser(interpolation=None)
        values = {"image": image, "repository": image.rpartition(":")[0], "major": str(MAJOR)}
        parser["pytest"] = {key: value.format_map(values) for key, value in self.ini.items()}
        with (folder / "pytest.ini").open("w") as stream:
            parser.write(stream)


_OURS = {"pgsandbox_init": "schema.sql", "pgsandbox_version": "{major}"}

PEERS = (
    Peer("no database, no driver", "no_driver"),
    Peer("no database", "nothing"),
    Peer(
        "pgsandbox, docker",
        "pgsandbox",
        ("pgsandbox",),
        needs="docker",
        ini={**_OURS, "pgsandbox_engine": "docker", "pgsandbox_image": "{image}"},
        is_ours=True,
    ),
    Peer(
        "pgsandbox, local",
        "pgsandbox",
        ("pgsandbox",),
        needs="binaries",
        ini={**_OURS, "pgsandbox_engine": "local"},
        is_ours=True,
    ),
    Peer(
        "pytest-pg",
        "pytest_pg",
        ("pytest_pg",),
        needs="docker",
        ini={"pg_docker_image_name": "{repository}"},
        requires=("pytest-pg==0.0.30",),
    ),
    Peer(
        "testcontainers",
        "testcontainers_by_hand",
        needs="docker",
        environ={"TESTCONTAINERS_RYUK_DISABLED": "true"},
        requires=("testcontainers==4.15.0",),
    ),
    Peer(
        "pytest-databases",
        "pytest_databases",
        ("pytest_databases", "pytest_databases.docker.postgres"),
        needs="docker",
        kills="pytest_databases",
        requires=("pytest-databases[postgres]==0.19.0",),
    ),
    Peer(
        "pytest-postgresql",
        "pytest_postgresql",
        ("pytest_postgresql",),
        needs="binaries",
        refuses_root=True,
        requires=("pytest-postgresql==10.0.0",),
    ),
    Peer(
        "pytest-mock-resources",
        "pytest_mock_resources",
        ("pytest_mock_resources",),
        needs="docker",
        requires=("pytest-mock-resources[docker]==2.15.0", "sqlalchemy>=2"),
    ),
)
