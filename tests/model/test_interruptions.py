"""Traces beside other threads, and traces that end in an exception: the model is as it was."""

from __future__ import annotations

import threading

import pytest
import torch
from oracle import randomized
from test_bad_models import Chain, image, unchanged
from torch import nn

import halp_fx
from halp_fx import TraceError
from halp_fx.tracing.graph import of


def test_other_threads_see_the_model_as_it_is():
    model, inputs = Chain().double(), image()
    with torch.no_grad():
        want = model(inputs)
    stop, wrong = threading.Event(), []

    def serve():
        with torch.no_grad():
            while not stop.is_set():
                try:
                    if not torch.equal(model(inputs), want):
                        wrong.append("another result")
                except Exception as error:
                    wrong.append(str(error))

    server = threading.Thread(target=serve)
    server.start()
    try:
        couplings = [halp_fx.channel_groups(model, inputs) for _ in range(10)]
    finally:
        stop.set()
        server.join()
    assert wrong == []
    assert all(len(c.traced.graph.nodes) == len(couplings[0].traced.graph.nodes) for c in couplings)


def test_traces_in_several_threads():
    models = [randomized(Chain()) for _ in range(3)]
    found: dict[int, list[str]] = {}

    def couple(index):
        found[index] = [g.name for _ in range(5) for g in halp_fx.channel_groups(models[index], image()).prunable]

    threads = [threading.Thread(target=couple, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(3), ["a", "b"] * 5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError], ids=lambda e: e.__name__)
def test_an_interrupted_trace(error):
    class Interrupted(Chain):
        def between(self, x):
            self.seen = x
            raise error("on purpose")

    model = Interrupted().double()
    with unchanged(model), pytest.raises(TraceError if error is ValueError else error, match="on purpose"):
        halp_fx.channel_groups(model, image())
    assert len(nn.modules.module._global_forward_hooks) == 0


def test_an_exception_that_the_forward_catches():
    """What comes afterwards belongs to the module that caught it."""

    class Failing(nn.Module):
        def forward(self, x):
            raise NotImplementedError("the fast way")

    class Catching(Chain):
        def __init__(self):
            super().__init__()
            self.fast = Failing()

        def between(self, x):
            try:
                return self.fast(x)
            except NotImplementedError:
                return self.b(x).tanh()

    traced = halp_fx.trace(Catching().double(), image())
    assert {of(n).module for n in traced.graph.nodes if str(n.target).startswith("aten.tanh")} == {""}
    assert [call.module for call in traced.calls] == ["", "a", "fast", "b", "c"]
