"""Memory that a network frees is kept in the process while it is timed.

The C library gives freed memory back to the kernel when enough of it lies together, and takes large tensors straight
from the kernel; both limits move with what the process freed *before*. Memory from the kernel faults page by page at
its first use. So the same MobileNetV2 (batch 1, two threads) takes 18 ms in a process that keeps its memory, and 25 ms
with 2,600 page faults a call in one that does not; DenseNet-121 (batch 8) 490 or 820 ms. A network and its pruned copy
may be on different sides, and layers timed alone pay nothing of it. So times are taken with the memory kept, which is
also the faster way to deploy: `keep_memory`, or the environment variables in `docs/latency.md`.

Only the GNU C library is told; others (macOS, Windows, musl, a preloaded jemalloc or tcmalloc) stay as they are, and so
does a process whose environment sets any of this.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
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
"""Where the moving limits of the GNU C library end up in a process that has freed large tensors."""

_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")

_lock = Lock()
_users = 0


def keep_memory() -> bool:
    """Keep freed memory in this process, from now on: for the process that a network is deployed in.

    Its memory then stays at the highest level that it reached.

    Returns:
        Whether that was done: see `can_keep`.
    """
    if can_keep():
        _count(+1)  # Never taken back, so no `kept_memory` undoes it.
    return can_keep()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory while in this context, where that can be done."""
    if not can_keep():
        yield
        return
    _count(+1)
    try:
        yield
    finally:
        _count(-1)


def can_keep() -> bool:
    """False where there is no GNU C library, or the environment already sets its limits."""
    return _mallopt() is not None


def page_faults() -> int:
    """How many page faults this process has had; 0 where the system does not tell."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _count(change: int) -> None:
    """One user more or less; the limits follow."""
    global _users
    mallopt = _mallopt()
    assert mallopt is not None
    with _lock:
        _users += change
        for name, value in (_KEPT if _users else _USUAL).items():
            mallopt(name, value)


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The GNU C library's `mallopt`, None where it is missing or the environment has already set its limits."""
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in _SETTINGS)
    if tuned or not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
