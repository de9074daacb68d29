"""Memory that a network frees is kept in the process while times are taken.

The C library gives freed memory back to the kernel when enough of it lies together, and takes large tensors straight
from the kernel; both limits move with what the process freed *before*. Memory from the kernel faults page by page at
its first use. So one and the same network is up to 70 % slower in one process than in another, and a network and its
pruned copy may be on different sides (figures: `docs/latency.md`, Memory). With the memory kept, that is over.

Only the GNU C library is told, and only where it serves `malloc` (not under jemalloc or tcmalloc), nothing in the
environment of the process sets its limits, and HALP_FX_KEEP_MEMORY is not 0.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

try:
    import resource
except ImportError:  # Windows.
    resource = None  # type: ignore[assignment]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # Names of mallopt(3), from malloc.h.

_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
"""Nothing straight from the kernel, nothing back to it."""

_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}
"""Where the moving limits of the GNU C library end up in a process that has freed large tensors. Once set, they no
longer move."""

_LIMITS = ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad")
"""Tunables of the GNU C library, each of which fixes all of its limits; MALLOC_..._ in the environment, likewise."""

_SWITCH = "HALP_FX_KEEP_MEMORY"


class _Limits:
    """The limits as they stand: kept while there is a user."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.users = 0
        self.touched = False

    def change(self, users: int) -> None:
        """So many users more; when the last one leaves, what is free goes back to the kernel."""
        library = _library()
        assert library is not None
        with self.lock:
            self.users += users
            self.touched = True
            for name, value in (_KEPT if self.users else _USUAL).items():
                library.mallopt(name, value)
            if self.users == 0:
                library.malloc_trim(0)


_limits = _Limits()


def keep_memory() -> bool:
    """Keep freed memory in this process from now on: for the process that a network is deployed in.

    The process then stays as large as it was at its largest. Holds for networks that run in the main thread; for others
    set MALLOC_ARENA_MAX=1 before the process starts. Calling it again is harmless.

    Returns:
        Whether that was done. False where there is no GNU C library, another `malloc` is loaded, or the environment
        already sets the limits.
    """
    if can_keep():
        _limits.change(+1)  # Never taken back, so no `kept_memory` undoes it.
    return can_keep()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory while in this context, where that can be done."""
    if not can_keep():
        yield
        return
    _limits.change(+1)
    try:
        yield
    finally:
        _limits.change(-1)


def can_keep() -> bool:
    """Whether memory can be kept: see the top of this file."""
    return _library() is not None


def untouched() -> bool:
    """Whether memory can be kept and has not been yet: the process still is as it was found."""
    return can_keep() and not _limits.touched


def memory_setting() -> str:
    """How memory is handled while times are taken, for the header of a table; "" for a C library's own way."""
    return "memory kept" if can_keep() else ", ".join(f"{name}={value}" for name, value in _settings().items())


def page_faults() -> int:
    """How many page faults this process has had; 0 where the system does not tell."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _settings() -> dict[str, str]:
    """What the environment says about the limits of the GNU C library."""
    names = [f"MALLOC_{limit.upper()}_" for limit in _LIMITS]
    found = {name: os.environ[name] for name in names if name in os.environ}
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(f"glibc.malloc.{limit}" in tunables for limit in _LIMITS):
        found["GLIBC_TUNABLES"] = tunables
    return found


@cache
def _library() -> ctypes.CDLL | None:
    """The GNU C library, if its limits are ours to set."""
    if not sys.platform.startswith("linux") or os.environ.get(_SWITCH) == "0" or _settings():
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        serving, own = (ctypes.cast(lib.malloc, ctypes.c_void_p).value for lib in (ctypes.CDLL(None), library))
    except (OSError, AttributeError):
        return None
    return library if serving == own and hasattr(library, "mallopt") else None
