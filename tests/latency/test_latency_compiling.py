"""What is timed as compiled is compiled: a backend that counts stands in for the compiler, no clock decides."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from counting import Counting
from torch import nn

from halp_fx.errors import LatencyError
from halp_fx.latency import compiling, runtimes
from halp_fx.latency.interleaving import interleaved
from halp_fx.trials.trials import channel_groups

X = torch.rand(2, 3)
BRIEF = {"min_time_s": 0.0, "max_time_s": 0.01, "repeats": 3, "runtime": "inductor"}
MORE_THAN_THE_LIMIT = range(1, 13)


@pytest.fixture
def backend(monkeypatch):
    counting = Counting()
    monkeypatch.setattr(compiling, "BACKEND", counting)
    # PyTorch's own limit: timm's optimizers set it to a million for the whole process when they are imported.
    with torch._dynamo.config.patch(recompile_limit=8):
        yield counting


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Linear(width, 2)
        self.eager = 0

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.eager += 1
        return self.b(self.a(x).relu())


class Broken(Net):
    def forward(self, x):
        x = self.a(x)
        torch._dynamo.graph_break()
        return self.b(x.relu())


def test_every_network_of_a_class_is_compiled_and_only_compiled_code_is_timed(backend):
    dense, before = Net(16), 0
    for width in MORE_THAN_THE_LIMIT:
        small = Net(width)
        interleaved([dense, small], X, **BRIEF)
        assert backend.graphs == 1 + width, "the dense network is compiled once"
        assert backend.calls >= before + 2 * (compiling.WARM_UP + 3)
        assert (dense.eager, small.eager) == (0, 0)
        before = backend.calls


@pytest.mark.skipif(not compiling._ISOLATED, reason="this torch counts all calls of torch.compile together")
def test_graph_breaks_do_not_use_up_the_versions_of_a_class(backend):
    for width in MORE_THAN_THE_LIMIT:
        interleaved([Broken(width)], X, **BRIEF)
        assert backend.graphs == 2 * width


def test_the_limit_is_an_error_and_not_eager_code(backend, monkeypatch):
    monkeypatch.setattr(compiling, "_ISOLATED", {})

    class Mine(Net):
        def forward(self, x):
            x = self.a(x)
            torch._dynamo.graph_break()
            return self.b(x.relu())

    def all_of_them():
        for width in MORE_THAN_THE_LIMIT:
            interleaved([Mine(width)], X, **BRIEF)

    with pytest.raises(LatencyError, match="recompile_limit"):
        all_of_them()


def test_what_needs_other_code_while_it_is_timed_is_an_error(backend):
    class Scaled(Net):
        factor = 1

        def forward(self, x):
            return self.b(self.a(x).relu()) * self.factor

    model = Scaled(4)
    compiled = compiling.Compiled(model)
    compiled.warm_up(X)
    model.factor = 7
    with pytest.raises(LatencyError, match="compile again"), compiling.nothing_compiled():
        compiled.function(X)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="mine"), compiling.nothing_compiled():
        raise RuntimeError("mine")


def test_nothing_compiled_is_an_error(backend, monkeypatch):
    torch._dynamo.reset()  # Where versions are counted together, others may have used up those of PyTorch's own code.

    class Off(Net):
        @torch.compiler.disable
        def forward(self, x):
            return self.b(self.a(x))

    with pytest.raises(LatencyError, match="compiled nothing"):
        interleaved([Off(4)], X, **BRIEF)


def test_the_caller_s_compiled_code_and_stance_stay(backend):
    model = Net(5)
    mine = Counting()
    fast = torch.compile(model, backend=mine)
    fast(X)
    with torch.compiler.set_stance("force_eager"):
        interleaved([model, Net(3)], X, **BRIEF)
        fast(X)
    fast(X)
    assert (mine.graphs, mine.calls) == (1, 2)
    assert backend.graphs == 2


def test_a_timed_network_is_let_go(backend):
    model = Net(4)
    interleaved([model], X, **BRIEF)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def unit(name):
    class Layer:
        key = name
        op = "relu"
        function = staticmethod(lambda x, factor: (x * factor).relu())

    return Layer()


def test_units_are_compiled_for_all_widths_and_few_are_kept(backend, monkeypatch):
    monkeypatch.setattr(runtimes, "_UNITS", {})
    monkeypatch.setattr(runtimes, "MOST_UNITS", 3)
    for width in range(2, 14):
        call = runtimes.callable_for(unit("one"), (torch.rand(2, width), 3), {}, "inductor")
        with runtimes.as_asked("inductor"):
            assert call().shape == (2, width)
    assert backend.graphs <= 2
    for number in range(5):
        runtimes.callable_for(unit(f"unit {number}"), (X, 3), {}, "inductor")
    assert [key for key, _ in runtimes._UNITS] == ["unit 2", "unit 3", "unit 4"]


def test_a_unit_with_as_many_versions_as_there_may_be_begins_anew(backend, monkeypatch):
    monkeypatch.setattr(runtimes, "_UNITS", {})
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    shapes = ((2, 3), (6,), (1, 2, 3), (1, 1, 2, 3))
    for dtype in dtypes:
        for shape in shapes:
            call = runtimes.callable_for(unit("one"), (torch.rand(shape).to(dtype), 3), {}, "inductor")
            with runtimes.as_asked("inductor"):
                assert call().dtype == dtype
    assert backend.graphs >= len(dtypes) * len(shapes)
    assert len(runtimes._UNITS) == 1


def test_the_real_compiler():
    (found,) = interleaved([Net(4).eval()], X, **BRIEF)
    assert found.count >= 1


def test_the_real_compiler_lays_out_convolutions_as_their_units_do(monkeypatch):
    from torch._inductor.select_algorithm import extern_kernels

    seen, convolution = [], extern_kernels.convolution

    def looked_at(x, weight, *rest, **settings):
        seen.append((x.stride(), weight.is_contiguous(memory_format=torch.channels_last)))
        return convolution(x, weight, *rest, **settings)

    monkeypatch.setattr(extern_kernels, "convolution", looked_at)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)).eval(), torch.rand(1, 3, 6, 6)
    interleaved([model], x, **BRIEF)
    found = [u for u in runtimes.units(channel_groups(model, x), "inductor") if u.op == "convolution"]
    strides = [unit.arguments(*unit.dense)[0][0].stride() for unit in found]
    assert [stride for stride, _ in seen[:2]] == strides
    assert all(copied for _, copied in seen), "what the unit's convolution does itself"
