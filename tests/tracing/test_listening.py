"""Calls that are listened to, and the collector while forwards are recorded."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx.model.preserving import spared, within_reach
from halp_fx.tracing.forward import all_traces
from halp_fx.tracing.listening import reaches


class Sometimes(nn.Module):
    """What the third call, or a coin, or nothing reads."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.extra, self.kind, self.calls = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), kind, 0

    def decides(self, x):
        self.calls += 1
        if self.kind == "counter":
            return self.calls % 3 == 0
        if self.kind == "values":
            return self.calls % 3 == 0 and bool(x.sum() < float("inf"))
        return self.kind == "coin" and bool(torch.rand(()) < 0.5)

    def forward(self, x):
        x = self.conv(x)
        if self.kind == "a view":
            self.calls += 1
            return x + self.extra.bias.data.view(-1, 1, 1) if self.calls == 4 else x
        if self.kind == "fails" and self.calls:
            raise RuntimeError("it runs once only")
        return self.extra(x) if self.decides(x) else x.relu()


@pytest.mark.parametrize(
    ("kind", "heard"),
    [("counter", True), ("values", True), ("coin", True), ("a view", True), ("fails", True), ("never", False)],
)
@pytest.mark.parametrize("on_meta", [False, True])
def test_what_later_calls_read_is_heard(kind, heard, on_meta):
    net, x = Sometimes(kind).eval(), torch.randn(1, 3, 8, 8)
    state = torch.random.get_rng_state()
    assert reaches(net, (x,), {}, 8, ["extra.weight", "extra.bias"], on_meta) == heard
    assert net.calls == 0, "a copy runs"
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_no_call_reads_is_not_written_down_eight_times(monkeypatch):
    runs = []
    record = halp_fx.tracing.forward.record
    monkeypatch.setattr(halp_fx.tracing.forward, "record", lambda *a: runs.append(a[3]) or record(*a))
    x = torch.randn(1, 3, 8, 8)
    assert all_traces(Sometimes("never").eval(), x).further == ()
    assert [run.calls for run in runs if run.calls > 1] == []
    assert len(all_traces(Sometimes("counter").eval(), x).further) == 1
    assert [run.calls for run in runs if run.calls > 1] == [8]


def test_the_collector_passes_over_what_lives_already():
    before = gc.get_freeze_count()
    assert not before
    with spared():
        assert gc.get_freeze_count() > 1000
        with spared():
            assert gc.get_freeze_count() > 1000
        with within_reach():
            assert not gc.get_freeze_count()
        assert gc.get_freeze_count() > 1000
    assert not gc.get_freeze_count()


def test_what_the_caller_took_out_of_its_reach_stays_so():
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        halp_fx.channel_groups(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), torch.randn(1, 3, 8, 8))
        assert gc.get_freeze_count() >= count - 100
    finally:
        gc.unfreeze()


def test_the_collector_is_as_before_after_an_error():
    with pytest.raises(halp_fx.TraceError):
        halp_fx.channel_groups(nn.Conv2d(3, 8, 3), torch.randn(1, 4, 8, 8))
    assert not gc.get_freeze_count()
    assert gc.isenabled()


class PartCompiled(nn.Module):
    """A forward that calls a function of the user's which is compiled."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 3)
        self.twice = torch.compile(lambda x: torch.relu(x) * 2, backend="eager")

    def forward(self, x):
        return self.b(self.twice(self.norm(self.a(x)))).mean((2, 3))


LOOKS = {
    "recorded": lambda model, x: halp_fx.trace(model, x),
    "listened to": lambda model, x: reaches(model, (x,), {}, 2, ["b.weight"], True),
    "as a twin": lambda model, x: halp_fx.zero(model, {"a": [0, 1]}, x)(x),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_looks_at_a_forward_is_not_compiled_with_its_parts(look):
    counted = pytest.importorskip("torch._dynamo.utils").counters
    model, x = PartCompiled().eval(), torch.randn(1, 3, 8, 8)
    counted.clear()
    with torch.no_grad():
        LOOKS[look](model, x)
    assert not counted["frames"]
