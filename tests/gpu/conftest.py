"""Tests in this folder need a CUDA device; elsewhere they are skipped, with that as the reason. Those of whole networks
run on a CPU, too, when `HALP_FX_TEST_DEVICE=cpu` asks for a rehearsal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "kernels"))  # the oracles of the CPU tests


@pytest.fixture
def device() -> str:
    return os.environ.get("HALP_FX_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    rehearsed = os.environ.get("HALP_FX_TEST_DEVICE") == "cpu"
    for item in items:
        if HERE in item.path.parents and not (rehearsed and "device" in getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none here"))
