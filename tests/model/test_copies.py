"""Forwards run on copies: what they register and remember never reaches the caller's model."""

from __future__ import annotations

import copy
import types
from collections import deque

import numpy as np
import pytest
import torch
from oracle import assert_equals_twin, half_plan, randomized
from test_bad_models import Chain, image, unchanged
from torch import nn
from torch.fx.immutable_collections import immutable_list

import halp_fx
from halp_fx.model.copying import copied
from halp_fx.model.preserving import preserved

FEATURES: list[torch.Tensor] = []


@pytest.fixture(autouse=True)
def _fresh_features():
    yield
    FEATURES.clear()


class Hooking(nn.Module):
    """Installs hooks in its first run, and remembers that in an attribute."""

    def __init__(self, where):
        super().__init__()
        self.where, self.installed, self.own = where, False, []
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        kept = FEATURES if self.where == "outside" else self.own
        if not self.installed:
            for layer in (self.a, self.b):
                layer.register_forward_hook(lambda m, a, r: kept.append(r))
            self.installed = True
        kept.clear()
        self.b(self.a(x).relu())
        return self.c(sum(kept))


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran before"])
def test_hooks_that_a_forward_installs(ran):
    model, inputs = Hooking("outside").double(), image()
    if ran:
        model(inputs)
    with torch.no_grad():
        want = copy.deepcopy(model)(inputs)
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, inputs)
        halp_fx.prune(model, 0.6, inputs, latency=halp_fx.MacsCost(), progress=False)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), want)
    assert [g.name for g in coupling.prunable] == ["a"]


class Watching(nn.Module):
    """Hooks that close over the model: a copy's write to the copy."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.seen = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1), {}

        def remember(name):
            def hook(module, args, result):
                self.seen[name] = result

            return hook

        for name in "ab":
            getattr(self, name).register_forward_hook(remember(name))

    def forward(self, x):
        self.b(self.a(x).relu())
        return self.c(self.seen["a"] + self.seen["b"])


def test_hooks_that_close_over_their_model():
    model, inputs = randomized(Watching()), image()
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, inputs)
    assert model.seen == {}
    assert [(g.name, g.size) for g in coupling.prunable] == [("a", 8)]
    small = assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    model(inputs)
    assert model.seen["a"].shape[1] == 8
    small(inputs)
    assert (model.seen["a"].shape[1], small.seen["a"].shape[1]) == (8, 4)


class Calling(Watching):
    """A hook that calls functions, which close over each other, over the model, and over things that do not compare."""

    def __init__(self):
        super().__init__()
        self.odd, numbers = [], np.arange(3.0)

        def even(n):
            return odd(n - 1) if n else self.odd.append(numbers.sum())

        def odd(n):
            return even(n - 1) if n else None

        self.a.register_forward_hook(lambda module, args, result: even(2))


def test_hooks_that_call_functions_in_a_circle():
    model, inputs = randomized(Calling()), image()
    coupling = halp_fx.channel_groups(model, inputs)
    small = assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    model.odd.clear()
    small.odd.clear()
    small(inputs)
    assert (model.odd, small.odd) == ([], [3.0])


def test_containers_are_written_to_where_something_changed():
    class Full(Chain):
        def __init__(self):
            super().__init__()
            self.sizes = immutable_list([8, 8])
            self.seen, self.last, self.names, self.table = [], deque([0], 1), {"a"}, {"x": 1, "y": 2}

        def between(self, x):
            self.seen.append(x)
            self.last.append(x)
            self.names.add("b")
            self.table["x"], self.table["z"] = self.table.pop("y"), 3
            return self.b(x)

    model = Full()
    before = [copy.copy(value) for value in (model.seen, model.last, model.names, model.table)]
    with preserved(model):
        model(image().float())
    assert [model.seen, model.last, model.names, model.table] == before
    assert list(model.table) == ["x", "y"]


class Keeping(Chain):
    """Features of the last training step."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def between(self, x):
        kept = {"tensor": x, "list": [x], "nested": {"x": [(x,)]}, "object": types.SimpleNamespace(x=x)}
        self.features = kept[self.how]
        return self.b(x)


@pytest.mark.parametrize("how", ["tensor", "list", "nested", "object"])
def test_features_with_a_history(how):
    model, inputs = Keeping(how).double(), image()
    model(inputs).mean().backward()
    coupling = halp_fx.channel_groups(model, inputs)
    small = halp_fx.rewrite(model, half_plan(coupling), inputs, coupling=coupling)
    assert small(inputs).shape == (2, 2, 8, 8)


def test_a_container_that_holds_itself():
    model = Chain().double()
    model.loop = [1]
    model.loop.append(model.loop)
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, image())
    assert len(coupling.prunable) == 2
    assert halp_fx.prune(model, 0.6, image(), latency=halp_fx.MacsCost(), progress=False).halp.met


def test_autocast_does_not_hide_weights():
    model = Chain()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        couplings = [halp_fx.channel_groups(model, image(torch.float32)) for _ in range(3)]
    assert [len(c.prunable) for c in couplings] == [2, 2, 2]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_scripted_modules_stay_as_they_are(how, first):
    inner = nn.Sequential(nn.Conv2d(3 if first else 8, 8, 1), nn.ReLU()).eval().double()
    inner = (
        torch.jit.script(inner)
        if how == "script"
        else torch.jit.trace(inner, image()[:, :1].expand(-1, 3 if first else 8, -1, -1))
    )
    before = [inner] if first else [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), inner]
    model = nn.Sequential(*before, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)).double().eval()
    inputs = image()
    with torch.no_grad():
        want = model(inputs)
    coupling = halp_fx.channel_groups(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), want)
        small = halp_fx.rewrite(model, half_plan(coupling), inputs, coupling=coupling)
        twin = halp_fx.zero(model, half_plan(coupling), inputs, coupling=coupling)
        torch.testing.assert_close(small(inputs), twin(inputs))
    assert {g.name for g in coupling.prunable} == ({"1"} if first else {"0", "3"})
    if not first:
        assert "scripted_module" in coupling.frozen["1"]


def test_the_copy_of_a_graph_module_is_whole():
    """Its own `__deepcopy__` leaves out hooks, and attributes that the graph does not read."""
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(module), with_kwargs=True)
    model.note = ["kept"]
    made = copied(model)
    made(torch.rand(2, 3))
    assert seen == [made]
    assert made.note == ["kept"]
    assert made.note is not model.note
    assert next(made.parameters()) is not next(model.parameters())


def test_a_copy_is_not_compiled():
    """`Module.compile` leaves a function on the module that runs that module, and no copy."""

    def backend(graph, _):
        raise AssertionError("a copy was compiled")

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    x = image(torch.float32)
    want = model(x)
    model.compile(backend=backend)
    model[0].compile(backend=backend)
    made = copied(model)
    made[0].weight.data.zero_()
    made[0].bias.data.zero_()
    assert not made(x).any()
    torch.testing.assert_close(torch.relu(model[0].forward(x)), want)


class Odd(nn.Module):
    """What copies must keep: memory and tables that several hold, references back, and how a class is copied."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        whole = torch.arange(8.0)
        self.register_buffer("whole", whole)
        self.b.register_buffer("part", whole[2:6].view(2, 2))
        self.b.register_buffer("turned", torch.arange(6.0).view(2, 3).t())
        self.table = self.b.table = {"layer": self.a, "sizes": [4, (4, [4])], "itself": None}
        self.table["itself"] = self.table
        self.empty = self.a.empty = {}
        self.a.parent = [self]
        self.a.register_forward_hook(lambda m, args, result: None)
        self.b.weight = self.a.weight


class Counted(nn.Linear):
    def __setstate__(self, state):
        super().__setstate__(state)
        self.restored = self.weight.shape


class Bare(nn.Module):
    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "cache"}


def test_a_copy_is_that_of_deepcopy():
    model = Odd()
    model.counted, model.bare = Counted(2, 3), Bare()
    model.bare.cache = [1]
    for made in (copy.deepcopy(model), copied(model)):
        assert made.whole.untyped_storage()._cdata == made.b.part.untyped_storage()._cdata
        assert made.whole.untyped_storage()._cdata != model.whole.untyped_storage()._cdata
        made.b.part.zero_()
        assert made.whole.tolist() == [0, 1, 0, 0, 0, 0, 6, 7]
        assert (made.b.turned.stride(), made.b.part.storage_offset()) == ((1, 3), 2)
        assert made.table is made.b.table is made.table["itself"]
        assert made.table["layer"] is made.a
        assert made.table["sizes"][1][1] is not model.table["sizes"][1][1]
        assert made.empty is made.a.empty is not model.empty
        assert made.a.parent[0] is made
        assert made.b.weight is made.a.weight is not model.a.weight
        assert len(made.a._forward_hooks) == 1
        assert made.counted.restored == (3, 2)
        assert not hasattr(made.bare, "cache")
        assert torch.equal(model.whole, torch.arange(8.0))


def test_a_view_of_keys_is_copied():
    """As DeDoDe's decoder has it: `self.scales = self.layers.keys()`."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"8": nn.Conv2d(3, 8, 1), "4": nn.Conv2d(8, 2, 1)})
            self.scales = self.layers.keys()

        def forward(self, x):
            for scale in self.scales:
                x = self.layers[scale](x)
            return x

    model = Decoder()
    small = halp_fx.prune(model, {"macs": "50%"}, torch.rand(1, 3, 8, 8))
    assert small.layers["8"].out_channels == 4
    assert list(small.scales) == list(model.scales) == ["8", "4"]
