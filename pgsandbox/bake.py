"""`pgsandbox bake`: a template built ahead of time, and brought from one machine to another."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pgsandbox import engines, parcel, places, template
from pgsandbox.cache import Cache, Entry
from pgsandbox.engines import Order
from pgsandbox.errors import TemplateError, UsageError
from pgsandbox.fingerprint import FORMAT
from pgsandbox.launch import patience
from pgsandbox.sandbox import Sandbox

if TYPE_CHECKING:
    from pgsandbox.engines import Progress
    from pgsandbox.fingerprint import Fingerprint
    from pgsandbox.settings import Settings

_PIECE = 1 << 20


_KEPT_ALREADY = "this template is kept already"

_REFERENCE = re.compile(
    r"([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
"""HOST:PORT/PATH:TAG or HOST:PORT/PATH@DIGEST, as registries have it (OCI distribution specification, "Pull")."""


def checked(reference: str) -> str:
    """`reference`, if it can name an image in a registry. Raises UsageError."""
    if not _REFERENCE.fullmatch(reference):
        raise UsageError(
            f"{reference!r} can't name an image",
            hint="write HOST/PATH:TAG, as in registry.example.com/shop/template:main",
        )
    return reference


class Baker:
    """The template of one project: built, or taken over from elsewhere, and kept; and given away."""

    def __init__(self, settings: Settings, root: Path, progress: Progress) -> None:
        self._settings = settings
        self._root = root
        self._progress = progress
        self._sandbox = Sandbox(settings, root=root, run=f"bake-{places.new_token()}", progress=progress)

    def close(self) -> None:
        """Give up what is held."""
        self._sandbox.close()

    def bake(self) -> Entry:
        """The kept template, built if it is not there yet. Raises TemplateError where it can't be kept at all."""
        self._key()
        return self._sandbox.bake()

    def push(self, entry: Entry, reference: str) -> None:
        """Push the image of `entry` to `reference`, with the credentials that Docker's own client would use."""
        self._docker("--push").push(entry.seed, reference, self._progress)

    def pull(self, reference: str) -> Entry:
        """The kept template, pulled from `reference` if it is not there yet.

        Raises UsageError without images, EngineError where it can't be pulled, TemplateError where it is another's.
        """
        key, docker, cache = self._key(), self._docker("--from"), Cache()
        with cache.building(key, timeout=patience(self._settings)):
            entry, _ = cache.find(key)
            if entry is None:
                with self._keeping(cache), docker.pulled(reference, self._progress) as (image, note):
                    self._check(note, f"the image {reference}")
                    seed = docker.keep(image, self._sandbox.choice, folder=cache.folder, name=key)
                    entry = self._keep(cache, seed, note)
            else:
                self._progress(_KEPT_ALREADY)
        return entry

    def write(self, entry: Entry, file: str) -> None:
        """Write `entry` to `file` (`-` is standard output), whole or not at all. Raises PlaceError."""
        engine = engines.named(entry.engine)
        head: dict[str, Any] = {"key": entry.key, "parts": self._sandbox.fingerprint.parts, "version": entry.version}
        head |= {"engine": entry.engine, "facts": entry.facts, "seed": entry.seed, "size": entry.size}
        with self._order() as order, _written(file) as stream:
            parcel.write(stream, head, _in_pieces(engine.export(entry.seed, order)), format_=FORMAT)

    def read(self, file: str) -> Entry:
        """The kept template, read from `file` (`-` is standard input) if it is not there yet.

        Raises PlaceError where that can't be read, TemplateError where it is no such file, is damaged, or another's.
        """
        shown = "standard input" if file == "-" else file
        with _opened(file) as stream:
            head, content = parcel.read(stream, name=shown, format_=FORMAT)
            key, cache = self._key(), Cache()
            self._check(head, shown)
            with cache.building(key, timeout=patience(self._settings)):
                entry, _ = cache.find(key)
                if entry is not None:
                    self._progress(_KEPT_ALREADY)
                    return entry
                with self._keeping(cache), self._order() as order:
                    engine, choice = engines.named(self._sandbox.choice.engine), self._sandbox.choice
                    self._progress(f"reading {shown}")
                    seed = engine.adopt(content, head, choice, order, folder=cache.folder, name=key)
                    return self._keep(cache, seed, head)

    def _keeping(self, cache: Cache) -> contextlib.AbstractContextManager[None]:
        return self._sandbox.join().keeping(self._sandbox.choice.engine, cache.prepare())

    def _keep(self, cache: Cache, seed: dict[str, Any], note: dict[str, Any]) -> Entry:
        choice, version, facts = self._sandbox.choice, note["version"], note["facts"]
        entry = Entry.of(self._key(), seed, choice=choice, version=version, facts=facts, root=self._root)
        cache.keep(entry, limit=self._settings.cache_size)
        return entry

    def _key(self) -> str:
        mark: Fingerprint = self._sandbox.fingerprint
        if mark.key is None:
            hints = {"external": "leave url out: servers of our own start from a kept template"}
            hint = mark.hint or hints.get(self._sandbox.choice.engine, "set cache = true")
            raise TemplateError("this template can't be kept", why=mark.why_not, hint=hint)
        return mark.key

    def _check(self, note: dict[str, Any], what: str) -> None:
        """Raise TemplateError unless what came with `note` is the template that this project would build."""
        key, mark = self._key(), self._sandbox.fingerprint
        try:
            template.Facts.from_record(note["facts"])
            found, parts = str(note["key"]), dict(note["parts"])
        except (KeyError, TypeError, ValueError) as problem:
            raise TemplateError(f"{what} says nothing of a template", why=f"no {problem} in it") from problem
        if found != key:
            others = ", ".join(mark.differs_from(parts)) or "what it is made of"
            raise TemplateError(
                f"{what} holds another template",
                why=f"it was baked with another state of: {others}",
                hint="bake it anew from this checkout, with these settings; an image named by its digest never changes",
            )

    def _docker(self, flag: str) -> Any:
        if self._sandbox.choice.engine != "docker":
            raise UsageError(
                f"{flag} needs the engine docker",
                why=f"the engine {self._sandbox.choice.engine} has no images",
                hint="use --output FILE and --input FILE",
            )
        return engines.named("docker")

    @contextlib.contextmanager
    def _order(self) -> Iterator[Order]:
        """What an engine needs to make a helper of its own that goes with us."""
        run = self._sandbox.join()
        token = places.new_token()
        places.private(run.folder / "servers")
        folder = run.folder / "servers" / token
        timeout = self._settings.timeout
        yield Order(token=token, folder=folder, run=run.id, flags={}, timeout=timeout, lease=run.folder)


@contextlib.contextmanager
def _written(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdout.buffer
        return
    target = Path(file)
    fresh = target.with_name(f".{target.name}.{places.new_token()}")
    try:
        with fresh.open("xb") as stream:
            yield stream
        fresh.replace(target)
    except OSError as problem:
        raise places.unusable(target, problem) from problem
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115 -- what reading it raises is the reader's to translate
    except OSError as problem:
        raise TemplateError(f"{file} can't be read", why=problem.strerror) from problem
    with stream:
        yield stream


def _in_pieces(content: Iterator[bytes]) -> Iterator[bytes]:
    """The same in pieces of about a megabyte."""
    pending = bytearray()
    for piece in content:
        pending += piece
        if len(pending) >= _PIECE:
            yield bytes(pending)
            pending.clear()
    yield bytes(pending)
