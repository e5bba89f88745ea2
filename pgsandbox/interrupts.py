"""Ctrl-C while two threads import: Python would forget it now and then, and keep the lock that every import needs.

When the main thread has waited for that lock, the interrupt is raised right after it was given, in front of the `try`
that would give it back; and where that is in a callback, it is only printed (CPython's `importlib/_bootstrap.py`,
`_get_module_lock`). So whoever imports in the background has to put the interrupt off for a moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_IMPORTER = "<frozen importlib._bootstrap>"
_PUT_OFF = 0.005


def put_off_in_imports() -> Callable[[], None]:
    """From now on raise KeyboardInterrupt a moment later where it would hit an import; what undoes that.

    A handler that somebody else has put in place stays. To be called in the main thread, else nothing happens.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return lambda: None
    try:
        signal.signal(signal.SIGINT, _interrupt)
    except ValueError:  # not the main thread
        return lambda: None
    return _give_back


def _interrupt(number: int, frame: FrameType | None) -> None:
    if frame is not None and frame.f_code.co_filename == _IMPORTER:
        threading.Timer(_PUT_OFF, os.kill, [os.getpid(), number]).start()
    else:
        raise KeyboardInterrupt


def _give_back() -> None:
    if signal.getsignal(signal.SIGINT) is _interrupt:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.default_int_handler)
