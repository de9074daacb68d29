"""Memory is kept while networks are timed, and the limits are put back."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from halp_fx.latency import allocator, interleaved

pytestmark = pytest.mark.skipif(not allocator.can_keep(), reason="no GNU C library, or its limits are set from outside")


class Wide(nn.Module):
    """Each call takes and frees 40 MB twice: beyond what the C library ever takes from its own heap."""

    def forward(self, x):
        return ((x + 1) * 2).sum()


@pytest.fixture
def limits(monkeypatch):
    """What the C library is told, in order."""
    told = []
    real = allocator._mallopt()

    def mallopt(name, value):
        told.append((name, value))
        return real(name, value)

    monkeypatch.setattr(allocator, "_mallopt", lambda: mallopt)
    return told


def test_a_network_faults_as_found_and_not_while_memory_is_kept():
    setting = {"min_time_s": 0, "repeats": 5, "precision": 1.0}
    x = torch.zeros(10_000_000)
    (found,) = interleaved((Wide(),), x, keep_memory=False, **setting)
    (kept,) = interleaved((Wide(),), x, **setting)
    assert found.faults > 1000
    assert kept.faults < 100


def test_interleaved_keeps_memory_unless_told_otherwise(limits):
    interleaved((nn.Linear(3, 2),), torch.rand(2, 3), min_time_s=0, repeats=3, precision=1.0, keep_memory=False)
    assert not limits
    interleaved((nn.Linear(3, 2),), torch.rand(2, 3), min_time_s=0, repeats=3, precision=1.0)
    assert dict(limits[:2]) == allocator._KEPT
    assert dict(limits[2:]) == allocator._USUAL


def test_the_outermost_context_puts_the_limits_back(limits):
    with allocator.kept_memory():
        with pytest.raises(ValueError, match="inside"), allocator.kept_memory():
            raise ValueError("inside")
        assert all((name, value) in allocator._KEPT.items() for name, value in limits)
    assert dict(limits[-3:]) == allocator._USUAL


def test_keep_memory_lasts(limits, monkeypatch):
    monkeypatch.setattr(allocator, "_users", 0)
    assert allocator.keep_memory()
    with allocator.kept_memory():
        pass
    assert all((name, value) in allocator._KEPT.items() for name, value in limits)
    allocator._count(-1)


@pytest.mark.parametrize("setting", ["MALLOC_MMAP_MAX_=65536", "GLIBC_TUNABLES=glibc.malloc.trim_threshold=131072"])
def test_limits_set_by_the_environment_are_left_alone(setting):
    code = "from halp_fx.latency.allocator import can_keep, keep_memory; print(can_keep(), keep_memory())"
    done = subprocess.run(
        ["env", setting, sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="."
    )
    assert done.stdout.split() == ["False", "False"]
