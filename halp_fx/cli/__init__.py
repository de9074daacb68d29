"""Takes a command line: `halp-fx`, which is `python -m halp_fx`."""

from .app import main

__all__ = ["main"]
