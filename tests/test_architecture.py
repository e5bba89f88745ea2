"""The house: which way its rooms may look, how little its door costs, and that what is shipped stands alone."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machine import running

import pgsandbox
from pgsandbox.engines import supervised
from pgsandbox.run import read_record

if TYPE_CHECKING:
    from conftest import Target

PACKAGE = Path(pgsandbox.__file__).parent
CHECKOUT = Path(__file__).parent.parent

LAYERS = """
    __main__
    cli  xdist                                              what a user types; what xdist calls
    cli.sandboxes
    cli.upkeep
    cli.program                                             what all commands have in common
    plugin  named  bake  doctor                             hooks and fixtures; sandboxes with a name; templates ahead
    session  supervisor                                     one pytest process; the process beside a server
    environment  identity  notes  invocation                what a session exports, who it is, what it tells
    sandbox                                                 settings in, databases out
    launch                                                  how a run's server comes to be
    sweep                                                   what the dead left
    template  cache  connections  isolation.clone  isolation.rollback  isolation.reset  isolation.verify
    isolation.reset.judge  isolation.reset.levels           what there is to undo; where baselines are kept
    isolation.reset.watch                                   our sessions inside one database
    isolation.reset.past                                    what was there
    isolation.reset.undo                                    putting it back
    isolation.reset.quiet  isolation.reset.relations  isolation.reset.shared
    isolation.reset.wal
    isolation.reset.errors
    isolation.verify.dump  isolation.verify.differences     what is compared to prove a reset
    isolation.verify.indexes  isolation.verify.surroundings
    isolation.sequences  isolation.unlogged
    isolation  fingerprint                                  how a baseline comes back, what one is made of
    steps                                                   what may build a template
    guard                                                   who notices for a test that its server is silent
    server  database                                        a server, a database as its user sees it
    roles                                                   whom things belong to, and who may do what
    contact                                                 our connections to a server, and whether it answers
    engines.docker  engines.local  engines.external         where a server can run
    engines.wards.docker  engines.wards.local               one server as its supervisor looks after it
    engines.wards  engines.images  engines.registry         kept templates as images, here and elsewhere
    engines.container                                       one container
    engines.memory                                          what a killed server leaves
    engines                                                 what all engines have in common
    engines.archive  engines.binaries  engines.daemon  engines.kernel  engines.ready  engines.supervised
    engines.topology  engines.condition
    run                                                     what the processes of a run agree on
    lease                                                   who is alive
    places  sources                                         our folders; where settings are written
    parcel                                                  a template as a file for elsewhere
    settings  shell  command  libpq  pools  scram  tuning  bounded  locks   values, and other programs' ways
    masking  interrupts                                     passwords out of what pytest shows; Ctrl-C in imports
    errors
"""
"""From top to bottom; a module may import what is in rows below its own, and nothing else of ours."""

UPWARDS = {
    ("engines", "engines.docker"): "an engine is loaded when it is chosen",
    ("engines", "engines.local"): "the same",
    ("engines", "engines.wards.docker"): "a ward is loaded by its supervisor",
    ("engines", "engines.wards.local"): "the same",
    ("engines", "engines.external"): "the same",
    ("plugin", "xdist"): "hooks that are registered only where xdist is",
}
"""The only imports that look up, each inside a function, and why."""

OUTSIDE = {
    "pytest": {"plugin", "xdist"},
    "_pytest": set(),
    "xdist": set(),
    "click": {"cli", "cli.program", "cli.sandboxes", "cli.upkeep"},
    "rich": {"cli.program"},
    "docker": {
        "engines.container",
        "engines.daemon",
        "engines.docker",
        "engines.images",
        "engines.registry",
        "engines.topology",
        "engines.wards.docker",
    },
    "testcontainers": {"engines.daemon", "engines.topology"},
}
"""Packages of others that only some modules may know at all, be it for a type."""

HEAVY = ("docker", "testcontainers", "psycopg", "filelock", "click", "rich", "platformdirs")


def modules() -> dict[str, ast.Module]:
    """All of ours by name, without `pgsandbox.`; the package itself, which loads its names lazily, is left out."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if name := ".".join(parts).removesuffix("__init__").rstrip("."):
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.AST, *, types_too: bool, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """What is imported, by full name, and whether that happens inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", inside) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types_too:
            continue
        else:
            deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(node, types_too=types_too, inside=deeper)


def ours(full: str, known: dict[str, ast.Module]) -> str | None:
    """The module of ours that an import of `full`, a module or a name in one, loads."""
    parts = full.split(".")
    if parts[0] != "pgsandbox":
        return None
    return next((name for end in (len(parts), -1) if (name := ".".join(parts[1:end])) in known), None)


def layers() -> list[set[str]]:
    """The rows of the table; what stands in one after three spaces is a remark."""
    return [set(line.strip().partition("   ")[0].split()) for line in LAYERS.strip().splitlines()]


# Direction ------------------------------------------------------------------------------------------------------------


def test_imports_look_down() -> None:
    known, height = modules(), {name: -number for number, row in enumerate(layers()) for name in row}
    assert sorted(height) == sorted(known), "every module has its layer"
    upwards = {}
    for name, tree in known.items():
        for full, inside in imports(tree, types_too=False):
            other = ours(full, known)
            if other is not None and other != name and height[other] >= height[name]:
                upwards[name, other] = inside
    assert upwards == dict.fromkeys(UPWARDS, True)


def test_others_packages_are_known_only_where_they_belong() -> None:
    knowing: dict[str, set[str]] = {package: set() for package in OUTSIDE}
    for name, tree in modules().items():
        for full, _ in imports(tree, types_too=True):
            if full.split(".")[0] in knowing:
                knowing[full.split(".")[0]].add(name)
    assert knowing == OUTSIDE


def test_every_module_begins_with_one_sentence() -> None:
    for file in PACKAGE.rglob("*.py"):
        first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        assert (file, first[-1:], first.count(". ")) == (file, ".", 0)


def test_all_public_names_are_there_and_no_other() -> None:
    assert {name: type(getattr(pgsandbox, name)) for name in pgsandbox.__all__}
    with pytest.raises(AttributeError, match="module 'pgsandbox' has no attribute 'nothing'"):
        pgsandbox.nothing  # noqa: B018


# Weight ---------------------------------------------------------------------------------------------------------------

IMPORT = """\
import importlib, json, sys, time
for name in sys.argv[2:]:
    importlib.import_module(name)
before, began = set(sys.modules), time.perf_counter()
importlib.import_module(sys.argv[1])
cost = time.perf_counter() - began
print(json.dumps({"loaded": sorted(set(sys.modules) - before), "ms": cost * 1000, "all": sorted(sys.modules)}))
"""


def loaded(*names: str) -> dict[str, object]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *names], env=environ, capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("names", "also"),
    [
        (("pgsandbox",), ("pytest",)),
        (("pgsandbox.plugin", "pytest"), ()),
        (("pgsandbox.session", "pytest"), ()),
        (("pgsandbox.supervisor",), ("pytest", "xdist")),
    ],
    ids=["package", "plugin", "session", "supervisor"],
)
def test_what_everybody_loads_is_light(
    names: tuple[str, ...], also: tuple[str, ...], record_property: pytest.RecordProperty
) -> None:
    found = loaded(*names)
    record_property("import_ms", found["ms"])
    print(f"{names[0]}: {found['ms']:.2f} ms, {len(found['loaded'])} modules")  # type: ignore[arg-type]
    assert [name for name in (*HEAVY, *also) if name in found["all"]] == []  # type: ignore[operator]


def test_the_plugin_loads_of_ours_only_how_it_is_called() -> None:
    found = loaded("pgsandbox.plugin", "pytest")["loaded"]
    assert [name for name in found if name.startswith("pgsandbox")] == [  # type: ignore[attr-defined]
        "pgsandbox",
        "pgsandbox.errors",
        "pgsandbox.invocation",
        "pgsandbox.plugin",
        "pgsandbox.settings",
    ]


def test_a_server_is_ordered_before_what_speaks_to_it_is_imported() -> None:
    """The driver takes as long to import as PostgreSQL to start: one of them waits for nothing."""
    found = loaded("pgsandbox.sandbox")["loaded"]
    assert {"psycopg", "docker", "testcontainers", "filelock"}.isdisjoint(found)  # type: ignore[call-overload]


def test_a_local_run_imports_nothing_of_docker(some_target: Target) -> None:
    code = (
        "import json, sys\nfrom pgsandbox import Sandbox\n"
        "with Sandbox(**json.loads(sys.argv[1])) as sandbox:\n"
        "    sandbox.database().connect().close()\n"
        "    sandbox.stop()\n"
        "print(*sorted({'docker', 'testcontainers', 'requests'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", code, json.dumps(some_target.settings)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "\n"


def test_a_supervisor_of_a_container_imports_neither_docker_nor_the_driver_until_it_ends() -> None:
    found = loaded("pgsandbox.engines.docker")["loaded"]
    assert {"psycopg", "docker", "testcontainers"}.isdisjoint(found)  # type: ignore[call-overload]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_supervisor_takes_our_modules_for_ours_alone(some_target: Target) -> None:
    """With the package's own folder on its path, `import errors` of any library would get ours."""
    with running(**some_target.settings) as sandbox:
        record = read_record(Path(sandbox.server.running.folder) / supervised.PID)
        assert record is not None
        words = Path(f"/proc/{record['pid']}/cmdline").read_text().split("\0")
    [line] = [line for line in words[words.index("-c") + 1].splitlines() if line.startswith("sys.path")]
    path = ast.literal_eval(line.partition(" = ")[2])
    assert path[0] == str(PACKAGE.parent)
    assert str(PACKAGE) not in path


# The wheel ------------------------------------------------------------------------------------------------------------

SHIPPED = """\
from pathlib import Path
import pgsandbox

def test_it_is_the_wheel_that_serves(pgsandbox_connection):
    assert Path(pgsandbox.__file__).is_relative_to({venv!r})
    assert pgsandbox_connection.execute("SELECT current_database()").fetchone() == ("pgsandbox_main",)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of the checkout; the build's own dependencies are taken from here if they are here."""
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(folder), str(CHECKOUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [entry_points] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        said = archive.read(entry_points).decode().split()
    sources = {
        str(path.relative_to(CHECKOUT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == sources
    assert {"pgsandbox/py.typed", "pgsandbox/engines/keep.sh"} <= names
    assert " ".join(said) == (
        "[console_scripts] pgsandbox = pgsandbox.cli:main [pytest11] pgsandbox = pgsandbox.plugin"
    )


def test_the_wheel_works_far_from_the_checkout(wheel: Path, tmp_path: Path, some_target: Target) -> None:
    """In an environment of its own, which finds all that pgsandbox depends on where this one has it."""
    venv, project = tmp_path / "venv", tmp_path / "project"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", f"--python={python}", "install"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True)
    [site] = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    project.mkdir()
    (project / "test_shipped.py").write_text(SHIPPED.format(venv=str(venv)))
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **some_target.environ}
    environ.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-m", "pytest", "-p", "pgsandbox", "-W", "error", "-q"],
        cwd=project,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    script = subprocess.run([venv / "bin" / "pgsandbox", "--version"], capture_output=True, text=True, check=True)
    assert script.stdout == f"{pgsandbox.__version__}\n"
