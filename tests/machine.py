"""What tests do to the machine around them, and undo: other users, file systems of their own, a daemon elsewhere."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from children import eventually
from conftest import LEFT_DEADLINE, processes

from pgsandbox import Sandbox, lease
from pgsandbox.engines import supervised
from pgsandbox.run import read_record

needs_root = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="only root can do this to a Linux machine"
)

SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
"""The daemon's, before any test changed where to look for it: Docker's, or Podman's (scripts/test --podman)."""
_PATH = os.environ["PATH"]
_SETPRIV, _UNSHARE = (shutil.which(tool) or tool for tool in ("setpriv", "unshare"))


@dataclass(frozen=True)
class OtherUser:
    """An account without rights, with a home folder of its own that is gone after the test."""

    name: str
    uid: int
    gid: int
    home: Path

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its processes: none of ours but PATH, everything kept below its home."""
        return {
            "PATH": _PATH,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "_PGSANDBOX_ROOT": str(self.home / "runtime"),
        }

    def run(self, *words: str, timeout: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program as this user, in its home."""
        become = [_SETPRIV, f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--inh-caps=-all"]
        return self._run([*become, *words], timeout, environ)

    def python(self, *words: str, timeout: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run our own Python as this user, who is let in where that Python lies, be it below root's home."""
        become = [_SETPRIV, f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        become += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
        return self._run([*become, sys.executable, *words], timeout, environ)

    def _run(
        self, command: Sequence[str], timeout: float, environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=self.home,
            env={**self.environ, **environ},
        )


@contextlib.contextmanager
def other_user(name: str = "daemon") -> Iterator[OtherUser]:
    """The account `name` for the length of the block; fails if it leaves processes behind."""
    account = pwd.getpwnam(name)
    home = Path(tempfile.mkdtemp(prefix="pgsandbox-test-"))
    os.chown(home, account.pw_uid, account.pw_gid)
    try:
        yield OtherUser(name, account.pw_uid, account.pw_gid, home)
        deadline = time.monotonic() + LEFT_DEADLINE
        while (left := processes(str(home))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"still there after {LEFT_DEADLINE:g}s: {left}"
    finally:
        shutil.rmtree(home, ignore_errors=True)


def with_mounts(*mounts: str) -> list[str]:
    """The beginning of a command line that sees `mounts` (arguments of mount(8)) and that nobody else sees."""
    script = "".join(f"mount {mount} && " for mount in mounts) + 'exec "$@"'
    return [_UNSHARE, "--mount", "--propagation", "private", "sh", "-c", script, "sh"]


def own_address() -> str:
    """An address of this machine that is not loopback; skips the test where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("198.51.100.1", 9))  # nothing is sent: it only asks the kernel for the route
        return str(probe.getsockname()[0])
    pytest.skip("this machine has no address but loopback")


class Forwarder:
    """Gives the daemon's unix socket a second address, TCP or unix, and counts who comes in through it."""

    def __init__(self, listener: socket.socket, target: str) -> None:
        self._listener = listener
        self._target = target
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self.accepted = 0
        self.delay = 0.0
        """Seconds that each request takes longer."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more, and cut off who is there."""
        with self._lock:  # who has just come in is not overlooked
            self._is_closed = True
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock, contextlib.ExitStack() as stack:
                stack.enter_context(client)
                if self._is_closed:
                    return
                self.accepted += 1
                server = stack.enter_context(socket.socket(socket.AF_UNIX))
                server.connect(self._target)
                self._open += [client, server]
                stack.pop_all()
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink, source is client), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if is_request:
                    self._hold_back()
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _hold_back(self) -> None:
        began = time.monotonic()
        while time.monotonic() < began + self.delay:  # it may be over sooner than it seemed at first
            time.sleep(0.02)


@contextlib.contextmanager
def forwarded_tcp(address: str = "127.0.0.1") -> Iterator[tuple[str, Forwarder]]:
    """The daemon at a TCP port of `address`: its DOCKER_HOST, and who is counting."""
    listener = socket.create_server((address, 0))
    forwarder = Forwarder(listener, SOCKET)
    try:
        yield f"tcp://{address}:{listener.getsockname()[1]}", forwarder
    finally:
        forwarder.close()


@contextlib.contextmanager
def forwarded_unix(path: Path) -> Iterator[tuple[str, Forwarder]]:
    """The daemon at a unix socket of another path: its DOCKER_HOST, and who is counting."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    forwarder = Forwarder(listener, SOCKET)
    try:
        yield f"unix://{path}", forwarder
    finally:
        forwarder.close()


class OwnDaemon:
    """A Docker daemon that nobody else uses, killed and started again at will.

    It lives in a network namespace of its own: a second daemon would meddle with the bridges and rules of the first.
    """

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder}/docker.sock"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._start([_UNSHARE, "--net"])

    def _start(self, inside: list[str]) -> None:
        parts = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        flags = [f"--{name}={self._folder / part}" for name, part in parts.items()]
        flags += [f"--host={self.host}", "--iptables=false", "--ip6tables=false"]
        script = 'ip link set lo up && exec dockerd "$@"'
        with (self._folder / "log").open("ab") as log:
            command = [*inside, "sh", "-c", script, "sh", *flags]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while self.docker("version").returncode != 0:
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, and its containers with it."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    def restart(self) -> None:
        """End it and start it again, in the network that it had: what reaches its containers reaches them again."""
        assert self._process is not None
        holder = subprocess.Popen(["nsenter", f"--net=/proc/{self._process.pid}/ns/net", "sleep", "60"])
        try:
            self.stop()
            self._start(["nsenter", f"--net=/proc/{holder.pid}/ns/net"])
        finally:
            holder.kill()
            holder.wait()

    def docker(self, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """Run Docker's own client with it."""
        return subprocess.run(["docker", "--host", self.host, *words], capture_output=True, check=False, **more)

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run our Python where the daemon's containers can be reached."""
        process = self.popen(*words)
        output, problems = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, problems)

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """The same, not waited for."""
        assert self._process is not None
        command = ["nsenter", f"--net=/proc/{self._process.pid}/ns/net", sys.executable, *words]
        environ = {**os.environ, "DOCKER_HOST": self.host}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


@contextlib.contextmanager
def own_daemon(image: str) -> Iterator[OwnDaemon]:
    """A daemon for the length of the block that has `image`; skips the test where none can be started."""
    if not all(map(shutil.which, ("dockerd", "ip", "nsenter"))):
        pytest.skip("there is no dockerd here to start a second time")
    if subprocess.run([_UNSHARE, "--net", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no network of our own")
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as name:
        daemon = OwnDaemon(Path(name))
        try:
            daemon.start()
            saved = subprocess.run(["docker", "save", image], capture_output=True, check=True)
            assert daemon.docker("load", input=saved.stdout).returncode == 0
            yield daemon
        finally:
            daemon.stop()


def is_podman() -> bool:
    """Whether the engine of the docker tests is Podman, whose own words and habits are others."""
    version = [
        "docker",
        f"--host=unix://{SOCKET}",
        "version",
        "--format",
        "{{range .Server.Components}}{{.Name}} {{end}}",
    ]
    return "Podman" in subprocess.run(version, capture_output=True, text=True, check=True).stdout


def command_lines() -> str:
    """The command line of every process of this machine."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)


def inspected(container: str) -> dict[str, Any]:
    """What the daemon says about a container."""
    import docker

    with contextlib.closing(docker.from_env()) as client:
        found: dict[str, Any] = client.api.inspect_container(container)
    return found


def data_of(server: Path) -> Path:
    """The data folder of the local server in the folder `server`."""
    record = read_record(server / supervised.SPEC)
    assert record is not None
    return Path(record["data"])


def working_in(folder: Path) -> list[int]:
    """The processes whose working directory is `folder`: those of its server."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((entry / "cwd").readlink()).removesuffix(" (deleted)") == str(folder):
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def running(*, root: Path | None = None, **settings: Any) -> Iterator[Sandbox]:
    """A sandbox for the length of the block, ended at once afterwards; `root` is a runtime folder of its own."""
    before = os.environ.get("_PGSANDBOX_ROOT")
    if root is not None:
        os.environ["_PGSANDBOX_ROOT"] = str(root)
    try:
        with Sandbox(**settings) as sandbox:
            if root is not None and before is not None:
                os.environ["_PGSANDBOX_ROOT"] = before
            yield sandbox
            server = Path(sandbox.server.running.folder) if sandbox.is_started else None
            assert sandbox.stop() == []
        # What the test made to reach the engine by must not go before that has heard the last of it.
        assert server is None or eventually(lambda: not lease.is_supervised(server))
    finally:
        if root is not None and before is not None:
            os.environ["_PGSANDBOX_ROOT"] = before


class Registry:
    """A registry of images on loopback, which takes others, with one image, `name`.

    That is no PostgreSQL, but it says that it is one.
    """

    def __init__(self, *, credentials: str = "") -> None:
        layer, compressed = self._layer()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PG_MAJOR=18", "PG_VERSION=18.99"], "Entrypoint": ["docker-entrypoint.sh"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        self._blobs = {_digest(blob): blob for blob in (compressed, json.dumps(config).encode())}
        (layer_digest, config_digest), docker = self._blobs, "application/vnd.docker"
        self._kind = f"{docker}.distribution.manifest.v2+json"
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": self._kind,
                "config": {
                    "mediaType": f"{docker}.container.image.v1+json",
                    "size": len(self._blobs[config_digest]),
                    "digest": config_digest,
                },
                "layers": [
                    {
                        "mediaType": f"{docker}.image.rootfs.diff.tar.gzip",
                        "size": len(compressed),
                        "digest": layer_digest,
                    }
                ],
            }
        ).encode()
        self._manifests = {
            f"/v2/pg/manifests/{name}": (self._kind, self._manifest) for name in ("18", _digest(self._manifest))
        }
        self._uploads: dict[str, bytes] = {}
        self._credentials = credentials and f"Basic {base64.b64encode(credentials.encode()).decode()}"
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.name = f"{self.address}/pg:18"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it, and remove what the daemon pulled from it."""
        import docker

        self._server.shutdown()
        self._server.server_close()
        with contextlib.closing(docker.from_env()) as client, contextlib.suppress(docker.errors.NotFound):
            client.api.remove_image(self.name)

    @staticmethod
    def _layer() -> tuple[bytes, bytes]:
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            content = os.urandom(3 << 20)  # enough for the daemon to report how far it is
            member = tarfile.TarInfo("content")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        return plain.getvalue(), gzip.compress(plain.getvalue(), 1)

    def _answer(self, path: str, credentials: str) -> tuple[int, str, bytes]:
        if self._credentials and credentials != self._credentials:
            return 401, "application/json", b'{"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]}'
        if path == "/v2/":
            return 200, "application/json", b"{}"
        if path in self._manifests:
            return 200, *self._manifests[path]
        blob = self._blobs.get(path.rpartition("/")[2])
        if blob is not None:
            return 200, "application/octet-stream", blob
        return 404, "application/json", b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'

    def _take(self, path: str, query: str, kind: str, body: bytes) -> tuple[int, str]:
        """Take in what is pushed: a blob begins as an upload, gets its content, and is named; manifests name blobs."""
        if path.endswith("/blobs/uploads/"):
            path += secrets.token_hex(8)
            self._uploads[path] = body
            return 202, path
        if "/blobs/uploads/" in path:
            self._uploads[path] += body
            if not query:
                return 202, path
            content = self._uploads.pop(path)
            assert query == f"digest={_digest(content).replace(':', '%3A')}"
            self._blobs[_digest(content)] = content
            return 201, f"/v2/blobs/{_digest(content)}"
        for name in (path, f"{path.rpartition('/')[0]}/{_digest(body)}"):
            self._manifests[name] = (kind, body)
        return 201, path

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        answer, take = self._answer, self._take

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, body = answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Content-Digest", _digest(body))
                if status == 401:
                    self.send_header("WWW-Authenticate", 'Basic realm="test"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_PUT(self) -> None:
                status, _, body = answer("/v2/", self.headers.get("Authorization", ""))
                location, content, (path, _, query) = "", self._body(), self.path.partition("?")
                if status == 200:
                    if path.endswith("/blobs/uploads/"):
                        query = ""
                    status, location = take(path, query, self.headers.get("Content-Type", ""), content)
                    body = b""
                self.send_response(status)
                if status == 401:
                    self.send_header("WWW-Authenticate", 'Basic realm="test"')
                self.send_header("Location", location)
                self.send_header("Range", f"0-{max(0, len(content) - 1)}")
                self.send_header("Docker-Content-Digest", _digest(content))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                content = []
                while size := int(self.rfile.readline(), 16):
                    content.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(content)

            do_HEAD = do_GET  # noqa: N815 -- the base class's name for it
            do_POST = do_PATCH = do_PUT  # noqa: N815 -- the same

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextlib.contextmanager
def registry(*, credentials: str = "") -> Iterator[Registry]:
    """A `Registry`, which asks for `credentials` (`user:password`) if given."""
    found = Registry(credentials=credentials)
    try:
        yield found
    finally:
        found.close()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextlib.contextmanager
def derived_image(base: str, *changes: str) -> Iterator[str]:
    """An image like `base` but for `changes` (a Dockerfile's instructions), removed afterwards."""
    import docker

    name = f"pgsandbox-test-derived:{secrets.token_hex(4)}"
    with contextlib.closing(docker.from_env()) as client:
        container = client.api.create_container(base)["Id"]
        try:
            repository, _, tag = name.partition(":")
            client.api.commit(container, repository=repository, tag=tag, changes=list(changes))
        finally:
            client.api.remove_container(container, v=True)
        try:
            yield name
        finally:
            client.api.remove_image(name, force=True)
