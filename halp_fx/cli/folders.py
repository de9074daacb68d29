"""The folder that `prune` and `apply` leave, and how a network comes back from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HalpError
from .output import Output
from .weights import load_weights

if TYPE_CHECKING:
    from torch import nn

    from ..types import Plan

PLAN, WEIGHTS = "plan.json", "weights.pt"


def leave(small: nn.Module, plan: Plan, folder: Path, output: Output) -> None:
    """Write a pruned network's plan and weights."""
    import torch

    output.write(folder / PLAN, plan.to_json())
    torch.save(small.state_dict(), folder / WEIGHTS)
    output.wrote(folder / WEIGHTS)


def come_back(folder: Path, dense: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """The network of a folder: the dense one, cut as its plan says, with its weights.

    Raises:
        HalpError: the folder has no plan, or it is another model's.
    """
    from ..api import rewrite

    small = rewrite(dense, read_plan(folder / PLAN if folder.is_dir() else folder), inputs)
    if folder.is_dir() and (folder / WEIGHTS).is_file():
        load_weights(small, folder / WEIGHTS)
    return small.eval()


def read_plan(path: Path) -> Plan:
    """A plan from a file.

    Raises:
        HalpError: there is none.
    """
    from ..types import Plan

    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HalpError(f"there is no plan at {path}: `halp-fx prune … --out DIR` writes one") from None
