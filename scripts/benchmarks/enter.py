"""Run by workers.py in the benchmark's environment: one worker of a pgsandbox run, which enters when it is told to.

Arguments: engine, image, version, run, worker, number of workers, scope. Says when it could enter, and
then, told to, how many seconds its database took; ends with its input.
"""

import json
import sys
import time
from pathlib import Path

import psycopg

from pgsandbox import Sandbox

engine, image, version, run, worker, workers, scope = sys.argv[1:]
settings = {"engine": engine, "version": int(version), "init": ["schema.sql"], "scope": scope}
if engine == "docker":
    settings["image"] = image
print("waiting", flush=True)
sys.stdin.readline()
begun = time.monotonic()
with Sandbox(root=Path.cwd(), run=run, worker=worker, workers=int(workers), **settings) as sandbox:
    database = sandbox.database()
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("SELECT count(*) FROM table_1")
    print(json.dumps({"seconds": time.monotonic() - begun, "scope": sandbox.scope}), flush=True)
    sys.stdin.read()
