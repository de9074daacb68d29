"""Checkpoints that are whole or not there, and that only the run that wrote them reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from halp_fx.files import replacing


def write(path: Path, state: Any) -> None:
    """Whole or not at all: who is interrupted keeps the last one."""
    with replacing(path) as part:
        torch.save(state, part)


def read(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state of an interrupted run with these settings; None if there is none.

    Raises:
        SystemExit: it is of another run; it is left as it is.
    """
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu")
    theirs = state["settings"]
    off = [f"--{k.replace('_', '-')} {theirs.get(k)}, now {v}" for k, v in settings.items() if theirs.get(k) != v]
    if off:
        raise SystemExit(f"{path} is of a run with other settings ({'; '.join(off)}): choose another --folder")
    return state
