"""Checkpoints that are whole or not there, and that only the run that wrote them reads."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halp_fx.files import replacing


def write(path: Path, state: Any) -> None:
    """Whole or not at all: who is interrupted keeps the last one."""
    with replacing(path) as part:
        torch.save(state, part)


def read(path: Path, settings: dict[str, Any], *needed: str) -> dict[str, Any] | None:
    """The state of an interrupted run with these settings; None if there is none.

    Args:
        needed: what it has to have.

    Raises:
        SystemExit: it is of another run, or no state of one; it is left as it is.
    """
    if not path.exists():
        return None
    state: dict[str, Any] = loaded(path)
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise SystemExit(f"{path} was not written by a recipe: choose another --folder")
    check(path, state["settings"], settings)
    missing = [name for name in needed if name not in state]
    if missing:
        raise SystemExit(f"{path} is not whole, it has no {', '.join(missing)}: choose another --folder")
    return state


def check(path: Path, theirs: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises SystemExit if a file is of a run with other settings."""
    off = [f"{_spelled(k)} {theirs.get(k)}, now {v}" for k, v in settings.items() if theirs.get(k) != v]
    if off:
        raise SystemExit(f"{path} is of a run with other settings ({'; '.join(off)}): choose another --folder")


def _spelled(setting: str) -> str:
    return setting if setting == "processes" else f"--{setting.replace('_', '-')}"


def loaded(path: Path) -> Any:
    """Raises SystemExit if a file is not what `torch.save` writes, or holds more than tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # PyTorch's words for a file of others are a page on pickles.
        told = str(error).partition("\n")[0]
        raise SystemExit(f"{path} cannot be read: {told}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a network the weights in a file.

    Raises:
        SystemExit: there is none, or they are of another network.
    """
    weights = loaded(path)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path} has no weights of this network: {str(error)[:500]}") from error
