"""Run by clones.py in the benchmark's environment: copies of one template, made in every way that the server knows.

Arguments: engine, image, version, rounds. Prints one line of JSON: for each way the ms of each copy.
"""

import json
import sys
import time
from pathlib import Path

from pgsandbox import Sandbox

WAYS = {
    "WAL_LOG": ("", "STRATEGY wal_log"),
    "FILE_COPY": ("SET file_copy_method = copy", "STRATEGY file_copy"),
    "FILE_COPY, clone": ("SET file_copy_method = clone", "STRATEGY file_copy"),
}

engine, image, version, rounds = sys.argv[1:]
settings = {"engine": engine, "version": int(version), "init": ["schema.sql"]}
if engine == "docker":
    settings["image"] = image
with Sandbox(root=Path.cwd(), run=f"bench-{time.time_ns()}", **settings) as sandbox:
    sandbox.database("copied")
    server = sandbox.server
    template, admin = server.names.template, server.admin
    server.create_database("first", template=template)  # only now it is all there
    times: dict[str, list[float]] = {}
    for _ in range(int(rounds)):
        for way, (setting, strategy) in WAYS.items():
            if setting and int(version) >= 18:
                admin.execute(setting.encode())
            elif "clone" in setting:
                continue
            begun = time.perf_counter()
            admin.execute(f"CREATE DATABASE another TEMPLATE {template} {strategy}".encode())
            times.setdefault(way, []).append((time.perf_counter() - begun) * 1000)
            admin.execute("DROP DATABASE another")
    server.drop_database("first")
    print(json.dumps(times), flush=True)
