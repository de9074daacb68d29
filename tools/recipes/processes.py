"""The processes of a job, as torchrun starts them, or this one alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Job:
    """Attributes:
    rank, size: this process, and how many there are.
    device: that it computes on.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> Job:
        """As the environment says (`torchrun --nproc-per-node N script.py`)."""
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if "RANK" in os.environ and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(0, 1, device)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.size == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(held)
        return float(held)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
