"""Models that break an assumption end in a right network, a frozen part with a reason, or a named error.

In every case the caller's model is as it was.
"""

from __future__ import annotations

import itertools
import random
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torchvision
from oracle import assert_equals_twin, half_plan, randomized
from torch import nn

import halp_fx
from halp_fx import ModelError, TraceError
from halp_fx.model.preserving import preserved


def state_of(model):
    """Everything about a model that a caller could miss, the random states included."""
    modules = list(model.modules())
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "objects": [id(p) for p in model.parameters()],
        "modes": [m.training for m in modules],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "wants gradients": [p.requires_grad for p in model.parameters()],
        "hooks": [(list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks)) for m in modules],
        "attributes": [{k for k in vars(m) if not k.startswith("_")} for m in modules],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),
    }


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@contextmanager
def unchanged(model):
    """What happens inside leaves the model as it was: mixed modes, gradients and hooks, too."""
    model.train()
    next(iter(model.children())).eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    hook = model.register_forward_hook(lambda m, a, r: None)
    before = state_of(model)
    yield
    assert_same(before, state_of(model))
    hook.remove()


class Chain(nn.Module):
    """Two convolutions; the subclasses do something to what lies between them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def between(self, x):
        return self.b(x)

    def forward(self, x):
        return self.c(self.between(self.a(x)))


def image(dtype=torch.float64):
    return torch.randn(2, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))


def coupled(model, inputs=None):
    with unchanged(model):
        return halp_fx.channel_groups(model, image() if inputs is None else inputs)


def assert_right(model, groups):
    """The groups that may shrink are these, and the result equals the twin."""
    randomized(model)
    inputs = image()
    coupling = coupled(model, inputs)
    assert {g.name for g in coupling.prunable} == set(groups), coupling.frozen
    if groups:
        with unchanged(model):
            halp_fx.rewrite(model, half_plan(coupling), inputs, coupling=coupling)
            halp_fx.zero(model, half_plan(coupling), inputs, coupling=coupling)
        assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    return coupling


class Alternating(Chain):
    """Every other call takes another layer."""

    def __init__(self):
        super().__init__()
        self.d, self.calls = nn.Conv2d(8, 8, 1), 0

    def between(self, x):
        self.calls += 1
        return (self.b if self.calls % 2 else self.d)(x)


class AlternatingForAll(Alternating):
    """As above, counted where no module knows of it."""

    count = itertools.count()

    def between(self, x):
        return (self.b if next(self.count) % 2 else self.d)(x)


class Tossing(Alternating):
    """A coin chooses the layer."""

    def between(self, x):
        return (self.b if random.random() < 0.5 else self.d)(x)


class TossingATensor(Alternating):
    def between(self, x):
        return (self.b if torch.rand(()) < 0.5 else self.d)(x)


@pytest.mark.parametrize("kind", [Alternating, AlternatingForAll, Tossing, TossingATensor])
def test_branches_that_are_not_always_taken(kind):
    """All of them shrink along, so that no later call finds a layer that does not fit."""
    model = kind().double()
    inputs = image()
    random.seed(0)
    coupling = coupled(model, inputs)
    assert len(coupling.prunable) == 2
    small = halp_fx.rewrite(model, half_plan(coupling), inputs, coupling=coupling)
    assert small.b.weight.shape == small.d.weight.shape == (4, 4, 1, 1)
    for _ in range(8):
        small(inputs)


class Selecting(Chain):
    """Channels picked by what is in the image."""

    def between(self, x):
        return x[:, x.detach().mean((0, 2, 3)).argsort()]


class Masking(Chain):
    def between(self, x):
        return self.b(x).flatten(2)[:, :, x[0, 0].flatten() > 0][..., :1, None].expand(-1, -1, 2, 2)


def test_channels_picked_by_values_are_frozen():
    coupling = assert_right(Selecting().double(), [])
    assert "sort" in coupling.frozen["a"]
    assert "test_bad_models.py" in coupling.frozen["a"]


def test_sizes_that_follow_values():
    """Positions are picked, not channels: the channels around may go."""
    model = Masking().double()
    coupling = coupled(model)
    assert {"a", "b"} >= {g.name for g in coupling.prunable}


class Decaying(Chain):
    def between(self, x):
        with torch.no_grad():
            self.b.weight.mul_(0.9)
        return self.b(x)


class DecayingData(Chain):
    def between(self, x):
        self.b.weight.data[0] *= 0.9
        return self.b(x)


@pytest.mark.parametrize("kind", [Decaying, DecayingData])
def test_a_forward_that_changes_its_parameters_is_refused(kind):
    model = kind().double()
    with (
        unchanged(model),
        pytest.raises(TraceError, match=r"changes its own parameter b.weight \(rewriting/test_bad_models.py"),
    ):
        halp_fx.channel_groups(model, image())


class Nested(Chain):
    def between(self, x):
        rows = torch.nested.as_nested_tensor([x[0].flatten(1), x[1].flatten(1)[:, :9]])
        return self.b(rows.to_padded_tensor(0.0).unflatten(2, x.shape[2:]))


def test_nested_tensors_are_refused():
    model = Nested().double()
    with (
        unchanged(model),
        pytest.raises(TraceError, match=r"makes a nested tensor \(rewriting/test_bad_models.py.*padded") as told,
    ):
        halp_fx.channel_groups(model, image())
    assert "example_inputs" not in str(told.value)
    rows = torch.nested.as_nested_tensor([image()[0], image()[1]])
    with pytest.raises(ModelError, match="nested tensor among the example inputs"):
        halp_fx.channel_groups(Chain().double(), rows)


class Asserting(Chain):
    def between(self, x):
        if x.shape[1] != 5:
            raise AssertionError
        return self.b(x)


def test_an_assertion_without_words_is_told_by_its_line():
    match = r"AssertionError at test_bad_models.py:\d+: raise AssertionError\nPass example_inputs"
    with pytest.raises(TraceError, match=match):
        halp_fx.channel_groups(Asserting().double(), image())


class Replacing(Chain):
    def between(self, x):
        self.b.weight = nn.Parameter(self.b.weight.detach() * 0.9)
        return self.b(x)


def test_a_forward_that_replaces_its_parameters():
    """The new parameter is followed back to the old one."""
    model = Replacing().double()
    coupling = coupled(model)
    with torch.no_grad(), preserved(model):
        small = halp_fx.rewrite(model, half_plan(coupling), image(), coupling=coupling).eval()
        twin = halp_fx.zero(model, half_plan(coupling), image(), coupling=coupling).eval()
        torch.testing.assert_close(small(image()), twin(image()))


def test_auxiliary_head_that_fails_in_training():
    """Inception's head needs 299 pixels; what it did until it failed shrinks along, the rest of it stays."""
    model = torchvision.models.inception_v3(weights=None, init_weights=False)
    small_image = torch.randn(1, 3, 107, 107)
    coupling = coupled(model, small_image)
    assert "train mode fails" in coupling.frozen["AuxLogits.conv0.conv"]
    assert len(coupling.prunable) > 60
    small = halp_fx.rewrite(model, half_plan(coupling), small_image, coupling=coupling)
    small.train()
    logits, auxiliary = small(torch.randn(2, 3, 299, 299))
    (logits.sum() + auxiliary.sum()).backward()


class NeedsTargets(Chain):
    """A head that only training uses, and training wants more arguments."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x, targets=None):
        if self.training:
            assert targets is not None, "targets are missing"
        x = self.between(self.a(x))
        return (self.c(x), self.head(x) - targets) if self.training else self.c(x)


def test_head_that_cannot_be_reached_freezes():
    model = NeedsTargets().double()
    coupling = coupled(model)
    assert not coupling.prunable
    assert "what reads head is not known" in coupling.frozen["b"]
    assert "targets are missing" in coupling.frozen["b"]


class Returning(Chain):
    def forward(self, x):
        return super().forward(x), x[:, :1], x.flatten(1)


def test_views_of_the_inputs_as_outputs():
    assert_right(randomized(Returning()), ["a", "b"])


def test_nan_weights():
    model = Chain()
    with torch.no_grad():
        model.b.weight[3, 0] = float("nan")
    with unchanged(model), pytest.raises(ModelError, match=r"b.weight \(shape \(8, 8, 1, 1\)\) has 1 NaN"):
        halp_fx.prune(model, 0.5, image(torch.float32), latency=halp_fx.MacsCost(), progress=False)


def test_uninitialised_lazy_module():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LazyConv2d(2, 1))
    with pytest.raises(ModelError, match=r"1.weight is not initialised yet \(a lazy module\)"):
        halp_fx.channel_groups(model, image(torch.float32))
    model(image(torch.float32))
    assert_right(model, ["0"])


def test_no_group_may_shrink():
    model = nn.Sequential(nn.Conv2d(3, 8, 1))
    with (
        unchanged(model),
        pytest.raises(ModelError, match=r"nothing in this model can be pruned\. 0: reaches the model's output"),
    ):
        halp_fx.prune(model, 0.5, image(torch.float32), latency=halp_fx.MacsCost(), progress=False)


def test_model_that_cannot_be_copied():
    class Sealed(Chain):
        def __deepcopy__(self, memo):
            raise RuntimeError("sealed")

    model = Sealed().double()
    with unchanged(model), pytest.raises(ModelError, match=r"Sealed.__deepcopy__ of 'the model' fails: sealed"):
        halp_fx.channel_groups(model, image())
    model = Chain().double()
    model.b.lock = threading.Lock()
    with unchanged(model), pytest.raises(ModelError, match=r"attribute b.lock \(lock\) must go"):
        halp_fx.channel_groups(model, image())
