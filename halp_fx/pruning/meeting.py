"""meeting: the processes of a job see that all of them are at the same call before they exchange anything.

They leave notes in the store of the default group, which no backend has a part in. Who is missing is said after half a
minute: a call in one process alone (`if rank == 0:`) would wait in silence for as long as the backend does, and what it
exchanges may be taken for something else by whoever exchanges other things.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from itertools import count

from ..errors import TrainingError
from ..internals import job_store

logger = logging.getLogger("halp_fx")

PATIENCE = 30.0
"""Seconds after which who is missing is named. One that is late may come yet, so the wait goes on: the backend's own,
which ends when its time is out or a process is gone."""

_NUMBERS = count()


def meet(rank: int, size: int, what: str) -> None:
    """Wait for the other processes of the job, for a while.

    Args:
        what: is called, in words.

    Raises:
        TrainingError: one of them calls something else; raised in all.
    """
    store = job_store()
    if store is None:
        return
    number = next(_NUMBERS)
    notes = [f"halp_fx/{number}/{process}" for process in range(size)]
    verdict = f"halp_fx/{number}/verdict"
    store.set(notes[rank], what)
    try:
        store.wait(notes if rank == 0 else [verdict], timedelta(seconds=PATIENCE))
    except RuntimeError:  # As stores say that the time is out.
        missing = [process for process, note in enumerate(notes) if not store.check([note])]
        logger.warning(
            "process %d of %d has waited for %g s in %s for process %s: all processes of the job must call it, not "
            "the first alone (if rank == 0:)", rank, size, PATIENCE, what, ", ".join(map(str, missing)) or 0,
        )  # fmt: skip
    else:
        if rank == 0:
            found = [store.get(note).decode() for note in notes]
            off = next((process for process, words in enumerate(found) if words != what), None)
            told = "" if off is None else f"process {off} of the job is in {found[off]}, and process 0 in {what}"
            store.set(verdict, told)
        told = store.get(verdict).decode()
        if told:
            raise TrainingError(f"{told}: all processes must make the same calls in the same order")
        return
    if rank == 0:
        store.set(verdict, "")
