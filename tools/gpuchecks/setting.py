"""What a part is told, what it says, and on what machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how long a part may run.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal of tiny sizes.
        folder: for files that parts share.
        until: `time.monotonic()` at which no further case may begin.
        done: cases that have a row already.
    """

    device: str
    folder: Path
    until: float
    done: frozenset[str]

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    def table(self, runtime: str, dtype: str, batch: int) -> Path:
        """The folder for the latency table of one way to run: networks share layers."""
        return self.folder / "tables" / f"{runtime}_{dtype}_{batch}"

    def due(self, *cases: str) -> Iterator[str]:
        """The cases that are not done, as long as there is time."""
        for case in cases:
            if case not in self.done:
                if time.monotonic() > self.until:
                    return
                yield case


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the check: its name, and what yields a row for each case, whose name stands under "case"."""

    name: str
    run: Callable[[Setting], Iterator[Row]]


def machine(device: str) -> Row:
    """Card, driver and versions."""
    found: Row = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "torchvision": installed("torchvision"),
        "cores": os.cpu_count(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": f"{properties.name}, {properties.total_memory >> 20} MiB, {properties.multi_processor_count} SM",
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def installed(package: str) -> str:
    """The version of a package, or "absent"."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _driver() -> str:
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
