"""The reason for a clone."""

from __future__ import annotations


class NotProvenError(Exception):
    """What was done is not proven to be undone by putting back rows: why, in a few words. It never leaves a reset."""
