"""What a forward keeps for the next one: in its model, its module, its class or anywhere in the process."""

from __future__ import annotations

import contextvars
import functools
import types

import pytest
import torch
from oracle import assert_equals_twin, half_plan, randomized
from test_bad_models import Chain, image, unchanged
from torch import nn

import halp_fx
from halp_fx import ModelError
from halp_fx.tracing.leaks import emptied

TABLE: dict[object, torch.Tensor] = {}
LAST = None


@functools.lru_cache
def cached_table(_side):
    return {}


@functools.lru_cache
def cached_grid(side, dtype, device):
    return torch.linspace(-1, 1, side, dtype=dtype, device=device)


class Caching(nn.Module):
    """A grid that the forward makes once, kept in one of several places."""

    shared: dict[object, torch.Tensor] = {}  # noqa: RUF012
    grid = None

    def __init__(self, place):
        super().__init__()
        self.place, self.own, self.helper = place, {}, types.SimpleNamespace(table={})
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(9, 8, 1), nn.Conv2d(8, 2, 1)

    def made(self, x):
        return torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)

    def kept(self, x):
        if self.place == "lru_cache of tensors":
            return cached_grid(x.shape[-1], x.dtype, x.device)
        if self.place == "class attribute":
            if Caching.grid is None:
                Caching.grid = self.made(x)
            return Caching.grid
        if self.place == "global variable":
            global LAST
            if LAST is None:
                LAST = self.made(x)
            return LAST
        side = x.shape[-1]
        tables = {
            "attribute": self.own,
            "module": TABLE,
            "class": Caching.shared,
            "object": self.helper.table,
            "lru_cache": cached_table(side),
        }
        table = tables[self.place]
        if side not in table:
            table[side] = (self.made(x),) if self.place == "module" else self.made(x)
        return table[side][0] if self.place == "module" else table[side]

    def forward(self, x):
        x = self.a(x)
        grid = self.kept(x).expand(x.shape[0], 1, x.shape[2], -1)
        return self.c(self.b(torch.cat([x, grid], 1)).relu())


@pytest.fixture(autouse=True)
def _fresh_caches():
    global LAST
    yield
    TABLE.clear()
    Caching.shared.clear()
    cached_table.cache_clear()
    cached_grid.cache_clear()
    Caching.grid = LAST = None


PLACES = (
    *("attribute", "module", "class", "object", "lru_cache"),
    *("lru_cache of tensors", "class attribute", "global variable"),
)


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran before"])
@pytest.mark.parametrize("place", PLACES)
def test_caches_anywhere(place, ran):
    model, inputs = randomized(Caching(place)), image()
    if ran:
        model(inputs)
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == {"a", "b"}
    assert model(inputs).isfinite().all()
    coupling = halp_fx.channel_groups(model, inputs)  # The cache is in use now.
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)


class Tables(Caching):
    """The table is made on the CPU, whatever the device of the rest, so it has values in every recording."""

    def made(self, x):
        return torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)


class Deciding(Caching):
    """It also decides by values: it is recorded with values."""

    def forward(self, x):
        return super().forward(x if x.mean() > 9 else x.cos())


@pytest.mark.parametrize("kind", [Caching, Tables, Deciding])
@pytest.mark.parametrize("place", PLACES)
def test_what_the_first_recording_leaves_in_a_cache_is_found_by_the_next(place, kind):
    if kind is Tables and place == "lru_cache of tensors":
        pytest.skip("made by a function of its own")
    model, inputs = randomized(kind(place)), image()
    coupling = halp_fx.channel_groups(model, inputs)
    assert "b" in {g.name for g in coupling.prunable}
    for seed in range(2):
        assert_equals_twin(model, half_plan(coupling, seed), inputs, coupling)


class ByWidth(Chain):
    """A table for every width: the pruned network makes its own."""

    def between(self, x):
        if x.shape[1] not in TABLE:
            TABLE[x.shape[1]] = torch.arange(8.0)[:, None] / 4
        return self.b(x * TABLE[x.shape[1]].to(x))


def test_a_table_for_every_width():
    model, inputs = randomized(ByWidth()), image()
    coupling = halp_fx.channel_groups(model, inputs)
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    assert all(not table.is_meta for table in TABLE.values())


class CachingByDevice(Chain):
    """What is computed from a parameter is kept for each device."""

    def __init__(self):
        super().__init__()
        self.scale, self.cache = nn.Parameter(torch.rand(8) + 0.5), {}

    def between(self, x):
        if x.device not in self.cache:
            self.cache[x.device] = self.scale[:, None, None] * 2
        return self.b(x * self.cache[x.device])


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran before"])
def test_caches_by_device_are_made_again(ran):
    model, inputs = randomized(CachingByDevice()), image()
    if ran:
        with torch.no_grad():
            model(inputs)
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == {"a", "b"}
    plan = half_plan(coupling)
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
    twin.cache.clear()
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), twin(inputs))
    assert len(model.cache) == ran


def test_a_leak_that_cannot_be_mended_names_its_holder():
    class Sealed:
        __slots__ = ("_value",)

        def __setattr__(self, name, value):
            if hasattr(self, name):
                raise AttributeError(name)
            object.__setattr__(self, name, value)

    holder = Sealed()

    class Leaking(Chain):
        def between(self, x):
            if not hasattr(holder, "_value"):
                holder._value = x
            return self.b(x)

    with pytest.raises(ModelError, match=r"Sealed holds a tensor of shape \(2, 8, 8, 8\)"):
        halp_fx.channel_groups(Leaking().double(), image())


def test_entries_go_and_names_stay():
    tensor = torch.empty(2, device="meta")
    table, row, whole = {"x": tensor, "y": 1}, [tensor, 2], {"z": (tensor, 3)}
    variables = types.SimpleNamespace(value=tensor)
    found = emptied([tensor])
    assert not found.stuck
    assert (table, row, whole) == ({"y": 1}, [2], {})
    assert variables.value is None
    found.forget_names()
    assert not hasattr(variables, "value")
    found.restore_names()
    assert variables.value is None


def by_function(x):
    if not hasattr(by_function, "grid"):
        by_function.grid = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    return by_function.grid


def by_name(x):
    if "SEEN" not in globals():
        globals()["SEEN"] = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    return globals()["SEEN"]


def by_object(x):
    if not hasattr(OBJECT, "grid"):
        OBJECT.grid = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    return OBJECT.grid


def by_context(x):
    if VARIABLE.get() is None:
        VARIABLE.set(torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device))
    return VARIABLE.get()


OBJECT = types.SimpleNamespace()
VARIABLE = contextvars.ContextVar("VARIABLE", default=None)


class Asking(Chain):
    """A grid is made unless its name is there."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def between(self, x):
        return self.b(x * self.kept(x))


@pytest.mark.parametrize("kept", [by_function, by_name, by_object, by_context])
def test_names_that_were_not_there(kept):
    model, inputs = randomized(Asking(kept)), image()
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, inputs)
    assert model(inputs).isfinite().all()
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    assert not kept(inputs).is_meta


SIDE, GRID = 0, None


class Kept:
    """A table and what it is for, of a class or of an object."""

    side, grid = 0, None


KEPT, OF_SLOTS = Kept(), types.SimpleNamespace(side=0, grid=None)


def two_names(x):
    global SIDE, GRID
    if x.shape[-1] != SIDE:
        SIDE, GRID = x.shape[-1], torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    return GRID


def two_attributes(owner):
    def kept(x):
        if x.shape[-1] != owner.side:
            owner.side, owner.grid = x.shape[-1], torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
        return owner.grid

    return kept


@pytest.mark.parametrize("ran", ["with others", "with these"])
@pytest.mark.parametrize(
    "kept",
    [two_names, two_attributes(Kept), two_attributes(KEPT), two_attributes(OF_SLOTS)],
    ids=["global names", "class", "object", "namespace"],
)
def test_a_table_and_what_it_is_for(kept, ran):
    """The one goes with the other: else the next forward of the caller would find a table that is none."""
    model, inputs = randomized(Asking(kept)), image()
    kept(torch.zeros(3))  # Of another size.
    others = kept(torch.zeros(5))
    if ran == "with these":
        model(inputs)
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, inputs)
    assert model(inputs).isfinite().all()
    assert {"a", "b"} & {g.name for g in coupling.prunable}
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    assert not kept(inputs).is_meta
    assert torch.equal(kept(torch.zeros(5)), others)


class Rotating(nn.Module):
    """Attention with a table of positions kept outside of the model."""

    def __init__(self):
        super().__init__()
        self.a, self.qkv, self.out, self.c = nn.Conv2d(3, 16, 1), nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 2)
        self.heads, self.width = 4, 4

    def forward(self, x):
        table = cached_grid(x.shape[2] * x.shape[3], x.dtype, x.device)[:, None].expand(-1, self.width)
        x = self.a(x).flatten(2).transpose(1, 2)
        q, k, v = (t.view(*x.shape[:2], self.heads, self.width).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = torch.softmax((q * table) @ (k * table).transpose(2, 3), -1) @ v
        return self.c(x + self.out(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran before"])
def test_a_trial_fails_where_it_does_beside_a_cache(ran):
    """Not where the table was made afresh: then nothing could be mended (DINOv3)."""
    model, inputs = randomized(Rotating()), image()
    if ran:
        model(inputs)
    coupling = halp_fx.channel_groups(model, inputs)
    assert {"a", "qkv"} <= {g.name for g in coupling.prunable}
    small = assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    assert small.heads * small.width == 8
