"""Memory is kept while networks are timed, and the limits are put back."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from halp_fx.latency import Fingerprint, allocator
from halp_fx.latency.interleaving import interleaved

needs_glibc = pytest.mark.skipif(not allocator.can_keep(), reason="another malloc, or limits set from outside")
EFFORT = {"min_time_s": 0, "repeats": 5, "precision": 1.0}


class Wide(nn.Module):
    """Each call takes and frees 40 MB twice: beyond what the C library ever takes from its own heap."""

    def forward(self, x):
        return ((x + 1) * 2).sum()


@pytest.fixture
def told(monkeypatch):
    """What the C library is told, in order, by limits that nobody has touched."""
    calls = []
    library = SimpleNamespace(
        mallopt=lambda name, value: calls.append((name, value)), malloc_trim=lambda pad: calls.append("trim")
    )
    monkeypatch.setattr(allocator, "_library", lambda: library)
    monkeypatch.setattr(allocator, "_limits", allocator._Limits())
    return calls


KEPT, USUAL = [*allocator._KEPT.items()], [*allocator._USUAL.items(), "trim"]


FAULTS = """
import torch
from test_allocator import EFFORT, Wide
from halp_fx.latency.interleaving import interleaved

torch.set_num_threads(1)
# The last takes more than any hole that the one before may have left in the heap.
for keep, elements in ((False, 10_000_000), (True, 10_000_000), (False, 40_000_000)):
    (timing,) = interleaved((Wide(),), torch.zeros(elements), keep_memory=keep, **EFFORT)
    print(timing.faults)
"""


@needs_glibc
def test_a_network_faults_as_found_and_not_while_memory_is_kept():
    """In a process of its own: where others have left holes in the heap, the C library takes those before it asks the
    kernel, and there are no faults to be seen."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    found, kept, again = map(float, done.stdout.split())
    assert found > kept + 10  # 20,000 pages, or 40 where the kernel gives huge ones.
    assert again > kept + 10, "the limits were not put back"


def test_interleaved_keeps_memory_unless_told_otherwise(told):
    interleaved((nn.Linear(3, 2),), torch.rand(2, 3), keep_memory=False, **EFFORT)
    assert not told
    assert allocator.untouched()
    interleaved((nn.Linear(3, 2),), torch.rand(2, 3), **EFFORT)
    assert told == [*KEPT, *USUAL]
    assert not allocator.untouched()


def test_the_outermost_context_puts_the_limits_back(told):
    with allocator.kept_memory():
        with pytest.raises(ValueError, match="inside"), allocator.kept_memory():
            raise ValueError("inside")
        assert told == KEPT * 3
    assert told == [*KEPT * 3, *USUAL]


def test_keep_memory_lasts(told):
    assert allocator.keep_memory()
    with allocator.kept_memory():
        pass
    assert set(told) == set(KEPT)


def test_nothing_happens_where_memory_cannot_be_kept(monkeypatch):
    monkeypatch.setattr(allocator, "_library", lambda: None)
    assert not allocator.keep_memory()
    assert not allocator.untouched()
    with allocator.kept_memory():
        pass
    assert "memory" not in Fingerprint.of(torch.device("cpu")).timer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_MMAP_MAX_", "65536"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
        ("HALP_FX_KEEP_MEMORY", "0"),
    ],
)
def test_limits_that_the_environment_sets_are_left_alone_and_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocator, "_library", allocator._library.__wrapped__)
    assert not allocator.can_keep()
    assert (value in allocator.memory_setting()) == (name != "HALP_FX_KEEP_MEMORY")


@needs_glibc
def test_other_tunables_do_not_matter(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
    assert allocator._library.__wrapped__() is not None
