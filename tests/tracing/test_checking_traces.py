"""Every trace keeps the contract of docs/record.md, and one that does not is named."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from halp_fx.errors import HalpError
from halp_fx.tracing.checking import check_traced
from halp_fx.tracing.forward import all_traces, trace
from halp_fx.tracing.graph import keep, of, op
from halp_fx.tracing.tags import FromAttribute
from halp_fx.types import Record, TensorSpec, ValueRead


class Several(nn.Module):
    """An operator with several results, a constant, a buffer that is an index, and sizes that are read."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("order", torch.arange(8).flip(0))

    def forward(self, x):
        x = self.conv(x)[:, self.order]
        first, second = x.chunk(2, 1)
        return (first * torch.ones(first.shape[1], 1, 1) + second).flatten(1)


def traced():
    return trace(Several(), torch.randn(2, 3, 6, 6))


def node_of(found, name):
    return next(n for n in found.graph.nodes if op(n) == name or n.target == name)


def test_a_record_says_what_was_seen():
    found = traced()
    cut = of(node_of(found, "split"))
    assert cut.spec is None
    assert [r.shape for r in cut.results] == [(2, 4, 4, 4), (2, 4, 4, 4)]
    assert (cut.function, cut.module, cut.layer) == ("chunk", "", Several)
    assert cut.source.startswith("tracing/test_checking_traces.py:")
    order, weight = of(node_of(found, "order")), of(node_of(found, "conv.weight"))
    assert order.fixed
    assert order.known.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert (weight.trained, order.trained, weight.constant) == (True, False, False)
    assert (weight.module, weight.layer) == ("conv", nn.Conv2d)
    first = next(n for n in found.graph.nodes if n.args[1:] == (0,))
    assert of(first).one == cut.results[0]
    assert of(first).sizes_read == {1}
    assert of(list(found.graph.nodes)[-1]).spec is None
    with pytest.raises(AttributeError):
        cut.sources_read = ()  # Slotted: a misspelt field is an error.


def test_a_record_is_pickled_without_what_means_nothing_elsewhere():
    found = traced()
    node = node_of(found, "split")
    of(node).sources = frozenset({FromAttribute("", "parts")})
    again = of(node_of(pickle.loads(pickle.dumps(found)), "split"))
    assert again.sources == frozenset()
    assert [getattr(again, f) for f in Record.__slots__ if f not in ("sources", "layer")] == [
        getattr(of(node), f) for f in Record.__slots__ if f not in ("sources", "layer")
    ]


def forwards():
    class Aux(nn.Module):
        """Its head exists in train mode alone, where it fails behind a layer that nothing else reaches."""

        def __init__(self):
            super().__init__()
            self.a, self.head, self.late = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(5, 2)

        def forward(self, x):
            x = self.a(x)
            return (x, self.late(self.head(x))) if self.training else x

    yield Aux(), torch.randn(1, 3, 6, 6)
    yield nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()), torch.randn(1, 3, 6, 6)
    yield nn.LSTM(4, 6, 2), torch.randn(3, 1, 4)
    yield Several(), torch.randn(1, 3, 6, 6)
    yield torchvision.models.googlenet(init_weights=False), torch.randn(1, 3, 64, 64)


@pytest.mark.parametrize("forward", forwards(), ids=lambda row: type(row[0]).__name__)
def test_every_forward_keeps_the_contract(forward):
    traces = all_traces(*forward)
    for found in (traces.first, *traces.further):
        check_traced(found)
        check_traced(pickle.loads(pickle.dumps(found)))


def late(found):
    node_of(found, "split").args = (list(found.graph.nodes)[-2], *node_of(found, "split").args[1:])


def changed(name, **fields):
    def change(found):
        keep(node_of(found, name), replace(of(node_of(found, name)), **fields))

    return change


def spec(*shape):
    return TensorSpec.of(torch.empty(shape, device="meta"))


WRONG = {
    "late": (late, "does not come before it"),
    "none": (lambda found: node_of(found, "mul").meta.clear(), "has no record"),
    "nothing": (changed("mul", spec=None), "neither a spec nor results"),
    "both": (changed("split", spec=spec(1)), "one of them must be empty"),
    "fixed": (changed("mul", fixed=True), "its value is not known"),
    "sizes": (changed("mul", sizes_read=frozenset({7})), r"4 dimensions, of which sizes \[7\]"),
    "trained": (changed("mul", trained=True), "neither constant nor trained"),
    "results": (changed("split", results=(spec(1), spec(1))), "is not what split has as result 0"),
    "operator": (lambda found: setattr(node_of(found, "mul"), "target", print), "which is no operator"),
    "constant": (changed("order", constant=True), "called like the parameter or buffer order"),
    "shape": (changed("conv.bias", spec=spec(3)), "not of the shape and dtype of conv.bias"),
    "unknown": (lambda found: setattr(node_of(found, "conv.bias"), "target", "bias"), "the model does not have"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_record_is_named(name):
    found = traced()
    check_traced(found)
    change, message = WRONG[name]
    change(found)
    with pytest.raises(HalpError, match=message):
        check_traced(found)


def test_what_is_said_beside_the_graph_refers_to_it():
    found = traced()
    call = replace(found.calls[0], inputs=("none",))
    for wrong, message in (
        (replace(found, unused=("conv.weight",)), "said to be unused, but read"),
        (replace(found, unused=("none",)), "unused, but unknown"),
        (replace(found, reads=(ValueRead("none", "somewhere"),)), "values of none"),
        (replace(found, calls=(call,)), "deals with"),
    ):
        with pytest.raises(HalpError, match=message):
            check_traced(wrong)
