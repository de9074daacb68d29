"""Settings shared by all tests: one thread (the machines that run them are shared), fixed seeds."""

from __future__ import annotations

import warnings

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible(tmp_path, monkeypatch):
    # No test may read or write the latency tables of the person who runs it.
    monkeypatch.setenv("HALP_FX_CACHE_DIR", str(tmp_path / "halp_fx_cache"))
    monkeypatch.delenv("COLUMNS", raising=False)  # Nor may its terminal decide where a line of text ends.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # torchvision's GoogLeNet warns about a future default of its own.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torchvision")
        yield
