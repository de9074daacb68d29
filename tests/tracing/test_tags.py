"""Tags: numbers that know from which attributes and sizes they were computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from halp_fx.tracing.forward import trace
from halp_fx.tracing.graph import of
from halp_fx.tracing.tags import FromAttribute, FromSize, active, sources_of
from halp_fx.trials.tagging import tagging

A, B = FromAttribute("", "a"), FromAttribute("", "b")


def tagged():
    model = nn.Module()
    model.a, model.b, model.row, model.flag = 6, 4, [3, 5.0, 7], True
    model.conv = nn.Conv2d(3, 8, 1)
    with tagging(model):
        assert active()
    assert not active()
    return model


COMPUTED = {
    "sum": (lambda m: m.a + m.b, 10, {A, B}),
    "from the right": (lambda m: 2 * m.a, 12, {A}),
    "quotient": (lambda m: m.a // m.b, 1, {A, B}),
    "fraction": (lambda m: m.a / m.b, 1.5, {A, B}),
    "root": (lambda m: m.b**-0.5, 0.5, {B}),
    "scaled root": (lambda m: 3 * m.b**0.5, 6.0, {B}),
    "rounded": (lambda m: round(m.a / m.b), 2, {A, B}),
    "rounded up": (lambda m: math.ceil(m.a / m.b), 2, {A, B}),
    "negative": (lambda m: -m.a, -6, {A}),
    "element": (lambda m: m.row[2], 7, {FromAttribute("", "row", 2)}),
    "other element": (lambda m: m.row[1], 5.0, set()),
    "truth": (lambda m: m.flag, True, set()),
    "what a layer's tensors imply": (lambda m: m.conv.out_channels, 8, set()),
    "in a call": (lambda m: ((slice(None, m.a), [m.b]), {"n": 1}), None, {A, B}),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_sources(name):
    compute, value, sources = COMPUTED[name]
    result = compute(tagged())
    if value is not None:
        assert result == value
    assert sources_of(result) == sources


def test_what_int_makes_is_known_again_in_the_code_that_called_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.parts = 12, 4

        def forward(self, x):
            return self.other(self.cut(x))

        def cut(self, x):
            return x.view(len(x), self.parts, int(self.width / self.parts), -1)

        def other(self, x):
            return x.reshape(3, -1)

    model, x = Net(), torch.rand(2, 12, 5)
    with tagging(model):
        nodes = [n for n in trace(model, x).graph.nodes if n.op == "call_function"]
    found = {
        name: {s for s in of(n).sources if isinstance(s, FromAttribute)} for name, n in zip("ab", nodes, strict=True)
    }
    assert found == {"a": {FromAttribute("", "width"), FromAttribute("", "parts")}, "b": set()}


def test_a_recording_knows_what_its_operators_were_given():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = 4

        def forward(self, x):
            y = x.flatten(2)
            return y.view(y.size(0), self.parts, y.shape[1] // self.parts, -1)

    model, inputs = Net(), torch.randn(2, 8, 3, 3)
    with tagging(model):
        nodes = list(trace(model, inputs).graph.nodes)
    flat, cut = (n for n in nodes if n.op == "call_function")
    attribute = FromAttribute("", "parts")
    assert of(cut).sources == {attribute, FromSize(flat.name, 0), FromSize(flat.name, 1)}
    assert of(flat).sizes_read == {0, 1}
    assert not any(of(n).sources for n in trace(Net(), inputs).graph.nodes)
