"""Run by memory.py in the benchmark's environment: one worker of a pgsandbox run, holding its database until told.

Arguments: engine, image, version, run, worker, number of workers. Prints one line of JSON when it is there.
"""

import json
import sys
from pathlib import Path

from pgsandbox import Sandbox

_FILES = "SELECT sum(pg_database_size(oid)) + (SELECT sum(size) FROM pg_ls_waldir()) FROM pg_database"

engine, image, version, run, worker, workers = sys.argv[1:]
settings = {"engine": engine, "version": int(version), "init": ["schema.sql"]}
if engine == "docker":
    settings["image"] = image
with (
    Sandbox(root=Path.cwd(), run=run, worker=worker, workers=int(workers), **settings) as sandbox,
    sandbox.database().connect() as connection,
):
    connection.execute("SELECT count(*) FROM table_1")
    connection.commit()
    size = sandbox.server.execute(_FILES)[0][0]
    print(json.dumps({"scope": sandbox.scope, "files": float(size) / (1 << 20)}), flush=True)
    sys.stdin.read()
