"""Other programs on the machine: how much of them times bear, and what is said to who takes the times."""

from __future__ import annotations

WAITED = 0.1
"""Share of the time in which other programs ran, from which on it is said."""

SCATTER = 0.1
"""Quartile distance of a network's times, relative to their median, beyond which they are not to be trusted. On a quiet
machine it is 0.01 to 0.03."""


def load_notes(busy: str, waited: float) -> tuple[str, ...]:
    """What is to be said about other programs on the machine.

    Args:
        busy: what disturbed the measurement that counts; "" if nothing did.
        waited: share of the time in which other programs ran; 0 where that cannot be told.
    """
    cure = "close other programs, give this process cores of its own (taskset), or measure later"
    if busy:
        threads = "" if waited else "; with one thread (torch.set_num_threads(1)) the CPU's own time is taken"
        return (f"the machine was busy, so the times are not to be trusted: {busy}. For better ones: {cure}{threads}",)
    if waited > WAITED:
        return (
            f"the machine was busy: other programs ran in {waited:.0%} of the time. The times are the CPU time of the "
            f"one thread, which leaves that out; where they seem odd, {cure}",
        )
    return ()
